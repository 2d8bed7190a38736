"""One forward pass that records a layer, or many, then any number of cotangents pulled back to them.

The only place where hooks live. `record` cuts the graph at one layer: nothing before it is differentiated, so
frozen parameters and images without gradient are welcome, and every pull-back runs through the head only.
`trace` keeps the graph whole, from the images on, and reaches many layers with each pull-back.
Networks run in evaluation mode, whatever they are set to, and are left as they were.

Precision: TF32 and `torch.autocast` are off inside, so that a network of float32 gives full float32. Weights of half
precision are taken as they are, and images are cast to the weights' precision; but logits, activations and gradients
are float32 at least, and so is all that is made of them. Only `precision` of `record` asks for coarser passes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from cxlib import networks, runtime

#: What is made of gradients: of a layer's, and of all.
_Made = TypeVar("_Made")
_Read = TypeVar("_Read")
#: What shares its images among devices or processes.
_SHARED = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_UNLINKED = "nothing links the tapped layer to the logits: choose another layer, or switch the network's gradients on"


@dataclass(frozen=True)
class Record:
    """What one forward pass left behind.

    Attributes:
        logits: (B, K), detached.
        activation: the tapped layer's output (B, ...), or the images where no layer was tapped; detached,
            as it was *before* any in-place operation behind the layer. Maps are (B, C, h, w), also those of
            networks that have their channels last inside.
    """

    logits: Tensor
    activation: Tensor
    _output: Tensor
    _leaf: Tensor
    _channels_last: bool

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
        return gradient.movedim(-1, 1) if self._channels_last else gradient


@dataclass(frozen=True)
class Trace:
    """What one forward pass through many layers left behind.

    Attributes:
        logits: (B, K), detached.
        images: (B, 3, H, W), detached.
        kept: for each run of a traced layer, in the order of the forward pass, what was kept of it.
    """

    logits: Tensor
    images: Tensor
    kept: list[Any]
    _output: Tensor
    _images: GradientEdge
    _ends: list[GradientEdge]  # each kept output's

    def pull_back(
        self,
        cotangents: Tensor,
        of_layer: Callable[[Any, Tensor], _Made],
        read: Callable[[Tensor, list[_Made | None]], _Read],
    ) -> list[_Read]:
        """Pull cotangents (B, M, K) back, one after the other, for together their gradients would fill the memory.

        Args:
            cotangents: (B, M, K).
            of_layer: what is wanted of an entry of `kept` and of the gradient at that layer's output, shaped like it:
                asked as soon as this is known, for together those of one cotangent would fill the memory too.
            read: what is wanted of the gradient at the images (B, 3, H, W) and of what `of_layer` returned for each
                entry of `kept`, or None where this output does not influence the logits.

        Returns:
            M times what `read` returned.

        Raises:
            ValueError: the images do not influence the logits.
        """
        made: dict[int, _Made] = {}

        def hear(place: int, gradients: tuple[Any, ...]) -> None:
            if (gradient := gradients[self._ends[place].output_nr]) is not None:
                made[place] = of_layer(self.kept[place], _widened(gradient))

        found = []
        with ExitStack() as stack:
            for place, end in enumerate(self._ends):
                stack.callback(end.node.register_prehook(partial(hear, place)).remove)
            for cotangent in cotangents.unbind(1):
                (at_images,) = self._pull(cotangent, [self._images])
                if at_images is None:
                    raise ValueError(_UNLINKED)
                # Layers that see no image, but only parameters, do not lie on the way to the images.
                aside = [place for place in range(len(self._ends)) if place not in made]
                for place, gradient in zip(aside, self._pull(cotangent, [self._ends[place] for place in aside])):
                    if gradient is not None:
                        made[place] = of_layer(self.kept[place], _widened(gradient))
                found.append(read(at_images, [made.pop(place, None) for place in range(len(self._ends))]))
        return found

    def _pull(self, cotangent: Tensor, ends: Sequence[GradientEdge]) -> tuple[Any, ...]:
        if not ends:
            return ()
        with runtime.full_float32():
            return torch.autograd.grad(
                self._output, ends, cotangent.to(self._output), retain_graph=True, allow_unused=True
            )


@torch.inference_mode(False)
def record(
    network: nn.Module, images: Tensor, layer: nn.Module | None = None, precision: torch.dtype = torch.float32
) -> Record:
    """Run the network once, recording `layer`, or the images themselves when `layer` is None.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K), or to what has them as `logits`, or to a tuple or dictionary
            with no other tensor (B, K).
        images: (B, 3, H, W).
        layer: a module inside the network whose output is a tensor, or a tuple with one.
        precision: of the passes, as of `torch.autocast`.

    Raises:
        ValueError: the layer did not run, its output is no tensor or not of one entry an image, nothing links it
            to the logits, or these are not there or not finite.
    """
    moved = False
    if layer is None:
        leaf = _leaf(images)
        with torch.enable_grad():
            output = _run(network, leaf, precision)
    else:
        leaves: list[Tensor] = []
        with torch.no_grad(), _tapped(layer, leaves):
            output = _run(network, _leaf(images).detach(), precision)
        if not leaves:
            raise ValueError(f"the layer {type(layer).__name__} did not run in the forward pass")
        leaf = leaves[-1]
        _check_batch(layer, leaf, images)
        moved = leaf.ndim == 4 and networks.channels_last(network, layer)
    if not output.requires_grad:
        raise ValueError(_UNLINKED)
    activation = leaf.detach().movedim(-1, 1) if moved else leaf.detach()
    return Record(output.detach(), activation, output, leaf, moved)


@torch.inference_mode(False)
def trace(
    network: nn.Module, images: Tensor, layers: Mapping[nn.Module, Callable[[nn.Module, Tensor, Tensor], Any]]
) -> Trace:
    """Run the network once, keeping what each layer's function makes of the layer, its first input and its output.

    The functions run without a graph and before anything behind the layer can overwrite its output; what they keep
    must share no memory with it. A layer that works in place works on a copy meanwhile.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K).
        images: (B, 3, H, W).
        layers: modules inside the network whose output is a tensor, each with its function.

    Raises:
        ValueError: nothing links the images to the logits, or these are not there or not finite.
    """
    leaf = _leaf(images)
    kept: list[Any] = []
    ends: list[GradientEdge] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if output.requires_grad:
            ends.append(get_gradient_edge(output))
            with torch.no_grad():
                kept.append(layers[module](module, inputs[0], output))

    with torch.enable_grad(), _hooked(layers, keep):
        output = _run(network, leaf)
    if not output.requires_grad:
        raise ValueError(_UNLINKED)
    return Trace(output.detach(), leaf.detach(), kept, output, get_gradient_edge(leaf), ends)


@dataclass(frozen=True)
class Records:
    """What one forward pass left behind at several layers.

    Attributes:
        logits: (B, K), detached.
        activations: the output of each layer (B, ...), of its last run, detached, in the layers' order.
    """

    logits: Tensor
    activations: tuple[Tensor, ...]
    _output: Tensor
    _nodes: tuple[Tensor, ...]

    def pull_back(self, cotangent: Tensor) -> tuple[Tensor, ...]:
        """Pull a cotangent (B, K) back to every layer at once: gradients in the order of the activations.

        Raises:
            ValueError: one of the layers does not influence the logits.
        """
        with runtime.full_float32():
            gradients = torch.autograd.grad(
                self._output, self._nodes, cotangent.to(self._output), retain_graph=True, allow_unused=True
            )
        if any(gradient is None for gradient in gradients):
            raise ValueError(_UNLINKED)
        return gradients


@torch.inference_mode(False)
def record_each(network: nn.Module, images: Tensor, layers: Iterable[nn.Module]) -> Records:
    """Run the network once, recording every one of `layers`; the graph begins at the first that runs.

    Outputs are as the layers give them, also where channels are last. Args and raises as `record`.
    """
    runs: list[tuple[nn.Module, list[Tensor]]] = [(layer, []) for layer in layers]
    with torch.no_grad(), ExitStack() as stack:
        for layer, nodes in runs:
            stack.enter_context(_tapped(layer, nodes))
        output = _run(network, _leaf(images).detach())
    idle = [type(layer).__name__ for layer, nodes in runs if not nodes]
    if idle:
        raise ValueError(f"{len(idle)} of {len(runs)} layers did not run in the forward pass: {', '.join(idle)}")
    for layer, nodes in runs:
        _check_batch(layer, nodes[-1], images)
    if not output.requires_grad:
        raise ValueError(_UNLINKED)
    last = tuple(nodes[-1] for _, nodes in runs)
    return Records(output.detach(), tuple(node.detach() for node in last), output, last)


@contextmanager
def rewritten(layers: Mapping[nn.Module, Callable[[nn.Module, Tensor, Tensor], Tensor]]) -> Iterator[None]:
    """Inside, each layer's output is what its function makes of the layer, its first input and its output."""

    def rewrite(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return layers[module](module, inputs[0], output)

    with _hooked(layers, rewrite):
        yield


@contextmanager
def heard(network: nn.Module, hear: Callable[[Any], None]) -> Iterator[None]:
    """Inside, a function hears every answer of the network, in the graph that made it; a scripted one has no ear."""
    with ExitStack() as stack:
        with suppress(RuntimeError):
            handle = network.register_forward_hook(lambda _module, _inputs, answer: hear(answer))
            stack.callback(handle.remove)
        yield


@torch.no_grad()
def logits(network: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, K) of images (B, 3, H, W), evaluated as `record` does, without a graph.

    Raises:
        ValueError: they are not there or not finite.
    """
    return _run(network, images)


def _run(network: nn.Module, images: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """The network's logits of a copy of the images: one that begins in place must not change the caller's."""
    matrices = (weight.dtype for weight in network.parameters() if weight.is_floating_point() and weight.ndim > 1)
    dtype = next(matrices, images.dtype)
    coarse = nullcontext() if precision == torch.float32 else torch.autocast(images.device.type, precision)
    with steady(network), coarse:
        logits = _widened(_logits_of(network(images.to(dtype, copy=True)), len(images)))
    if not logits.isfinite().all():
        image, k = (~logits.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"the logit of class {k} of image {image} is {logits[image, k].item()}: check the images, and the network's"
            " weights"
        )
    return logits


def _logits_of(answer: Any, n_images: int) -> Tensor:
    """The logits (B, K) in a network's answer: itself, its `.logits`, or the one such tensor that it holds."""
    answer = getattr(answer, "logits", answer)
    parts = list(answer.values()) if isinstance(answer, Mapping) else answer
    parts = parts if isinstance(parts, list | tuple) else [parts]
    tensors = [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]
    found = [tensor for tensor in tensors if tensor.ndim == 2 and len(tensor) == n_images]
    if len(found) != 1:
        told = ", ".join(str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in parts)
        raise ValueError(
            f"the network answers {n_images} images with a {type(answer).__name__} ({told}), not with logits (B, K):"
            " give `explain` an `output` that makes them of it"
        )
    return found[0]


def _check_batch(layer: nn.Module, output: Tensor, images: Tensor) -> None:
    if len(output) != len(images):
        raise ValueError(f"the layer {type(layer).__name__} gives {tuple(output.shape)} for {len(images)} images")


def _widened(values: Tensor) -> Tensor:
    """A tensor in float32 at least."""
    return values.to(_wide(values.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _leaf(images: Tensor) -> Tensor:
    """The images as the start of a graph; a tensor made in inference mode cannot enter one, its copy can.

    One image alone is laid channels last in memory: of one that is not, PyTorch 2.13's gradient through networks such
    as LeViT and XCiT is wrong on a CPU.
    """
    images = _widened(images.clone() if images.is_inference() else images.detach())
    if images.ndim == 4 and len(images) == 1:
        images = images.contiguous(memory_format=torch.channels_last)
    return images.requires_grad_()


@contextmanager
def steady(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, full float32, and all in this process: what was changed is restored."""
    training = [module for module in network.modules() if module.training]
    shared: list[Any] = [module for module in network.modules() if isinstance(module, _SHARED)]
    try:
        # The flag itself: a network's own train() may do more.
        for module in training:
            module.training = False
        # An attribute of the instance hides the class's forward, which copies the network or waits for other processes.
        for module in shared:
            vars(module)["forward"] = module.module
        # What was compiled runs as it was written: compiled code passes hooks by.
        with runtime.full_float32(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module in training:
            module.training = True
        for module in shared:
            vars(module).pop("forward", None)


@contextmanager
def _tapped(layer: nn.Module, nodes: list[Tensor]) -> Iterator[None]:
    """Append the layer's output to `nodes` each time it runs; a graph starts there, unless one has started before."""

    def start_graph(_module: nn.Module, _inputs: object, output: Any) -> Any:
        if type(output) is tuple and sum(isinstance(part, Tensor) for part in output) == 1:
            return tuple(start_graph(_module, _inputs, part) if isinstance(part, Tensor) else part for part in output)
        if not isinstance(output, Tensor):
            raise ValueError(f"the layer {type(layer).__name__} returns {type(output).__name__}, not one tensor")
        linked = torch.is_grad_enabled() and output.requires_grad  # to a layer that was tapped before
        # A copy: a layer may hand its input on, which others may change.
        recorded = (output if linked else output.detach()).to(_wide(output.dtype), copy=True)
        nodes.append(recorded if linked else recorded.requires_grad_())
        # Everything up to here ran without a graph; from here on it is recorded. The surrounding no_grad
        # restores the caller's mode.
        torch.set_grad_enabled(True)
        # A copy goes on through the network: an in-place ReLU behind the layer would overwrite the record.
        return recorded.to(output.dtype, copy=True)

    handle = layer.register_forward_hook(start_graph)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _hooked(layers: Mapping[nn.Module, Any], hook: Callable[..., Tensor | None]) -> Iterator[None]:
    """A forward hook on every layer, and none of them in place: its input would be gone when the hook runs."""
    in_place: list[Any] = [layer for layer in layers if getattr(layer, "inplace", False)]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        for layer in in_place:
            layer.inplace = False
        yield
    finally:
        for layer in in_place:
            layer.inplace = True
        for handle in handles:
            handle.remove()
