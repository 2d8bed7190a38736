"""Layer-wise relevance propagation (Bach et al. 2015; Montavon et al. 2019) for convolutional networks.

The logits' relevance is cotangent times logit, so that <c, y> is shared out, linearly in c. A rule shares an output's
relevance R_j out by the parts of a sum num_j like the layer's own: R_i = sum_j (part of i in num_j) / num_j R_j.

What goes back is not R but R / activation, which all the rest of a network hands on as it does a gradient: sums of a
residual network (to each branch its part), concatenations, means and maxima, ReLU. Modules with a rule:

- convolutions, `convolution`; linear layers, epsilon; and those of them that see the image, `first`: what stands
  before them must see pixels one by one;
- batch norm: as folded into the layer that feeds it; epsilon where none does;
- activations f: R is handed on, with a factor f(x) / x;
- gates (Sigmoid, Hardsigmoid): constants, what they multiply takes all (Arras et al. 2017).

A map's sum is <c, y> but for what biases take, and, under `plus`, outputs without a positive part. Elsewhere the plain
gradient stands, and the sum is another: other norms, attention, convolutions of others' classes, and activations that
the forward pass writes without a module.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from cxlib import runtime, taps
from cxlib.explainers.fullgrad import Cotangents, is_activation, scale_and_shift, spread

_LINEAR = ("Conv1d", "Conv2d", "Conv3d", "Conv2dSame", "SamePadded", "Linear")
_GATES = ("Sigmoid", "Hardsigmoid", "HardSigmoid")


class Layer(NamedTuple):
    """A convolution or linear layer, with the weight and bias that it has together with its batch norm."""

    module: nn.Module
    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The module's output with another weight and bias, without its hooks."""
        twin: Any = copy.copy(self.module)
        twin._parameters = {"weight": weight, "bias": bias}
        output: Tensor = type(self.module).forward(twin, x)
        return output


#: Sums that share an output out, each with the outputs that it serves: a mask, or None where it serves them all.
Sums = list[tuple[Tensor, Tensor | None]]


class _Behind(torch.autograd.Function):
    """See `_behind`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factors: Sequence[Tensor], *_others: Tensor) -> Tensor:
        """The value, as a tensor of its own: what follows may work in place."""
        ctx.save_for_backward(*factors)
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient at the others."""
        return None, None, *(gradient * factor for factor in ctx.saved_tensors)


def _behind(value: Tensor, factors: Sequence[Tensor], *others: Tensor) -> Tensor:
    """The value, behind which gradients go on to others alone, each times its factor."""
    result: Tensor = _Behind.apply(value, factors, *others)  # type: ignore[no-untyped-call]
    return result


# --- rules ------------------------------------------------------------------------------------------------------


def epsilon_rule(layer: Layer, x: Tensor, _gamma: float) -> Sums:
    """LRP-epsilon: the layer's own sum."""
    return [(layer(x, layer.weight, layer.bias), None)]


def plus_rule(layer: Layer, x: Tensor, _gamma: float) -> Sums:
    """z+, which is alpha-beta with alpha 1 and beta 0: the positive parts."""
    bias = None if layer.bias is None else layer.bias.clamp(min=0)
    total = layer(x.relu(), layer.weight.clamp(min=0), bias)
    if (x < 0).any():  # not behind a ReLU, where half of the work would be for nothing
        total = total + layer(-(-x).relu(), layer.weight.clamp(max=0))
    return [(total, None)]


def gamma_rule(layer: Layer, x: Tensor, gamma: float) -> Sums:
    """LRP-gamma: parts of the output's own sign count 1 + gamma times (Andeol et al. 2021, for inputs of any sign)."""
    positive, negative, weight, bias = x.relu(), -(-x).relu(), layer.weight, layer.bias
    z = layer(x.detach(), weight, bias)
    sums: Sums = []
    for part, other, served in (({"min": 0}, {"max": 0}, z > 0), ({"max": 0}, {"min": 0}, z < 0)):
        favoured = None if bias is None else bias + gamma * bias.clamp(**part)
        of_positive = layer(positive, weight + gamma * weight.clamp(**part), favoured)
        sums.append((of_positive + layer(negative, weight + gamma * weight.clamp(**other)), served))
    return sums


CONVOLUTION: dict[str, Callable[[Layer, Tensor, float], Sums]] = {
    "epsilon": epsilon_rule,
    "plus": plus_rule,
    "gamma": gamma_rule,
}


def flat_rule(layer: Layer, _x: Tensor, ones: Tensor, _low: Tensor, _high: Tensor) -> Sums:
    """Flat: all inputs alike (Lapuschkin et al. 2019)."""
    return [(layer(ones, torch.ones_like(layer.weight)), None)]


