"""At the input, from gradients there: input x gradient, integrated gradients and SmoothGrad.

The last two differentiate at other images than the one that is explained: on the way from a baseline to it, or under
noise. There a contrast would be another vector, for its weights follow the logits. The cotangent c is the contrast of
the *clean image's* logits throughout, so that one fixed linear function of the logits is explained, <c, y(x)>, and all
three are linear in c.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from cxlib import taps
from cxlib.contrasts import spanning
from cxlib.explainers.fullgrad import Cotangents, zero_image
from cxlib.explainers.gradient import times_input


def input_x_gradient(network: nn.Module, images: Tensor, cotangents: Cotangents, _layer: object, _relu: bool) -> Tensor:
    """Input x gradient (Shrikumar et al. 2016), summed over the colours: (B, M, H, W).

    The input is what the network's first layer sees: without the mean where the network normalises inside.
    """
    recorded = taps.record(network, images)
    gradients = recorded.pull_back(cotangents(recorded.logits))
    return times_input(recorded.activation[:, None], gradients, zero_image(network))


def integrated_gradients(
    network: nn.Module,
    images: Tensor,
    cotangents: Cotangents,
    _layer: object = None,
    _relu: bool = False,
    *,
    steps: int = 50,
    baseline: Tensor | float | None = None,
    chunk: int = 16,
    spanned: bool = False,
) -> Tensor:
    """Integrated gradients (Sundararajan et al. 2017), summed over the colours: (B, M, H, W).

    (x - x0) times the mean gradient of <c, y> on the straight way from x0 to x, c being the contrast at x. It is
    complete: a map's sum is <c, y(x)> - <c, y(x0)>, up to what the steps miss of the integral.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K).
        images: (B, 3, H, W).
        cotangents: from logits (B, K) to cotangents (B, M, K).
        steps: points on the way, those of Gauss and Legendre; the paper takes 20 to 300. A contrast, whose difference
            is smaller than a logit's, needs more for the same share: see what a map's sum lacks.
        baseline: x0, which broadcasts to the images; None is the image that the network sees as zero.
        chunk: how many images pass the network at once, or B where that is more, which bounds the memory.
        spanned: pass back no more cotangents than the contrasts span, as few as 7 of 20. Maps are equal up to rounding,
            which then depends on what else is asked for.

    Raises:
        ValueError: no step.
    """
    x = _real(images)
    start = torch.as_tensor(zero_image(network) if baseline is None else baseline, dtype=x.dtype, device=x.device)
    places, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(_counted("step", steps)))
    on_the_way = ((1 + places) / 2).to(x).view(-1, 1, 1, 1, 1)
    mean = _mean_gradient(
        network, x, cotangents, lambda part: start + on_the_way[part] * (x - start), weights / 2, chunk, spanned
    )
    return ((x - start)[:, None] * mean).sum(2)


def smoothgrad(
    network: nn.Module,
    images: Tensor,
    cotangents: Cotangents,
    _layer: object = None,
    _relu: bool = False,
    *,
    samples: int = 50,
    noise: float = 0.15,
    seed: int = 0,
    chunk: int = 16,
    spanned: bool = False,
) -> Tensor:
    """SmoothGrad (Smilkov et al. 2017): the gradient's mean over noisy copies, summed over the colours: (B, M, H, W).

    The gradient is that of <c, y>, c being the contrast of the clean image. All images, targets and contrasts see the
    same noise.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K).
        images: (B, 3, H, W).
        cotangents: from logits (B, K) to cotangents (B, M, K).
        samples: noisy copies of each image.
        noise: the Gaussian's standard deviation as a share of the image's range; the paper takes 0.1 to 0.2.
        seed: of the noise.
        chunk: how many images pass the network at once, or B where that is more, which bounds the memory.
        spanned: pass back no more cotangents than the contrasts span, as few as 7 of 20. Maps are equal up to rounding,
            which then depends on what else is asked for.

    Raises:
        ValueError: no sample, or noise that is not finite and >= 0.
    """
    if not 0 <= noise < float("inf"):
        raise ValueError(f"the noise must be finite and >= 0, got {noise}")
    x = _real(images)
    sigma = noise * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
    generator = torch.Generator().manual_seed(seed)

    def noisy(part: Tensor) -> Tensor:
        # A draw for each copy, so that the chunk changes none.
        drawn = [torch.randn(x.shape[1:], generator=generator) for _ in part]
        return x + sigma * torch.stack(drawn)[:, None].to(x)

    weights = torch.full((_counted("sample", samples),), 1 / samples, dtype=torch.float64)
    return _mean_gradient(network, x, cotangents, noisy, weights, chunk, spanned).sum(2)


MAPS = {
    "input_x_gradient": input_x_gradient,
    "integrated_gradients": integrated_gradients,
    "smoothgrad": smoothgrad,
}


def _mean_gradient(
    network: nn.Module,
    images: Tensor,
    cotangents: Cotangents,
    copies: Callable[[Tensor], Tensor],
    weights: Tensor,
    chunk: int,
    spanned: bool,
) -> Tensor:
    """The weighted mean (B, M, 3, H, W) of the gradients at the copies (S, B, 3, H, W) of S indices, in parts."""
    basis, combined = cotangents(taps.logits(network, images)), None
    if spanned:
        basis, combined = spanning(basis)
    total = [torch.zeros_like(images) for _ in basis.unbind(1)]
    for part in torch.arange(len(weights)).split(max(1, chunk // len(images))):
        moved = copies(part)
        recorded = taps.record(network, moved.flatten(0, 1))
        for summed, cotangent in zip(total, basis.unbind(1)):
            gradients = recorded.pull_back(cotangent.repeat(len(part), 1)).unflatten(0, moved.shape[:2])
            summed += torch.einsum("s,sbchw->bchw", weights[part].to(gradients), gradients)
        del recorded  # or two graphs would stand side by side
    means = torch.stack(total, 1)
    return means if combined is None else torch.einsum("bmr,brchw->bmchw", combined.to(means), means)


def _real(images: Tensor) -> Tensor:
    return images.detach().to(torch.promote_types(images.dtype, torch.float32))


def _counted(what: str, number: int) -> int:
    if number < 1:
        raise ValueError(f"at least one {what} is needed, got {number}")
    return number
