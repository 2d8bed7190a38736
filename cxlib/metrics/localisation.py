"""Localisation with a truth: does a map's mass lie in the parts that tell the two most probable classes apart?

An image shows one bird. Its two most probable classes t1 and t2 differ in known parts, and these are one region R of
the image for both: only what is seen there can speak for the one and against the other. So a map for t1 is judged by
its positive and by its negative mass, each on its own, and so is the map for t2; always against the same R.

Which sign the truth wants follows from the image's label. If the label is t1, the parts in R are t1's: evidence *for*
t1, and *against* its counterpart t2. Then the positive mass of the map for t1 and the negative mass of the map for t2
belong in R. If the label is t2, it is the other way round. If the label is neither, the image cannot say whose parts it
shows, though R is still where the two differ: the network's own order is taken, as if the label were t1. This mass is
called the *evidence* (`evidence_signs`). A gradient at the input is a sensitivity: its sign says whether a brighter
pixel would raise the logit, not whether the pixel that is there does. Its evidence is its absolute mass.

For each mass m >= 0 (the positive part of the map, of its negative, or its absolute value):

- share: the sum of m inside R over the sum of m, to be held against R's share of the image's area. The primary measure
  is their difference, share - area (*gain*): 0 for a map that does not look at the image, at most 1 - area. A ratio
  would be ruled by the smallest regions, and in a difference between two maps of one image the area falls out.
- hit: the pointing game, 1 when the peak of m lies inside R; between peaks of the same height, their mean.

A map without any mass of the sign says no more than a uniform one, and is measured as such: both its share and its hit
are the area. Such maps are counted (`silent`).

The controls: a centred Gaussian (`gaussian`), which knows where birds are and nothing else; and the targets exchanged,
that is the map for t2 measured as if it were the map for t1, and the other way round. It says whether the map knows
*which* of the two classes the parts speak for.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cxlib.contrasts import Contrast
from cxlib.explainers import gradient, resized
from cxlib.explainers.together import explain_together

TARGETS = ("t1", "t2")
SIGNS = ("positive", "negative", "absolute")


class Measured(NamedTuple):
    """Shares and hits in [0, 1], float64, and whether there was no mass; the last axis is `SIGNS`."""

    share: Tensor
    hit: Tensor
    silent: Tensor


def measure(maps: Tensor, regions: Tensor) -> Measured:
    """Share inside the region, and pointing game, of a map's positive, negative and absolute mass.

    Args:
        maps: (..., H, W).
        regions: (..., H, W) bool, which broadcast against the maps.

    Returns:
        (..., 3) each.

    Raises:
        ValueError: maps that are not finite or have no pixels, or regions of another size or type.
    """
    if maps.ndim < 2 or 0 in maps.shape[-2:] or not maps.is_floating_point() or not maps.isfinite().all():
        raise ValueError(f"maps must be finite numbers (..., H, W), got {maps.dtype} {tuple(maps.shape)}")
    if regions.dtype != torch.bool or regions.shape[-2:] != maps.shape[-2:] or not _fit(regions.shape, maps.shape):
        told = f"got {regions.dtype} {tuple(regions.shape)} for maps {tuple(maps.shape)}"
        raise ValueError(f"regions must be bool (..., H, W) that broadcast against the maps, {told}")
    results = []
    for mass in (maps.clamp(min=0), (-maps).clamp(min=0), maps.abs()):
        highest = mass.amax((-2, -1), keepdim=True)
        heard = torch.where(highest > 0, mass, 1)
        peaks = mass == highest
        shares = (
            (weight * regions).sum((-2, -1), dtype=torch.float64) / weight.sum((-2, -1), dtype=torch.float64)
            for weight in (heard, peaks)
        )
        results.append((*shares, (highest == 0).squeeze((-2, -1))))
    return Measured(*(torch.stack(values, -1) for values in zip(*results)))


def _fit(first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether two shapes broadcast."""
    return all(a == b or 1 in (a, b) for a, b in zip(reversed(first), reversed(second)))


def evidence_signs(leading: Tensor, labels: Tensor, explainers: Sequence[str]) -> Tensor:
    """Which mass the truth wants in the region: (B, explainers, 2) indices into `SIGNS`, for the maps of t1 and t2.

    Args:
        leading: (B, 2), t1 and t2.
        labels: (B,).
        explainers: names in `explainers.EXPLAINERS`.
    """
    shows_t2 = (labels == leading[:, 1]).long()
    signed = torch.stack([shows_t2, 1 - shows_t2], 1)
    unsigned = torch.full_like(signed, SIGNS.index("absolute"))
    return torch.stack([unsigned if explainer in gradient.MAPS else signed for explainer in explainers], 1)


def gaussian(image_size: int, sigma: float) -> Tensor:
    """The control that knows where birds are and nothing else: a centred Gaussian (S, S).

    Args:
        image_size: S.
        sigma: standard deviation as a share of the side.

    Raises:
        ValueError: sigma is not finite and above 0.
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"the standard deviation of the Gaussian must be finite and above 0, got {sigma}")
    distance = (torch.arange(image_size, dtype=torch.float64) + 0.5) / image_size - 0.5
    line = (-0.5 * (distance / sigma) ** 2).exp()
    return line[:, None] * line


def localise(
    network: nn.Module,
    images: Tensor,
    leading: Tensor,
    regions: Tensor,
    explainers: Sequence[str],
    contrasts: Sequence[str | Contrast],
    layer: nn.Module,
) -> Measured:
    """Measure the maps of a batch for its two most probable classes.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K).
        images: (B, 3, H, W) in the range that the network takes.
        leading: (B, 2), t1 and t2.
        regions: (B, H, W) bool, where they differ.
        explainers: names in `explainers.EXPLAINERS`.
        contrasts: as `explainers.explain` takes them.
        layer: the explanation layer.

    Returns:
        (B, explainers, contrasts, 2 targets, 3 signs) each, on the CPU.

    Raises:
        ValueError: unknown names, or a layer without a map.
    """
    results = []
    for maps in explain_together(network, images, leading, explainers, contrasts, layer).maps:
        results.append(measure(resized(maps, images.shape[-2:]), regions[:, None, None]))
    return Measured(*(torch.stack(values, 1).cpu() for values in zip(*results)))
