"""From what a layer gives to maps (B, C, h, w): channels that are last, tokens, and what a user's own function says."""

from collections.abc import Callable

from torch import Tensor, nn

from cxlib import networks
from cxlib.explainers import vit

#: From a layer's output (B, ...), or a gradient there, to maps (B, C, h, w).
Layout = Callable[[Tensor], Tensor]


def layout(
    network: nn.Module, layer: nn.Module, images: Tensor, output: Tensor, reshape: Layout | None = None
) -> Layout:
    """How outputs of a layer are laid out as maps.

    Rules, in this order: `reshape`; (B, C, h, w) as it is, or (B, h, w, C) where the network is known to have its
    channels last (`networks.channels_last`); tokens (B, N, C) of a plain transformer (`vit.tokens`), whose class,
    distillation and register tokens are left out; tokens row by row (`networks.row_by_row`), on the grid that has the
    images' proportions.

    Args:
        network: the network.
        layer: a layer in it.
        images: (B, 3, H, W).
        output: what the layer gives for the images.
        reshape: the user's own rule.

    Returns:
        the function; outputs that no rule knows stay as they are.

    Raises:
        ValueError: from the function that `reshape` is made: it does not give (B, C, h, w).
    """
    if reshape is not None:
        return _checked(reshape)
    if output.ndim == 4 and networks.channels_last(network, layer):
        return lambda values: values.movedim(-1, 1)
    lie = _tokens(network, layer, images, output) if output.ndim == 3 else None
    if lie is None:
        return lambda values: values

    def laid_out(values: Tensor) -> Tensor:
        maps = vit.as_map(values, lie)
        if lie.n_prefix:
            vit.check_read(network, values, maps)
        return maps

    return laid_out


def _tokens(network: nn.Module, layer: nn.Module, images: Tensor, output: Tensor) -> vit.Tokens | None:
    n_tokens = output.shape[1]
    if networks.row_by_row(network, layer):
        height, width = images.shape[-2:]
        h = round((n_tokens * height / width) ** 0.5)
        # Whole numbers of the images' proportions: padded ones are for `reshape`.
        fits = h and n_tokens % h == 0 and h * width == n_tokens // h * height
        return vit.Tokens(0, (h, n_tokens // h), slice(None)) if fits else None
    try:
        lie = vit.tokens(network, images)
    except ValueError:  # no plain transformer
        return None
    return lie if lie.n_prefix + lie.grid[0] * lie.grid[1] == n_tokens else None


def _checked(reshape: Layout) -> Layout:
    def reshaped(values: Tensor) -> Tensor:
        maps = reshape(values)
        if not isinstance(maps, Tensor) or maps.ndim != 4 or len(maps) != len(values):
            got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ValueError(
                f"`reshape` must make maps ({len(values)}, C, h, w) of {tuple(values.shape)}, but gives {got}"
            )
        return maps

    return reshaped
