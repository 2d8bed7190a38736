"""From values of single images to the review's tables: long data frames, one row a number."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cxlib.review.ledger.statistics import bootstrap_mean, correlation, crossed, from_moments, moments, sign_flip_test

#: What a stage saved of one network: named arrays.
Arrays = Mapping[str, np.ndarray]
#: Sign that makes a difference of relative probability good news for the contrast that is compared with original.
BETTER = {"positive": 1.0, "negative": -1.0}

#: Of localisation: what is measured, and the masses that the truth chooses.
QUANTITIES, MASSES = ("share", "gain", "hit"), ("evidence", "exchanged")


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


def doses(cells: Mapping[str, Arrays], rng: np.random.Generator) -> pd.DataFrame:
    """What each contrast changes beyond `original`, by epsilon: a step too small shows nothing, nor one too large.

    One row for each (network, contrast, epsilon, n, quantity), with a 95 % bootstrap interval over images; `chosen` is
    the epsilon that training images chose for the verdicts.
    """
    rows = []
    for network, cell in cells.items():
        contrasts = list(cell["contrasts"])
        margins = cell["changes"] - cell["changes"][contrasts.index("original")]
        interval = bootstrap_mean(np.moveaxis(margins, -1, 0), rng)
        axes = (cell[axis] for axis in ("contrasts", "epsilons", "n_iterations", "quantities"))
        for index, (contrast, epsilon, n, quantity) in _indexed(*axes):
            if contrast != "original":
                bounds, chosen = (bound[index] for bound in interval), epsilon == cell["dose"]
                rows.append((network, contrast, epsilon, n, quantity, *bounds, chosen, margins.shape[-1]))
    columns = ["network", "contrast", "epsilon", "n_iterations", "quantity", "margin", "low", "high", "chosen"]
    return pd.DataFrame(rows, columns=[*columns, "n_images"])


def zero_gradients(cells: Mapping[str, Arrays]) -> pd.DataFrame:
    """Share of pixel values whose gradient was exactly zero, so that sign() left them where they were.

    Beside it the share of the first step's signs that full precision gives too; one in full precision.
    """
    rows = []
    for network, cell in cells.items():
        axes = ("contrasts", "epsilons", "n_iterations")
        for (contrast, epsilon, n), share in _cells(cell["zero_share"], *(cell[axis] for axis in axes)):
            agreement = cell["sign_agreement"][list(cell["contrasts"]).index(contrast)]
            rows.append((network, epsilon, n, contrast, share, agreement))
    columns = ["network", "epsilon", "n_iterations", "contrast", "zero_share", "sign_agreement"]
    return pd.DataFrame(rows, columns=columns)


def perturbation_vs_published(changes: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Our changes beside the digitised ones, one row a number; empty where only one side has it.

    Args:
        changes: what `perturbation` returns.
        published: the digitised Figures 1 and 2.
    """
    keys = ["network", "epsilon", "n_iterations", "contrast", "quantity"]
    printed = published[[*keys, "change"]].rename(columns={"change": "published"})
    return printed.merge(changes, on=keys, how="outer", sort=True)[[*keys, "change", "published", "n_images"]]


