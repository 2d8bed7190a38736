"""Linear imputation: what hidden pixels would be if each were a weighted mean of its eight neighbours.

The equations of ROAD (Rong et al., ICML 2022, section 5): direct neighbours weigh twice as much as diagonal ones, and
beyond the image's edge there are none. The authors solve them directly, an image and a mask at a time. Here they are
solved for a batch of masks at once, on any device, by conjugate gradients, whose preconditioner is one V-cycle of
multigrid: about ten iterations, whatever the mask.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Of weighted Jacobi, the cycle's smoother.
_DAMPING = 0.8
# Several times what any mask took: what is not finite never converges.
_MOST_ITERATIONS = 100


class _Level(NamedTuple):
    """A grid: where pixels are hidden (N, 1, h, w), 1 or 0, and the sum of each pixel's weights (1, 1, h, w)."""

    hidden: Tensor
    weight: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """The equations' left-hand side, of x (N, C, h, w), in the hidden pixels."""
        return self.hidden * (self.weight * x - _neighbours(x))


def linear_imputation(images: Tensor, hidden: Tensor, tolerance: float = 5e-4) -> Tensor:
    """Images whose hidden pixels are the weighted means of their neighbours, hidden ones among them.

    Where every pixel of an image is hidden, all are its mean colour: any colour would solve the equations.

    Args:
        images: (N, C, H, W).
        hidden: (N, H, W) bool.
        tolerance: the iteration ends when its estimate of the largest error of an image's pixels is below this.

    Returns:
        (N, C, H, W) in float32 at least; what is seen is as it was.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    mask = hidden[:, None].to(images)
    levels, seen = _levels(mask), 1 - mask
    n_seen = seen.sum((-2, -1), keepdim=True)
    colour = (images * seen).sum((-2, -1), keepdim=True) / n_seen.clamp(min=1)
    colour = torch.where(n_seen > 0, colour, images.mean((-2, -1), keepdim=True))
    x = torch.where(mask > 0, colour, images)
    residual, direction, energy = -levels[0].apply(x), torch.zeros_like(x), torch.ones_like(colour)
    tiny = torch.finfo(x.dtype).tiny
    for _ in range(_MOST_ITERATIONS):
        correction = _cycle(residual, levels)
        # An image that is done stays as it is while others go on: a batch gives what single images give.
        active = correction.abs().amax((1, 2, 3), keepdim=True) > tolerance
        if not active.any():
            break
        before, energy = energy, (residual * correction).sum((-2, -1), keepdim=True)
        direction = correction + energy / before.clamp(min=tiny) * direction
        applied = levels[0].apply(direction)
        step = active * energy / (direction * applied).sum((-2, -1), keepdim=True).clamp(min=tiny)
        x = x + step * direction
        residual = residual - step * applied
    return torch.where(mask > 0, x + correction, images)


def _neighbours(x: Tensor) -> Tensor:
    """The weighted sum of the eight neighbours (N, C, h, w): 1/6 of each direct one, 1/12 of each diagonal one."""
    rows = 2 * x
    rows[..., 1:, :] += x[..., :-1, :]
    rows[..., :-1, :] += x[..., 1:, :]
    both = 2 * rows
    both[..., 1:] += rows[..., :-1]
    both[..., :-1] += rows[..., 1:]
    return both.sub_(x, alpha=4).div_(12)  # [1 2 1] down and across, without the centre


def _levels(hidden: Tensor) -> list[_Level]:
    """The image's grid, and grids of half the size each: four pixels are hidden together, or not at all."""
    levels = []
    while True:
        levels.append(_Level(hidden, _neighbours(torch.ones_like(hidden[:1]))))
        if min(hidden.shape[-2:]) <= 4:
            return levels
        hidden = (F.avg_pool2d(_even(hidden, 1.0), 2) == 1).to(hidden)


def _even(x: Tensor, value: float) -> Tensor:
    """Sides made even with this value."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, width % 2, 0, height % 2), value=value) if height % 2 or width % 2 else x


def _cycle(residual: Tensor, levels: list[_Level]) -> Tensor:
    """One V-cycle: an approximate solution for this residual, symmetric and positive, as a preconditioner has to be."""
    level, *coarser = levels
    x = _DAMPING * residual / level.weight
    for _ in range(1 if coarser else 4):
        if coarser:
            left = 4 * F.avg_pool2d(_even(residual - level.apply(x), 0.0), 2) * coarser[0].hidden
            up = F.interpolate(_cycle(left, coarser), scale_factor=2.0)
            x = x + up[..., : x.shape[-2], : x.shape[-1]] * level.hidden
        x = x + _DAMPING * (residual - level.apply(x)) / level.weight
    return x
