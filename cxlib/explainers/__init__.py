"""Explainers: from (activation, gradient) to a saliency map, and `explain`, which brings them together.

`MAPS` has those that look at one layer, as functions of its activation and gradient; `EXPLAINERS` has all that
`explain` takes. `explain` runs one forward pass for all targets and contrasts.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxlib import runtime, taps
from cxlib.contrasts import Contrast, check_targets, cotangent
from cxlib.explainers import cam, fullgrad, gradient
from cxlib.networks import explanation_layer

MAPS = gradient.MAPS | cam.MAPS
EXPLAINERS: dict[str, Callable[..., Tensor]] = MAPS | {"fullgrad": fullgrad.fullgrad}


def explain(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    explainer: str = "gradcam",
    contrast: str | Contrast | Tensor | Sequence[str | Contrast | Tensor] = "weighted",
    layer: str | nn.Module | None = None,
    relu: bool = False,
    upsample: bool = True,
) -> Tensor:
    """Saliency maps that say why the target class, under a contrast.

    All targets and contrasts of an image share one forward pass, and a batch gives what single images give.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K); its parameters may be frozen.
        images: (B, 3, H, W), in the range that the network takes.
        targets: (B,) or (B, T) class indices.
        explainer: a name in `EXPLAINERS`.
        contrast: a name in `CONTRASTS`, a function (logits, targets) -> cotangent, a cotangent (K,), (B, K) or
            (B, T, K), or a list of C of them.
        layer: the explanation layer, by name or module; None takes the network's own
            (`networks.explanation_layer`). `gradient` and `fullgrad` take none: they explain the whole network.
        relu: keep the positive part only, as the explainers' standard variants do.
        upsample: bilinear to (H, W), ``align_corners=True`` as published; False keeps the layer's resolution.

    Returns:
        (B, H, W) for targets (B,), (B, T, H, W) for targets (B, T), with a leading C for a list of contrasts;
        on the images' device, without graph.

    Raises:
        ValueError: unknown names, wrong targets, or a layer that has no spatial map.
    """
    runtime.check_name("explainer", explainer, EXPLAINERS)
    listed = isinstance(contrast, list | tuple)
    contrasts: Sequence[str | Contrast | Tensor] = contrast if listed else [contrast]  # type: ignore[list-item, assignment]
    recorded: taps.Record | taps.Trace
    if explainer == "fullgrad":
        recorded = fullgrad.record(network, images)
    else:
        recorded = taps.record(
            network, images, None if explainer in gradient.MAPS else explanation_layer(network, layer)
        )
    check_targets(targets, *recorded.logits.shape)
    per_target = targets if targets.ndim == 2 else targets[:, None]
    cotangents = torch.stack([cotangent(c, recorded.logits, per_target) for c in contrasts], 1)  # (B, C, T, K)
    if isinstance(recorded, taps.Trace):
        maps = fullgrad.fullgrad(recorded, cotangents.flatten(1, 2), fullgrad.zero_image(network))
        maps = maps.clamp(min=0) if relu else maps
    else:
        gradients = recorded.pull_back(cotangents.flatten(1, 2))  # (B, C * T, ...)
        maps = saliency(explainer, recorded.activation, gradients, images.shape[-2:] if upsample else None, relu)
    maps = maps.unflatten(1, cotangents.shape[1:3]).transpose(0, 1)  # (C, B, T, H, W)
    maps = maps if targets.ndim == 2 else maps.squeeze(2)
    return maps if listed else maps.squeeze(0)


def saliency(
    explainer: str, activation: Tensor, gradients: Tensor, size: Sequence[int] | None = None, relu: bool = False
) -> Tensor:
    """Maps from an activation (B, C, h, w) and gradients (B, M, C, h, w): (B, M, h, w), or upsampled to `size`.

    Raises:
        ValueError: unknown explainer, or an activation that is no spatial map.
    """
    runtime.check_name("explainer at one layer", explainer, MAPS)
    if activation.ndim != 4:
        raise ValueError(f"{explainer} needs a layer with output (B, C, h, w), got shape {tuple(activation.shape)}")
    maps = MAPS[explainer](activation[:, None], gradients)
    maps = maps.clamp(min=0) if relu else maps
    if size is None or maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=True)
