"""The judges of the leaderboard that need nothing painted: each looks at the same maps of the same images."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cxlib import networks
from cxlib.explainers import explain, resized
from cxlib.explainers.together import explain_together
from cxlib.metrics import cost, curves, localisation, randomisation, similarity

#: The axes of `Judged.areas`, from the last: what is followed, which way, and in which map's order.
FOLLOWED, WAYS, ORDERS = ("lead", "relative_probability"), ("insertion", "deletion"), ("own", "shifted")
#: What has new parameters: the classifier, or the whole network.
RANDOMISED = ("head", "all")


class Judged(NamedTuple):
    """What the judges say of a batch's maps by E explainers under C contrasts, float64 on the CPU.

    Attributes:
        areas: (B, E, C, 2 orders, 2 ways, 2 followed), areas under the curves of y_t1 - y_t2 and of its sigmoid, as
            pixels come or go in the order of t1's map, or of the same map moved to another place.
        share: (B, E, C, 2 targets, 3 signs), mass in the region, as `localisation.measure` has it.
        alike: (B, E, C), correlation of the maps of t1 and t2.
        randomised: (B, E, C, 2), rank correlation of t1's map with that of the network with new parameters.
        silent: likewise, whether the latter is zero throughout, so that there is nothing to correlate.
    """

    areas: Tensor
    share: Tensor
    alike: Tensor
    randomised: Tensor
    silent: Tensor


def judge(
    network: nn.Module,
    images: Tensor,
    leading: Tensor,
    regions: Tensor,
    explainers: Sequence[str],
    contrasts: Sequence[str],
    layer: str | None,
    steps: int,
    seed: int,
) -> Judged:
    """Ask every judge of every explainer and contrast.

    Args:
        network: maps images (B, 3, H, W) in [0, 1] to logits (B, K).
        images: (B, 3, H, W).
        leading: (B, 2), t1 and t2.
        regions: (B, H, W) bool, where they differ.
        explainers: names in `explainers.EXPLAINERS`.
        contrasts: names, as `explainers.explain` takes them.
        layer: the name of the explanation layer, or None for the network's own.
        steps: of the curves.
        seed: of the new parameters.

    Raises:
        ValueError: unknown names, a layer without a map, or too few steps.
    """

    def explained(quick: nn.Module, targets: Tensor) -> Tensor:
        maps = explain_together(quick, images, targets, explainers, contrasts, layer).maps  # (B, C, T, h, w) each
        return torch.stack([resized(own, images.shape[-2:]) for own in maps]).movedim(1, 2)  # (E, C, B, T, H, W)

    def fast(by: nn.Module) -> nn.Module:
        return networks.fast(by, networks.explanation_layer(by, layer))

    t1, t2 = leading.unbind(1)
    quick = fast(network)
    maps = explained(quick, leading)
    first, second = maps.unbind(3)
    half, areas = [side // 2 for side in images.shape[-2:]], []
    for own in first:  # the curves of one explainer at a time, to bound the memory
        ordered = torch.cat([own, own.roll(half, (-2, -1))])
        followed = curves.insertion_deletion(quick, images, ordered, t1, t2, steps=steps, chunk=2 * len(images))
        leads = torch.stack([followed.insertion, followed.deletion], -2)  # (2 C, B, 2 ways, steps + 1)
        areas.append(curves.area(torch.stack([leads, leads.sigmoid()], -2)).unflatten(0, (len(ORDERS), -1)))
    parts = randomisation.blocks(network)
    likeness, silent = [], []
    for _part, renewed in randomisation.randomised(network, seed, [parts[-1], parts[0]]):
        others = explained(fast(renewed), t1[:, None]).squeeze(3)
        likeness.append(similarity.rank_correlation(first, others))
        silent.append((others == 0).flatten(-2).all(-1))
    return Judged(
        torch.stack(areas).permute(3, 0, 2, 1, 4, 5),
        localisation.measure(maps.permute(2, 0, 1, 3, 4, 5), regions[:, None, None, None]).share.cpu(),
        similarity.correlation(first, second).permute(2, 0, 1).cpu(),
        torch.stack(likeness, -1).permute(2, 0, 1, 3).cpu(),
        torch.stack(silent, -1).permute(2, 0, 1, 3).cpu(),
    )


def costs(
    network: nn.Module, image_size: int, explainers: Sequence[str], contrasts: Sequence[str], layer: str | None
) -> Tensor:
    """Forward passes that one map of one image is worth, (E, C) float64; of a grey image, for all cost the same.

    Args and raises as `judge`.
    """
    grey = torch.full((1, 3, image_size, image_size), 0.5, device=next(network.parameters()).device)
    target = torch.zeros(1, dtype=torch.long, device=grey.device)
    asked = [
        [
            partial(explain, targets=target, explainer=explainer, contrast=contrast, layer=layer)
            for contrast in contrasts
        ]
        for explainer in explainers
    ]
    return torch.tensor([[cost.passes(network, grey, one) for one in row] for row in asked], dtype=torch.float64)
