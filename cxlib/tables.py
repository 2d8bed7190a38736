"""From values of single images to the review's tables: long data frames, one row a number."""

from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np
import pandas as pd

from cxlib.statistics import bootstrap_mean, sign_flip_test

#: What a stage saved of one network: named arrays.
Arrays = Mapping[str, np.ndarray]
#: Sign that makes a difference of relative probability good news for the contrast that is compared with original.
BETTER = {"positive": 1.0, "negative": -1.0}
#: Where the bins of p_2 meet, from the most ambiguous images to the clearest, and their names.
EDGES = (0.1, 0.01, 0.001)
BINS = ("> 0.1", "0.01–0.1", "0.001–0.01", "< 0.001")


def perturbation(cells: Mapping[str, Arrays]) -> pd.DataFrame:
    """Figures 1 and 2: mean change over images, one row for each (network, epsilon, n, contrast, quantity)."""
    rows = []
    for network, cell in cells.items():
        mean = cell["changes"].mean(-1)  # (contrasts, epsilons, iterations, quantities)
        axes = ("contrasts", "epsilons", "n_iterations", "quantities")
        for (contrast, epsilon, n, quantity), change in _cells(mean, *(cell[axis] for axis in axes)):
            rows.append((network, epsilon, n, contrast, quantity, change, cell["changes"].shape[-1]))
    columns = ["network", "epsilon", "n_iterations", "contrast", "quantity", "change", "n_images"]
    return pd.DataFrame(rows, columns=columns)


def zero_gradients(cells: Mapping[str, Arrays]) -> pd.DataFrame:
    """Share of pixel values whose gradient was exactly zero, so that sign() left them where they were."""
    rows = []
    for network, cell in cells.items():
        axes = ("contrasts", "epsilons", "n_iterations")
        for (contrast, epsilon, n), share in _cells(cell["zero_share"], *(cell[axis] for axis in axes)):
            rows.append((network, epsilon, n, contrast, share))
    return pd.DataFrame(rows, columns=["network", "epsilon", "n_iterations", "contrast", "zero_share"])


def masking(cells: Mapping[str, Arrays], above: bool, rng: np.random.Generator) -> pd.DataFrame:
    """Table 1 (above the threshold of p_2) or the table below it, with 95 % bootstrap intervals over images.

    Each contrast is also tested against `original` on the same images: `margin` is what it gains for positive
    features, what it lowers for negative ones, with its interval and the p-value of a sign-flip test.
    """
    rows = []
    for network, cell in cells.items():
        side = cell["above"] == above
        n_images = int(side.sum())
        if n_images == 0:
            continue
        unmasked = bootstrap_mean(cell["unmasked"][side], rng)
        masked = bootstrap_mean(cell["masked"][side], rng)
        gained = margins(cell)[side]
        margin, p_values = bootstrap_mean(gained, rng), sign_flip_test(gained, rng)
        axes = [cell[axis] for axis in ("explainers", "targets", "baselines", "features", "contrasts", "rules")]
        for explainer, target in product(cell["explainers"], cell["targets"]):
            t = list(cell["targets"]).index(target)
            values = [bound[t] for bound in unmasked]
            rows.append((network, explainer, target, "none", "all", "none", "none", n_images, *values, *[np.nan] * 4))
        for index, (explainer, target, baseline, features, contrast, rule) in _indexed(*axes):
            values = [bound[index] for bound in masked]
            tested = [np.nan] * 4 if contrast == "original" else [*(bound[index] for bound in margin), p_values[index]]
            rows.append((network, explainer, target, baseline, features, contrast, rule, n_images, *values, *tested))
    columns = ["network", "explainer", "target", "baseline", "kept_features", "contrast", "rule", "n_images"]
    measured = ["relative_probability", "low", "high", "margin", "margin_low", "margin_high", "p_value"]
    table = pd.DataFrame(rows, columns=[*columns, *measured])
    # The printed table's columns first.
    first = ["explainer", "target", "baseline", "kept_features", "contrast", "relative_probability"]
    return table[[*first, "rule", "n_images", *measured[1:], "network"]]


def margins(cell: Arrays) -> np.ndarray:
    """What each contrast gains over `original` on each image, positive where it is for the better: like `masked`.

    Keeping positive features should raise a class, keeping negative ones lower it.
    """
    masked = cell["masked"]  # (images, explainers, targets, baselines, features, contrasts, rules)
    better = np.array([BETTER[features] for features in cell["features"]])[:, None, None]
    return (masked - masked[..., [list(cell["contrasts"]).index("original")], :]) * better


def by_ambiguity(cells: Mapping[str, Arrays], rng: np.random.Generator) -> pd.DataFrame:
    """Table 1 as p_2 goes from above the first of `EDGES` to below the last: means over explainers and baselines.

    The rows of kept features `all` are the unmasked images. Bins without images have no rows.
    """
    rows = []
    for network, cell in cells.items():
        bins = np.searchsorted(-np.array(EDGES), -cell["p_2"], side="right")
        axes = [cell[axis] for axis in ("targets", "features", "contrasts", "rules")]
        for place, name in enumerate(BINS):
            inside = bins == place
            if not inside.any():
                continue
            unmasked = bootstrap_mean(cell["unmasked"][inside], rng)
            masked = bootstrap_mean(cell["masked"][inside].mean((1, 3)), rng)  # (targets, features, contrasts, rules)
            for t, target in enumerate(cell["targets"]):
                values = [bound[t] for bound in unmasked]
                rows.append((network, name, target, "none", "all", "none", "none", inside.sum(), *values))
            for index, (target, features, contrast, rule) in _indexed(*axes):
                values = [bound[index] for bound in masked]
                rows.append((network, name, target, "all", features, contrast, rule, inside.sum(), *values))
    columns = ["network", "p_2", "target", "baseline", "kept_features", "contrast", "rule", "n_images"]
    return pd.DataFrame(rows, columns=[*columns, "relative_probability", "low", "high"])


def with_published(table: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The masking table with the printed value beside each of ours, empty where the review prints none.

    The printed values follow the published rule; they stand beside both rules.
    """
    keys = ["explainer", "target", "baseline", "kept_features", "contrast"]
    printed = published.rename(columns={"relative_probability": "published"})
    return table.merge(printed[[*keys, "published"]], on=keys, how="left")


def _indexed(*axes: np.ndarray) -> Iterator[tuple[tuple[int, ...], tuple]]:
    """Index and labels of every cell of a grid."""
    for index in np.ndindex(*(len(axis) for axis in axes)):
        yield index, tuple(axis[i].item() for axis, i in zip(axes, index))


def _cells(values: np.ndarray, *axes: np.ndarray) -> Iterator[tuple[tuple, float]]:
    """Labels and value of every cell of a grid."""
    for index, labels in _indexed(*axes):
        yield labels, values[index]
