"""Contrastive insertion and deletion: how y_t - y_other moves as pixels come or go in a map's order.

Insertion and deletion (Petsiuk et al., RISE, BMVC 2018) follow the probability of one class. But a map that says why t
*and not another class* is to be judged by the difference of the two logits, or by their relative probability
sigmoid(y_t - y_other), which no third class enters.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cxlib import taps
from cxlib.contrasts import check_targets
from cxlib.explainers import resized
from cxlib.metrics.baselines import Baseline, Blur, fills
from cxlib.metrics.masking import ascending_ranks
from cxlib.metrics.similarity import check_maps
from cxlib.networks import fast


class Curves(NamedTuple):
    """What follows the pixels; the sigmoid of a curve is that of the relative probability, `area` its area.

    Attributes:
        shares: (S + 1,), the share of the pixels that came or went, from 0 to 1.
        insertion: (..., S + 1) float64, y_t - y_other as the highest pixels of a map come to a baseline: a good map's
            area is large.
        deletion: (..., S + 1), as they give way to it: a good map's area is small.
    """

    shares: Tensor
    insertion: Tensor
    deletion: Tensor


def insertion_deletion(
    network: nn.Module,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    others: Tensor,
    baseline: str | Baseline = "gaussian_blur",
    steps: int = 10,
    chunk: int = 16,
    blur: Blur | None = None,
) -> Curves:
    """Curves of anybody's maps, which may be of any size and are upsampled to the images'.

    At step i of S round(i/S H W) pixels have come or gone, the highest first; ties keep the pixels' order. The ends,
    which all maps of an image share, are evaluated once: 2 + 2 (S - 1) M evaluations for M maps of an image.

    Args:
        network: maps images (B, 3, H, W) in [0, 1] to logits (B, K).
        images: (B, 3, H, W) in [0, 1].
        maps: as `explain` gives them: (B, h, w) for targets (B,), (B, T, h, w) for targets (B, T), or with one more
            axis ahead for a list of contrasts.
        targets: (B,) or (B, T), the class t that each map speaks for.
        others: likewise, the class that it speaks against.
        baseline: a name in `baselines.BASELINES`, or a function like those.
        steps: S, at least 1.
        chunk: how many changed images are evaluated at once, which bounds the memory.
        blur: of `gaussian_blur`; None takes as much of the image as the published one of 224 x 224.

    Returns:
        (..., S + 1) on the CPU, where ... are the maps' axes before h and w.

    Raises:
        ValueError: maps, targets or others that do not fit the images or one another, an unknown baseline, or too few
            steps.
    """
    check_maps(maps)
    lead = maps.shape[: max(0, maps.ndim - 2 - targets.ndim)]
    fit = targets.ndim in (1, 2) and others.shape == targets.shape == maps.shape[len(lead) : -2]
    if not fit or len(lead) > 1 or len(targets) != len(images):
        got = ", ".join(str(tuple(values.shape)) for values in (images, maps, targets, others))
        raise ValueError(
            f"maps (B, h, w) need targets and others (B,), maps (B, T, h, w) both (B, T); got, with images, {got}"
        )
    if steps < 1 or chunk < 1:
        raise ValueError(f"curves need one step and one image at once, or more; got {steps} and {chunk}")
    n_images, n_targets = len(images), targets[0].numel()
    size = images.shape[-2:]
    (fill,) = fills(network, images, [baseline], Blur().at(min(size)) if blur is None else blur)
    by_image = maps.reshape(-1, n_images, n_targets, *maps.shape[-2:]).transpose(0, 1)  # (B, C, T, h, w)
    # Of 0 the highest pixel, in maps (B, C * T, H, W); ties keep the pixels' order.
    ranks = ascending_ranks(-resized(by_image.flatten(1, 2).to(images), size))
    pairs = torch.cat(
        [of_image.reshape(n_images, -1).to(images.device, torch.long) for of_image in (targets, others)], 1
    )
    counts = torch.tensor([round(step / steps * size.numel()) for step in range(steps + 1)], device=images.device)
    # What is evaluated: image, map, whether pixels go, step. First the ends, of which every map reads its pair.
    places, directions = torch.arange(n_images), torch.arange(2)
    ends = torch.cartesian_prod(places, torch.arange(1), directions, torch.arange(1))
    between = torch.cartesian_prod(places, torch.arange(ranks.shape[1]), directions, torch.arange(1, steps)).view(-1, 4)
    evaluated, leads = fast(network), list[Tensor]()
    for part in torch.cat([ends, between]).to(images.device).split(chunk):
        place, which, goes, step = part.unbind(1)
        shown = (ranks[place, which] < counts[step, None, None]) ^ goes.bool()[:, None, None]
        changed = torch.where(shown[:, None], images[place], fill(place, ~shown))
        logits = taps.logits(evaluated, changed)
        if not leads:
            check_targets(pairs, n_images, logits.shape[1])
        y_t, y_other = logits.double().gather(1, pairs[place]).cpu().chunk(2, 1)
        leads.append(y_t - y_other)  # (n, T)
    at_ends, inside = torch.cat(leads).split([len(ends), len(between)])
    none, every = at_ends.view(n_images, 2, 1, n_targets, 1).expand(-1, -1, by_image.shape[1], -1, -1).unbind(1)
    own = inside.gather(1, between[:, 1:2] % n_targets)  # each map's own pair
    inserted, deleted = own.view(*by_image.shape[:3], 2, steps - 1).unbind(-2)
    curves = [
        torch.cat(parts, -1) for parts in ((none, inserted, every), (every, deleted, none))
    ]  # (B, C, T, S + 1) each
    insertion, deletion = (curve.transpose(0, 1).reshape(*maps.shape[:-2], steps + 1) for curve in curves)
    shares = torch.arange(steps + 1, dtype=torch.float64) / steps
    return Curves(shares, insertion, deletion)


def area(curve: Tensor) -> Tensor:
    """Area under curves (..., S + 1) over shares from 0 to 1 in equal steps, by the trapezoidal rule: (...)."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[-1] - 1), dim=-1)
