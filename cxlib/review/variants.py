"""Figure 5 in numbers: what ReLU, and what the contrast, changes in a Vision Transformer's maps.

The review looks at three variants of each explainer and sees no significant effect of the contrast. Here they are
measured: how alike the variants' maps are, and how alike those of the two most probable classes, as Pearson
correlations over the patches (a variant that cannot tell the two classes apart has 1 here, one whose evidence for the
one is evidence against the other has -1); how coherent a map is in space; and what lies in the parts that tell the two
classes apart. Beside the review's three variants stands what its own code draws. `masking.mask_maps` adds what the
network makes of the marked pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cxlib.explainers import explain, resized, vit
from cxlib.metrics import localisation
from cxlib.review.ledger.statistics import correlation

#: Contrast and ReLU of each of the review's three variants, the last two of which are signed.
VARIANTS = {"standard": ("original", True), "without_relu": ("original", False), "contrastive": ("weighted", False)}
#: What the review's own code draws for contrastive, from p_t: of the rollout another map (`vit.published_rollout`).
PUBLISHED = {"vit_gradcam": ("vit_gradcam", False), "attention_rollout": ("published_rollout", True)}
#: All that is measured, and the two of which `masking` takes the number of hidden pixels.
NAMES = (*VARIANTS, "published")
SIGNED = [NAMES.index(name) for name in ("without_relu", "contrastive")]
#: Variants whose maps of one class are correlated with each other.
PAIRS = (
    ("standard", "without_relu"),
    ("standard", "contrastive"),
    ("without_relu", "contrastive"),
    ("contrastive", "published"),
)


class Compared(NamedTuple):
    """Measures of a batch's maps, float64; correlations with a constant map are 0.

    Attributes:
        alike: (B, 2 targets, pairs), correlation of two variants' maps of one class.
        between: (B, variants), correlation of the maps of t1 and t2.
        coherence: (B, variants), of the shown class's map, see the function.
        share: (B, variants), share of the shown class's positive mass inside the region, see `localisation`.
        hit: (B, variants), whether the map's peak lies there.
    """

    alike: np.ndarray
    between: np.ndarray
    coherence: np.ndarray
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
    theirs, relu = PUBLISHED[explainer]
    found["published"] = explain(network, images, targets, theirs, "probability", layer, relu, upsample=False)
    return torch.stack([found[name] for name in NAMES], 2)


def coherence(maps: np.ndarray) -> np.ndarray:
    """Moran's I of maps (..., h, w) over neighbouring patches, less what permuted patches have on average: (...).

    About 0 where the patches are strewn at random, towards 1 for a smooth map, negative for a chequered one; 0 for a
    constant one. The neighbours of a patch are those that share a side with it.
    """
    height, width = maps.shape[-2:]
    deviation = maps - maps.mean((-2, -1), keepdims=True)
    products = (deviation[..., 1:, :] * deviation[..., :-1, :]).sum((-2, -1))
    products += (deviation[..., 1:] * deviation[..., :-1]).sum((-2, -1))
    covariance = products / (height * (width - 1) + (height - 1) * width)
    variance = (deviation**2).mean((-2, -1))
    expected = -1 / (height * width - 1)
    return np.divide(covariance, variance, out=np.full_like(variance, expected), where=variance > 0) - expected


def compare(explained: Tensor, regions: Tensor, shown: Tensor) -> Compared:
    """Measure maps (B, 2 targets, variants, h, w) of the classes t1 and t2.

    Args:
        explained: what `maps` returns for two targets.
        regions: (B, H, W) bool, where the two classes differ.
        shown: (B,), 1 where the image shows t2 and 0 elsewhere: the class whose positive mass belongs in the region.
    """
    flat = explained.double().flatten(-2).cpu().numpy()
    places = {name: place for place, name in enumerate(NAMES)}
    alike = np.stack([correlation(flat[:, :, places[a]], flat[:, :, places[b]]) for a, b in PAIRS], -1)
    of_shown = explained[torch.arange(len(explained)), shown]  # (B, variants, h, w)
    upsampled = resized(of_shown, regions.shape[-2:])
    measured = localisation.measure(upsampled, regions[:, None])
    positive = localisation.SIGNS.index("positive")
    inside = (values[..., positive].cpu().numpy() for values in (measured.share, measured.hit))
    coherent = coherence(of_shown.double().cpu().numpy())
    return Compared(alike, correlation(flat[:, 0], flat[:, 1]), coherent, *inside)


def compare_each(explained: Sequence[Tensor], regions: Tensor, shown: Tensor) -> Compared:
    """`compare` for the maps of every block: each of its fields with the blocks as second axis, (B, blocks, ...)."""
    each = [compare(of_block, regions, shown) for of_block in explained]
    return Compared(*(np.stack(values, 1) for values in zip(*each)))
