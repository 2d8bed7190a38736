"""Explainers: from (activation, gradient) to a saliency map, and `explain`, which brings them together.

`MAPS` has those that look at one layer, as functions of its activation and gradient; `EXPLAINERS` has all that
`explain` takes. `explain` runs one forward pass for all targets and contrasts.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxlib import runtime, taps
from cxlib.contrasts import CONTRASTS, NORMALISED, Contrast, check_targets, cotangent
from cxlib.explainers import attention, cam, cautions, fullgrad, gradient, inputs, lrp, vit
from cxlib.explainers.cautions import ExplanationWarning as ExplanationWarning
from cxlib.explainers.layout import Layout, layout
from cxlib.explainers.normalised import Weighing, weighing
from cxlib.networks import explanation_layer

MAPS = gradient.MAPS | cam.MAPS
#: From network, images, cotangents of the logits, layer and relu to maps (B, M, h, w).
Explainer = Callable[[nn.Module, Tensor, fullgrad.Cotangents, str | nn.Module | None, bool], Tensor]
#: Those of Vision Transformers.
OF_TOKENS: dict[str, Explainer] = vit.MAPS | vit.PUBLISHED | attention.MAPS
#: Those that record what they need themselves.
OWN: dict[str, Explainer] = inputs.MAPS | fullgrad.MAPS | lrp.MAPS | OF_TOKENS
EXPLAINERS: dict[str, Callable[..., Tensor]] = MAPS | OWN
#: Those that are linear in the cotangent: the map of a contrast is the contrast of the classes' maps, and that of
#: `probability` p_t (1 - p_t) times that of `weighted` (Eq. 4). What a contrast means for the others, they say.
LINEAR = frozenset(
    {
        *("gradient", "input_x_gradient", "integrated_gradients", "smoothgrad", "fullgrad", "lrp"),
        *("gradcam", "linear_approximation", "xgradcam", "vit_gradcam"),
    }
)


@runtime.full_float32()
def explain(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    explainer: str | Explainer = "gradcam",
    contrast: str | Contrast | Tensor | Sequence[str | Contrast | Tensor] = "weighted",
    layer: str | nn.Module | Sequence[str | nn.Module] | None = None,
    relu: bool = False,
    upsample: bool = True,
    output: Callable[[Any], Tensor] | None = None,
    reshape: Layout | None = None,
    each_layer: bool = False,
) -> Tensor:
    """Saliency maps that say why the target class, under a contrast.

    All targets, contrasts and layers of an image share one forward pass, and a batch gives what single images give.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K), to what has them as `logits`, to a tuple or dictionary with
            no other tensor (B, K), or to what `output` makes them of; its parameters may be frozen.
        images: (B, 3, H, W), in the range that the network takes.
        targets: (B,) or (B, T) class indices.
        explainer: a name in `EXPLAINERS`, or an `Explainer`, as those in `OWN` are, which have options of their own:
            ``functools.partial(integrated_gradients, steps=20)``.
        contrast: a name in `CONTRASTS`, a function (logits, targets) -> cotangent, a cotangent (K,), (B, K) or
            (B, T, K), ``normalised`` (`explainers.normalised`), or a list of C of them.
        layer: the explanation layer, by name or module; None takes the network's own
            (`networks.explanation_layer`). Those at the input, `fullgrad` and `lrp` take none: they explain the whole
            network; `vit_gradcam` takes a layer of tokens (`vit.token_layers`), the other explainers of transformers
            the block at which they begin. Those that look at one layer (`gradcam` and its kin) also take a list of L
            layers, whose maps are summed after resizing to the images, or to the finest of them.
        relu: keep the positive part only, as the explainers' standard variants do; of each layer's map before the sum.
        upsample: bilinear to (H, W), ``align_corners=True`` as published; False keeps the layer's resolution.
        output: from the network's answer to logits (B, K); ready ones stand in `cxlib.outputs`.
        reshape: from what a layer gives (B, ...) to (B, C, h, w), for activation and gradient alike, where the rules
            (`explainers.layout`) do not know how places and channels lie.
        each_layer: of a list of layers give each one's map instead of their sum.

    Returns:
        (B, H, W) for targets (B,), (B, T, H, W) for targets (B, T), with a leading C for a list of contrasts, and
        before it a leading L with `each_layer`; on the images' device, without graph, in float32 at least: autocast is
        off inside, and weights of half precision are taken as they are (see `taps`).

    Raises:
        ValueError: unknown names, no image or no contrast, wrong targets, a layer that has no spatial map, layers or
            `reshape` for an explainer that takes none, or logits or maps that are not finite.

    Warns:
        ExplanationWarning: the CAMs are one map at the layer that was chosen, a softmax is inside the network already,
            its labels do not exclude each other, or it has no head (`explainers.cautions`).
    """
    if isinstance(explainer, str):
        runtime.check_name("explainer", explainer, EXPLAINERS)
    listed = isinstance(contrast, list | tuple)
    contrasts: Sequence[str | Contrast | Tensor] = contrast if listed else [contrast]  # type: ignore[list-item, assignment]
    if images.ndim != 4 or not images.numel() or images.is_complex():
        raise ValueError(f"images must be real (B, 3, H, W), one or more, got {images.dtype} {tuple(images.shape)}")
    layers: list[Any] = list(layer) if isinstance(layer, list | tuple) else [layer]
    _check_layers(explainer, layer, reshape, each_layer)
    asked: list[Asked] = []
    if output is not None:
        # A layer's name is the network's own, also where `output` is a module that has layers too.
        layers = [explanation_layer(network, name) if isinstance(name, str) else name for name in layers]
        network = _Answering(network, output)

    doubts = cautions.of_network(network, contrasts)

    def cotangents(logits: Tensor) -> Tensor:
        check_targets(targets, *logits.shape)
        asked.append(ask(logits, contrasts, targets if targets.ndim == 2 else targets[:, None]))
        doubts.extend(cautions.of_logits(logits))
        return asked[-1].cotangents

    with taps.heard(network, lambda answer: doubts.extend(cautions.of_answer(answer))):
        if not isinstance(explainer, str) or explainer in OWN:
            own = OWN[explainer] if isinstance(explainer, str) else explainer
            of_layers = [own(network, images, cotangents, layers[0], relu)]  # (B, M, h, w)
            if not asked or of_layers[0].ndim != 4 or of_layers[0].shape[:2] != asked[-1].cotangents.shape[:2]:
                raise ValueError(
                    "an explainer asks for the cotangents (B, M, K) of the logits and returns maps (B, M, h, w), not"
                    f" maps of shape {tuple(of_layers[0].shape)}"
                )
        elif explainer in gradient.MAPS:
            recorded = taps.record(network, images)
            of_layers = [saliency(explainer, recorded.activation, recorded.pull_back(cotangents(recorded.logits)))]
        else:
            tapped = [explanation_layer(network, name) for name in layers]
            of_layers, constant = _at_layers(explainer, network, images, cotangents, tapped, reshape)
            # GradCAM at the network's own layer is what it is meant to be.
            if any(constant) and explainer in cautions.COINCIDING and (layer is not None or explainer != "gradcam"):
                names = {module: name for name, module in network.named_modules()}
                doubts += [cautions.of_layer(names.get(found, "")) for found, flag in zip(tapped, constant) if flag]
    if not all(maps.isfinite().all() for maps in of_layers):
        raise ValueError(
            f"the maps of {explainer} are not finite though the logits are: the network's gradient overflows, or has no"
            " value, as that of a square root at 0"
        )
    cautions.warn(doubts)
    of_layers = [answer(maps, asked[-1], relu) for maps in of_layers]  # (B, C, T, h, w)
    finest = [max(sizes) for sizes in zip(*(maps.shape[-2:] for maps in of_layers))]
    size = images.shape[-2:] if upsample else finest
    of_layers = [resized(maps.flatten(1, 2), size).unflatten(1, maps.shape[1:3]) for maps in of_layers]
    maps = torch.stack(of_layers) if each_layer else reduce(torch.add, of_layers)
    maps = maps.transpose(-5, -4)
    maps = maps if targets.ndim == 2 else maps.squeeze(-3)
    return maps if listed else maps.squeeze(-4 if targets.ndim == 1 else -5)


def _check_layers(explainer: str | Explainer, layer: object, reshape: Layout | None, each_layer: bool) -> None:
    several = isinstance(layer, list | tuple)
    if (several or reshape) and explainer not in cam.MAPS:
        takers = ", ".join(cam.MAPS)
        raise ValueError(f"{explainer} takes {'no list of layers' if several else 'no `reshape`'}: {takers} do")
    if several and not layer:
        raise ValueError("an empty list names no layer: name one or more")
    if each_layer and not several:
        raise ValueError("`each_layer` is for a list of layers")


def _at_layers(
    explainer: str,
    network: nn.Module,
    images: Tensor,
    cotangents: Callable[[Tensor], Tensor],
    layers: Sequence[nn.Module],
    reshape: Layout | None,
) -> tuple[list[Tensor], list[bool]]:
    """Maps (B, M, h, w) at each layer, of one forward pass and M backward passes; is a layer's gradient constant?"""
    recorded = taps.record_each(network, images, layers)
    layouts = [layout(network, layer, images, output, reshape) for layer, output in zip(layers, recorded.activations)]
    activations = [laid_out(output) for laid_out, output in zip(layouts, recorded.activations)]
    maps: list[list[Tensor]] = [[] for _ in layers]
    constant: list[bool] = []
    for cotangent_ in cotangents(recorded.logits).unbind(1):
        pulled = [laid_out(gradient_) for laid_out, gradient_ in zip(layouts, recorded.pull_back(cotangent_))]
        for of_layer, activation, gradient_ in zip(maps, activations, pulled):
            of_layer.append(saliency(explainer, activation, gradient_[:, None]))
        constant = constant or [cautions.is_constant(gradient_) for gradient_ in pulled]  # one cotangent tells
    return [torch.cat(of_layer, 1) for of_layer in maps], constant


