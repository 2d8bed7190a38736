"""Means over images and their bootstrap intervals."""

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
