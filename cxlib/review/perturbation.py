"""Gradient-sign perturbation, Eq. 5 and 6: move every pixel along the sign of an explanation and see what changes."""

from collections.abc import Callable, Sequence
from itertools import product
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cxlib import taps
from cxlib.contrasts import Contrast, check_targets, cotangent
from cxlib.networks import fast

#: Called with (contrast, epsilon, n_iterations, gradient (B, 3, H, W)) for each step of a grid.
Observer = Callable[[str, float, int, Tensor], None]

#: Settings are stacked along the batch until a pass holds this many images. On a CPU an image costs less in a pass
#: of 8 than alone (0.5 times for MobileNet v3 small, 0.8 for ResNet-18), and larger passes leave the cache.
PASS = 8


class Changes(NamedTuple):
    """After minus before, for each image: (B,) float64.

    `accuracy` is -1, 0 or 1; `p_t` the change of the target's softmax probability; `y_t` of its logit.
    """

    accuracy: Tensor
    p_t: Tensor
    y_t: Tensor


class Bounds(NamedTuple):
    """Between which an image may move, Eq. 6: max(x0 - eps, 0) and min(x0 + eps, 1), around the *first* image x0."""

    lower: Tensor
    upper: Tensor


def bounds(x0: Tensor, epsilon: float) -> Bounds:
    """The bounds of Eq. 6 around the first images x0 (B, 3, H, W) in [0, 1]."""
    return Bounds((x0 - epsilon).clamp_(min=0), (x0 + epsilon).clamp_(max=1))


def step(x: Tensor, direction: Tensor, size: float, within: Bounds) -> Tensor:
    """One iteration, Eq. 5 and 6: x <- clamp(x + (eps/n) sign(phi_t(x)), max(x0 - eps, 0), min(x0 + eps, 1)).

    Where the direction is exactly zero the pixel stays. `size` is eps/n.
    """
    return torch.add(x, direction.sign(), alpha=size).clamp_(*within)


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
    check(images, targets, epsilon, n_iterations)
    x, within = images, bounds(images, epsilon)
    for _ in range(n_iterations):
        recorded = taps.record(network, x)
        direction = recorded.pull_back(cotangent(contrast, recorded.logits, targets))
        x = step(x, direction, epsilon / n_iterations, within)
    return x


