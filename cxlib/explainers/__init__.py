"""Explainers: from (activation, gradient) to a saliency map, and `explain`, which brings them together.

`EXPLAINERS` maps each name to its map function; `explain` runs one forward pass for all targets and contrasts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxlib import runtime, taps
from cxlib.contrasts import CONTRASTS, NORMALISED, Contrast, check_targets, cotangent
from cxlib.explainers import cam, gradient
from cxlib.explainers.normalised import Weighing, weighing
from cxlib.networks import explanation_layer

EXPLAINERS = gradient.MAPS | cam.MAPS


def explain(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    explainer: str = "gradcam",
    contrast: str | Contrast | Sequence[str | Contrast] = "weighted",
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
        contrast: a name in `CONTRASTS`, a function (logits, targets) -> cotangent, ``normalised``
            (`explainers.normalised`), or a list of C of them.
        layer: the explanation layer, by name or module; None takes the network's own
            (`networks.explanation_layer`). Explainers at the input take none.
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
    contrasts: Sequence[str | Contrast] = contrast if listed else [contrast]  # type: ignore[list-item, assignment]
    tapped = None if explainer in gradient.MAPS else explanation_layer(network, layer)
    recorded = taps.record(network, images, tapped)
    check_targets(targets, *recorded.logits.shape)
    per_target = targets if targets.ndim == 2 else targets[:, None]
    pulled = pull_back(recorded, contrasts, per_target)
    maps = contrast_maps(explainer, recorded.activation, pulled, relu)  # (B, C, T, h, w)
    if upsample:
        maps = resized(maps.flatten(1, 2), images.shape[-2:]).unflatten(1, maps.shape[1:3])
    maps = maps.transpose(0, 1)
    maps = maps if targets.ndim == 2 else maps.squeeze(2)
    return maps if listed else maps.squeeze(0)


class Pulled(NamedTuple):
    """What all explainers need of C contrasts and T targets.

    Attributes:
        gradients: (B, M, ...), pulled back to the tapped layer: for each contrast but `normalised` T targets,
            then the classes that `normalised` weighs.
        is_normalised: C flags: which of the contrasts is `normalised`.
        n_targets: T.
        weighing: how the classes are weighed; None where `normalised` is not asked for.
    """

    gradients: Tensor
    is_normalised: list[bool]
    n_targets: int
    weighing: Weighing | None


def pull_back(recorded: taps.Record, contrasts: Sequence[str | Contrast], targets: Tensor) -> Pulled:
    """Pull all that contrasts of targets (B, T) need back to the tapped layer, in one go.

    Raises:
        ValueError: unknown contrast, or wrong targets.
    """
    for name in contrasts:
        if isinstance(name, str):
            runtime.check_name("contrast", name, (*CONTRASTS, NORMALISED))
    check_targets(targets, *recorded.logits.shape)
    is_normalised = [contrast == NORMALISED for contrast in contrasts]
    cotangents = [cotangent(c, recorded.logits, targets) for c, skip in zip(contrasts, is_normalised) if not skip]
    weigh = weighing(recorded.logits, targets) if any(is_normalised) else None
    if weigh is not None:
        cotangents.append(weigh.cotangents(recorded.logits.shape[-1]).to(recorded.logits))
    return Pulled(recorded.pull_back(torch.cat(cotangents, 1)), is_normalised, targets.shape[1], weigh)


def contrast_maps(explainer: str, activation: Tensor, pulled: Pulled, relu: bool = False) -> Tensor:
    """Maps (B, C, T, h, w) of an activation (B, C, h, w) under the contrasts pulled back.

    Raises:
        ValueError: unknown explainer, or an activation that is no spatial map.
    """
    maps = saliency(explainer, activation, pulled.gradients)
    n_classes = 0 if pulled.weighing is None else pulled.weighing.classes.shape[1]
    plain, of_classes = maps.tensor_split([maps.shape[1] - n_classes], 1)
    stacked = list(plain.split(pulled.n_targets, 1)) if plain.shape[1] else []
    for place, flag in enumerate(pulled.is_normalised):
        if flag and pulled.weighing is not None:
            stacked.insert(place, pulled.weighing(of_classes))
    maps = torch.stack(stacked, 1)
    return maps.clamp(min=0) if relu else maps


def saliency(explainer: str, activation: Tensor, gradients: Tensor) -> Tensor:
    """Maps (B, M, h, w) from an activation (B, C, h, w) and gradients (B, M, C, h, w).

    Raises:
        ValueError: unknown explainer, or an activation that is no spatial map.
    """
    runtime.check_name("explainer", explainer, EXPLAINERS)
    if activation.ndim != 4:
        raise ValueError(f"{explainer} needs a layer with output (B, C, h, w), got shape {tuple(activation.shape)}")
    return EXPLAINERS[explainer](activation[:, None], gradients)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, M, h, w) upsampled bilinearly to (B, M, H, W), corners to corners, as published."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=True)
