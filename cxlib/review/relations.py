"""What the maps of one image say of each other: the sentences of sections 3.2, 3.3 and 4.3 that are about maps alone.

"Consistent", "almost complementary", "extremely similar", "fall back to": each is a correlation of two maps over the
pixels of the explanation layer, and each is put beside what it has to be read against: two classes that the image does
not show, how many rivals the target has, how sure the network is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cxlib import contrasts, taps
from cxlib.explainers.together import explain_together
from cxlib.metrics.similarity import correlation, cosine

#: Contrasts whose maps are related, and pairs of them whose maps of t1 are correlated.
CONTRASTS = ("original", "mean", "max", "weighted", "probability")
PAIRS = (("mean", "original"), ("max", "weighted"), ("weighted", "original"), ("probability", "weighted"))
#: How many other classes are drawn for an image; all their pairs count, for the correlation of one is mostly chance.
STRANGERS = 4


class Related(NamedTuple):
    """Measures of a batch, float64 on the CPU; a correlation with a constant map is 0.

    Attributes:
        between: (B, explainers, contrasts), correlation of the maps of t1 and t2.
        strangers: (B, explainers), the same of the original maps of two other classes, averaged over the pairs of a
            few that are drawn at random; NaN where the network tells fewer than four classes apart.
        residual: (B, explainers), share of the original map of t2 that no multiple of the map of t1 explains.
        alike: (B, explainers, pairs), correlation of two contrasts' maps of t1, by `PAIRS`.
        negative: (B, explainers, contrasts), share of the pixels of the map of t1 that are negative.
        rivals: (B,), effective number of t1's rivals, 1 / sum_s alpha_s^2 with the alpha of Eq. 2, from 1 to K - 1.
        p: (B, 2), the probabilities of t1 and t2.
    """

    between: Tensor
    strangers: Tensor
    residual: Tensor
    alike: Tensor
    negative: Tensor
    rivals: Tensor
    p: Tensor


def relate(
    network: nn.Module,
    images: Tensor,
    explainers: Sequence[str],
    layer: nn.Module | None,
    generators: Sequence[torch.Generator],
) -> Related:
    """Relate the maps of each image's two most probable classes.

    Args:
        network: maps images (B, 3, H, W) in [0, 1] to logits (B, K), K >= 2.
        images: (B, 3, H, W) in [0, 1].
        explainers: names in `explainers.EXPLAINERS`.
        layer: the explanation layer, as `explain` takes it.
        generators: one an image, which draws its other classes.

    Raises:
        ValueError: there is but one class, an unknown name, or a layer without a map.
    """
    logits = taps.logits(network, images).double().cpu()
    n_classes = logits.shape[1]
    if n_classes < 2:
        raise ValueError("maps of two classes are related, the network knows one")
    order = logits.argsort(dim=1, descending=True, stable=True)
    drawn = [torch.randperm(n_classes - 2, generator=generator)[:STRANGERS] for generator in generators]
    others = order.gather(1, 2 + torch.stack(drawn))  # (B, strangers)
    first, second = torch.combinations(torch.arange(others.shape[1])).unbind(1)  # their pairs
    places = {name: place for place, name in enumerate(CONTRASTS)}
    of_leading = explain_together(network, images, order[:, :2], explainers, CONTRASTS, layer).maps
    of_others = explain_together(network, images, others, explainers, ["original"], layer).maps if len(first) else []
    measured = []
    for place, maps in enumerate(of_leading):
        t1, t2 = maps.double().cpu().unbind(2)  # (B, contrasts, h, w) each
        apart = torch.full((len(images),), torch.nan, dtype=torch.float64)
        if of_others:
            originals = of_others[place][:, 0].double().cpu()  # (B, strangers, h, w)
            apart = correlation(originals[:, first], originals[:, second]).mean(1)
        measured.append(
            (
                correlation(t1, t2),
                apart,
                1 - cosine(t1[:, 0], t2[:, 0]) ** 2,
                torch.stack([correlation(t1[:, places[a]], t1[:, places[b]]) for a, b in PAIRS], -1),
                (t1 < 0).double().flatten(-2).mean(-1),
            )
        )
    alpha = contrasts.weighted(logits, order[:, 0]).clamp(max=0)  # -alpha_s, and 0 for the target
    p = logits.softmax(1).gather(1, order[:, :2])
    between, strangers, residual, alike, negative = (torch.stack(values, 1) for values in zip(*measured))
    return Related(between, strangers, residual, alike, negative, 1 / (alpha**2).sum(1), p)
