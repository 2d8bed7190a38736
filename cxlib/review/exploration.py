"""What the report's explorer shows: maps as a page holds them, and what the network says as their best pixels stay.

The pixels are ranked by the very maps that the page has, small and in 8 bits, so that it hides what was hidden here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxlib import taps
from cxlib.explainers import resized
from cxlib.explainers.together import explain_together
from cxlib.metrics.baselines import Blur, fills
from cxlib.metrics.masking import ascending_ranks
from cxlib.networks import fast

#: No side of a map is longer on the page; those at the input's resolution are averaged down to it.
LONGEST = 32
BASELINE = "gaussian_blur"


class Explored(NamedTuple):
    """Of a batch of images, and T classes of each.

    Attributes:
        maps: of each explainer (B, contrasts, T, h, w) int8, as `compact` gives them.
        behind: (B, explainers, contrasts, T, shares, T), logits of the T classes where the share of a map's best
            pixels stays and the others are blurred.
        ends: (B, 2, T), the same where no pixel stays, and where all do.
        pictures: (B, 2, H, W, 3) uint8, the image and its blurred form.
    """

    maps: list[Tensor]
    behind: Tensor
    ends: Tensor
    pictures: Tensor


def explore(
    network: nn.Module,
    images: Tensor,
    classes: Tensor,
    explainers: Sequence[str],
    contrasts: Sequence[str],
    layer: nn.Module,
    shares: Sequence[float],
    blur: Blur,
    chunk: int,
) -> Explored:
    """Explain T classes of each image, then keep shares of each map's best pixels.

    Args:
        network: maps images (B, 3, H, W) in [0, 1] to logits (B, K).
        images: (B, 3, H, W) in [0, 1].
        classes: (B, T) class indices.
        explainers: names in `explainers.EXPLAINERS`.
        contrasts: names that `explain` takes.
        layer: the explanation layer of the CAMs.
        shares: of the pixels that stay, in [0, 1].
        blur: of the pixels that do not.
        chunk: how many blurred images are evaluated at once, which bounds the memory.

    Raises:
        ValueError: unknown names, or a layer without a map.
    """
    maps = [compact(own) for own in explain_together(network, images, classes, explainers, contrasts, layer).maps]
    (fill,) = fills(network, images, [BASELINE], blur)
    blurred = fill(torch.arange(len(images)), torch.ones_like(images[:, 0], dtype=torch.bool))
    evaluated = fast(network)

    def logits(x: Tensor, of: Tensor) -> Tensor:
        return taps.logits(evaluated, x).gather(1, of).float()

    behind = []
    for place, (image, of_image) in enumerate(zip(images, classes)):
        upsampled = [resized(own[place].flatten(0, 1).to(image), image.shape[-2:]) for own in maps]
        kept = best(torch.cat(upsampled), shares).flatten(0, 1)  # maps, then shares
        parts = [torch.where(part[:, None], image, blurred[place]) for part in kept.split(chunk)]
        answers = torch.cat([logits(part, of_image.expand(len(part), -1)) for part in parts])
        behind.append(answers.view(len(explainers), *maps[0].shape[1:3], len(shares), -1))
    ends = torch.stack([logits(x, classes) for x in (blurred, images)], 1)
    pictures = (255 * torch.stack([images, blurred], 1)).round().to(torch.uint8).movedim(2, -1)
    return Explored(maps, torch.stack(behind), ends, pictures)


def compact(maps: Tensor) -> Tensor:
    """Maps (..., h, w) as int8, of at most `LONGEST` a side: each over its own largest magnitude, times 127."""
    size = min(maps.shape[-2], LONGEST), min(maps.shape[-1], LONGEST)
    small = F.adaptive_avg_pool2d(maps.flatten(0, -3), size)
    largest = small.abs().amax((-2, -1), keepdim=True)
    levels = (127 * small / largest.where(largest > 0, 1)).round()  # a map of zeros stays one
    return levels.to(torch.int8).view(*maps.shape[:-2], *size)


def best(maps: Tensor, shares: Sequence[float]) -> Tensor:
    """Which pixels of maps (M, H, W) stay, the highest: (M, shares, H, W) bool; of equal ones the later."""
    n_pixels = maps.shape[-2] * maps.shape[-1]
    counts = torch.tensor([round(share * n_pixels) for share in shares], device=maps.device)
    return ascending_ranks(maps)[:, None] >= (n_pixels - counts)[:, None, None]
