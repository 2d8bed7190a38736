"""A contrast is a cotangent on the logits: the vector from which back-propagation starts.

Each function maps logits ``y`` (N, K) and target classes ``t`` (N,) to cotangents (N, K); it never
differentiates anything, so every contrast composes with every explainer. Equation numbers are those of
the reproducibility review of "Why Not Other Classes?".
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from cxlib import runtime

Contrast = Callable[[Tensor, Tensor], Tensor]


def original(logits: Tensor, targets: Tensor) -> Tensor:
    """Plain logit back-propagation: e_t."""
    return F.one_hot(targets, logits.shape[-1]).to(logits.dtype)


def mean(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean contrast: e_t - 1/(K-1) sum_{s != t} e_s. The coefficients sum to zero."""
    e_t = original(logits, targets)
    return e_t - (1 - e_t) / (logits.shape[-1] - 1)


def max(logits: Tensor, targets: Tensor) -> Tensor:  # noqa: A001 - the contrast's name in the paper
    """Max contrast: e_t - e_{s*}, s* = argmax_{s != t} y_s."""
    return original(logits, targets) - original(logits, _without(logits, targets).argmax(-1))


def weighted(logits: Tensor, targets: Tensor) -> Tensor:
    """Weighted contrast, Eq. 1 and 2: e_t - sum_{s != t} alpha_s e_s, alpha = softmax of y with t removed.

    The closed form keeps its direction where p_t rounds to 1, unlike the gradient of the softmax.
    """
    return original(logits, targets) - _without(logits, targets).softmax(-1)


def probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Back-propagation from the softmax neuron p_t, Eq. 4: p_t (e_t - p) = p_t (1 - p_t) weighted.

    The arithmetic is that of the softmax gradient, so that its saturation in float32 can be studied: the
    target's own coefficient is lost once p_t rounds to 1, and everything is lost once p_t rounds to 0.
    """
    p = logits.softmax(-1)
    p_t = p.gather(-1, targets[:, None])
    return p_t * (original(logits, targets) - p)


CONTRASTS: dict[str, Contrast] = {
    "original": original,
    "mean": mean,
    "max": max,
    "weighted": weighted,
    "probability": probability,
}

#: The one contrast that is no cotangent, for it weighs the classes' maps: see `explainers.normalised`.
NORMALISED = "normalised"


def cotangent(contrast: str | Contrast, logits: Tensor, targets: Tensor) -> Tensor:
    """The cotangent on the logits from which a contrast starts back-propagation.

    Args:
        contrast: a name in `CONTRASTS`, or a function from (N, K) logits and (N,) targets to (N, K).
        logits: (B, K), K >= 2.
        targets: (B,) or (B, T) class indices in [0, K).

    Returns:
        (B, K) for targets (B,), (B, T, K) for targets (B, T), in the logits' dtype.

    Raises:
        ValueError: unknown contrast, fewer than two classes, or targets of the wrong shape or range.
    """
    function = resolve(contrast)
    if logits.ndim != 2 or logits.shape[-1] < 2:
        raise ValueError(f"a contrast needs logits (B, K) with K >= 2, got shape {tuple(logits.shape)}")
    check_targets(targets, *logits.shape)
    targets = targets.to(logits.device, torch.long)
    if targets.ndim == 1:
        return function(logits, targets)
    repeated = logits[:, None].expand(*targets.shape, -1)  # (B, T, K)
    return function(repeated.flatten(0, 1), targets.flatten()).view_as(repeated)


def resolve(contrast: str | Contrast) -> Contrast:
    """The function behind a contrast's name; a function is returned as it is.

    Raises:
        ValueError: no contrast has this name, or it is the one that is no cotangent.
    """
    if callable(contrast):
        return contrast
    if contrast == NORMALISED:
        raise ValueError(f"{contrast!r} contrasts maps, so it is no cotangent on the logits: explain() takes it")
    runtime.check_name("contrast", contrast, CONTRASTS)
    return CONTRASTS[contrast]


def check_targets(targets: Tensor, n_images: int, n_classes: int) -> None:
    """Check targets (B,) or (B, T) against the logits' shape (B, K).

    Raises:
        ValueError: wrong shape, wrong dtype or an index outside [0, K).
    """
    if targets.ndim not in (1, 2) or len(targets) != n_images:
        raise ValueError(f"targets must be ({n_images},) or ({n_images}, T), got shape {tuple(targets.shape)}")
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(f"targets must be class indices, got {targets.dtype}")
    if targets.numel() and not (int(targets.min()) >= 0 and int(targets.max()) < n_classes):
        raise ValueError(f"targets must lie in [0, {n_classes}), got {int(targets.min())} to {int(targets.max())}")


def _without(logits: Tensor, targets: Tensor) -> Tensor:
    """The logits with the target class removed from every maximum and every softmax."""
    return logits.scatter(-1, targets[:, None], -torch.inf)