def closeness(beside: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Correlation and mean absolute difference of our changes and the published ones, for each quantity.

    Over the settings that both have; a quantity without any is left out.

    Args:
        beside: what `perturbation_vs_published` returns.
    """
    return {
        quantity: {
            "correlation": float(correlation(rows["change"].to_numpy(), rows["published"].to_numpy())),
            "mean_absolute_difference": float((rows["change"] - rows["published"]).abs().mean()),
            "n": len(rows),
        }
        for quantity, rows in beside.dropna(subset=["change", "published"]).groupby("quantity")
    }


#: Where p_t of the unperturbed image lies, by upper bound.
SURENESS = {"p_t below 0.5": 0.5, "p_t 0.5 to 0.9": 0.9, "p_t 0.9 to 0.99": 0.99, "p_t above 0.99": 1.0}


def saturation(cells: Mapping[str, Arrays]) -> pd.DataFrame:
    """Section 4.3: every image at every step of both paths, one row each."""
    fields = ["log_odds", "p_t", "p_t_after", "y_t", "y_t_after"]
    fields += ["saturated", "agreement", "zero_literal", "zero_weighted"]
    tables = []
    for network, cell in cells.items():
        paths, images, steps = cell["log_odds"].shape
        axes = {
            "network": np.full(paths * images * steps, network),
            "path": np.repeat(cell["paths"], images * steps),
            "image": np.tile(np.repeat(cell["images"], steps), paths),
            "step": np.tile(np.arange(1, steps + 1), paths * images),
        }
        tables.append(pd.DataFrame(axes | {field: cell[field].ravel() for field in fields}))
    return pd.concat(tables, ignore_index=True)


def sureness(steps: pd.DataFrame) -> pd.Series:
    """The group in `SURENESS` of each row's image, by p_t before the first step.

    Args:
        steps: what `saturation` returns.
    """
    first = steps.groupby(["network", "image"])["p_t"].transform("first")
    return pd.cut(first, [0, *SURENESS.values()], labels=list(SURENESS), include_lowest=True)


def dominance(steps: pd.DataFrame) -> pd.DataFrame:
    """`saturation` by sureness: how far each path moves, and what became of the softmax gradient.

    Groups without images have no row. `saturated` and `agreement` are those of the last step along the literal path.
    """
    last = steps["step"].max()
    rows = []
    for name, group in steps.assign(group=sureness(steps)).groupby("group", observed=True):
        start, end = (group[group["step"] == step].set_index(["network", "image", "path"]) for step in (1, last))
        gain = (end["y_t_after"] - start["y_t"]).groupby("path").mean()
        literal = end.xs("probability", level="path")
        numbers = literal["saturated"].mean(), literal["agreement"].mean(), gain["probability"], gain["weighted"]
        rows.append((name, len(literal), *numbers))
    columns = ["group", "n_images", "saturated", "agreement", "y_t_gain_probability", "y_t_gain_weighted"]
    return pd.DataFrame(rows, columns=columns)


def tested(reports: Mapping[str, Arrays], threshold: float) -> pd.DataFrame:
    """A row a network: test accuracy, and how many test images have a second and a third class above the threshold."""
    rows = []
    for network, report in reports.items():
        p = -np.sort(-report["probabilities"], 1)
        right = (report["probabilities"].argmax(1) == report["labels"]).mean()
        # The labels of images that show other classes than the network knows are -1.
        row = {"network": network, "test_accuracy": right if (report["labels"] >= 0).all() else np.nan}
        row |= {"n_images": len(p), "best_epoch": report["accuracies"].argmax() + 1 if len(report["accuracies"]) else 0}
        for rank in (2, 3):
            row[f"n_p{rank}_above_threshold"] = (p[:, rank - 1 : rank] > threshold).sum()
        rows.append(row | {"computed_by": report["computed_by"].item()})
    return pd.DataFrame(rows)


def training(reports: Mapping[str, Arrays]) -> pd.DataFrame:
    """A row an epoch of every network that was trained."""
    columns = ["network", "epoch", "training_loss", "test_accuracy"]
    rows = [
        (network, epoch, loss, accuracy)
        for network, report in reports.items()
        for epoch, (loss, accuracy) in enumerate(zip(report["losses"], report["accuracies"]), 1)
    ]
    return pd.DataFrame(rows, columns=columns)


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


def bins(cell: Arrays) -> dict[str, np.ndarray]:
    """Which of a cell's images lie in each bin of p_2, by name, from the most ambiguous images to the clearest.

    Bins meet at the cell's threshold, its tenth and its hundredth, each of which is of the bin below it.
    """
    edges = [float(cell["threshold"]) / part for part in (1, 10, 100)]
    names = [f"> {edges[0]:g}", *(f"{low:g}–{high:g}" for high, low in pairwise(edges)), f"< {edges[-1]:g}"]
    sides = pairwise([np.inf, *edges, -np.inf])
    return {name: (low < cell["p_2"]) & (cell["p_2"] <= high) for name, (high, low) in zip(names, sides)}


def by_ambiguity(cells: Mapping[str, Arrays], rng: np.random.Generator) -> pd.DataFrame:
    """Table 1 in `bins` of p_2: means over explainers and baselines.

    The rows of kept features `all` are the unmasked images. Bins without images have no rows.
    """
    rows = []
    for network, cell in cells.items():
        axes = [cell[axis] for axis in ("targets", "features", "contrasts", "rules")]
        for name, inside in bins(cell).items():
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

    The printed values follow the published rule, and stand beside it only.
    """
    keys = ["explainer", "target", "baseline", "kept_features", "contrast"]
    printed = published.rename(columns={"relative_probability": "published"})
    joined = table.merge(printed[[*keys, "published"]], on=keys, how="left")
    joined["published"] = joined["published"].where(joined["rule"].isin(["published", "none"]))
    return joined


def evidence(values: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Of localisation's values, those of the mass that the truth wants in the region.

    Args:
        values: (B, explainers, contrasts, targets, signs).
        signs: (B, explainers, targets), indices into the last axis.

    Returns:
        (B, explainers, contrasts, targets).
    """
    return np.take_along_axis(values, signs[:, :, None, :, None], -1)[..., 0]


def localisation(cells: Mapping[str, Arrays], rng: np.random.Generator) -> pd.DataFrame:
    """Localisation above the threshold of p_2, with 95 % bootstrap intervals over images.

    One row for each (network, explainer, contrast, target, mass, quantity). Explainers and targets have a row `mean`
    beside their own; masses are the map's positive, negative and absolute one, the `evidence` (what the truth wants in
    the region) and the same with the targets `exchanged`; quantities are `share`, `gain` (share - area) and `hit`.
    The explainer `gaussian` is the centred control.
    """
    rows = []
    for network, cell in cells.items():
        side = cell["above"]
        if not side.any():
            continue
        values, silent = _localised(cell)  # (B, quantities, explainers, contrasts, targets, masses)
        values, silent = values[side], silent[side].mean(0)
        same = (float(cell["area"][side].mean()), int(side.sum()), _truth(cell))
        names = [[*map(str, cell[axis]), "mean"] for axis in ("explainers", "targets")]
        axes = [QUANTITIES, names[0], cell["contrasts"].tolist(), names[1], [*cell["signs"].tolist(), *MASSES]]
        interval = bootstrap_mean(values, rng)
        for index in np.ndindex(values.shape[1:]):
            quantity, *setting = (axis[i] for axis, i in zip(axes, index))
            rows.append((network, *setting, quantity, *(bound[index] for bound in interval), silent[index[1:]], *same))
        share, hit = (cell[f"gaussian_{quantity}"][side] for quantity in ("share", "hit"))
        interval = bootstrap_mean(np.stack([share, share - cell["area"][side], hit], 1), rng)
        for quantity, *bounds in zip(QUANTITIES, *interval):
            rows.append((network, "gaussian", "none", "none", "positive", quantity, *bounds, 0.0, *same))
    columns = ["network", "explainer", "contrast", "target", "mass", "quantity", "value", "low", "high", "silent"]
    return pd.DataFrame(rows, columns=[*columns, "area", "n_images", "truth"])


def localisation_by_p_2(cells: Mapping[str, Arrays], rng: np.random.Generator) -> pd.DataFrame:
    """How localisation goes as the second class vanishes: the evidence, mean over targets, in `bins` of p_2."""
    rows = []
    for network, cell in cells.items():
        values = _localised(cell)[0][..., -1, -2]  # the mean over targets, the evidence
        axes = [QUANTITIES, [*map(str, cell["explainers"]), "mean"], cell["contrasts"].tolist()]
        for name, inside in bins(cell).items():
            if not inside.any():
                continue
            interval = bootstrap_mean(values[inside], rng)
            for index in np.ndindex(values.shape[1:]):
                quantity, explainer, contrast = (axis[i] for axis, i in zip(axes, index))
                numbers = (bound[index] for bound in interval)
                rows.append((network, name, explainer, contrast, quantity, *numbers, int(inside.sum())))
    columns = ["network", "p_2", "explainer", "contrast", "quantity", "value", "low", "high", "n_images"]
    return pd.DataFrame(rows, columns=columns)


class Agreeing(NamedTuple):
    """A repainted network's pairs of a bird and a mark of its family, n of them, each held against its effect.

    The third axis has the contrasts, and last the perfect map; maps of t2 are turned around, so that all are of t1.

    Attributes:
        images: (n,), the bird's place in the cell.
        telling: (n,) bool, whether the mark tells the bird's two classes apart; else its effect is zero.
        ranks: (n, explainers, contrasts + 1, targets, 5), moments of mass and effect, by rank within the part.
        sign: (n, explainers, contrasts + 1, targets), whether the mass in the region has the effect's sign.
        share: likewise, the share of the mass of the effect's sign that lies in the region.
        area: (n,), the region's share of the image.
    """

    images: np.ndarray
    telling: np.ndarray
    ranks: np.ndarray
    sign: np.ndarray
    share: np.ndarray
    area: np.ndarray


def agreeing(cell: Arrays) -> Agreeing:
    """What the arrays of an intervention stage say of every bird and mark; see `cxlib.metrics.interventions`."""
    images, parts = np.nonzero(cell["marks"] & (cell["area"] > 0))
    effects = np.nan_to_num(_fall(cell["original"][:, None], _ways(cell)["as_sibling"]))[images, parts]
    area = cell["area"][images, parts]
    mass, total = (
        np.concatenate([maps, np.stack([best, best[..., ::-1]], -2)[..., None, :, :]], -3)
        for maps, best in (
            (cell["mass"][images, parts], cell["perfect"][images, parts]),
            (cell["total"][images], cell["perfect_total"][images]),
        )
    )  # (n, explainers, contrasts + 1, targets, signs)
    for values in (mass, total):
        values[..., 1, :] = values[..., 1, ::-1]
        unsigned = values[:, cell["sensitivity"]]
        values[:, cell["sensitivity"]] = np.stack([unsigned.sum(-1), 0 * unsigned.sum(-1)], -1)
    wanted = np.where(cell["sensitivity"], np.abs(effects)[:, None], effects[:, None])[:, :, None, None]
    inside = mass[..., 0] - mass[..., 1]
    sign = (wanted < 0).astype(int)[..., None]
    own, whole = (np.take_along_axis(values, sign, -1)[..., 0] for values in (mass, total))
    silent = np.broadcast_to(area[:, None, None, None], own.shape)
    share = np.divide(own, whole, out=silent.copy(), where=whole > 0)
    groups = cell["families"][images] * len(cell["parts"]) + parts
    ranks = [_ranks_within(values, groups) for values in (inside, np.broadcast_to(wanted, inside.shape))]
    return Agreeing(images, effects != 0, moments(*ranks), np.sign(inside) == np.sign(wanted), share, area)


def intervention(cells: Mapping[str, Arrays], rng: np.random.Generator) -> pd.DataFrame:
    """Agreement of maps with what repainting does, with 95 % intervals over birds.

    One row for each (network, explainer, contrast, quantity), mean over the maps of t1 and t2. Quantities are `rank`
    (over all birds and marks, effects of zero included), `sign`, `share` and `found` (over the marks that tell the
    bird's two classes apart; a sensitivity has no `sign`); the contrast `perfect` is what a map of the explainer's
    resolution can reach. `margin` is what a contrast adds to `original`, on the same birds.
    """
    rows = []
    for network, cell in cells.items():
        of, contrasts = agreeing(cell), [*map(str, cell["contrasts"]), "perfect"]
        beyond = of.share - of.area[:, None, None, None]
        best = np.broadcast_to(beyond[:, :, -1:], beyond.shape)
        everywhere = np.full(len(of.images), True)
        for quantity, values, statistic, chosen in (
            ("rank", of.ranks, from_moments, everywhere),
            ("sign", of.sign, _itself, of.telling),
            ("share", of.share, _itself, of.telling),
            ("found", np.stack([beyond, best], -1), _ratio, of.telling),
        ):
            both = partial(_beside, statistic=statistic, reference=contrasts.index("original"))
            birds = of.images[chosen].tolist()
            estimate = crossed(values[chosen][None], both, rng, birds, 2000)
            for e, c in np.ndindex(estimate.mean.shape[:2]):
                if quantity == "sign" and cell["sensitivity"][e]:
                    continue
                value, margin = ([bound[e, c, k] for bound in estimate[:3]] for k in range(2))
                margin = [np.nan] * 3 if contrasts[c] in ("original", "perfect") else margin
                same = (network, cell["explainers"][e], contrasts[c], quantity)
                rows.append((*same, *value, *margin, len(set(birds)), len(birds)))
    columns = ["network", "explainer", "contrast", "quantity", "value", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "margin", "margin_low", "margin_high", "n_images", "n_pairs"])


def _itself(means: np.ndarray) -> np.ndarray:
    return means


def _ratio(means: np.ndarray) -> np.ndarray:
    """The first over the second of the last axis; zero where that is not positive."""
    gained, best = means[..., 0], means[..., 1]
    return np.divide(gained, best, out=np.zeros_like(gained), where=best > 0)


def _beside(means: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], reference: int) -> np.ndarray:
    """A statistic (R, explainers, contrasts, targets), mean over targets, beside what it is above the reference's."""
    mean = statistic(means).mean(-1)
    return np.stack([mean, mean - mean[:, :, [reference]]], -1)


def repainting(cells: Mapping[str, Arrays], rng: np.random.Generator) -> pd.DataFrame:
    """What repainting one part does to the network, with 95 % intervals over birds.

    One row for each (network, repainted, dose, quantity). Repainted is a part that tells the bird's two classes apart,
    as the sibling has it (`as_sibling`, blended by the dose), in the sibling's picture as the bird has it (`reverse`),
    or in a colour of neither (`random`); or a part that they share, in another colour (`shared`). Quantities are the
    `effect` (how far the logit of the bird's own class falls against the other's), how often it is `positive`, how
    often a right decision `flips` to the other class, and how much probability `leaves` the two. Of the reverse nothing
    is decided, so it has the first two only.
    """
    rows = []
    for network, cell in cells.items():
        ways, shown = _ways(cell), np.where(cell["leading"][:, 0] == cell["labels"], 1.0, -1.0)
        original = np.broadcast_to(cell["original"][:, None], ways["random"].shape)
        telling, visible = np.isfinite(ways["as_sibling"][..., 0]), cell["area"] > 0
        tried = [
            ("as_sibling", dose, telling, original, cell["dosed"][:, :, d]) for d, dose in enumerate(cell["doses"])
        ]
        tried += [
            ("as_sibling", 1.0, telling, original, ways["as_sibling"]),
            ("reverse", 1.0, telling, ways["back"], ways["sibling"]),
            ("random", 1.0, telling, original, ways["random"]),
            ("shared", 1.0, ~telling, original, ways["random"]),
        ]
        for name, dose, parts, before, after in tried:
            birds, places = np.nonzero(parts & visible)
            before, after = before[birds, places], after[birds, places]
            effects = _fall(before, after) * shown[birds]
            measured = {"effect": (effects, birds), "positive": (effects > 0, birds)}
            if name != "reverse":
                right = shown[birds] > 0
                measured["flips"] = (_fall(after, 0 * after) < 0)[right], birds[right]
                measured["leaves"] = (before - after)[:, 2:4].sum(1), birds
            for quantity, (values, own) in measured.items():
                if len(values):
                    estimate = crossed(values[None].astype(float), _itself, rng, own.tolist(), 2000)
                    bounds = map(float, estimate[:3])
                    rows.append((network, name, dose, quantity, *bounds, len(set(own.tolist())), len(values)))
    columns = ["network", "repainted", "dose", "quantity", "value", "low", "high", "n_images", "n_pairs"]
    return pd.DataFrame(rows, columns=columns)


def _ways(cell: Arrays) -> dict[str, np.ndarray]:
    """Outcomes (birds, parts, 5) by what was done to the part."""
    return dict(zip(map(str, cell["repainted"]), np.moveaxis(cell["ways"], 2, 0)))


def _fall(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How far y_t1 - y_t2 falls between two outcomes (..., 5)."""
    return (before[..., 0] - before[..., 1]) - (after[..., 0] - after[..., 1])


def _ranks_within(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Ranks (n, ...) within each group, ties sharing one, minus their mean and over the group's size."""
    flat = pd.DataFrame(values.reshape(len(values), -1)).groupby(groups)
    size = flat.transform("size").to_numpy()[:, None]
    return ((flat.rank().to_numpy() - (size + 1) / 2) / size).reshape(values.shape)


def transformers(cells: Mapping[str, Arrays], rng: np.random.Generator) -> pd.DataFrame:
    """Figure 5 in numbers: each measure of the variants at the chosen blocks, by p_2, with 95 % bootstrap intervals.

    Quantities are the correlation of two variants' maps of one class (`alike`, mean over t1 and t2), that of one
    variant's maps of t1 and t2 (`between`), Moran's I beyond chance (`coherence`), `gain` and `hit` of localisation,
    and the relative probability of a target with its positive or negative features kept (mean over baselines), or
    `unmasked`. `gain_margin`, and `margin` for positive features, are what the contrast adds to the map without ReLU,
    image by image.
    """
    rows = []
    for network, cell in cells.items():
        parts = {"all": np.full(len(cell["p_2"]), True)} | bins(cell)
        for e, (explainer, block) in enumerate(zip(cell["explainers"].tolist(), cell["chosen_blocks"].tolist())):
            measures = _compared(cell, e, block) | _masked(cell, e)
            for name, inside in parts.items():
                rows += [(network, explainer, block, name, *row) for row in _measured(measures, inside, rng)]
    return pd.DataFrame(rows, columns=["network", "explainer", "block", "p_2", *_MEASURED])


def transformer_blocks(cells: Mapping[str, Arrays], rng: np.random.Generator) -> pd.DataFrame:
    """The measures of the variants at every block, all images together; see `transformers`."""
    rows = []
    for network, cell in cells.items():
        for e, block in np.ndindex(cell["alike"].shape[1:3]):
            measured = _measured(_compared(cell, e, block), np.full(len(cell["p_2"]), True), rng)
            rows += [(network, cell["explainers"][e], block, *row) for row in measured]
    return pd.DataFrame(rows, columns=["network", "explainer", "block", *_MEASURED])


_MEASURED = ["quantity", "variant", "target", "rule", "value", "low", "high", "n_images"]


def _measured(
    measures: Mapping[tuple[str, ...], np.ndarray], inside: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[Any, ...]]:
    """A row for each measure, over the images inside that have it."""
    for key, values in measures.items():
        own = values[inside & ~np.isnan(values)]
        if len(own):
            yield *key, *bootstrap_mean(own, rng), len(own)


def _compared(cell: Arrays, e: int, block: int) -> dict[tuple[str, ...], np.ndarray]:
    """Correlations and localisation of one explainer at one block: (B,) each, NaN for images without a region."""
    known = cell["area"] > 0
    alike = cell["alike"][:, e, block].mean(1)
    measures: dict[tuple[str, ...], np.ndarray] = {}
    for pair, values in zip(cell["pairs"].tolist(), alike.T):
        measures["alike", pair, "mean", "none"] = values
    for v, variant in enumerate(cell["variants"].tolist()):
        at = slice(None), e, block, v
        measures["between", variant, "t1 and t2", "none"] = cell["between"][at]
        measures["coherence", variant, "shown", "none"] = cell["coherence"][at]
        measures["gain", variant, "shown", "none"] = np.where(known, cell["share"][at] - cell["area"], np.nan)
        measures["hit", variant, "shown", "none"] = np.where(known, cell["hit"][at], np.nan)
    with_contrast, without = (measures["gain", v, "shown", "none"] for v in ("contrastive", "without_relu"))
    measures["gain_margin", "contrastive", "shown", "none"] = with_contrast - without
    return measures


def _masked(cell: Arrays, e: int) -> dict[tuple[str, ...], np.ndarray]:
    """Relative probabilities under blur and mask of one explainer: (B,) each."""
    axes = [cell[axis] for axis in ("targets", "features", "variants", "rules")]
    measures: dict[tuple[str, ...], np.ndarray] = {}
    for target, values in zip(cell["targets"].tolist(), cell["unmasked"].T):
        measures["unmasked", "none", target, "none"] = values
    masked = cell["masked"][:, e].mean(2)  # (B, targets, features, variants, rules)
    for index, (target, features, variant, rule) in _indexed(*axes):
        measures[f"{features}_kept", variant, target, rule] = masked[(slice(None), *index)]
    for target, rule in product(cell["targets"].tolist(), cell["rules"].tolist()):
        with_contrast, without = (measures["positive_kept", v, target, rule] for v in ("contrastive", "without_relu"))
        measures["margin", "contrastive", target, rule] = with_contrast - without
    return measures


def nested(means: pd.Series) -> dict[str, dict[str, float]]:
    """Headlines by the two levels of an index."""
    headlines: dict[str, dict[str, float]] = {}
    for (outer, inner), value in means.items():
        headlines.setdefault(outer, {})[inner] = value
    return headlines


def _localised(cell: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Values (B, quantities, explainers, contrasts, targets, masses) and silence without quantities; means last."""
    area = cell["area"][:, None, None, None, None]
    silent = cell["silent"].astype(float)
    results = []
    for values in (cell["share"], cell["share"] - area, cell["hit"], silent):
        wanted, exchanged = (evidence(v, cell["evidence_signs"])[..., None] for v in (values, values[..., ::-1, :]))
        values = np.concatenate([values, wanted, exchanged], -1)
        for axis in (1, 3):
            values = np.concatenate([values, values.mean(axis, keepdims=True)], axis)
        results.append(values)
    return np.stack(results[:-1], 1), results[-1]


def _truth(cell: Arrays) -> str:
    """What the regions are made of."""
    return "discriminative parts" if cell["discriminative"] else "the bird's parts"


def _indexed(*axes: np.ndarray) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
    """Index and labels of every cell of a grid."""
    for index in np.ndindex(*(len(axis) for axis in axes)):
        yield index, tuple(axis[i].item() for axis, i in zip(axes, index))


def _cells(values: np.ndarray, *axes: np.ndarray) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Labels and value of every cell of a grid."""
    for index, labels in _indexed(*axes):
        yield labels, values[index]
