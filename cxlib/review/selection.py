"""Which test images an experiment explains: their most probable classes, and the two sides of a threshold of p_2."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cxlib.datasets.images import choose


class Leading(NamedTuple):
    """The most probable classes of every image, in order: indices (N, n) and probabilities (N, n)."""

    classes: np.ndarray
    probabilities: np.ndarray


def leading(probabilities: np.ndarray, n_classes: int = 2) -> Leading:
    """The `n_classes` most probable of probabilities (N, K); of equal ones the first.

    Classes that there are not, from index K on, have a probability of 0.

    Raises:
        ValueError: there is but one class.
    """
    n_known = probabilities.shape[1]
    if n_known < 2:
        raise ValueError("the network knows one class, which has no second one to be contrasted with")
    padded = np.pad(probabilities, ((0, 0), (0, max(0, n_classes - n_known))))
    classes = np.argsort(-padded, 1, kind="stable")[:, :n_classes]
    return Leading(classes, np.take_along_axis(padded, classes, 1))


def both_sides(
    p_2: np.ndarray, threshold: float, limits: Sequence[int], seed: int, eligible: np.ndarray | bool = True
) -> list[int]:
    """Images above the threshold of p_2, then images not above it, each drawn with the seed.

    Args:
        p_2: (N,), probability of the second class.
        threshold: of p_2.
        limits: how many images above and below at most; 0 takes all.
        seed: of the draw.
        eligible: (N,) bool, which images may be drawn; all by default.

    Raises:
        ValueError: the threshold is no probability.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"the threshold of p_2 must lie in [0, 1], got {threshold}")
    above = p_2 > threshold
    sides = (np.flatnonzero(eligible & side).tolist() for side in (above, ~above))
    return [index for side, limit in zip(sides, limits) for index in choose(side, limit, seed)]


def most_ambiguous(leading: Leading, limit: int, classes: Sequence[str] = (), between: Sequence[str] = ()) -> list[int]:
    """The images with the highest p_2, at most `limit`; with `between`, so many of each pair of leading classes.

    Args:
        leading: the two most probable classes.
        limit: how many.
        classes: their names, by index.
        between: names of classes, two for each pair; without any, any two classes may lead.

    Raises:
        ValueError: a name without its second, or one that is no class.
    """
    if unknown := [name for name in between if name not in classes]:
        raise ValueError(f"{unknown[0]!r} is none of the {len(classes)} classes, such as {', '.join(classes[:3])}")
    if len(between) % 2:
        raise ValueError(f"{between[-1]!r} has no second class beside it: name classes in pairs")
    order = np.argsort(-leading.probabilities[:, 1], kind="stable")
    if not between:
        return order[:limit].tolist()
    chosen = []
    for pair in zip(between[::2], between[1::2]):
        wanted = {classes.index(name) for name in pair}
        chosen += [int(image) for image in order if set(leading.classes[image, :2].tolist()) == wanted][:limit]
    return chosen
