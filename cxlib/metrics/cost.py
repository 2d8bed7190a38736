"""What a map costs, in forward passes of its network.

Operations are counted from the shapes of what runs, by PyTorch's own counter: convolutions, matrix products and
attention, in both directions; what is elementwise counts as nothing. So the number is the same on every machine and in
every run, which milliseconds are not. A gradient at the input costs 2 (a pass there, and one back that skips the
parameters'), one at a late layer hardly more than 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cxlib import taps


def operations(compute: Callable[[], object]) -> int:
    """Floating-point operations of what a function without arguments runs, forwards and backwards."""
    with FlopCounterMode(display=False) as counter:
        compute()
    return int(counter.get_total_flops())


def passes(network: nn.Module, images: Tensor, explainer: Callable[[nn.Module, Tensor], object]) -> float:
    """Operations of an explainer over those of one forward pass of the same images: how many passes it is worth.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K).
        images: (B, 3, H, W); what they show is of no importance, unless the explainer makes it so.
        explainer: from a network and images to maps.

    Raises:
        ValueError: a pass of the network has no operation that is counted.
    """
    forward = operations(lambda: taps.logits(network, images))
    if forward == 0:
        raise ValueError(f"a pass of {type(network).__name__} has no convolution or matrix product to count")
    with torch.no_grad():
        return operations(lambda: explainer(network, images)) / forward
