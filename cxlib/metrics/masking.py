"""Blur and mask (Table 1): hide what a map calls unimportant and read the two leading classes' balance."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cxlib import runtime, taps
from cxlib.contrasts import check_targets
from cxlib.explainers import resized
from cxlib.explainers.together import explain_together
from cxlib.metrics.baselines import Blur, Fill, fills
from cxlib.networks import fast

FEATURES = ("positive", "negative")
TARGETS = ("t1", "t2")
#: The two contrasts whose maps decide together how many pixels the rules of equal area hide; any other contrast hides
#: as many, so that it is compared at the same area and changes none of the numbers of these two.
PAIR = ("original", "weighted")
# Of y_t1 - y_t2 in the relative probabilities of t1 and t2: no second evaluation.
_SIGN = torch.tensor([1.0, -1.0], dtype=torch.float64)


def relative_probability(logits: Tensor, t: Tensor, other: Tensor) -> Tensor:
    """exp(y_t) / (exp(y_t) + exp(y_other)) = sigmoid(y_t - y_other), which cannot overflow.

    Args:
        logits: (B, K).
        t: (B,) class indices.
        other: (B,) class indices.

    Returns:
        (B,) in [0, 1], in the logits' dtype.

    Raises:
        ValueError: logits that are no finite (B, K) of two classes or more, or classes that are none of theirs.
    """
    if logits.ndim != 2 or logits.shape[-1] < 2 or not logits.is_floating_point() or not logits.isfinite().all():
        raise ValueError(
            f"two classes need finite logits (B, K), K at least 2, got {logits.dtype} {tuple(logits.shape)}"
        )
    for index in (t, other):
        check_targets(index, *logits.shape)
        if index.ndim != 1:
            raise ValueError(f"one class an image is compared with one other, got shape {tuple(index.shape)}")
    y_t, y_other = (logits.gather(-1, index.to(logits.device, torch.long)[:, None]).squeeze(-1) for index in (t, other))
    return (y_t - y_other).sigmoid()


# --- rules: which pixels stay ---------------------------------------------------------------------------


def published(ranks: Tensor, counts: Tensor, pair: Sequence[int], features: str) -> Tensor:
    """The published equal-area rule, kept exactly, for comparison with the printed table.

    Positive: as many of the *lowest* pixels are hidden as there are *positive* ones (the smaller count of the
    pair). Negative: of the larger count of negative pixels, all but one are hidden, from the highest.

    Args:
        ranks: (B, C, H, W): rank of each pixel within its map, 0 the lowest, of C contrasts.
        counts: (B, C): how many pixels of each map are positive (negative).
        pair: which of the C set the number of hidden pixels.
        features: `positive` or `negative`, what is kept.

    Returns:
        (B, C, H, W) bool, True where the pixel stays.
    """
    n_pixels, counts = ranks.shape[-1] * ranks.shape[-2], counts[:, list(pair)]
    if features == "positive":
        return ranks >= counts.amin(-1)[:, None, None, None]
    return ranks <= (n_pixels - counts.amax(-1))[:, None, None, None]


def equal_kept(ranks: Tensor, counts: Tensor, pair: Sequence[int], features: str) -> Tensor:
    """Keep the k highest (or lowest) pixels of every map, k = the smallest count of positive (negative) ones.

    Args and returns as `published`.
    """
    return _outermost(ranks, counts[:, list(pair)].amin(-1, keepdim=True), features)


def unequal(ranks: Tensor, counts: Tensor, _pair: Sequence[int], features: str) -> Tensor:
    """Each map keeps its own positive (or negative) pixels, as Wang & Wang do, before the review's equal area.

    Args and returns as `published`.
    """
    return _outermost(ranks, counts, features)


def shifted(ranks: Tensor, counts: Tensor, pair: Sequence[int], features: str) -> Tensor:
    """A control: the masks of `equal_kept`, moved by half the image's height and width, over its edges.

    As many pixels stay, in the same shapes, but elsewhere: hiding as such pulls a relative probability to one half.

    Args and returns as `published`.
    """
    half = (ranks.shape[-2] // 2, ranks.shape[-1] // 2)
    return equal_kept(ranks.roll(half, (-2, -1)), counts, pair, features)


def fixed_area(share: float, ranks: Tensor, counts: Tensor, _pair: Sequence[int], features: str) -> Tensor:
    """Keep this share of every map's pixels, the highest (or lowest), whatever their sign.

    Args and returns as `published`.
    """
    kept = round(share * ranks.shape[-1] * ranks.shape[-2])
    return _outermost(ranks, torch.full_like(counts[:, :1], kept), features)


def _outermost(ranks: Tensor, kept: Tensor, features: str) -> Tensor:
    """The highest (or lowest) pixels of every map: (B, C, H, W) and their numbers (B, C) or (B, 1)."""
    n_pixels, kept = ranks.shape[-1] * ranks.shape[-2], kept[..., None, None]
    return ranks >= n_pixels - kept if features == "positive" else ranks < kept


RULES: dict[str, Callable[[Tensor, Tensor, Sequence[int], str], Tensor]] = {
    "published": published,
    "equal_kept": equal_kept,
    "unequal": unequal,
    "shifted": shifted,
    "area_10": partial(fixed_area, 0.1),
    "area_30": partial(fixed_area, 0.3),
    "area_50": partial(fixed_area, 0.5),
}


def kept_pixels(maps: Tensor, pair: Sequence[int], rules: Sequence[str]) -> Tensor:
    """Which pixels stay: (B, C, H, W) maps of C contrasts -> (B, features, C, rules, H, W) bool.

    Args:
        maps: the maps.
        pair: which of the contrasts set the number of hidden pixels.
        rules: names in `RULES`.

    Raises:
        ValueError: maps that are not finite or have no pixels, a pair that is none of the contrasts, or unknown rules.
    """
    if maps.ndim != 4 or 0 in maps.shape[1:] or not maps.is_floating_point() or not maps.isfinite().all():
        raise ValueError(f"maps must be finite numbers (B, C, H, W), got {maps.dtype} {tuple(maps.shape)}")
    if not pair or not all(0 <= contrast < maps.shape[1] for contrast in pair):
        raise ValueError(f"the pair must be some of the {maps.shape[1]} contrasts, got {list(pair)}")
    if not rules:
        raise ValueError("an empty list keeps no pixels: name a rule or more")
    for rule in rules:
        runtime.check_name("rule", rule, RULES)
    ranks = ascending_ranks(maps)
    counts = {"positive": (maps > 0).sum((-2, -1)), "negative": (maps < 0).sum((-2, -1))}
    stacked = [torch.stack([RULES[rule](ranks, counts[f], pair, f) for rule in rules], 2) for f in FEATURES]
    return torch.stack(stacked, 1)


# --- the experiment -------------------------------------------------------------------------------------


class Masked(NamedTuple):
    """Relative probabilities of t1 and t2 of each image, float64.

    Attributes:
        unmasked: (B, 2), targets t1 and t2.
        masked: (B, explainers, 2 targets, baselines, 2 features, contrasts, rules).
        constant_gradient: whether the gradient at the layer was constant over the map of every image, because only
            pooling follows: GradCAM and the linear approximation are then the same map, and so is XGradCAM where no
            activation is negative.
        n_evaluated: how many masked images the network saw; settings that hide the same pixels share one.
    """

    unmasked: Tensor
    masked: Tensor
    constant_gradient: bool
    n_evaluated: int


def blur_and_mask(
    network: nn.Module,
    images: Tensor,
    layer: nn.Module,
    explainers: Sequence[str],
    contrasts: Sequence[str],
    baselines: Sequence[str],
    rules: Sequence[str],
    blur: Blur,
    chunk: int,
) -> Masked:
    """The blur and mask experiment on one batch, for its two most probable classes.

    Each image is blurred once, and each distinct mask of it evaluated once for each baseline, read for both targets.

    Args:
        network: maps images (B, 3, H, W) in [0, 1] to logits (B, K).
        images: (B, 3, H, W) in [0, 1].
        layer: the explanation layer of the CAMs.
        explainers: names in `explainers.EXPLAINERS`.
        contrasts: names that `explain` takes, both of `PAIR` among them.
        baselines: names in `baselines.BASELINES`.
        rules: names in `RULES`.
        blur: kernel and sigma of the baseline `gaussian_blur`.
        chunk: how many masked images are evaluated at once, which bounds the memory.

    Raises:
        ValueError: unknown names, contrasts without the pair, a layer without a map, or an explainer of
            transformers where there is none.
    """
    if not set(PAIR) <= set(contrasts):
        raise ValueError(f"masking compares {' with '.join(PAIR)}: the contrasts {', '.join(contrasts)} lack one")
    explained = explain_together(network, images, len(TARGETS), explainers, contrasts, layer)
    maps = [of_one.transpose(1, 2) for of_one in explained.maps]  # (B, 2 targets, C, h, w), each its own h x w
    if len({of_one.shape for of_one in maps}) > 1:
        maps = [resized(of_one, images.shape[-2:]) for of_one in maps]
    pair = [contrasts.index(name) for name in PAIR]
    hidden = pair, baselines, rules, blur, chunk
    masked, n_evaluated = mask_maps(network, images, torch.stack(maps, 1), explained.targets, *hidden)
    unmasked = (_lead(explained.logits, explained.targets)[:, None] * _SIGN).sigmoid()
    return Masked(unmasked, masked, explained.constant_gradient, n_evaluated)


def mask_maps(
    network: nn.Module,
    images: Tensor,
    maps: Tensor,
    leading: Tensor,
    pair: Sequence[int],
    baselines: Sequence[str],
    rules: Sequence[str],
    blur: Blur,
    chunk: int,
) -> tuple[Tensor, int]:
    """The relative probabilities of two classes of each image behind the masks that maps make.

    Args:
        network: maps images (B, 3, H, W) in [0, 1] to logits (B, K).
        images: (B, 3, H, W) in [0, 1].
        maps: (B, explainers, 2 targets, C, h, w), of C contrasts or variants.
        leading: (B, 2), the classes t1 and t2.
        pair: which of the C set the number of hidden pixels.
        baselines: names in `baselines.BASELINES`.
        rules: names in `RULES`.
        blur: kernel and sigma of the baseline `gaussian_blur`.
        chunk: how many masked images are evaluated at once.

    Returns:
        (B, explainers, 2 targets, baselines, 2 features, C, rules) float64, and the number of evaluated images.

    Raises:
        ValueError: unknown names.
    """
    for rule in rules:
        runtime.check_name("rule", rule, RULES)
    filled = fills(network, images, baselines, blur)
    evaluated = fast(network)
    leads, n_evaluated = [], 0  # y_t1 - y_t2 of every setting
    for place, (image, own, classes) in enumerate(zip(images, maps, leading)):
        upsampled = resized(own, image.shape[-2:]).flatten(0, 1)  # (explainers * 2 targets, C, H, W)
        kept = kept_pixels(upsampled, pair, rules)
        distinct, which = _distinct(kept.flatten(0, 3))
        lead = _lead_of_masked(evaluated, image, place, distinct, filled, classes, chunk)[:, which]
        leads.append(lead.unflatten(1, (*own.shape[:2], *kept.shape[1:4])))
        n_evaluated += len(distinct) * len(baselines)
    masked = torch.stack(leads).movedim(1, 3)
    return (masked * _SIGN.view(2, 1, 1, 1, 1)).sigmoid(), n_evaluated


def _distinct(kept: Tensor) -> tuple[Tensor, list[int]]:
    """The distinct masks among (S, H, W), and for each of the S its place among them."""
    seen: dict[bytes, int] = {}
    place = [seen.setdefault(mask.tobytes(), len(seen)) for mask in kept.cpu().numpy()]
    return kept[[place.index(p) for p in range(len(seen))]], place


def _lead_of_masked(
    network: nn.Module, image: Tensor, place: int, kept: Tensor, filled: Sequence[Fill], classes: Tensor, chunk: int
) -> Tensor:
    """y_t1 - y_t2 of one image, at its place in the batch, behind masks (U, H, W) over b baselines: (b, U)."""
    shape, leads = (len(filled), len(kept)), []
    for part in torch.arange(len(filled) * len(kept), device=kept.device).split(chunk):
        baseline, mask = part // len(kept), part % len(kept)  # baselines in ascending order
        own = [(filled[b], mask[baseline == b]) for b in baseline.unique().tolist()]
        replacement = torch.cat([fill(torch.full_like(of_fill, place), ~kept[of_fill]) for fill, of_fill in own])
        masked = torch.where(kept[mask, None], image, replacement)
        logits = taps.logits(network, masked)
        leads.append(_lead(logits, classes.expand(len(part), 2)))
    return torch.cat(leads).view(shape)


def _lead(logits: Tensor, leading: Tensor) -> Tensor:
    """y_t1 - y_t2 in float64 on the CPU: (B, K) and (B, 2) -> (B,). Its sigmoid is the `relative_probability`."""
    first, second = logits.double().gather(-1, leading).cpu().unbind(-1)
    return first - second


def ascending_ranks(maps: Tensor) -> Tensor:
    """Rank of each pixel within its map, 0 the lowest; ties keep the pixels' order."""
    flat = maps.flatten(-2)
    order = flat.argsort(dim=-1, stable=True)
    positions = torch.arange(flat.shape[-1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, positions).view_as(maps)
