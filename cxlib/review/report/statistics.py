"""Means over images, what is computed from them, bootstrap intervals, and a test of paired differences."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd


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


def correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation over the last axis: (..., N), (..., N) -> (...); zero where either is constant."""
    x, y = (values - values.mean(-1, keepdims=True) for values in (x, y))
    scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.divide((x * y).sum(-1), scale, out=np.zeros_like(scale), where=scale > 0)


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