class _Answering(nn.Module):
    """A network, and what makes logits of its answer."""

    def __init__(self, network: nn.Module, output: Callable[[Any], Tensor]):
        super().__init__()
        self.network, self.output = network, output

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.network(images))


class Asked(NamedTuple):
    """What contrasts of targets ask of an explainer.

    Attributes:
        cotangents: (B, M, K): for each contrast but `normalised` T targets, then the classes that `normalised` weighs.
        is_normalised: C flags: which of the contrasts is `normalised`.
        n_targets: T.
        weighing: how the classes are weighed; None where `normalised` is not asked for.
    """

    cotangents: Tensor
    is_normalised: list[bool]
    n_targets: int
    weighing: Weighing | None


def ask(logits: Tensor, contrasts: Sequence[str | Contrast | Tensor], targets: Tensor) -> Asked:
    """All cotangents on logits (B, K) that contrasts of targets (B, T) need.

    Raises:
        ValueError: unknown contrast, or wrong targets.
    """
    if not contrasts:
        raise ValueError("an empty list asks for no contrast: name one or more")
    for name in contrasts:
        if isinstance(name, str):
            runtime.check_name("contrast", name, (*CONTRASTS, NORMALISED))
    check_targets(targets, *logits.shape)
    is_normalised = [isinstance(contrast, str) and contrast == NORMALISED for contrast in contrasts]
    cotangents = [cotangent(c, logits, targets) for c, skip in zip(contrasts, is_normalised) if not skip]
    weigh = weighing(logits, targets) if any(is_normalised) else None
    if weigh is not None:
        cotangents.append(weigh.cotangents(logits.shape[-1]).to(logits))
    return Asked(torch.cat(cotangents, 1), is_normalised, targets.shape[1], weigh)


