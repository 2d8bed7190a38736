"""How alike are two maps? Signed maps: an evidence against a class is not one for it.

Every measure takes maps (..., H, W) that broadcast against each other, and gives (...), float64 on their device.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

#: The side of SSIM's square window, and its two constants, as Wang et al. (2004) and scikit-image have them.
WINDOW, K_1, K_2 = 7, 0.01, 0.03


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of the angle of two maps: 0 where either is zero."""
    return _cosine(x.double().flatten(-2), y.double().flatten(-2))


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation over the pixels of two maps: 0 where either is constant."""
    # A map that is constant up to rounding is constant.
    centred = []
    for values in (x.double().flatten(-2), y.double().flatten(-2)):
        mean = values.mean(-1, keepdim=True)
        spread = values - mean
        constant = spread.abs().amax(-1, keepdim=True) <= 1e-6 * values.abs().amax(-1, keepdim=True)
        centred.append(torch.where(constant, 0, spread))
    return _cosine(*centred)


def rank_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's correlation over the pixels of two maps, ties by their mean rank: 0 where either is constant."""
    return correlation(_mean_ranks(x), _mean_ranks(y))


def absolute_rank_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's correlation of the maps' absolute values, which cannot tell a map from its inverse."""
    return rank_correlation(x.abs(), y.abs())


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) in uniform windows of 7 x 7, of maps as pictures in which 0 is grey.

    Each map is divided by its largest absolute value and brought from [-1, 1] to [0, 1]. Of the signed values
    themselves SSIM would be high for a map and its inverse: their local means and their covariance both change sign.

    Raises:
        ValueError: a side is shorter than the window.
    """
    if min(x.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs maps of {WINDOW} x {WINDOW} pixels or more, got {tuple(x.shape[-2:])}: upsample")
    x, y = torch.broadcast_tensors(*(_pictures(values.double()) for values in (x, y)))
    stacked = torch.stack([x, y, x * x + y * y, x * y])
    windows = F.avg_pool2d(stacked.reshape(-1, 1, *x.shape[-2:]), WINDOW, stride=1)
    mean_x, mean_y, squares, product = windows.view(4, *x.shape[:-2], *windows.shape[-2:])
    sample = WINDOW**2 / (WINDOW**2 - 1)  # from means over the window to unbiased variances
    variances = sample * (squares - mean_x**2 - mean_y**2)
    covariance = sample * (product - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + K_1**2) / (mean_x**2 + mean_y**2 + K_1**2)
    local: Tensor = luminance * (2 * covariance + K_2**2) / (variances + K_2**2)
    return local.mean((-2, -1))


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "correlation": correlation,
    "rank_correlation": rank_correlation,
    "absolute_rank_correlation": absolute_rank_correlation,
    "ssim": ssim,
}


class TargetSensitivity(NamedTuple):
    """How alike the maps of two targets are, (...) each, from -1 (inverse) to 1 (the same up to its scale).

    Attributes:
        correlation: Pearson's.
        rank_correlation: Spearman's.
        explained: the share of one map's energy (sum of squares) that a multiple of the other explains; negative where
            that multiple is. ``1 - |explained|`` is what only this target's map says.
    """

    correlation: Tensor
    rank_correlation: Tensor
    explained: Tensor


def target_sensitivity(maps: Tensor, others: Tensor) -> TargetSensitivity:
    """Does a map change when its target does? Near 1 it shows where something is, whatever class is asked for.

    Args:
        maps: (..., H, W) of one target.
        others: (..., H, W) of another target.

    Raises:
        ValueError: maps of two sizes, or that are not finite.
    """
    check_maps(maps)
    check_maps(others)
    if maps.shape != others.shape:
        raise ValueError(f"two targets need maps of one shape, got {tuple(maps.shape)} and {tuple(others.shape)}")
    angle = cosine(maps, others)
    return TargetSensitivity(correlation(maps, others), rank_correlation(maps, others), angle * angle.abs())


def check_maps(maps: Tensor) -> None:
    """Raise a ValueError where these are no finite maps (..., H, W)."""
    if maps.ndim < 2 or 0 in maps.shape or not maps.is_floating_point() or not maps.isfinite().all():
        raise ValueError(f"maps must be finite numbers (..., H, W), got {maps.dtype} {tuple(maps.shape)}")


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    scale = x.norm(dim=-1) * y.norm(dim=-1)
    return torch.where(scale > 0, (x * y).sum(-1) / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0)


def _pictures(maps: Tensor) -> Tensor:
    largest = maps.abs().amax((-2, -1), keepdim=True)
    return (1 + maps / torch.where(largest > 0, largest, 1)) / 2


def _mean_ranks(maps: Tensor) -> Tensor:
    """Rank of each pixel within its map, float64; pixels of one value share their mean rank."""
    ascending, order = maps.flatten(-2).sort(-1)
    place = torch.arange(order.shape[-1], device=maps.device).expand_as(order)
    differs = ascending.diff(dim=-1) != 0
    first = torch.where(F.pad(differs, (1, 0), value=True), place, 0).cummax(-1).values
    last = torch.where(F.pad(differs, (0, 1), value=True), place, place.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    return (
        torch.empty_like(ascending, dtype=torch.float64)
        .scatter_(-1, order, (first + last).double() / 2)
        .view(maps.shape)
    )
