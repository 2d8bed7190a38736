"""Which layer of an architecture is explained, and how its output lies in memory."""

import re
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches

from torch import nn
from torchvision.ops import Permute

# Where families end in a spatial map, by class; VGG and AlexNet, and the networks of timm, have their own rule.
_LAST_MAP = {
    "ResNet": "layer4",
    "GoogLeNet": "inception5b",
    "Inception3": "Mixed_7c",
    "MNASNet": "layers",
    "RegNet": "trunk_output",
    "ShuffleNetV2": "conv5",
    "MaxVit": "blocks.3",
    "SwinTransformer": "permute",  # torchvision's; timm's has no such layer
    "SwinTransformerV2Cr": "stages.3",
    "EfficientFormer": "stages.2",  # its last stage ends in tokens
    "HighResolutionNet": "final_layer",
    "SelecSls": "head",
    "SwinModel": "layernorm",  # Hugging Face's, and tokens, as the next one's
    "Swinv2Model": "layernorm",
}
# Where the last child is the last stage: Hugging Face's, and torchvision's networks for segmentation.
_LAST_STAGE_OF = {
    "ResNetModel": "encoder.stages",
    "RegNetModel": "encoder.stages",
    "ConvNextModel": "encoder.stages",
    "ConvNextV2Model": "encoder.stages",
    "SegformerModel": "stages",
    "FCN": "backbone",
    "DeepLabV3": "backbone",
    "LRASPP": "backbone",
}
# Hugging Face's classes whose blocks pass the places of a map on row by row (B, h w, C), without other tokens.
_ROW_BY_ROW = ("SwinModel", "Swinv2Model", "SegformerModel")
# Classes that are explained at their last convolution, as published for VGG-16-BN.
_BEFORE_BATCH_NORM = ("AlexNet", "VGG", "NarrowVGG")
# Classes whose blocks pass maps (B, h, w, C) on, and modules inside them that do not.
_CHANNELS_LAST = ("SwinTransformer", "SwinTransformerV2", "MambaOut", "Sequencer2d", "VOLO", "HieraDet")
_CHANNELS_FIRST = (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d, Permute)
# Classes that end in tokens although a convolution stands near their end.
_TOKENS = ("CoaT", "MultiScaleVit", "PoolingVisionTransformer", "TNT", "Twins", "Xcit")
# A last convolution with such a name makes tokens of the image: what follows is no map (B, C, h, w).
_EMBEDDING = re.compile(r"patch_embed|conv_proj|stem")


def nested(network: nn.Module) -> Iterator[nn.Module]:
    """The network, then the one that it merely holds, and so on to the one that has the layers.

    `Network`, DataParallel, torch.compile and modules of one's own merely hold another: all layers with weights are in
    it.
    """
    yield network
    held = [child for child in network.children() if next(child.parameters(), None) is not None]
    if len(held) == 1 and next(held[0].children(), None) is not None:  # a single layer is no network
        yield from nested(held[0])


def explanation_layer(network: nn.Module, layer: str | nn.Module | None = None) -> nn.Module:
    """The layer whose activation is explained.

    Args:
        network: any module; the inner names of one that merely holds another (`nested`) need no prefix.
        layer: a module (returned as it is), its name, or None for the architecture's own, wherever it stands in the
            network: the last convolution of VGG (``features.40`` of VGG-16-BN, before its batch norm, as published) and
            AlexNet, the last spatial map of torchvision's other families and of Hugging Face's (ResNet, RegNet,
            ConvNeXT, Swin, SegFormer), the last stage of timm's, the last convolution of any other.

    Raises:
        ValueError: no such layer (with the nearest names), or an architecture without a spatial map.
    """
    if isinstance(layer, nn.Module):
        return layer
    *holders, inner = nested(network)
    if layer is None:
        own = (_last_map(module) for module in network.modules())  # from the outermost on
        return next((found for found in own if found), None) or _last_convolution(inner)
    for module in (*holders, inner):
        with suppress(AttributeError):
            return module.get_submodule(layer)
    names = [name for module in (inner, *holders) for name, _ in module.named_modules() if name]
    near = dict.fromkeys(get_close_matches(layer, names, n=5, cutoff=0.3) or names[:5])
    raise ValueError(f"{type(inner).__name__} has no layer {layer!r}; near it: {', '.join(near)}")


def channels_last(network: nn.Module, layer: nn.Module) -> bool:
    """Whether the layer's output is (B, h, w, C), as between the blocks of Swin Transformers."""
    return _is_of(network, layer, _CHANNELS_LAST) and not isinstance(layer, _CHANNELS_FIRST)


def row_by_row(network: nn.Module, layer: nn.Module) -> bool:
    """Whether the layer's output, where it is (B, N, C), is a map's places row by row, as in Hugging Face's Swin."""
    return _is_of(network, layer, _ROW_BY_ROW)


def _is_of(network: nn.Module, layer: nn.Module, kinds: tuple[str, ...]) -> bool:
    families = (module for module in network.modules() if type(module).__name__ in kinds)
    return any(layer in set(family.modules()) for family in families)


def _last_map(module: nn.Module) -> nn.Module | None:
    """The last spatial map of a network whose family is known, None for all other modules.

    Raises:
        ValueError: the family ends in none.
    """
    kind = type(module).__name__
    modules: dict[str | None, nn.Module] = dict(module.named_modules())
    stages = getattr(module, "feature_info", None)  # timm's list of them
    last = modules.get(stages[-1]["module"]) if isinstance(stages, list) and stages else None
    if _LAST_MAP.get(kind) in modules:
        return modules[_LAST_MAP[kind]]
    if _LAST_STAGE_OF.get(kind) in modules:
        return list(modules[_LAST_STAGE_OF[kind]].children())[-1]
    if kind in _BEFORE_BATCH_NORM:
        return _last_convolution(modules.get("features", module))
    if isinstance(modules.get("features"), nn.Sequential):
        return modules["features"]
    if kind in _TOKENS:
        raise _no_map(module)
    if last is not None and kind not in _CHANNELS_LAST:
        _last_convolution(module)  # raises where that one makes the tokens
    return last


def _last_convolution(module: nn.Module) -> nn.Module:
    """The last convolution of a module.

    Raises:
        ValueError: there is none, or it makes tokens of the image.
    """
    convolutions = [name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)]
    if not convolutions or _EMBEDDING.search(convolutions[-1]):
        raise _no_map(module)
    return module.get_submodule(convolutions[-1])


def _no_map(module: nn.Module) -> ValueError:
    return ValueError(
        f"{type(module).__name__} ends in no spatial map: name a layer with output (B, C, h, w) or tokens (B, N, C)"
    )
