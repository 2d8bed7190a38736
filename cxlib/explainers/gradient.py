"""The gradient at the input (section 3.1)."""

from collections.abc import Callable

from torch import Tensor


def gradient(_images: Tensor, gradients: Tensor) -> Tensor:
    """Gradient at the input, summed over the colour channels: (..., 3, H, W) -> (..., H, W).

    The sum is linear, so that the map of a contrast is the same contrast of the classes' maps.
    """
    return gradients.sum(-3)


def times_input(images: Tensor, gradients: Tensor, zero: Tensor | float) -> Tensor:
    """Input times gradient, summed over the colour channels: (..., 3, H, W) -> (..., H, W).

    `zero` is the image that the network's first layer sees as zero.
    """
    return ((images - zero) * gradients).sum(-3)


MAPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"gradient": gradient}
