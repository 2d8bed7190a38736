"""Gradient-sign perturbation, Eq. 5 and 6: move every pixel along the sign of an explanation and see what changes."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cxlib import taps
from cxlib.contrasts import Contrast, check_targets, cotangent

#: Called with (contrast, epsilon, n_iterations, gradient (B, 3, H, W)) for each step of a grid.
Observer = Callable[[str, float, int, Tensor], None]


class Changes(NamedTuple):
    """After minus before, for each image: (B,) float64.

    `accuracy` is -1, 0 or 1; `p_t` the change of the target's softmax probability; `y_t` of its logit.
    """

    accuracy: Tensor
    p_t: Tensor
    y_t: Tensor


def step(x: Tensor, x0: Tensor, direction: Tensor, epsilon: float, n_iterations: int) -> Tensor:
    """One iteration, Eq. 5 and 6: x <- clamp(x + (eps/n) sign(phi_t(x)), max(x0 - eps, 0), min(x0 + eps, 1)).

    The clamp is around the *first* image x0. Where the direction is exactly zero the pixel stays.
    """
    moved = x + (epsilon / n_iterations) * direction.sign()
    return moved.clamp((x0 - epsilon).clamp(min=0), (x0 + epsilon).clamp(max=1))


def sign_perturb(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    contrast: str | Contrast,
    epsilon: float,
    n_iterations: int,
) -> Tensor:
    """Perturb images along the sign of a contrast's input gradient.

    Args:
        network: maps images in [0, 1] (B, 3, H, W) to logits (B, K).
        images: (B, 3, H, W) in [0, 1], float32 or float64.
        targets: (B,) class indices.
        contrast: a name in `contrasts.CONTRASTS`, or a function.
        epsilon: largest change of a pixel, > 0.
        n_iterations: number of steps, >= 1; the gradient is taken anew at each.

    Returns:
        (B, 3, H, W) in [0, 1], within epsilon of the images.

    Raises:
        ValueError: epsilon or n_iterations out of range, wrong targets, unknown contrast, images of half precision.
    """
    _check(images, targets, epsilon, n_iterations)
    x = images
    for _ in range(n_iterations):
        x = step(x, images, _input_gradient(network, x, targets, contrast), epsilon, n_iterations)
    return x


def perturbation_grid(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    contrasts: Sequence[str],
    epsilons: Sequence[float],
    n_iterations: Sequence[int],
    observe: Observer | None = None,
) -> dict[tuple[str, float, int], Changes]:
    """Every setting of the experiment on one batch, with what settings share computed once.

    All settings begin at the same x0, so the unperturbed evaluation, the first step's forward pass and each
    contrast's first direction serve every epsilon and number of iterations.

    Args:
        network: as for `sign_perturb`.
        images: (B, 3, H, W) in [0, 1].
        targets: (B,) class indices.
        contrasts: names in `contrasts.CONTRASTS`.
        epsilons: largest changes of a pixel.
        n_iterations: numbers of steps.
        observe: called with the gradient of each step, for statistics on the directions.

    Returns:
        {(contrast, epsilon, n): Changes}, each (B,) float64: after minus before, per image.

    Raises:
        ValueError: as `sign_perturb`.
    """
    for epsilon in epsilons:
        for n in n_iterations:
            _check(images, targets, epsilon, n)
    start = taps.record(network, images)
    check_targets(targets, *start.logits.shape)
    targets = targets.to(images.device, torch.long)
    before = measure(start.logits, targets)
    grid = {}
    for contrast in contrasts:
        first = start.pull_back(cotangent(contrast, start.logits, targets))
        for epsilon in epsilons:
            for n in n_iterations:
                gradient, x = first, images
                for iteration in range(n):
                    if iteration:
                        gradient = _input_gradient(network, x, targets, contrast)
                    if observe:
                        observe(contrast, epsilon, n, gradient)
                    x = step(x, images, gradient, epsilon, n)
                after = measure(taps.logits(network, x), targets)
                grid[contrast, epsilon, n] = Changes(*(a - b for a, b in zip(after, before)))
    return grid


def measure(logits: Tensor, targets: Tensor) -> Changes:
    """Correctness (0 or 1), p_t and y_t of each image, (B,) float64, from logits (B, K) and targets (B,)."""
    logits = logits.detach().double()
    chosen = targets[:, None]
    return Changes(
        (logits.argmax(-1) == targets).double(),
        logits.softmax(-1).gather(-1, chosen).squeeze(-1),
        logits.gather(-1, chosen).squeeze(-1),
    )


def _input_gradient(network: nn.Module, x: Tensor, targets: Tensor, contrast: str | Contrast) -> Tensor:
    recorded = taps.record(network, x)
    return recorded.pull_back(cotangent(contrast, recorded.logits, targets))


def _check(images: Tensor, targets: Tensor, epsilon: float, n_iterations: int) -> None:
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images must be float32 or float64, got {images.dtype}, which swallows steps of this size")
    if targets.ndim != 1:
        raise ValueError(f"targets must be (B,), got shape {tuple(targets.shape)}")
    if not 0 < epsilon < math.inf or n_iterations < 1:
        raise ValueError(f"epsilon must be finite and > 0, and n_iterations >= 1, got {epsilon} and {n_iterations}")
