"""One forward pass that records a layer, then any number of cotangents pulled back to it.

The only place where hooks live. A tap cuts the graph at the layer: nothing before it is differentiated, so
frozen parameters and images without gradient are welcome, and every pull-back runs through the head only.
Networks run in evaluation mode and full float32, whatever they and PyTorch are set to, and are left as they were.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cxlib import runtime

_UNLINKED = "nothing links the tapped layer to the logits: choose another layer, or switch the network's gradients on"


@dataclass(frozen=True)
class Record:
    """What one forward pass left behind.

    Attributes:
        logits: (B, K), detached.
        activation: the tapped layer's output (B, ...), or the images where no layer was tapped; detached,
            as it was *before* any in-place operation behind the layer.
    """

    logits: Tensor
    activation: Tensor
    _output: Tensor
    _leaf: Tensor

    def pull_back(self, cotangents: Tensor) -> Tensor:
        """Pull cotangents on the logits back to the tapped layer (vector-Jacobian products).

        Args:
            cotangents: (B, K), or (B, M, K) for M cotangents an image.

        Returns:
            gradients shaped like the activation (B, ...), or (B, M, ...).

        Raises:
            ValueError: the tapped layer does not influence the logits.
        """
        if cotangents.ndim == 2:
            return self._pull(cotangents)
        return torch.stack([self._pull(c) for c in cotangents.unbind(1)], 1)

    def _pull(self, cotangent: Tensor) -> Tensor:
        with runtime.full_float32():
            (gradient,) = torch.autograd.grad(
                self._output, self._leaf, cotangent.to(self._output), retain_graph=True, allow_unused=True
            )
        if gradient is None:
            raise ValueError(_UNLINKED)
        return gradient


@torch.inference_mode(False)
def record(network: nn.Module, images: Tensor, layer: nn.Module | None = None) -> Record:
    """Run the network once, recording `layer`, or the images themselves when `layer` is None.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K).
        images: (B, 3, H, W).
        layer: a module inside the network whose output is a tensor.

    Raises:
        ValueError: the layer did not run, its output is no tensor, or nothing links it to the logits.
    """
    if images.is_inference():
        images = images.clone()  # a tensor made in inference mode cannot enter a graph, its copy can
    if layer is None:
        leaf = images.detach().requires_grad_()
        with torch.enable_grad(), _steady(network):
            # Not the leaf itself: a network that begins with an in-place operation must not touch it.
            output = network(leaf.clone())
    else:
        with torch.no_grad(), _steady(network), _tapped(layer) as leaves:
            output = network(images)
        if not leaves:
            raise ValueError(f"the layer {type(layer).__name__} did not run in the forward pass")
        leaf = leaves[-1]
    if not output.requires_grad:
        raise ValueError(_UNLINKED)
    return Record(output.detach(), leaf.detach(), output, leaf)


@torch.no_grad()
def logits(network: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, K) of images (B, 3, H, W), evaluated as `record` does, without a graph."""
    with _steady(network):
        return network(images)


@contextmanager
def _steady(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and full float32; every module's mode is restored."""
    training = [module for module in network.modules() if module.training]
    try:
        # The flag itself: a network's own train() may do more.
        for module in training:
            module.training = False
        with runtime.full_float32():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _tapped(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Start a graph at the layer's output; the list receives one leaf for each time the layer runs."""
    leaves: list[Tensor] = []

    def start_graph(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            raise ValueError(f"the layer {type(layer).__name__} returns {type(output).__name__}, not one tensor")
        # A copy: a layer may hand its input on, which others may change.
        leaves.append(output.detach().clone().requires_grad_())
        # Everything up to here ran without a graph; from here on it is recorded. The surrounding no_grad
        # restores the caller's mode.
        torch.set_grad_enabled(True)
        # A copy goes on through the network: an in-place ReLU behind the layer would overwrite the record.
        return leaves[-1].clone()

    handle = layer.register_forward_hook(start_graph)
    try:
        yield leaves
    finally:
        handle.remove()
