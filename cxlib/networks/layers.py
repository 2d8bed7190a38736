"""Which layer of an architecture is explained, and how its output lies in memory."""

import re
from difflib import get_close_matches

from torch import nn
from torchvision.ops import Permute

from cxlib.networks.build import Network

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
}
# Classes whose blocks pass maps (B, h, w, C) on, and modules inside them that do not.
_CHANNELS_LAST = ("SwinTransformer", "SwinTransformerV2", "MambaOut", "Sequencer2d", "VOLO", "HieraDet")
_CHANNELS_FIRST = (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d, Permute)
# Classes that end in tokens although a convolution stands near their end.
_TOKENS = ("CoaT", "MultiScaleVit", "PoolingVisionTransformer", "TNT", "Twins", "Xcit")
# A last convolution with such a name makes tokens of the image: what follows is no map (B, C, h, w).
_EMBEDDING = re.compile(r"patch_embed|conv_proj|stem")


def explanation_layer(network: nn.Module, layer: str | nn.Module | None = None) -> nn.Module:
    """The layer whose activation is explained.

    Args:
        network: any module; the inner names of a `Network` need no prefix.
        layer: a module (returned as it is), its name, or None for the architecture's own: the last convolution
            of VGG (``features.40`` of VGG-16-BN, before its batch norm, as published) and AlexNet, the last
            spatial map of torchvision's other families, the last stage of timm's, the last convolution of any other.

    Raises:
        ValueError: no such layer (with the nearest names), or an architecture without a spatial map.
    """
    inner = network.inner if isinstance(network, Network) else network
    if isinstance(layer, nn.Module):
        return layer
    modules = dict(inner.named_modules())
    if layer is not None:
        if layer not in modules:
            near = get_close_matches(layer, modules, n=5, cutoff=0.3) or list(modules)[1:6]
            raise ValueError(f"{type(inner).__name__} has no layer {layer!r}; near it: {', '.join(near)}")
        return modules[layer]
    kind = type(inner).__name__
    if _LAST_MAP.get(kind) in modules:
        return modules[_LAST_MAP[kind]]
    if kind not in ("AlexNet", "VGG", "NarrowVGG") and isinstance(modules.get("features"), nn.Sequential):
        return modules["features"]
    body = modules.get("features", inner)
    convolutions = [name for name, module in body.named_modules() if isinstance(module, nn.Conv2d)]
    published = getattr(inner, "feature_info", None)  # timm's list of stages
    if kind in _CHANNELS_LAST and published:
        return modules[published[-1]["module"]]
    if kind in _TOKENS or not convolutions or _EMBEDDING.search(convolutions[-1]):
        raise ValueError(f"{kind} ends in no spatial map: name a layer with output (B, C, h, w)")
    if published and kind not in ("AlexNet", "VGG") and published[-1]["module"] in modules:
        return modules[published[-1]["module"]]
    return body.get_submodule(convolutions[-1])


def channels_last(network: nn.Module, layer: nn.Module) -> bool:
    """Whether the layer's output is (B, h, w, C), as between the blocks of Swin Transformers."""
    inner = network.inner if isinstance(network, Network) else network
    return type(inner).__name__ in _CHANNELS_LAST and not isinstance(layer, _CHANNELS_FIRST)
