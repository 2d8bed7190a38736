"""Baselines: what takes the place of a hidden pixel."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxlib import runtime
from cxlib.metrics.imputation import linear_imputation

#: From images' places in a batch (N,) and what is hidden of each (N, H, W) to the colours there, (N, 3, H, W). A
#: baseline sees the batch once and returns this, which is then asked for every mask of every image.
Fill = Callable[[Tensor, Tensor], Tensor]


class Blur(NamedTuple):
    """Gaussian blur in pixels; the published setting at 224 x 224."""

    kernel: int = 101
    sigma: float = 15.0

    def at(self, image_size: int) -> "Blur":
        """What it is at 224 x 224, at another size: as much of the image.

        Raises:
            ValueError: the kernel is even, so that it has no centre.
        """
        if self.kernel % 2 == 0:
            raise ValueError(f"a blur kernel must be odd, got {self.kernel}")
        return Blur(2 * round(self.kernel // 2 * image_size / 224) + 1, self.sigma * image_size / 224)


#: From images (B, 3, H, W), the colour that the network sees as zero, and a blur.
Baseline = Callable[[Tensor, Tensor, Blur], Fill]


def gaussian_blur(images: Tensor, _zero: Tensor, blur: Blur) -> Fill:
    """Gaussian blur with reflected borders, as torchvision's, as one matrix product a side: 100 times faster.

    Raises:
        ValueError: the kernel is even, or reaches further than the image; or sigma is not finite and above 0.
    """
    rows, columns = (_blur_matrix(size, blur).to(images) for size in images.shape[-2:])
    return _whatever_is_hidden(rows @ images @ columns.T)


def zeros(images: Tensor, zero: Tensor, _blur: Blur) -> Fill:
    """The colour that the network sees as zero: the published code masks *normalised* images with zeros."""
    return _whatever_is_hidden(zero.to(images).expand_as(images))


def channel_mean(images: Tensor, _zero: Tensor, _blur: Blur) -> Fill:
    """Each image's mean colour."""
    return _whatever_is_hidden(images.mean((-2, -1), keepdim=True).expand_as(images))


def noisy_linear(images: Tensor, _zero: Tensor, _blur: Blur, noise: float = 0.01, seed: int = 0) -> Fill:
    """ROAD's noisy linear imputation (Rong et al., ICML 2022): weighted means of the neighbours, and noise.

    A network hardly sees where it was applied, so that a mask's shape tells it little about the class.

    Args:
        images: (B, 3, H, W).
        noise: standard deviation, the published one. The noise is one field for all images and masks, so that maps
            are compared under the same.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    field = noise * torch.randn(images.shape[1:], generator=generator).to(images)
    return lambda places, hidden: linear_imputation(images[places], hidden).to(images) + field


BASELINES: dict[str, Baseline] = {
    "gaussian_blur": gaussian_blur,
    "zeros": zeros,
    "channel_mean": channel_mean,
    "noisy_linear": noisy_linear,
}


def fills(network: nn.Module, images: Tensor, baselines: Sequence[str | Baseline], blur: Blur) -> list[Fill]:
    """Baselines, by name or one's own, that have seen the images (B, 3, H, W); zero is the network's mean colour.

    Raises:
        ValueError: an unknown name, or what the baseline itself raises.
    """
    for name in baselines:
        if isinstance(name, str):
            runtime.check_name("baseline", name, BASELINES)
    zero = getattr(network, "mean", torch.zeros(3, 1, 1))
    chosen = [BASELINES[name] if isinstance(name, str) else name for name in baselines]
    return [baseline(images, zero, blur) for baseline in chosen]


def _whatever_is_hidden(replacement: Tensor) -> Fill:
    return lambda places, _hidden: replacement[places]


def _blur_matrix(size: int, blur: Blur) -> Tensor:
    """(size, size): row i holds the weights with which the reflected line of pixels enters blurred pixel i."""
    half = blur.kernel // 2
    if blur.kernel % 2 == 0 or half >= size:
        raise ValueError(f"a blur kernel must be odd and at most {2 * size - 1} wide for {size} pixels: {blur.kernel}")
    if not 0 < blur.sigma < math.inf:
        raise ValueError(f"the sigma of a blur must be finite and above 0, got {blur.sigma}")
    offsets = torch.arange(-half, half + 1, dtype=torch.float64)
    weights = (-0.5 * (offsets / blur.sigma) ** 2).exp()
    line = torch.eye(size, dtype=torch.float64)[:, None]  # every unit impulse, as a batch of lines
    padded = F.pad(line, (half, half), mode="reflect")
    return F.conv1d(padded, (weights / weights.sum())[None, None]).squeeze(1).T
