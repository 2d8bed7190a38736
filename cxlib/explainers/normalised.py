"""The review's future work: normalise each class's explanation before weighing it.

``phi_t / |phi_t| - sum_s alpha_s phi_s / |phi_s|``, with the L2 norm of a class's map at the layer's own resolution.
A class whose logit row is scaled then speaks no louder. No cotangent on the logits does that, so the maps of several
classes are needed: here those of the target and of its `RIVALS` most probable rivals s, alpha being the softmax of
*their* logits alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cxlib.contrasts import without

#: How many of the most probable other classes a target is weighed against.
RIVALS = 10


class Weighing(NamedTuple):
    """Which classes' maps are needed, and how they are weighed.

    Attributes:
        classes: (B, N) class indices.
        coefficients: (B, T, N): 1 for target t, -alpha_s for its rivals s, and 0 for all others.
    """

    classes: Tensor
    coefficients: Tensor

    def cotangents(self, n_classes: int) -> Tensor:
        """(B, N, K): e_s of each class, to be pulled back for its map."""
        return F.one_hot(self.classes, n_classes)

    def __call__(self, maps: Tensor) -> Tensor:
        """From the classes' maps (B, N, h, w) to the targets' normalised contrasts (B, T, h, w)."""
        return torch.einsum("btn,bnhw->bthw", self.coefficients.to(maps), unit(maps))


def weighing(logits: Tensor, targets: Tensor, rivals: int = RIVALS) -> Weighing:
    """The weighing of each target against its most probable rivals.

    Args:
        logits: (B, K), K >= 2.
        targets: (B, T) class indices in [0, K).
        rivals: how many; all other classes where there are fewer.

    Raises:
        ValueError: there is one logit, and no other class's map to weigh.
    """
    if logits.shape[-1] < 2:
        raise ValueError("the contrast 'normalised' weighs maps of two classes or more, a head of one logit has one")
    targets = targets.to(logits.device, torch.long)
    n_classes = logits.shape[-1]
    without_t = without(logits[:, None].expand(*targets.shape, -1), targets)  # (B, T, K)
    largest = without_t.topk(min(rivals, n_classes - 1))
    coefficients = torch.zeros_like(without_t).scatter(-1, largest.indices, -largest.values.softmax(-1))
    coefficients = coefficients.scatter(-1, targets[..., None], 1.0)
    needed = torch.zeros_like(logits, dtype=torch.bool)
    for indices in (targets, largest.indices.flatten(1)):
        needed = needed.scatter(-1, indices, True)
    # The needed classes first; an image that needs fewer than another fills up with others, whose coefficients are 0.
    classes = needed.int().argsort(stable=True, dim=-1, descending=True)[:, : int(needed.sum(-1).max())]
    return Weighing(classes, coefficients.gather(-1, classes[:, None].expand(-1, targets.shape[1], -1)))


def unit(maps: Tensor) -> Tensor:
    """Maps (..., h, w) divided by their L2 norms; a map of zeros stays one."""
    peak = maps.abs().amax((-2, -1), keepdim=True)
    # By the peak first: squares of a small map would vanish in float32.
    scaled = maps / peak.where(peak > 0, 1)
    norm = scaled.square().sum((-2, -1), keepdim=True).sqrt()
    return scaled / norm.where(peak > 0, 1)
