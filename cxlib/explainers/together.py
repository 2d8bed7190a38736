"""Many explainers of the same images, which share the passes that they have in common.

`explain` asks one explainer, and nobody who compares explainers need pay for each of them: those at one layer share a
forward pass and what is pulled back to it; the gradient, input x gradient and FullGrad are read off the same backward
passes through the whole network; and of what is linear in the cotangent no more is pulled back than the contrasts span
(`contrasts.spanning`): 3 of the 6 cotangents of `original`, `max` and `weighted` of two classes. Maps are those of
`explain` up to rounding.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cxlib import runtime, taps
from cxlib.contrasts import Contrast, spanning
from cxlib.explainers import EXPLAINERS, LINEAR, OWN, answer, ask, cautions, fullgrad, saliency
from cxlib.explainers.cam import MAPS as AT_LAYER
from cxlib.explainers.gradient import gradient, times_input
from cxlib.networks import explanation_layer

#: Those that one pass through the whole network serves: maps (B, H, W) of images, the gradient there, FullGrad's terms.
THROUGHOUT: dict[str, Callable[[Tensor, Tensor, list[Tensor | None], Tensor | float], Tensor]] = {
    "gradient": lambda images, at_images, _terms, _zero: gradient(images, at_images),
    "input_x_gradient": lambda images, at_images, _terms, zero: times_input(images, at_images, zero),
    "fullgrad": fullgrad.summed,
}


class Explained(NamedTuple):
    """What several explainers say of a batch.

    Attributes:
        logits: (B, K).
        targets: (B, T), the classes that are explained.
        maps: of each explainer (B, C, T, h, w), in its own resolution, under C contrasts.
        constant_gradient: whether the gradient at the layer is constant over the map of every image, because only
            pooling follows, so that the CAMs coincide; False where none was asked.
    """

    logits: Tensor
    targets: Tensor
    maps: list[Tensor]
    constant_gradient: bool


@runtime.full_float32()
def explain_together(
    network: nn.Module,
    images: Tensor,
    targets: Tensor | int,
    explainers: Sequence[str],
    contrasts: Sequence[str | Contrast | Tensor],
    layer: str | nn.Module | None = None,
) -> Explained:
    """Explain targets of images by several explainers under several contrasts.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K).
        images: (B, 3, H, W), in the range that the network takes.
        targets: (B, T) class indices; or how many of each image's most probable classes.
        explainers: names in `explainers.EXPLAINERS`.
        contrasts: as `explain` takes them.
        layer: the explanation layer, by name or module; None takes the network's own.

    Raises:
        ValueError: unknown names, wrong targets, a layer that has no spatial map, or maps that are not finite.
    """
    for name in explainers:
        runtime.check_name("explainer", name, EXPLAINERS)
    at_layer = [name for name in explainers if name in AT_LAYER]
    recorded = taps.record(network, images, explanation_layer(network, layer)) if at_layer else None
    logits = recorded.logits if recorded else taps.logits(network, images)
    targets = logits.topk(targets).indices if isinstance(targets, int) else targets
    if targets.ndim != 2:
        raise ValueError(f"targets must be (B, T) class indices, or how many, got {tuple(targets.shape)}")
    asked = ask(logits, contrasts, targets)
    found: dict[str, Tensor] = {}  # (B, M, h, w) each
    constant = False
    if recorded:
        gradients = recorded.pull_back(asked.cotangents)
        found = {name: saliency(name, recorded.activation, gradients) for name in at_layer}
        constant = cautions.is_constant(gradients)
        del recorded, gradients  # their graph need not stand beside the next
    basis, weights = spanning(asked.cotangents)
    spanned = _throughout(network, images, basis, [name for name in explainers if name in THROUGHOUT])
    for name in explainers:
        if name in LINEAR and name not in found | spanned:
            spanned[name] = OWN[name](network, images, lambda _logits: basis, layer, False)
        elif name not in LINEAR and name not in found:
            found[name] = OWN[name](network, images, lambda _logits: asked.cotangents, layer, False)
    found |= {name: torch.einsum("bmr,brhw->bmhw", weights.to(maps), maps) for name, maps in spanned.items()}
    for name, maps in found.items():
        if not maps.isfinite().all():
            raise ValueError(f"the maps of {name} are not finite though the logits are: the gradient overflows")
    return Explained(logits, targets, [answer(found[name], asked) for name in explainers], constant)


def _throughout(network: nn.Module, images: Tensor, cotangents: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Maps (B, M, H, W) of those of `THROUGHOUT` that are named, of cotangents (B, M, K)."""
    if not names:
        return {}
    zero = fullgrad.zero_image(network)
    trace = fullgrad.record(network, images) if "fullgrad" in names else taps.trace(network, images, {})

    def read(at_images: Tensor, terms: list[Tensor | None]) -> list[Tensor]:
        return [THROUGHOUT[name](trace.images, at_images, terms, zero) for name in names]

    maps = trace.pull_back(cotangents, fullgrad.of_layer, read)
    return {name: torch.stack(of_each, 1) for name, of_each in zip(names, zip(*maps))}
