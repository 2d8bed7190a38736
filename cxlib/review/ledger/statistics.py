"""Means over images, what is computed from them, bootstrap intervals, and tests."""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

#: Resampling fewer networks says nothing of other networks.
FEWEST_NETWORKS = 4


class Interval(NamedTuple):
    """A mean over images, or a function of means, and the bounds of its 95 % percentile bootstrap interval."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def bootstrap_mean(values: np.ndarray, rng: np.random.Generator, n_resamples: int = 2000) -> Interval:
    """Mean of (B, ...) values over the images B, with a 95 % interval from resampling images.

    All columns share the resampled images, so that a margin between two of them is a paired comparison.

    Raises:
        ValueError: there are no images.
    """
    return bootstrap(values, lambda means: means, rng, n_resamples)


def bootstrap(
    values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator, n_resamples: int = 2000
) -> Interval:
    """A statistic of the means of (B, ...) values over the images B, with a 95 % interval from resampling images.

    Args:
        values: (B, ...).
        statistic: from means (R, ...) of R resamples to (R, ...).
        rng: draws the resamples.
        n_resamples: how many.

    Raises:
        ValueError: there are no images.
    """
    n_images = len(values)
    if n_images == 0:
        raise ValueError("no images to average over")
    flat = values.reshape(n_images, -1)
    # How often each image is drawn, 100 resamples at a time to bound the memory.
    share = np.full(n_images, 1 / n_images)
    draws = (rng.multinomial(n_images, share, min(100, n_resamples - i)) for i in range(0, n_resamples, 100))
    resampled = [statistic((draw @ flat / n_images).reshape(-1, *values.shape[1:])) for draw in draws]
    low, high = np.percentile(np.concatenate(resampled), [2.5, 97.5], axis=0)
    return Interval(statistic(flat.mean(0).reshape(1, *values.shape[1:]))[0], low, high)


class Estimate(NamedTuple):
    """A statistic of means, the bounds of its 95 % BCa bootstrap interval, and the p-value that it is zero.

    The two-sided p-value inverts the interval: it is below 0.05 where the interval leaves out zero.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray


def crossed(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
    clusters: Sequence[Hashable] | None = None,
    n_resamples: int = 10_000,
) -> Estimate:
    """A statistic of means over networks and images, of (N, B, ...) values of N networks on the same B images.

    Fewer than `FEWEST_NETWORKS` networks are fixed: the mean over them is an image's one value, and the interval
    speaks of these networks only. Otherwise networks and images (or clusters of them) are resampled independently
    and a network's image counts as often as the product of the two (the pigeonhole bootstrap, Owen 2007), so that the
    interval speaks of other networks like these too. Its variance is that of the N network means over N, plus that of
    the images' means over B, plus that of what neither explains over N B.

    BCa (Efron 1987) corrects the percentile interval for bias and skewness, but not for the spread that few images
    understate: of ten normal ones one interval in ten, not in twenty, misses the mean. The acceleration leaves out
    images only, not networks: the skewness of a handful of networks would be noise. For the same reason the interval is
    about sqrt(1 - 1 / N) times too narrow where networks differ more than images do.

    All columns share the resampled images. A column without spread, a single image's or cluster's too, has an interval
    without width, and the smallest p-value, 1 / (n_resamples + 1), unless it is zero: then 1. So it is the caller who
    asks for enough of them. Where a resample's statistic is NaN, so are the bounds and the p-value.

    Args:
        values: (N, B, ...).
        statistic: from means (R, ...) of R resamples over both axes to (R, ...).
        rng: draws the resamples.
        clusters: (B,) labels; images of one label (the same bird, the same scene) are drawn together. The mean stays
            that over images, so that a cluster counts as much as it has images. None: each image is its own.
        n_resamples: how many.

    Raises:
        ValueError: there are no networks or no images, or not one label an image.
    """
    if len(values) == 0:
        raise ValueError("no networks to average over")
    if len(values) < FEWEST_NETWORKS:
        values = values.mean(0, dtype=float, keepdims=True)
    return _estimate(_resample(values, statistic, rng, clusters, n_resamples))


def inside(
    values: np.ndarray,
    bound: float,
    rng: np.random.Generator,
    clusters: Sequence[Hashable] | None = None,
    n_resamples: int = 10_000,
) -> Estimate:
    """Whether the mean of (B, ...) values over the images B lies within (-bound, bound), from two one-sided tests.

    The mean and its 95 % interval are those of `crossed` for one network; the p-value is not: it is that the mean is
    not inside, the larger of the one-sided ones that it is at most -bound and that it is at least bound. It is below
    0.05 where the 90 % interval, not the 95 % one, lies inside.

    Args:
        values: (B, ...).
        bound: what is no difference to speak of.
        rng: draws the resamples.
        clusters: (B,) labels of images, as in `crossed`.
        n_resamples: how many.

    Raises:
        ValueError: there are no images, or not one label an image.
    """
    drawn = _resample(values[None], lambda means: means, rng, clusters, n_resamples, (-bound, bound))
    p_value = np.maximum(_p_at_most(drawn, -bound), _p_at_least(drawn, bound))
    return _estimate(drawn)._replace(p_value=np.maximum(p_value, 1 / (n_resamples + 1)))


