"""A contrast is a cotangent on the logits: the vector from which back-propagation starts.

Each function maps logits ``y`` (N, K) and target classes ``t`` (N,) to cotangents (N, K); it never
differentiates anything, so every contrast composes with every explainer. Equation numbers are those of
the reproducibility review of "Why Not Other Classes?".

Heads without a softmax:

- *One logit* (a sigmoid, two classes): y is the log-odds of class 1 against class 0, so it is a contrast already.
  Its contrasts are those of the pair of logits (0, y), whose softmax is the sigmoid: `original`, `mean`, `max`,
  `weighted` and `finer` are +1 for target 1 and -1 for target 0, `probability` and `log_probability` the same
  direction scaled by the gradient of p_t and log p_t.
- *Many labels* (a sigmoid for each): labels do not exclude each other, so "not the others" does not follow from "this
  one". The question has two readings. "Why label t rather than no t?" is `original`, for y_t is the log-odds of t
  against its absence. "Why label t rather than label s?" is a difference of log-odds: `finer` with strength 1 and
  chosen classes, `groups`, `mean` and `max` ask it; `weighted` does too, its alpha then weighs the other labels
  by their odds. `probability` and `log_probability` belong to a softmax and mean nothing here: logits do not
  say which head they come from, so it is for the caller not to ask.
"""

import builtins
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cxlib import runtime

Contrast = Callable[[Tensor, Tensor], Tensor]
#: Types of class indices; PyTorch compares and indexes with no other unsigned ones.
_INDICES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def original(logits: Tensor, targets: Tensor) -> Tensor:
    """Plain logit back-propagation: e_t."""
    return F.one_hot(targets, logits.shape[-1]).to(logits.dtype)


