"""Figure 5 in numbers: what ReLU, and what the contrast, changes in a Vision Transformer's maps.

The review looks at three variants of each explainer and sees no significant effect of the contrast. Here they are
measured: how alike the variants' maps are, and how alike those of the two most probable classes, as Pearson
correlations over the patches (a variant that cannot tell the two classes apart has 1 here, one whose evidence for the
one is evidence against the other has -1); and what lies in the parts that tell the two classes apart.
`masking.mask_maps` adds what the network makes of the marked pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cxlib.explainers import explain, resized, vit
from cxlib.metrics import localisation
from cxlib.review.report.statistics import correlation

#: Contrast and ReLU of each variant; of the last two, which are signed, `masking` takes the number of hidden pixels.
VARIANTS = {"standard": ("original", True), "without_relu": ("original", False), "contrastive": ("weighted", False)}
SIGNED = [list(VARIANTS).index(name) for name in ("without_relu", "contrastive")]
#: Variants whose maps of one class are correlated with each other.
PAIRS = (("standard", "without_relu"), ("standard", "contrastive"), ("without_relu", "contrastive"))


class Compared(NamedTuple):
    """Measures of a batch's maps, float64; correlations with a constant map are 0.

    Attributes:
        alike: (B, 2 targets, pairs), correlation of two variants' maps of one class.
        between: (B, variants), correlation of the maps of t1 and t2.
        share: (B, variants), share of the shown class's positive mass inside the region, see `localisation`.
        hit: (B, variants), whether the map's peak lies there.
    """

    alike: np.ndarray
    between: np.ndarray
    share: np.ndarray
    hit: np.ndarray


def layers(network: nn.Module, explainer: str) -> list[str]:
    """Names of the layers at which an explainer in `vit.MAPS` can begin, one a block, in order.

    Raises:
        ValueError: the network is no Vision Transformer.
    """
    return vit.token_layers(network) if explainer == "vit_gradcam" else list(vit.blocks(network))


def layer(network: nn.Module, explainer: str, block: int) -> str:
    """The layer of a block by its number, from 0; negative ones count from the last block.

    Raises:
        ValueError: there is no such block, or the network is no Vision Transformer.
    """
    known = layers(network, explainer)
    if not -len(known) <= block < len(known):
        raise ValueError(
            f"{explainer} cannot begin at block {block}: there are {len(known)}, from 0 to {len(known) - 1}"
        )
    return known[block]


def maps(network: nn.Module, images: Tensor, targets: Tensor, explainer: str, layer: str | nn.Module | None) -> Tensor:
    """The maps of every variant, at the patches' resolution: (B, T, variants, h, w).

    Args:
        network: a Vision Transformer for images (B, 3, H, W).
        images: (B, 3, H, W).
        targets: (B, T).
        explainer: a name in `vit.MAPS`.
        layer: as `explain` takes it.
    """
    found: dict[str, Tensor] = {}
    for relu in (True, False):  # one forward pass each
        names = [name for name, (_, wanted) in VARIANTS.items() if wanted == relu]
        contrasts = [VARIANTS[name][0] for name in names]
        own = explain(network, images, targets, explainer, contrasts, layer, relu, upsample=False)
        found |= dict(zip(names, own))
    return torch.stack([found[name] for name in VARIANTS], 2)


def published(network: nn.Module, images: Tensor, targets: Tensor, layer: str | nn.Module | None) -> Tensor:
    """The rollout of the review's own code, from p_t, at the patches' resolution: (B, T, h, w).

    Not in `VARIANTS`, for it has no GradCAM beside it; ``torch.cat([maps, published[:, :, None]], 2)`` is measured by
    `compare` as a further variant, in no pair.

    Args as `maps`.
    """
    return explain(network, images, targets, "published_rollout", "probability", layer, True, upsample=False)


def compare(explained: Tensor, regions: Tensor, shown: Tensor) -> Compared:
    """Measure maps (B, 2 targets, variants, h, w) of the classes t1 and t2.

    Args:
        explained: what `maps` returns for two targets, with or without further variants behind.
        regions: (B, H, W) bool, where the two classes differ.
        shown: (B,), 1 where the image shows t2 and 0 elsewhere: the class whose positive mass belongs in the region.
    """
    flat = explained.double().flatten(-2).cpu().numpy()
    places = {name: place for place, name in enumerate(VARIANTS)}
    alike = np.stack([correlation(flat[:, :, places[a]], flat[:, :, places[b]]) for a, b in PAIRS], -1)
    upsampled = resized(explained[torch.arange(len(explained)), shown], regions.shape[-2:])  # (B, variants, H, W)
    measured = localisation.measure(upsampled, regions[:, None])
    positive = localisation.SIGNS.index("positive")
    inside = (values[..., positive].cpu().numpy() for values in (measured.share, measured.hit))
    return Compared(alike, correlation(flat[:, 0], flat[:, 1]), *inside)


def compare_each(explained: Sequence[Tensor], regions: Tensor, shown: Tensor) -> Compared:
    """`compare` for the maps of every block: each of its fields with the blocks as second axis, (B, blocks, ...)."""
    each = [compare(of_block, regions, shown) for of_block in explained]
    return Compared(*(np.stack(values, 1) for values in zip(*each)))
