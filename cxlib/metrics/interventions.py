"""Truth by intervention: does a map's mass lie where a change of the image moves the decision, and as much of it?

A part of an image is changed, and nothing else; what t1 loses thereby against t2 is the part's *effect*: the fall of
y_t1 - y_t2, for this network and this image. The pixels that changed are the part's region. No map enters, and the
effect is not a matter of opinion: a map for t1 is as good as its mass in the regions agrees with the effects. A map for
t2 is held against the effects with the opposite sign, a sensitivity (`gradient`) by its absolute mass.

Three measures (`agreement`), each of pairs of an image and a part:

- rank: the rank correlation of mass and effect *across images within a part*, which decides in some images and not in
  others. Within an image nearly all effects are zero, and parts differ in size.
- sign: how often the mass in the region, positive minus negative, has the effect's sign.
- found: how much of the map's mass of the effect's sign lies in the region, from 0, the region's share of the area, to
  1, what a perfect map of the same resolution reaches (`perfect`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxlib import taps
from cxlib.contrasts import Contrast
from cxlib.explainers import resized
from cxlib.explainers.together import explain_together

#: What `outcomes` says of an image; `top` is the most probable class.
OUTCOMES = ("y_t1", "y_t2", "p_t1", "p_t2", "top")


def outcomes(network: nn.Module, images: Tensor, pairs: Tensor, batch_size: int) -> Tensor:
    """Logits and probabilities of two classes, and the most probable of all: (N, 5) float64, see `OUTCOMES`.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K); `networks.fast` makes many calls faster.
        images: (N, 3, H, W) in the range that the network takes.
        pairs: (N, 2), t1 and t2 of each image.
        batch_size: images at once.
    """
    found = []
    for batch, pair in zip(images.split(batch_size), pairs.split(batch_size)):
        logits = taps.logits(network, batch).double()
        values = [logits.gather(1, pair), logits.softmax(1).gather(1, pair), logits.argmax(1, keepdim=True)]
        found.append(torch.cat(values, 1))
    return torch.cat(found)


def effects(before: Tensor, after: Tensor) -> Tensor:
    """How far y_t1 - y_t2 falls between two `outcomes` (..., 5)."""
    return (before[..., 0] - before[..., 1]) - (after[..., 0] - after[..., 1])


def mass(maps: Tensor, regions: Tensor) -> Tensor:
    """Positive and negative mass of maps inside regions: (B, P, M, 2) float64, both at least 0.

    Args:
        maps: (B, M, H, W).
        regions: (B, P, H, W) bool.

    Raises:
        ValueError: maps that are not finite, or regions of another size or type.
    """
    if maps.ndim != 4 or not maps.isfinite().all():
        raise ValueError(f"maps must be finite numbers (B, M, H, W), got {maps.dtype} {tuple(maps.shape)}")
    size = (maps.shape[0], *maps.shape[2:])
    if regions.dtype != torch.bool or regions.ndim != 4 or (regions.shape[0], *regions.shape[2:]) != size:
        told = f"got {regions.dtype} {tuple(regions.shape)} for maps {tuple(maps.shape)}"
        raise ValueError(f"regions must be bool (B, P, H, W) of the maps' size, {told}")
    values, inside = maps.flatten(2).double(), regions.flatten(2).double()
    signed = torch.stack([values.clamp(min=0), (-values).clamp(min=0)], -1)  # (B, M, HW, 2)
    return torch.einsum("bpx,bmxs->bpms", inside, signed)


def seen(values: Tensor, grid: Sequence[int]) -> Tensor:
    """Values (..., H, W) as a layer's grid (h, w) sees them, upsampled again as maps are: (..., H, W).

    Every cell takes the mean over its own footprint, the weights with which it enters the upsampled map. Of a region
    this is the perfect map of that resolution: no map is to blame that its share inside the region is below 1.
    """
    rows, columns = (
        F.interpolate(torch.eye(cells).to(values)[None], size, mode="linear", align_corners=True)[0]
        for cells, size in zip(grid, values.shape[-2:], strict=True)
    )  # (h, H) and (w, W)
    footprints = rows.sum(1)[:, None] * columns.sum(1)
    return rows.T @ ((rows @ values @ columns.T) / footprints) @ columns


def perfect(regions: Tensor, effects: Tensor, grid: Sequence[int]) -> Tensor:
    """What no map of a layer's grid (h, w) can better: each effect spread evenly over its region, as seen: (B, H, W).

    Args:
        regions: (B, P, H, W) bool.
        effects: (B, P); 0 of parts without any.
        grid: h, w.
    """
    spread = effects.double() / regions.sum((-2, -1)).clamp(min=1)
    return seen((regions * spread[..., None, None]).sum(1), grid)


class Measured(NamedTuple):
    """Positive and negative mass (the last axis) of a batch's maps, float64 on the CPU.

    Attributes:
        mass: (B, P, explainers, contrasts, 2 targets, 2), inside each part's region.
        total: (B, explainers, contrasts, 2 targets, 2), of the whole map.
        perfect: (B, P, explainers, 2), of `perfect` for t1 in each explainer's resolution, inside each region.
        perfect_total: (B, explainers, 2).
    """

    mass: Tensor
    total: Tensor
    perfect: Tensor
    perfect_total: Tensor


def measure(
    network: nn.Module,
    images: Tensor,
    leading: Tensor,
    regions: Tensor,
    effects: Tensor,
    explainers: Sequence[str],
    contrasts: Sequence[str | Contrast],
    layer: nn.Module,
) -> Measured:
    """Masses of the maps of a batch for its two most probable classes, and of the perfect ones.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K).
        images: (B, 3, H, W) in the range that the network takes.
        leading: (B, 2), t1 and t2.
        regions: (B, P, H, W) bool, the pixels that changed.
        effects: (B, P), the fall of y_t1 - y_t2; 0 of parts without any.
        explainers: names in `explainers.EXPLAINERS`.
        contrasts: as `explainers.explain` takes them.
        layer: the explanation layer.

    Raises:
        ValueError: unknown names, or a layer without a map.
    """
    everywhere = torch.ones_like(regions[:, :1])
    found = []
    for maps in explain_together(network, images, leading, explainers, contrasts, layer).maps:  # (B, C, 2, h, w) each
        best = perfect(regions, effects, maps.shape[-2:])
        every = torch.cat([resized(maps, images.shape[-2:]).double().flatten(1, 2), best[:, None]], 1)
        masses = mass(every, torch.cat([regions, everywhere], 1)).cpu()  # (B, P + 1, C 2 + 1, 2)
        of_maps = masses[:, :, :-1].unflatten(2, (len(contrasts), 2))
        found.append((of_maps[:, :-1], of_maps[:, -1], masses[:, :-1, -1], masses[:, -1, -1]))
    return Measured(*(torch.stack(values, axis) for values, axis in zip(zip(*found), (2, 1, 2, 1))))


def share(masses: Tensor, totals: Tensor, effects: Tensor, areas: Tensor) -> Tensor:
    """Share (N,) of a map's mass of the effect's sign that lies in the region; without such mass the region's area.

    Args:
        masses: (N, 2), positive and negative mass in the region, as `mass` gives them.
        totals: (N, 2), the same of the whole map.
        effects: (N,).
        areas: (N,), the region's share of the image.
    """
    sign = (effects < 0).long()[:, None]
    inside, whole = masses.gather(1, sign)[:, 0], totals.gather(1, sign)[:, 0]
    return torch.where(whole > 0, inside / whole.where(whole > 0, 1), areas)


class Agreement(NamedTuple):
    """How far masses agree with effects: `rank` in [-1, 1], `sign` in [0, 1], `found` 1 for a perfect map.

    The rank correlation is zero where either is constant.
    """

    rank: float
    sign: float
    found: float


def agreement(
    masses: Tensor, totals: Tensor, effects: Tensor, areas: Tensor, parts: Sequence[int], perfect: Tensor
) -> Agreement:
    """The three measures over N pairs of an image and a part.

    Pairs without an effect count in `rank` only: of a part that decides in some images and not in others.

    Args:
        masses: (N, 2), positive and negative mass of the image's map in the part's region, as `mass` gives them.
        totals: (N, 2), the same of the whole map.
        effects: (N,), some of them not 0.
        areas: (N,), the region's share of the image.
        parts: (N,), which part it is.
        perfect: (N,), the `share` that the `perfect` map of the image reaches.

    Raises:
        ValueError: no part has an effect.
    """
    decides = effects != 0
    if not decides.any():
        raise ValueError("no part has an effect that a map could agree with: change parts that decide")
    inside = masses[:, 0] - masses[:, 1]
    ranks = [_ranks_within(values, torch.as_tensor(parts, device=values.device)) for values in (inside, effects)]
    scale = (ranks[0].square().sum() * ranks[1].square().sum()).sqrt()
    gained = (share(masses, totals, effects, areas) - areas)[decides]
    return Agreement(
        float((ranks[0] * ranks[1]).sum() / scale) if scale > 0 else 0.0,
        float((inside.sign() == effects.sign())[decides].double().mean()),
        float(gained.mean() / (perfect - areas)[decides].mean()),
    )


def _ranks_within(values: Tensor, groups: Tensor) -> Tensor:
    """Ranks (N,) within each group, ties sharing one, minus their mean and over the group's size."""
    ranks = torch.zeros_like(values, dtype=torch.float64)
    for group in groups.unique():
        own = values[groups == group]
        below, ties = (own[:, None] > own).sum(1), (own[:, None] == own).sum(1)
        ranks[groups == group] = (below + (ties - len(own)) / 2).double() / len(own)
    return ranks
