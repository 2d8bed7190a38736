"""Networks by name, their weights, the layer to explain, and a faster form for evaluation."""

from cxlib.networks.build import (
    HYBRIDS,
    SMALL_TRANSFORMERS,
    NarrowVGG,
    Network,
    Weightless,
    build,
    freeze,
    load,
    published_classes,
    save,
    transform,
)
from cxlib.networks.folding import fast
from cxlib.networks.layers import channels_last, explanation_layer, nested, row_by_row
from cxlib.networks.weights import published

__all__ = [
    "HYBRIDS",
    "SMALL_TRANSFORMERS",
    "NarrowVGG",
    "Network",
    "Weightless",
    "build",
    "channels_last",
    "explanation_layer",
    "fast",
    "freeze",
    "load",
    "nested",
    "published",
    "published_classes",
    "row_by_row",
    "save",
    "transform",
]
