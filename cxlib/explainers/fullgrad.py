"""FullGrad (Srinivas & Fleuret 2019) with linear post-processing: no absolute value, no rescaling of single maps.

A network of linear layers and piecewise linear functions is, around an image x, y = x . dy/dx + sum_l b_l . dy/db_l
with the biases b_l of its layers. FullGrad maps are the summands, laid over the image. All is linear in the cotangent,
so the map of a contrast is the contrast of the classes' maps, and it is *complete*: its sum over the pixels is the
cotangent's product with the logits (for `original` y_t, for `max` y_t - y_s*).

Biases, one for each run of a layer:

- convolutions and linear layers: their own;
- batch norm: beta - gamma mean / std, of its running statistics;
- activation functions: the implicit bias f(x) - x f'(x) (section 3 of the paper); none for ReLU, 6 where ReLU6 clips;
- squeeze and excitation: minus its output, for a product s x has (s x) = d(s x)/ds s + d(s x)/dx x - s x.

Completeness holds for networks built of these, pooling, sums and concatenations. It does not hold for layer, group or
instance norm and attention, whose terms are left out (layer norm, scale-free, would take all that stands before
it), nor for activations and products that the forward pass writes without a module. Maps are still made there.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from cxlib import taps
from cxlib.explainers.gradient import times_input
from cxlib.networks import Network, nested

# Elementwise and not homogeneous, so that they have an implicit bias.
_ACTIVATIONS = (
    *(nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.GELU, nn.ELU, nn.SELU, nn.CELU, nn.Mish),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softplus, nn.Softsign),
)
# timm's own, by name: the module that they live in takes seconds to import.
_TIMM_ACTIVATIONS = (
    "Swish",
    "Mish",
    "Sigmoid",
    "Tanh",
    "HardSwish",
    "HardSigmoid",
    "HardMish",
    "GELUTanh",
    "QuickGELU",
)
_GATES = ("SqueezeExcitation", "SqueezeExcite", "SEModule", "EffectiveSEModule")

#: From logits (B, K) to M cotangents an image, (B, M, K).
Cotangents = Callable[[Tensor], Tensor]

# A bias that multiplies the gradient at its layer's output, (C,) or shaped like it, and the dimension of its channels.
_Bias = tuple[Tensor, int]
# As it is found: None for the dimension that the layer before has.
_Found = tuple[Tensor, int | None]


def record(network: nn.Module, images: Tensor) -> taps.Trace:
    """One forward pass that keeps every bias (see above), and the dimension of its channels."""
    layers: dict[nn.Module, Callable[[Any, Tensor, Tensor], _Found]] = {}
    for module in network.modules():
        if isinstance(module, _ConvNd | nn.Linear) and module.bias is not None:
            layers[module] = _own
        elif isinstance(module, _BatchNorm) and module.running_mean is not None:
            # timm's BatchNormAct2d ends in an activation, before which it runs an identity named `drop`.
            layers[getattr(module, "drop", module)] = partial(_of_batch_norm, module)
        elif isinstance(module, nn.ReLU6):
            layers[module] = _of_relu6
        elif is_activation(module):
            layers[module] = _implicit
        elif type(module).__name__ in _GATES:
            layers[module] = _of_gate
    trace = taps.trace(network, images, {layer: partial(_with_shape, find) for layer, find in layers.items()})
    return replace(trace, kept=list(_with_channels(trace.kept)))


def fullgrad(network: nn.Module, images: Tensor, cotangents: Cotangents, _layer: Any, _relu: bool) -> Tensor:
    """FullGrad maps (B, M, H, W) of the whole network."""
    trace = record(network, images)
    return from_trace(trace, cotangents(trace.logits), zero_image(network))


def from_trace(trace: taps.Trace, cotangents: Tensor, zero: Tensor | float = 0.0) -> Tensor:
    """FullGrad maps (B, M, H, W) of cotangents (B, M, K), whose sums over the pixels are the products with the logits.

    Every map (h, w) is spread over the image bilinearly, by weights that keep its sum; what has no place, as the biases
    behind global pooling, is spread evenly.

    Args:
        trace: what `record` returned.
        cotangents: (B, M, K).
        zero: the image that the network's first layer sees as zero: the mean where it normalises inside.
    """
    maps = trace.pull_back(cotangents, of_layer, lambda at_images, terms: summed(trace.images, at_images, terms, zero))
    return torch.stack(maps, 1)


def of_layer(kept: _Bias, gradient: Tensor) -> Tensor:
    """A layer's term, the bias that `record` kept times the gradient, summed over the channels: (B, h, w).

    It is (B, 1, 1) where there is no space.
    """
    bias, channels = kept
    bias = bias.to(gradient)
    if bias.ndim == gradient.ndim:
        term = (bias * gradient).sum(channels)
    elif channels == 1:
        term = (bias @ gradient.flatten(2)).unflatten(1, gradient.shape[2:]) if gradient.ndim > 2 else gradient @ bias
    else:
        term = gradient @ bias
    return term if term.ndim == 3 and gradient.ndim == 4 else term.reshape(len(term), -1).sum(1)[:, None, None]


def summed(images: Tensor, gradient: Tensor, terms: list[Tensor | None], zero: Tensor | float) -> Tensor:
    """The map (B, H, W) of one cotangent: its gradient at the images, and the layers' terms; `zero` as above."""
    size = images.shape[-2:]  # terms of one size are summed first, for spreading is linear too
    of_size = {size: times_input(images, gradient, zero)}
    for term in terms:
        if term is not None:
            term = _of_each_image(term, len(images))
            of_size[term.shape[-2:]] = of_size.get(term.shape[-2:], 0) + term
    return torch.stack([spread(term, size) for term in of_size.values()]).sum(0)


