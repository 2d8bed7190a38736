"""Equal-area blur and mask (Table 1): hide what a map calls unimportant and read the two leading classes' balance."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxlib import runtime, taps
from cxlib.explainers import cam, contrast_maps, pull_back

FEATURES = ("positive", "negative")
CONTRASTS = ("original", "weighted")
TARGETS = ("t1", "t2")


def relative_probability(logits: Tensor, t: Tensor, other: Tensor) -> Tensor:
    """exp(y_t) / (exp(y_t) + exp(y_other)) = sigmoid(y_t - y_other), which cannot overflow.

    Args:
        logits: (B, K).
        t: (B,) class indices.
        other: (B,) class indices.

    Returns:
        (B,) in [0, 1], in the logits' dtype.
    """
    y_t, y_other = (logits.gather(-1, index.to(logits.device)[:, None]).squeeze(-1) for index in (t, other))
    return (y_t - y_other).sigmoid()


# --- baselines: what takes the place of a hidden pixel -------------------------------------------------


class Blur(NamedTuple):
    """Gaussian blur in pixels; the published setting at 224 x 224."""

    kernel: int = 101
    sigma: float = 15.0


def gaussian_blur(images: Tensor, _zero: Tensor, blur: Blur) -> Tensor:
    """Gaussian blur with reflected borders, as torchvision's, as one matrix product a side: 100 times faster.

    Raises:
        ValueError: the kernel is even, or reaches further than the image.
    """
    rows, columns = (_blur_matrix(size, blur).to(images) for size in images.shape[-2:])
    return rows @ images @ columns.T


def zeros(images: Tensor, zero: Tensor, _blur: Blur) -> Tensor:
    """The colour that the network sees as zero: the published code masks *normalised* images with zeros."""
    return zero.to(images).expand_as(images)


def channel_mean(images: Tensor, _zero: Tensor, _blur: Blur) -> Tensor:
    """Each image's mean colour."""
    return images.mean((-2, -1), keepdim=True).expand_as(images)


BASELINES: dict[str, Callable[[Tensor, Tensor, Blur], Tensor]] = {
    "gaussian_blur": gaussian_blur,
    "zeros": zeros,
    "channel_mean": channel_mean,
}


# --- rules: which pixels stay ---------------------------------------------------------------------------


def published(maps: Tensor, features: str) -> Tensor:
    """The published equal-area rule, kept exactly, for comparison with the printed table.

    Positive: as many of the *lowest* pixels are hidden as there are *positive* ones (the smaller count of the
    maps). Negative: of the larger count of negative pixels, all but one are hidden, from the highest.

    Args:
        maps: (B, M, H, W): M maps of an image that hide the same number of pixels.
        features: `positive` or `negative`, what is kept.

    Returns:
        (B, M, H, W) bool, True where the pixel stays.
    """
    ranks, n_pixels = _ranks(maps), maps.shape[-1] * maps.shape[-2]
    if features == "positive":
        hidden = (maps > 0).sum((-2, -1)).amin(-1)
        return ranks >= hidden[:, None, None, None]
    hidden = (maps < 0).sum((-2, -1)).amax(-1)
    return ranks <= (n_pixels - hidden)[:, None, None, None]


def equal_kept(maps: Tensor, features: str) -> Tensor:
    """Keep the k highest (or lowest) pixels of every map, k = the smallest count of positive (negative) ones.

    Args and returns as `published`.
    """
    ranks, n_pixels = _ranks(maps), maps.shape[-1] * maps.shape[-2]
    if features == "positive":
        kept = (maps > 0).sum((-2, -1)).amin(-1)
        return ranks >= (n_pixels - kept)[:, None, None, None]
    kept = (maps < 0).sum((-2, -1)).amin(-1)
    return ranks < kept[:, None, None, None]


RULES: dict[str, Callable[[Tensor, str], Tensor]] = {"published": published, "equal_kept": equal_kept}


# --- the experiment -------------------------------------------------------------------------------------