def mean(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean contrast: e_t - 1/(K-1) sum_{s != t} e_s. The coefficients sum to zero."""
    e_t = original(logits, targets)
    return e_t - (1 - e_t) / (logits.shape[-1] - 1)


def max(logits: Tensor, targets: Tensor) -> Tensor:  # noqa: A001 - the contrast's name in the paper
    """Max contrast: e_t - e_{s*}, s* = argmax_{s != t} y_s."""
    return original(logits, targets) - original(logits, without(logits, targets).argmax(-1))


def weighted(logits: Tensor, targets: Tensor) -> Tensor:
    """Weighted contrast, Eq. 1 and 2: e_t - sum_{s != t} alpha_s e_s, alpha = softmax of y with t removed.

    The closed form keeps its direction where p_t rounds to 1, unlike the gradient of the softmax.
    """
    return original(logits, targets) - without(logits, targets).softmax(-1)


def probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Back-propagation from the softmax neuron p_t, Eq. 4: p_t (e_t - p) = p_t (1 - p_t) weighted.

    The arithmetic is that of the softmax gradient, so that its saturation in float32 can be studied: the
    target's own coefficient is lost once p_t rounds to 1, and everything is lost once p_t rounds to 0.
    """
    p = logits.softmax(-1)
    p_t = p.gather(-1, targets[:, None])
    return p_t * (original(logits, targets) - p)


def log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Gradient of log p_t: e_t - p = (1 - p_t) weighted, the cross-entropy's negative gradient.

    1 - p_t is computed from the other classes' logits, so that the direction stays where p_t rounds to 1.
    """
    others = without(logits, targets).logsumexp(-1, keepdim=True)
    return torch.sigmoid(others - logits.gather(-1, targets[:, None])) * weighted(logits, targets)


def finer(strength: float = 0.6, classes: int | Sequence[int] = 3) -> Contrast:
    """Finer-CAM's weighted difference (Zhang et al., CVPR 2025): e_t - gamma sum_{d in D} w_d e_d.

    w is the softmax over the compared classes D alone. With gamma = 1 and all others compared it is `weighted`,
    with gamma = 1 and one class s it is e_t - e_s. The weights are constants, as the alpha of Eq. 2 are: the published
    code differentiates them too, which adds a term that vanishes where the compared logits are equal.

    Args:
        strength: gamma >= 0, how much of the compared classes is taken away; 0 is `original`.
        classes: the compared classes, of which an image's own target is left out; or how many: those whose logits are
            nearest to the target's, which for the most probable class are its runners-up.
    """
    if not 0 <= strength < float("inf"):
        raise ValueError(f"the strength must be finite and >= 0, got {strength}")
    if (classes < 1) if isinstance(classes, int) else not len(classes):
        raise ValueError("compare with one class or more")

    def contrast(logits: Tensor, targets: Tensor) -> Tensor:
        e_t = original(logits, targets)
        if isinstance(classes, int):
            distance = (logits - logits.gather(-1, targets[:, None])).abs().masked_fill(e_t.bool(), torch.inf)
            compared = torch.zeros_like(e_t, dtype=torch.bool)
            compared.scatter_(-1, distance.topk(min(classes, logits.shape[-1] - 1), largest=False).indices, True)
        else:
            compared = _members(classes, logits) & ~e_t.bool()
            if not compared.any(-1).all():
                raise ValueError(f"classes {list(classes)} leave nothing to compare a target with: name others")
        return e_t - strength * _softmax_over(compared, logits)

    contrast.__doc__ = finer.__doc__
    return contrast


def groups(*of_classes: Sequence[int]) -> Contrast:
    """Groups of classes, "dogs against cats": log sum_{s in G} exp y_s - log sum_{s in R} exp y_s, differentiated.

    G is the group that holds the target, R all classes of the other groups: a softmax within G, minus a softmax within
    R. The difference is the log-odds of the groups' probabilities, log p(G) / p(R), which a mean of the logits is not;
    groups of one class each, that together are all classes, give `weighted`.

    Args:
        of_classes: two groups or more, without common classes; every target must lie in one.
    """
    members = [s for group in of_classes for s in group]
    if len(of_classes) < 2 or not all(map(len, of_classes)) or len(set(members)) < len(members):
        raise ValueError("groups must be two or more, none empty, and share no class")

    def contrast(logits: Tensor, targets: Tensor) -> Tensor:
        masks = torch.stack([_members(group, logits) for group in of_classes])  # (G, K)
        grouped = masks.any(0)
        if not grouped[targets].all():
            raise ValueError(f"every target must lie in a group, got {targets[~grouped[targets]].tolist()}")
        own = masks[masks[:, targets].long().argmax(0)]  # (N, K)
        return _softmax_over(own, logits) - _softmax_over(grouped & ~own, logits)

    return contrast


CONTRASTS: dict[str, Contrast] = {
    "original": original,
    "mean": mean,
    "max": max,
    "weighted": weighted,
    "probability": probability,
    "log_probability": log_probability,
    "finer": finer(),
}

#: The one contrast that is no cotangent, for it weighs the classes' maps: see `explainers.normalised`.
NORMALISED = "normalised"


def cotangent(contrast: str | Contrast | Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """The cotangent on the logits from which a contrast starts back-propagation.

    Args:
        contrast: a name in `CONTRASTS`; a function from (N, K) logits and (N,) targets to (N, K), among them what
            `finer` and `groups` return; or the cotangent itself, (K,) for all images, (B, K) or (B, T, K).
        logits: (B, K). For K = 1 functions see, and return, the pair of logits (0, y): (N, 2).
        targets: (B,) or (B, T) class indices in [0, K); for K = 1, class 0 or 1.

    Returns:
        (B, K) for targets (B,), (B, T, K) for targets (B, T), in the logits' dtype.

    Raises:
        ValueError: unknown contrast, logits, targets or a cotangent of the wrong shape, logits or a cotangent that are
            not finite, or targets out of range.
    """
    if logits.ndim != 2 or not logits.shape[-1]:
        raise ValueError(f"a contrast needs logits (B, K), got shape {tuple(logits.shape)}")
    if not logits.is_floating_point() or not logits.isfinite().all():
        raise ValueError(f"a contrast needs finite logits of floating point, got {logits.dtype}: check the images")
    function = contrast if isinstance(contrast, Tensor) else resolve(contrast)
    check_targets(targets, *logits.shape)
    targets = targets.to(logits.device, torch.long)
    shape = (*targets.shape, logits.shape[-1])
    if isinstance(function, Tensor):
        given = _given(function, shape).to(logits)
        if not given.isfinite().all():
            raise ValueError(f"a cotangent must be finite in the logits' {logits.dtype}")
        return given
    chosen = targets.flatten()
    repeated = logits.repeat_interleave(targets[:1].numel(), 0)  # (B * T, K)
    if logits.shape[-1] > 1:
        return function(repeated, chosen).reshape(shape)
    own = function(paired(repeated), chosen).gather(-1, chosen[:, None])
    return ((2 * chosen[:, None] - 1) * own).reshape(shape)


def paired(logits: Tensor) -> Tensor:
    """Logits (N, K), one a class: for one logit y, which tells two classes apart, the pair (0, y)."""
    return torch.cat([torch.zeros_like(logits), logits], -1) if logits.shape[-1] == 1 else logits


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


def spanning(cotangents: Tensor) -> tuple[Tensor, Tensor]:
    """As few cotangents (B, R, K) as the M of (B, M, K) are combinations of, and their weights (B, M, R).

    All contrasts of T targets lie in the span of the targets' e_t, the softmax, the ones and the rivals of `max`: 20
    cotangents of the five most probable classes are 7, and as many backward passes.
    """
    # Every direction counts, also that of a `probability` next to 0: its map has its own scale.
    largest = cotangents.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(cotangents.dtype).tiny).double()
    scaled = cotangents / largest
    length = scaled.norm(dim=-1, keepdim=True).clamp(min=1)  # at least that, unless all is 0
    left, singular, right = torch.linalg.svd(scaled / length, full_matrices=False)
    n = builtins.max(1, int((singular > 16 * torch.finfo(cotangents.dtype).eps * singular[:, :1]).sum(-1).max()))
    return right[:, :n].to(cotangents), largest * length * left[..., :n] * singular[:, None, :n]


def check_targets(targets: Tensor, n_images: int, n_classes: int) -> None:
    """Check targets (B,) or (B, T) against the logits' shape (B, K).

    Raises:
        ValueError: wrong shape, wrong dtype or an index outside [0, K), where one logit stands for two classes.
    """
    if targets.ndim not in (1, 2) or len(targets) != n_images or 0 in targets.shape[1:]:
        raise ValueError(f"targets must be ({n_images},) or ({n_images}, T), got shape {tuple(targets.shape)}")
    if targets.dtype not in _INDICES:
        raise ValueError(f"targets must be class indices, got {targets.dtype}")
    n_classes = builtins.max(n_classes, 2)  # one logit tells two classes apart
    if targets.numel() and not (int(targets.min()) >= 0 and int(targets.max()) < n_classes):
        raise ValueError(f"targets must lie in [0, {n_classes}), got {int(targets.min())} to {int(targets.max())}")


def without(logits: Tensor, targets: Tensor) -> Tensor:
    """The logits with the target class removed from every maximum and every softmax."""
    return logits.scatter(-1, targets[..., None], -torch.inf)


def _members(classes: Sequence[int], logits: Tensor) -> Tensor:
    """(K,), true for the classes listed."""
    n_classes = logits.shape[-1]
    if not all(0 <= s < n_classes for s in classes):
        raise ValueError(f"classes must lie in [0, {n_classes}), got {list(classes)}")
    mask = torch.zeros(n_classes, dtype=torch.bool, device=logits.device)
    mask[list(classes)] = True
    return mask


def _softmax_over(mask: Tensor, logits: Tensor) -> Tensor:
    """Softmax (N, K) of the logits over the classes where the mask is true; elsewhere zero."""
    return logits.masked_fill(~mask, -torch.inf).softmax(-1)


def _given(cotangent: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A user's own cotangent (K,), (B, K) or (B, T, K), for every target."""
    accepted = {shape, shape[-1:], (shape[0], shape[-1])}
    if tuple(cotangent.shape) not in accepted:
        choice = " or ".join(map(str, sorted(accepted, key=len)))
        raise ValueError(f"a cotangent for these logits and targets is {choice}, got {tuple(cotangent.shape)}")
    return (cotangent[:, None] if cotangent.ndim == 2 < len(shape) else cotangent).expand(shape)