def is_activation(module: nn.Module) -> bool:
    """Whether it is an elementwise activation that is not homogeneous, as ReLU is."""
    kind, home = type(module).__name__, type(module).__module__
    if isinstance(module, _ACTIVATIONS) or (kind in _TIMM_ACTIVATIONS and "timm" in home):
        return True
    return home == "transformers.activations"  # holds nothing else


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of a batch norm in evaluation mode."""
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()


def zero_image(network: nn.Module) -> Tensor | float:
    """The colour (3, 1, 1) that the network's first layer sees as zero; 0 for a network that we did not build."""
    for module in nested(network):
        if isinstance(module, Network):
            # GoogLeNet and Inception undo ImageNet's normalisation inside and have their own, of mean 0.5.
            return 0.5 if getattr(module.inner, "transform_input", False) else module.mean
    return 0.0


def _own(layer: Any, _x: Tensor, _y: Tensor) -> _Found:
    return layer.bias.detach(), -1 if isinstance(layer, nn.Linear) else 1


def _of_batch_norm(layer: Any, _module: nn.Module, _x: Tensor, _y: Tensor) -> _Found:
    return scale_and_shift(layer)[1], 1


def _implicit(activation: Any, x: Tensor, y: Tensor) -> _Found:
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(activation.forward(leaf).sum(), leaf)
    return y.detach() - x.detach() * slope, None


def _of_relu6(_activation: Any, _x: Tensor, y: Tensor) -> _Found:
    """The implicit bias, without a pass for the slope: the output where it is 6, else 0."""
    below = 6 * (1 - torch.finfo(y.dtype).eps / 2)  # rounded to y's precision the greatest number that is not clipped
    return F.threshold(y.detach(), below, 0.0), None


def _of_gate(_gate: nn.Module, _x: Tensor, y: Tensor) -> _Found:
    return -y.detach(), 1


def _with_shape(
    find: Callable[[Any, Tensor, Tensor], _Found], layer: nn.Module, x: Tensor, y: Tensor
) -> tuple[_Found, torch.Size]:
    return find(layer, x, y), y.shape


def _with_channels(found: Iterable[tuple[_Found, torch.Size]]) -> Iterator[_Bias]:
    """Biases in the forward pass's order; an activation has its channels where the layer before, if alike, has them."""
    before, channels = torch.Size(), 1
    for (bias, own), shape in found:
        channels = own if own is not None else channels if shape == before else 1
        before = shape
        yield bias, channels


def _of_each_image(term: Tensor, n_images: int) -> Tensor:
    """Windows (B * n, h, w), which stand image after image along the batch, summed to (B, 1, 1)."""
    if len(term) == n_images:
        return term
    if len(term) % n_images:
        raise ValueError(f"fullgrad cannot share a bias of {len(term)} outputs among {n_images} images: pass one image")
    return term.reshape(n_images, -1).sum(1)[:, None, None]


def spread(term: Tensor, size: torch.Size) -> Tensor:
    """A map (B, h, w) laid over (H, W) so that its sum stays what it is."""
    if term.shape[-2:] == size:
        return term
    rows, columns = (_weights(n, N).to(term) for n, N in zip(term.shape[-2:], size))
    return rows @ term @ columns.T


def _weights(n: int, n_pixels: int) -> Tensor:
    """(N, n): bilinear weights between the pixels' centres, each of the n places giving away one in all."""
    eye = torch.eye(n, dtype=torch.float64)[None, None]
    weights = F.interpolate(eye, (n_pixels, n), mode="bilinear", antialias=True)[0, 0]
    return weights / weights.sum(0)


MAPS = {"fullgrad": fullgrad}