class Masked(NamedTuple):
    """Relative probabilities of t1 and t2 of each image, float64.

    Attributes:
        unmasked: (B, 2), targets t1 and t2.
        masked: (B, explainers, 2 targets, baselines, 2 features, 2 contrasts, rules).
        constant_gradient: whether the gradient was constant over the map of every image, because only pooling
            follows the layer: GradCAM and the linear approximation are then the same map, and so is XGradCAM where
            no activation is negative.
    """

    unmasked: Tensor
    masked: Tensor
    constant_gradient: bool


def blur_and_mask(
    network: nn.Module,
    images: Tensor,
    layer: nn.Module,
    explainers: Sequence[str],
    baselines: Sequence[str],
    rules: Sequence[str],
    blur: Blur,
) -> Masked:
    """The blur and mask experiment on one batch, for its two most probable classes.

    Args:
        network: maps images (B, 3, H, W) in [0, 1] to logits (B, K).
        images: (B, 3, H, W) in [0, 1].
        layer: the explanation layer.
        explainers: names in `explainers.cam.MAPS`.
        baselines: names in `BASELINES`.
        rules: names in `RULES`.
        blur: kernel and sigma of `gaussian_blur`.

    Raises:
        ValueError: unknown names, or a layer without a map.
    """
    for what, names, known in (
        ("explainer of a layer", explainers, cam.MAPS),
        ("baseline", baselines, BASELINES),
        ("rule", rules, RULES),
    ):
        for name in names:
            runtime.check_name(what, name, known)
    recorded = taps.record(network, images, layer)
    leading = recorded.logits.topk(2).indices  # (B, 2)
    pulled = pull_back(recorded, CONTRASTS, leading)
    zero = getattr(network, "mean", torch.zeros(3, 1, 1))
    replacements = [BASELINES[name](images, zero, blur) for name in baselines]
    masked = torch.empty(
        len(images), len(explainers), 2, len(baselines), len(FEATURES), len(CONTRASTS), len(rules), dtype=torch.float64
    )
    for e, explainer in enumerate(explainers):
        maps = contrast_maps(explainer, recorded.activation, pulled, images.shape[-2:])  # (B, contrasts, 2, H, W)
        for t in range(2):
            for f, features in enumerate(FEATURES):
                for r, rule in enumerate(rules):
                    kept = RULES[rule](maps[:, :, t], features)  # (B, contrasts, H, W)
                    for c in range(len(CONTRASTS)):
                        for b, replacement in enumerate(replacements):
                            logits = taps.logits(network, torch.where(kept[:, c, None], images, replacement))
                            masked[:, e, t, b, f, c, r] = _relative(logits, leading, t)
    unmasked = torch.stack([_relative(recorded.logits, leading, t) for t in range(2)], 1)
    return Masked(unmasked.cpu(), masked, is_constant(pulled.gradients))


def is_constant(gradients: Tensor) -> bool:
    """Whether gradients (..., h, w) are constant over the map, as they are where only pooling follows."""
    centre = gradients.mean((-2, -1), keepdim=True)
    return bool((gradients - centre).abs().max() <= 1e-5 * gradients.abs().max())


def _relative(logits: Tensor, leading: Tensor, t: int) -> Tensor:
    return relative_probability(logits.double(), leading[:, t], leading[:, 1 - t]).cpu()


def _ranks(maps: Tensor) -> Tensor:
    """Rank of each pixel within its map, 0 the lowest; ties keep the pixels' order."""
    flat = maps.flatten(-2)
    order = flat.argsort(dim=-1, stable=True)
    positions = torch.arange(flat.shape[-1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, positions).view_as(maps)


def _blur_matrix(size: int, blur: Blur) -> Tensor:
    """(size, size): row i holds the weights with which the reflected line of pixels enters blurred pixel i."""
    half = blur.kernel // 2
    if blur.kernel % 2 == 0 or half >= size:
        raise ValueError(f"a blur kernel must be odd and at most {2 * size - 1} wide for {size} pixels: {blur.kernel}")
    offsets = torch.arange(-half, half + 1, dtype=torch.float64)
    weights = (-0.5 * (offsets / blur.sigma) ** 2).exp()
    line = torch.eye(size, dtype=torch.float64)[:, None]  # every unit impulse, as a batch of lines
    padded = F.pad(line, (half, half), mode="reflect")
    return F.conv1d(padded, (weights / weights.sum())[None, None]).squeeze(1).T