def perturbation_grid(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    contrasts: Sequence[str],
    epsilons: Sequence[float],
    n_iterations: Sequence[int],
    observe: Observer | None = None,
    precision: torch.dtype = torch.float32,
    most: int = PASS,
) -> dict[tuple[str, float, int], Changes]:
    """Every setting of the experiment on one batch, with what settings share computed once.

    All settings begin at the same x0, so the unperturbed evaluation, the first step's forward pass and each
    contrast's first direction serve every epsilon and number of iterations. Small batches share their passes:
    contrasts and epsilons are stacked along the batch until a pass holds `most` images. The network runs in its fast
    form (`networks.fast`), which a caller with many batches may pass.

    Args:
        network: as for `sign_perturb`.
        images: (B, 3, H, W) in [0, 1].
        targets: (B,) class indices.
        contrasts: names in `contrasts.CONTRASTS`.
        epsilons: largest changes of a pixel.
        n_iterations: numbers of steps.
        observe: called with the gradient of each step, for statistics on the directions.
        precision: of the passes that find directions; changes are always evaluated in the images' own. bfloat16
            is an approximation: it turns about a tenth of the signs around.
        most: images in a pass of stacked settings; fewer where memory is short.

    Returns:
        {(contrast, epsilon, n): Changes}, each (B,) float64: after minus before, per image.

    Raises:
        ValueError: as `sign_perturb`.
    """
    check_images(images, targets)
    for epsilon, n in product(epsilons, n_iterations):
        check_setting(epsilon, n)

    network, images = fast(network), images.contiguous(memory_format=torch.channels_last)
    start = taps.record(network, images)
    check_targets(targets, *start.logits.shape)
    targets = targets.to(images.device, torch.long)
    before = measure(start.logits, targets)
    if precision != torch.float32:
        start = taps.record(network, images, precision=precision)
    first = {name: start.pull_back(cotangent(name, start.logits, targets)) for name in contrasts}
    within = {epsilon: bounds(images, epsilon) for epsilon in epsilons}

    settings, together = list(product(contrasts, epsilons)), max(1, most // max(1, len(images)))
    after = {}
    for n in n_iterations:
        for stacked in (settings[i : i + together] for i in range(0, len(settings), together)):
            gradients: Sequence[Tensor] = [first[contrast] for contrast, _ in stacked]
            iterates = [images] * len(stacked)
            for iteration in range(n):
                if iteration:
                    recorded = taps.record(network, _stack(iterates), precision=precision)
                    parts = recorded.logits.chunk(len(stacked))
                    cotangents = [cotangent(contrast, part, targets) for (contrast, _), part in zip(stacked, parts)]
                    gradients = recorded.pull_back(_stack(cotangents)).chunk(len(stacked))
                for (contrast, epsilon), gradient in zip(stacked, gradients):
                    if observe:
                        observe(contrast, epsilon, n, gradient)
                iterates = [
                    step(x, gradient, epsilon / n, within[epsilon])
                    for x, gradient, (_, epsilon) in zip(iterates, gradients, stacked)
                ]
            logits = taps.logits(network, _stack(iterates))
            for (contrast, epsilon), part in zip(stacked, logits.chunk(len(stacked))):
                after[contrast, epsilon, n] = measure(part, targets)
    return {
        setting: Changes(*(a - b for a, b in zip(after[setting], before)))
        for setting in product(contrasts, epsilons, n_iterations)
    }


def dose(p_t: Tensor, gains: Sequence[Tensor], epsilons: Sequence[float]) -> float:
    """The epsilon that leaves a comparison of contrasts the most room: half of what p_t lacks to 1 is gained.

    Too small a step shows nothing, and one that brings every contrast to the ceiling nothing either. To be asked of
    training images, before any test image is perturbed.

    Args:
        p_t: (B,), of the unperturbed images.
        gains: one (B,) an epsilon, what p_t gains in one step of `original`.
        epsilons: the choice.
    """
    room = 1 - p_t.double().mean()
    missed = [abs(float(gain.double().mean() / room) - 0.5) for gain in gains]
    return epsilons[missed.index(min(missed))]


def sign_agreement(
    network: nn.Module, images: Tensor, targets: Tensor, contrasts: Sequence[str], precision: torch.dtype
) -> Tensor:
    """Share of the first step's pixel values whose sign is that of full precision: (contrasts, B) float64.

    One for the images' own precision, in which nothing is computed.
    """
    if precision == torch.float32:
        return torch.ones(len(contrasts), len(images), dtype=torch.float64)
    network, images = fast(network), images.contiguous(memory_format=torch.channels_last)
    exact, coarse = taps.record(network, images), taps.record(network, images, precision=precision)
    shares = []
    for name in contrasts:
        signs = [r.pull_back(cotangent(name, r.logits, targets)).sign() for r in (exact, coarse)]
        shares.append((signs[0] == signs[1]).double().mean((-3, -2, -1)))
    return torch.stack(shares)


def measure(logits: Tensor, targets: Tensor) -> Changes:
    """Correctness (0 or 1), p_t and y_t of each image, (B,) float64, from logits (B, K) and targets (B,).

    Raises:
        ValueError: there is one logit, whose p_t no softmax gives.
    """
    if logits.shape[-1] < 2:
        raise ValueError("perturbation needs a head of two logits or more: give a sigmoid's y the logits (0, y)")
    logits = logits.detach().double()
    chosen = targets[:, None]
    return Changes(
        (logits.argmax(-1) == targets).double(),
        logits.softmax(-1).gather(-1, chosen).squeeze(-1),
        logits.gather(-1, chosen).squeeze(-1),
    )


def _stack(images: Sequence[Tensor]) -> Tensor:
    """Along the batch; one tensor alone is not copied."""
    return images[0] if len(images) == 1 else torch.cat(list(images))


def _range(values: Tensor) -> str:
    """From where to where values go, in words."""
    return f"from {values.min():.4g} to {values.max():.4g}" if values.numel() else ""


def check(images: Tensor, targets: Tensor, epsilon: float, n_iterations: int) -> None:
    """What every perturbation asks of its arguments.

    Raises:
        ValueError: images of half precision or outside [0, 1], epsilon or n_iterations out of range, wrong targets.
    """
    check_images(images, targets)
    check_setting(epsilon, n_iterations)


def check_images(images: Tensor, targets: Tensor) -> None:
    """What every perturbation asks of its images and targets; raises as `check`."""
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images must be float32 or float64, got {images.dtype}, which swallows steps of this size")
    if images.ndim != 4 or 0 in images.shape[1:] or not ((images >= 0) & (images <= 1)).all():
        raise ValueError(f"images must be (B, 3, H, W) in [0, 1], got {tuple(images.shape)} {_range(images)}".rstrip())
    if targets.ndim != 1:
        raise ValueError(f"targets must be (B,), got shape {tuple(targets.shape)}")


def check_setting(epsilon: float, n_iterations: int) -> None:
    """What every perturbation asks of its settings; raises as `check`."""
    if not 0 < epsilon < torch.finfo(torch.float32).max:
        raise ValueError(f"epsilon must be finite and > 0, got {epsilon}")
    if not isinstance(n_iterations, Integral) or isinstance(n_iterations, bool) or n_iterations < 1:
        raise ValueError(f"n_iterations must be a whole number >= 1, got {n_iterations}")