def box_rule(layer: Layer, x: Tensor, ones: Tensor, low: Tensor, high: Tensor) -> Sums:
    """zB: parts above the lowest value that a pixel can have, and below the highest (Montavon et al. 2017)."""
    weight = layer.weight
    beyond = layer(low * ones, weight.clamp(min=0)) + layer(high * ones, weight.clamp(max=0))
    return [(layer(x * ones, weight) - beyond, None)]


#: Of the first layer only.
FIRST: dict[str, Callable[[Layer, Tensor, Tensor, Tensor, Tensor], Sums]] = {"flat": flat_rule, "box": box_rule}


# --- the explainer ------------------------------------------------------------------------------------------------


@torch.inference_mode(False)
def lrp(
    network: nn.Module,
    images: Tensor,
    cotangents: Cotangents,
    _layer: object = None,
    _relu: bool = False,
    *,
    convolution: str = "plus",
    first: str = "flat",
    epsilon: float = 1e-9,
    gamma: float = 0.25,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Layer-wise relevance of the pixels, summed over the colours: (B, M, H, W).

    By default the composite of Kohlbrenner et al. 2020: epsilon for linear layers, z+ for convolutions, flat for the
    first layer. z+ is made for networks of ReLU: negative outputs that go on have no part in it to be shared out by.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K).
        images: (B, 3, H, W).
        cotangents: from logits (B, K) to cotangents (B, M, K).
        convolution: a name in `CONVOLUTION`.
        first: a name in `FIRST` or `CONVOLUTION`.
        epsilon: what every denominator is moved by, away from 0; small beside all activations, or relevance is lost.
        gamma: of the rule of this name.
        bounds: the lowest and the highest value of the images' pixels, for `box`.

    Raises:
        ValueError: unknown rules, no layer that has one, or a first one that sees no image.
    """
    runtime.check_name("rule", convolution, CONVOLUTION)
    runtime.check_name("rule of the first layer", first, [*FIRST, *CONVOLUTION])
    begins, feeders = _wiring(network, images[:1])
    fed = {feeder: norm for norm, feeder in feeders.items()}
    tops = [fed.get(begin, begin) for begin in begins]
    inputs: dict[nn.Module, Tensor] = {}

    def noted(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        inputs[module] = x
        return y

    def sums_of(layer: Layer, x: Tensor) -> Sums:
        return CONVOLUTION["epsilon" if isinstance(layer.module, nn.Linear) else convolution](layer, x, gamma)

    def by_rule(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return _shared_out(y, sums_of(_folded(module), x), epsilon)

    def norm(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        scale, shift = (values.view(-1, *[1] * (x.ndim - 2)) for values in scale_and_shift(module))
        z = (x * scale + shift).to(x.dtype)
        feeder = feeders.get(module)
        sums: Sums = [(z, None)] if feeder is None else sums_of(_folded(feeder, module), inputs.pop(feeder))
        act = getattr(module, "act", None)  # timm's batch norm ends in an activation, which has its own rule
        return _shared_out(y, sums, epsilon) if act is None else act(_shared_out(z, sums, epsilon))

    rules: dict[nn.Module, Callable[[nn.Module, Tensor, Tensor], Tensor]] = dict.fromkeys(begins, noted)
    for module in network.modules():
        kind = type(module).__name__
        if module in feeders.values():
            rules[module] = noted
        elif module in begins or module in tops:
            continue  # they end the way back
        elif kind in _LINEAR:
            rules[module] = by_rule
        elif _is_norm(module):
            rules[module] = norm
        elif kind in _GATES:
            rules[module] = _constant
        elif is_activation(module):
            rules[module] = _handed_on
    with taps.rewritten(rules):
        recorded = taps.record_each(network, images, tops)
    sums_at_pixels = []
    for begin, activation in zip(begins, recorded.activations):
        layer, x = _folded(begin, fed.get(begin), activation.dtype), inputs[begin].to(activation)
        ones = torch.ones_like(x, requires_grad=True)
        with torch.enable_grad():
            if first in FIRST:
                low, high = _bounds(network, images[:1], begin, bounds) if first == "box" else (x, x)
                sums_at_pixels.append((ones, FIRST[first](layer, x, ones, low.to(x), high.to(x))))
            else:
                sums_at_pixels.append((ones, sums_of(layer, x * ones)))
    maps = []
    for cotangent in cotangents(recorded.logits).unbind(1):
        of_one = torch.zeros(()).to(images)
        for (ones, sums), activation, gradient in zip(
            sums_at_pixels, recorded.activations, recorded.pull_back(cotangent)
        ):
            of_one = of_one + _as_map(_to_pixels(sums, ones, activation * gradient, epsilon), images)
        maps.append(of_one)
    return torch.stack(maps, 1)


MAPS = {"lrp": lrp}


# --- relevance at one layer ---------------------------------------------------------------------------------------


def _shared_out(y: Tensor, sums: Sums, epsilon: float) -> Tensor:
    """The output y itself, behind which relevance goes on by the parts of the sums."""
    factors = [_quotient(y.detach(), total, served, epsilon) for total, served in sums]
    return _behind(y, factors, *(total for total, _ in sums))


def _to_pixels(sums: Sums, ones: Tensor, relevance: Tensor, epsilon: float) -> Tensor:
    """What relevance at the sums' outputs gives to the inputs that the ones multiply."""
    totals = [total for total, _ in sums]
    gradients = [_quotient(relevance, total, served, epsilon) for total, served in sums]
    return torch.autograd.grad(totals, ones, gradients, retain_graph=True)[0]