class _Resamples(NamedTuple):
    """A statistic, its values on resamples in ascending order, and BCa's two corrections."""

    mean: np.ndarray
    resampled: np.ndarray
    bias: np.ndarray
    acceleration: np.ndarray


def _resample(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
    clusters: Sequence[Hashable] | None,
    n_resamples: int,
    marks: tuple[float, ...] = (),
) -> _Resamples:
    """Resample networks and clusters of images of (N, B, ...) values; zero and `marks` are what is tested against."""
    n_networks, n_images, *shape = values.shape
    if n_images == 0:
        raise ValueError("no images to average over")
    values = values.astype(float)
    # Counted from the first image, so that the means of equal images are equal and not so up to rounding.
    origin = values[0, 0]
    sums = np.moveaxis(values - origin, 1, 0).reshape(n_images, -1)
    sizes = np.ones(n_images)
    if clusters is not None:
        sums, sizes = _cluster_sums(sums, clusters)
    n_clusters = len(sums)

    def statistics(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        return statistic(origin + (sums / sizes[:, None]).reshape(-1, *shape))

    parts = []
    for start in range(0, n_resamples, 100):  # 100 at a time to bound the memory
        n = min(100, n_resamples - start)
        draw, networks = _draw(rng, n, n_clusters), _draw(rng, n, n_networks) / n_networks
        drawn = (networks[:, None] @ (draw @ sums).reshape(n, n_networks, -1))[:, 0]
        parts.append(statistics(drawn, draw @ sizes))
    resampled = np.concatenate(parts)

    sums = sums.reshape(n_clusters, n_networks, -1).mean(1)
    mean = statistics(sums.sum(0, keepdims=True), sizes.sum(keepdims=True))[0]
    skew, scale = np.zeros_like(mean), np.zeros_like(mean)
    if n_clusters > 1:  # of a single one nothing is left
        rest, sizes = sums.sum(0) - sums, sizes.sum() - sizes
        left_out = np.concatenate(
            [statistics(rest[i : i + 100], sizes[i : i + 100]) for i in range(0, n_clusters, 100)]
        )
        influence = left_out.mean(0) - left_out
        skew, scale = (influence**3).sum(0), 6 * (influence**2).sum(0) ** 1.5

    # What differs by rounding only is a tie, and an interval that ends at zero does not leave it out.
    rounding = 1e-12 * np.abs(resampled).max(0)
    for mark in (0.0, *marks):
        mean = np.where(np.abs(mean - mark) <= rounding, mark, mean)
        resampled = np.where(np.abs(resampled - mark) <= rounding, mark, resampled)
    resampled = np.where(np.abs(resampled - mean) <= rounding, mean, resampled)
    resampled = np.sort(np.where(np.isnan(resampled).any(0), np.nan, resampled), 0)
    spread = resampled[-1] > resampled[0]
    acceleration = np.divide(skew, scale, out=np.zeros(mean.shape), where=spread & (scale > 0))
    return _Resamples(mean, resampled, _score_below(resampled, mean, 0.5), acceleration)


def _cluster_sums(values: np.ndarray, clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Sums of (B, C) values over the images of each cluster, and how many these are: (G, C), (G,)."""
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} images, but {len(clusters)} labels of their clusters")
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    sums = np.zeros((len(numbers), values.shape[1]))
    np.add.at(sums, index, values)
    return sums, np.bincount(index).astype(float)


def _draw(rng: np.random.Generator, n_resamples: int, n: int) -> np.ndarray:
    """How often each of n is drawn in n draws: (R, n)."""
    drawn = rng.integers(0, n, (n_resamples, n)) + n * np.arange(n_resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=n_resamples * n).reshape(n_resamples, n).astype(float)


def _score_below(resampled: np.ndarray, mark: np.ndarray | float, ties: float) -> np.ndarray:
    """Normal score of the share of resamples below `mark`, and of those at it the share `ties`."""
    share, least = np.heaviside(mark - resampled, ties).mean(0), 0.5 / (len(resampled) + 1)
    score = ndtri(np.clip(share, least, 1 - least))
    # Past all resamples the tail is taken for a normal one: ever clearer means would else have one and the same score,
    # which BCa may bend to a p-value far from the smallest.
    deviation = resampled.std(0)
    normal = np.divide(mark - resampled.mean(0), deviation, out=np.zeros(deviation.shape), where=deviation > 0)
    score = np.where(share == 0, np.minimum(score, normal), score)
    return np.where(share == 1, np.maximum(score, normal), score)


def _bend(score: np.ndarray, acceleration: np.ndarray) -> np.ndarray:
    """BCa's transform of a normal score; its inverse is that with minus the acceleration. Past its pole: infinite."""
    return score / np.maximum(1 - acceleration * score, 1e-9)


def _p_at_most(drawn: _Resamples, mark: float) -> np.ndarray:
    """One-sided p-value that the statistic is at most `mark`."""
    score = _score_below(drawn.resampled, mark, 1)
    return ndtr(_bend(score - drawn.bias, -drawn.acceleration) - drawn.bias)


def _p_at_least(drawn: _Resamples, mark: float) -> np.ndarray:
    """One-sided p-value that the statistic is at least `mark`."""
    score = _score_below(drawn.resampled, mark, 0)
    return ndtr(drawn.bias - _bend(score - drawn.bias, -drawn.acceleration))


def _estimate(drawn: _Resamples) -> Estimate:
    """The interval of resamples, and the p-value that inverts it."""
    n_resamples = len(drawn.resampled)
    low, high = (
        n_resamples * ndtr(drawn.bias + _bend(drawn.bias + ndtri(level), drawn.acceleration))
        for level in (0.025, 0.975)
    )
    # Resamples themselves rather than what lies between two: these bounds leave out zero exactly where p < 0.05.
    low, high = (
        np.take_along_axis(drawn.resampled, np.nan_to_num(np.clip(rank, 0, n_resamples - 1)).astype(int)[None], 0)[0]
        for rank in (np.ceil(low) - 1, np.floor(high))
    )
    p_value = 2 * np.minimum(_p_at_most(drawn, 0), _p_at_least(drawn, 0))
    return Estimate(drawn.mean, low, high, np.clip(p_value, 1 / (n_resamples + 1), 1))


def correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation over the last axis: (..., N), (..., N) -> (...); zero where either is constant."""
    x, y = (values - values.mean(-1, keepdims=True) for values in (x, y))
    scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.divide((x * y).sum(-1), scale, out=np.zeros_like(scale), where=scale > 0)


def moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of two (...) values both, their squares and their product, (..., 5), whose means give the correlation."""
    return np.stack([x, y, x * x, y * y, x * y], -1)


def from_moments(means: np.ndarray) -> np.ndarray:
    """Pearson's correlation (...) from means (..., 5) of `moments`; zero where either is constant."""
    x, y, xx, yy, xy = np.moveaxis(means, -1, 0)
    scale = np.sqrt(np.maximum((xx - x * x) * (yy - y * y), 0))
    return np.divide(xy - x * y, scale, out=np.zeros_like(scale), where=scale > 0)


def sign_flip_test(differences: np.ndarray, rng: np.random.Generator, n_flips: int = 9999) -> np.ndarray:
    """Two-sided p-values of paired differences (B, ...) with mean zero, from flipping the signs of images B.

    Where nothing but chance tells the pair apart, each image's difference may as well have the other sign. All 2^B
    signs are tried if they are not more than `n_flips`; otherwise that many random ones, and the observed one counts
    among them. All columns share the flips.

    Raises:
        ValueError: there are no images.
    """
    n_images = len(differences)
    if n_images == 0:
        raise ValueError("no images to test a difference on")
    flat = differences.reshape(n_images, -1)
    exact = n_images < 63 and 2**n_images <= n_flips
    # What is as large as observed up to rounding counts as large.
    observed = np.abs(flat.sum(0)) * (1 - 1e-12)
    n_as_large = np.zeros(flat.shape[1]) if exact else np.ones(flat.shape[1])
    for start in range(0, 2**n_images if exact else n_flips, 1000):
        if exact:
            numbers = np.arange(start, min(start + 1000, 2**n_images))
            signs = 1 - 2 * (numbers[:, None] >> np.arange(n_images) & 1)
        else:
            signs = 1 - 2 * rng.integers(0, 2, (min(1000, n_flips - start), n_images))
        n_as_large += (np.abs(signs @ flat) >= observed).sum(0)
    return (n_as_large / (2**n_images if exact else n_flips + 1)).reshape(differences.shape[1:])


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values of (P,) ones; NaN (not tested) stays NaN and does not count."""
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]  # NaN comes last
    adjusted = np.full(len(p_values), np.nan)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def second_degree_fit(logits: np.ndarray, norms: np.ndarray) -> tuple[np.ndarray, float]:
    """Least-squares polynomial of degree two over all points (highest power first) and its R^2."""
    x, y = logits.ravel(), norms.ravel()
    coefficients = np.polyfit(x, y, 2)
    residual = y - np.polyval(coefficients, x)
    return coefficients, float(1 - residual.var() / y.var())


def rank_correlation(logits: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of logit and norm within each image, ties sharing a rank: (B, R), (B, R) -> (B,)."""
    first, second = (pd.DataFrame(values).rank(axis=1) for values in (logits, norms))
    return first.corrwith(second, axis=1).to_numpy()