def answer(maps: Tensor, asked: Asked, relu: bool = False) -> Tensor:
    """Maps (B, C, T, h, w) of the contrasts, from those of the cotangents that were asked for, (B, M, h, w)."""
    n_classes = 0 if asked.weighing is None else asked.weighing.classes.shape[1]
    plain, of_classes = maps.tensor_split([maps.shape[1] - n_classes], 1)
    stacked = list(plain.split(asked.n_targets, 1)) if plain.shape[1] else []
    for place, flag in enumerate(asked.is_normalised):
        if flag and asked.weighing is not None:
            stacked.insert(place, asked.weighing(of_classes))
    maps = torch.stack(stacked, 1)
    return maps.clamp(min=0) if relu else maps


def saliency(explainer: str, activation: Tensor, gradients: Tensor) -> Tensor:
    """Maps (B, M, h, w) from an activation (B, C, h, w) and gradients (B, M, C, h, w).

    Raises:
        ValueError: unknown explainer, or an activation that is no spatial map.
    """
    runtime.check_name("explainer at one layer", explainer, MAPS)
    if activation.ndim != 4:
        raise ValueError(
            f"{explainer} needs a layer with output (B, C, h, w), or a `reshape` that makes it so, got shape"
            f" {tuple(activation.shape)}"
        )
    return MAPS[explainer](activation[:, None], gradients)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (..., h, w) upsampled bilinearly to (..., H, W), corners to corners, as published."""
    if maps.shape[-2:] == tuple(size):
        return maps
    planes = maps.reshape(1, -1, *maps.shape[-2:])
    return F.interpolate(planes, tuple(size), mode="bilinear", align_corners=True).view(*maps.shape[:-2], *size)