def _quotient(values: Tensor, total: Tensor, served: Tensor | None, epsilon: float) -> Tensor:
    """Values over what shares them out, which is moved away from 0; 0 where it serves none."""
    total = total.detach()
    away = torch.full((), max(epsilon, torch.finfo(total.dtype).tiny)).to(total).copysign(total)
    quotient = values / (total + away)
    return quotient if served is None else quotient * served


def _handed_on(_module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """An activation's output y, whose relevance is x's."""
    with torch.no_grad():
        slope = (y / x).nan_to_num(0.0, 0.0, 0.0)  # none at 0
    return _behind(y, [slope], x)


def _constant(_module: nn.Module, _x: Tensor, y: Tensor) -> Tensor:
    return y.detach()


def _as_map(relevance: Tensor, images: Tensor) -> Tensor:
    """Relevance (B, C, h, w), or of flattened images, summed to maps (B, H, W)."""
    if relevance.numel() == images.numel():
        relevance = relevance.reshape(images.shape)
    if relevance.ndim != 4:
        raise ValueError(f"the first layer that lrp has a rule for sees {tuple(relevance.shape)}, which is no image")
    return spread(relevance.sum(1), images.shape[-2:])


# --- layers -------------------------------------------------------------------------------------------------------


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _folded(module: Any, norm: nn.Module | None = None, dtype: torch.dtype | None = None) -> Layer:
    """A layer with its batch norm folded into it, by default in its own precision."""
    weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
    if norm is not None:
        scale, shift = scale_and_shift(norm)
        weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        bias = shift if bias is None else shift + scale * bias
    return Layer(module, weight.to(dtype), None if bias is None else bias.to(dtype))


def _wiring(network: nn.Module, image: Tensor) -> tuple[list[nn.Module], dict[nn.Module, nn.Module]]:
    """The layers that see the image, and for each batch norm the layer whose untouched output it takes, if any.

    The layers stand in the order in which they, or their batch norms, run.
    """
    begins: list[nn.Module] = []
    ran: list[nn.Module] = []
    made: dict[int, tuple[nn.Module, Tensor, int]] = {}
    feeders: dict[nn.Module, nn.Module] = {}

    def note(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        ran.append(module)
        if _is_norm(module):
            feeder, _, version = made.get(id(x), (module, x, -1))
            if x._version == version:
                feeders[module] = feeder
            return y
        if not x.requires_grad:
            if type(module).__name__ not in _LINEAR:
                raise ValueError(f"lrp has no rule for the layer that sees the image, a {type(module).__name__}")
            # From here on a graph tells what comes behind a layer from what sees the image.
            begins.append(module)
            torch.set_grad_enabled(True)
            y = y.detach().requires_grad_().clone()
        made[id(y)] = (module, y, y._version)  # y is kept, so that no other tensor gets its id
        return y

    layers = [module for module in network.modules() if isinstance(module, _ConvNd | nn.Linear) or _is_norm(module)]
    with taps.rewritten(dict.fromkeys(layers, note)):
        taps.logits(network, image)
    if not begins:
        raise ValueError(f"lrp has rules for {', '.join(_LINEAR)}, of which {type(network).__name__} runs none")
    fed = {feeder: norm for norm, feeder in feeders.items()}

    def place(begin: nn.Module) -> int:
        return ran.index(fed.get(begin, begin))

    return sorted(begins, key=place), feeders


def _bounds(network: nn.Module, image: Tensor, begin: nn.Module, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """What the first layer sees of images of the lowest and of the highest value."""
    seen: list[Tensor] = []

    def note(_module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(x)
        return y

    with taps.rewritten({begin: note}):
        for value in bounds:
            taps.logits(network, torch.full_like(image, value))
    return seen[0], seen[1]
