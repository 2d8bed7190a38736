"""Means over images: their bootstrap intervals, and the test of whether a paired difference is none."""

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean over images and the bounds of its 95 % percentile bootstrap interval."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def bootstrap_mean(values: np.ndarray, rng: np.random.Generator, n_resamples: int = 2000) -> Interval:
    """Mean of (B, ...) values over the images B, with a 95 % interval from resampling images.

    All columns share the resampled images, so that a margin between two of them is a paired comparison.

    Raises:
        ValueError: there are no images.
    """
    n_images = len(values)
    if n_images == 0:
        raise ValueError("no images to average over")
    flat = values.reshape(n_images, -1)
    # How often each image is drawn, 100 resamples at a time to bound the memory.
    share = np.full(n_images, 1 / n_images)
    means = [rng.multinomial(n_images, share, min(100, n_resamples - i)) @ flat for i in range(0, n_resamples, 100)]
    low, high = np.percentile(np.concatenate(means) / n_images, [2.5, 97.5], axis=0)
    shape = values.shape[1:]
    return Interval(flat.mean(0).reshape(shape), low.reshape(shape), high.reshape(shape))


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
