"""The ledger: what the review says, sentence by sentence, judged on values of single images.

Three kinds of row. A *comparison* is a margin that the sentence says is positive: it holds, is refuted, or is not
shown. An *equivalence* is a margin that the sentence says is small: it holds where two one-sided tests put it inside
a stated bound, and is refuted where its interval lies outside. An *identity* is exact by construction, and has no
verdict.

Every network has its own rows, and all of them together have theirs: over images crossed with networks where all saw
the same ones, else over all images, those of one picture kept together. Intervals are 95 % BCa bootstrap intervals;
p-values are Holm's over the rows of one network, or of all together; no verdict rests on fewer than `FEWEST` images.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from cxlib.review.report import tables
from cxlib.review.report.statistics import correlation, crossed, holm, inside
from cxlib.review.report.tables import BETTER, Arrays, evidence

#: Below this many images there is no verdict: the interval's own coverage is not to be trusted.
FEWEST = 30
#: The level of Holm's p-values.
LEVEL = 0.05
ALL = "all networks"
COMPARISON, EQUIVALENCE, IDENTITY = "comparison", "equivalence", "identity"
HOLDS, REFUTED, NOT_SHOWN = "holds", "refuted", "not shown"
#: How the note of a row begins that the sentence does not speak of.
NOT_SAID = "not said"

#: The review's sentences: where it says so, and in short what it says.
STATEMENTS = {
    "claim_1": ("3.1", "weighted moves p_t and accuracy together and more than original, original moves y_t more"),
    "3.1_literal": ("3.1", "weighted and max raise p_t and accuracy, original and mean raise y_t"),
    "3.1_max": ("3.1", "(ours) max raises p_t and accuracy more than original"),
    "3.1_mean": ("3.1, 3.3", "mean and original are extremely similar"),
    "published_weighted": ("Fig. 1, 2", "the printed weighted bars, which are back-propagation from p_t"),
    "3.2_alike": ("3.2.1", "original maps of t1 and t2 are consistent"),
    "3.2_complementary": ("3.2.1", "weighted maps of t1 and t2 are almost complementary"),
    "3.2_negative_area": ("3.2.1", "original GradCAM has larger negative than positive areas"),
    "fullgrad_negative": ("later version", "FullGrad's maps are fully negative"),
    "claim_2": ("3.2.2", "weighted highlights what decides between the two dominant classes"),
    "3.2_direction": ("Table 1", "positive features kept raise their class, negative ones lower it"),
    "3.2_baselines": ("3.2.2", "the three baselines give slightly different results"),
    "3.2_xgradcam": ("3.2.2", "XGradCAM is slightly better on negative features and for t2"),
    "3.2_equal": ("3.2.2", "equal blurring has a minor impact"),
    "3.3_inverse": ("3.3", "max maps of t1 and t2 are inverse"),
    "3.3_detail": ("3.3", "weighted is max with more detail: they part as rivals grow in number"),
    "claim_3": ("3.2, 4", "the contrast carries over to other explainers"),
    "3.4_vit": ("3.4, 3.5", "on a Vision Transformer the contrast has no significant effect"),
    "3.5_rollout": ("3.5", "rollout localises better than GradCAM on a Vision Transformer"),
    "4.2_expected": ("4.2", "weighted is better by a measure without p"),
    "4.3_dominating": ("4.3", "where p_1 >> p_2 weighted falls back to original"),
    "4.3_weights": ("4.3, Fig. 6", "explanation weights grow with the logit"),
    "4.3_normalise": ("4.3", "normalising before weighing should be considered"),
    "4.3_saturation": ("4.3", "as p_t goes to 1 the gradient from p_t goes to zero"),
    "eq_4": ("2.1", "from p_t is proportional to weighted"),
    "6_gradcam++": ("6", "GradCAM++ is incompatible with starting from the softmax"),
}
#: Bounds of the equivalences: of a change of p_t, and of a relative probability.
SMALL_CHANGE, SMALL_PROBABILITY = 0.005, 0.02
#: How alike two maps must be to be "extremely similar", and how much of one must be negative to be "fully negative".
SIMILAR, FULLY = 0.99, 0.95


def _mean(means: np.ndarray) -> np.ndarray:
    return means


class Margin(NamedTuple):
    """One margin before it is judged.

    Attributes:
        statement: a key of `STATEMENTS`.
        network: its name, or `ALL`.
        name: what is compared.
        values: (networks, images, ...), of which the statistic takes means.
        kind: comparison, equivalence or identity.
        statistic: from means (R, ...) to the margin (R,).
        bound: of an equivalence.
        published: the same margin of the printed numbers; NaN where nothing is printed.
        note: why it is true, or trivial, by construction.
        images: labels of the pictures, by which networks that saw the same ones are brought together.
    """

    statement: str
    network: str
    name: str
    values: np.ndarray
    kind: str = COMPARISON
    statistic: Callable[[np.ndarray], np.ndarray] = _mean
    bound: float = 0.0
    published: float = float("nan")
    note: str = ""
    images: Sequence[Hashable] | None = None


def pooled(margins: Sequence[Margin]) -> Iterator[Margin]:
    """The margins that several networks have, over all their images together."""
    groups: dict[tuple[str, str], list[Margin]] = {}
    for margin in margins:
        groups.setdefault((margin.statement, margin.name), []).append(margin)
    for first, *others in groups.values():
        members = [first, *others]
        if not others or any(margin.network == ALL or margin.images is None for margin in members):
            continue
        values = np.concatenate([margin.values for margin in members], 1)
        images = [image for margin in members for image in margin.images or ()]
        notes = {margin.note for margin in members}
        yield first._replace(network=ALL, values=values, images=images, note=notes.pop() if len(notes) == 1 else "")


def judge(margins: Sequence[Margin], rng: np.random.Generator) -> pd.DataFrame:
    """The ledger, one row a margin, in the order of `STATEMENTS`.

    Args:
        margins: of all statements.
        rng: draws the bootstraps' resamples.
    """
    order = list(STATEMENTS)
    margins = sorted([*pooled(margins), *margins], key=lambda margin: order.index(margin.statement))
    rows = []
    for margin in margins:
        n_images = margin.values.shape[1] if margin.images is None else len(set(margin.images))
        if margin.kind == EQUIVALENCE:
            estimate = inside(margin.values.mean(0), margin.bound, rng, margin.images)
        else:
            estimate = crossed(margin.values, margin.statistic, rng, margin.images)
        p = float("nan") if n_images < FEWEST or margin.kind == IDENTITY else float(estimate.p_value)
        bounds = [float(value) for value in estimate[:3]]
        rows.append((margin.statement, STATEMENTS[margin.statement][0], margin.network, margin.name, margin.kind,
                     *bounds, margin.bound, margin.published, n_images, p, margin.note))  # fmt: skip
    columns = ["statement", "section", "network", "margin", "kind", "mean", "low", "high", "bound", "published"]
    ledger = pd.DataFrame(rows, columns=[*columns, "n_images", "p_value", "note"])
    adjusted = ledger.groupby("network")["p_value"].transform(lambda p: holm(p.to_numpy(float)))
    ledger.insert(len(ledger.columns) - 1, "p_holm", adjusted)
    ledger["verdict"] = [_verdict(row) for row in ledger.itertuples()]
    return ledger


def _verdict(row) -> str:
    if row.kind == IDENTITY:
        return IDENTITY
    significant = row.p_holm < LEVEL
    if row.kind == EQUIVALENCE:
        outside = row.low > row.bound or row.high < -row.bound
        return HOLDS if significant else REFUTED if outside and row.n_images >= FEWEST else NOT_SHOWN
    return NOT_SHOWN if not significant else HOLDS if row.mean > 0 else REFUTED


def decisive(ledger: pd.DataFrame) -> pd.DataFrame:
    """The rows that decide: a margin on all networks together where there is such a row, else on each."""
    margins = pd.MultiIndex.from_frame(ledger[["statement", "margin"]])
    together = ledger["network"] == ALL
    return ledger[together | ~margins.isin(margins[together])]


#: The margin of each claim that its headline gives.
LEADING = {"claim_1": "p_t_weighted_minus_original", "claim_2": "t2_equal_kept", "claim_3": "gradcam"}


def headlines(ledger: pd.DataFrame) -> dict[str, dict]:
    """For each statement whether it holds, and the leading margins of claims 1 to 3.

    A statement holds when all of its rows that are tested hold: a margin that is on all networks together there, any
    other on each; what is noted as `NOT_SAID` stands beside. One without such a row, identities aside, does not hold;
    one of identities alone does.
    """
    result: dict[str, dict] = {}
    for statement, judged in decisive(ledger).groupby("statement", sort=False):
        said = ~judged["note"].fillna("").str.startswith(NOT_SAID)
        tested = judged[said & (judged["kind"] != IDENTITY) & (judged["n_images"] >= FEWEST)]
        identities = (judged["kind"] == IDENTITY).all()
        result[str(statement)] = {"holds": bool(identities or (len(tested) and (tested["verdict"] == HOLDS).all()))}
        leading = judged[judged["margin"] == LEADING.get(str(statement))]
        for row in leading.itertuples():
            result[str(statement)][row.network.replace(" ", "_")] = {"mean": row.mean, "low": row.low, "high": row.high}
    return result


# --- section 3.1: perturbation ------------------------------------------------------------------------------------


def of_perturbation(cells: Mapping[str, Arrays], published: pd.DataFrame) -> Iterator[Margin]:
    """Claim 1 and the other sentences of section 3.1.

    At the epsilon that the rule chose on training images where there are any (`dose`), over all epsilons elsewhere;
    always over all numbers of iterations.

    Args:
        cells: for each network the arrays of the perturbation stage.
        published: the digitised Figures 1 and 2.
    """
    groups = {network: [network] for network in cells}
    images = [cell["images"] for cell in cells.values()]
    if len(images) > 1 and all(np.array_equal(one, images[0]) for one in images):
        groups = {ALL: list(cells), **groups}
    for name, members in groups.items():
        chosen = [cells[network] for network in members]
        contrasts = [str(contrast) for contrast in chosen[0]["contrasts"]]
        printed = published[published["network"].isin(members)]
        changes = {
            (contrast, str(quantity)): np.stack([_at_dose(cell)[c, :, :, q].mean((0, 1)) for cell in chosen])
            for c, contrast in enumerate(contrasts)
            for q, quantity in enumerate(chosen[0]["quantities"])
        }  # (networks, images) each

        def difference(a: str, b: str, quantity: str, changes=changes) -> np.ndarray:
            return changes[a, quantity] - changes[b, quantity]

        for quantity in ("accuracy", "p_t"):
            yield Margin("claim_1", name, f"{quantity}_weighted_minus_original",
                         difference("weighted", "original", quantity))  # fmt: skip
            yield Margin("3.1_max", name, f"{quantity}_max_minus_original", difference("max", "original", quantity),
                         published=_printed_difference(printed, "max", "original", quantity))  # fmt: skip
        yield Margin("claim_1", name, "y_t_original_minus_weighted", difference("original", "weighted", "y_t"))
        matching = np.stack([_by_setting(cell) for cell in chosen])
        yield Margin("claim_1", name, "p_t_matches_accuracy_better_than_y_t", matching, statistic=_matching,
                     published=_printed_matching(printed))  # fmt: skip
        for contrast, quantity in changes:
            if contrast != "probability":
                literal = quantity == "y_t" if contrast in ("original", "mean") else quantity != "y_t"
                note = "" if literal else f"{NOT_SAID}: every contrast raises all three"
                yield Margin("3.1_literal", name, f"{quantity}_{contrast}", changes[contrast, quantity],
                             published=_printed_change(printed, contrast, quantity), note=note)  # fmt: skip
        mean = difference("mean", "original", "p_t")
        note = "" if mean.any() else "the head's class weights sum to zero"
        yield Margin("3.1_mean", name, "p_t_mean_minus_original", mean, EQUIVALENCE, bound=SMALL_CHANGE, note=note)
        if len(printed) and "probability" in contrasts:
            for quantity in ("accuracy", "p_t", "y_t"):
                yield Margin("published_weighted", name, f"{quantity}_probability_minus_original",
                             difference("probability", "original", quantity) * (-1 if quantity == "y_t" else 1),
                             published=_printed_difference(printed, "weighted", "original", quantity)
                             * (-1 if quantity == "y_t" else 1))  # fmt: skip


def _at_dose(cell: Arrays) -> np.ndarray:
    """Changes (contrasts, epsilons, iterations, quantities, images) at the chosen epsilon, or at all of them."""
    return cell["changes"][:, cell["epsilons"] == cell["dose"]] if np.isfinite(cell["dose"]) else cell["changes"]


def _by_setting(cell: Arrays) -> np.ndarray:
    """Changes (images, quantities, settings, printed contrasts) of accuracy, p_t and y_t."""
    contrasts, quantities = (list(map(str, cell[axis])) for axis in ("contrasts", "quantities"))
    printed = [contrasts.index(name) for name in ("original", "mean", "max", "weighted")]
    chosen = _at_dose(cell)[printed][:, :, :, [quantities.index(name) for name in ("accuracy", "p_t", "y_t")]]
    return np.moveaxis(chosen, (4, 3, 0), (0, 1, 4)).reshape(chosen.shape[-1], 3, -1, len(printed))


def _matching(means: np.ndarray) -> np.ndarray:
    """Correlation over the contrasts of p_t with accuracy minus that of y_t with accuracy, mean over settings."""
    accuracy, p_t, y_t = (means[:, quantity] for quantity in range(3))
    return (correlation(p_t, accuracy) - correlation(y_t, accuracy)).mean(-1)


def _printed_change(printed: pd.DataFrame, contrast: str, quantity: str) -> float:
    return float(printed[(printed["contrast"] == contrast) & (printed["quantity"] == quantity)]["change"].mean())


def _printed_difference(printed: pd.DataFrame, a: str, b: str, quantity: str) -> float:
    return _printed_change(printed, a, quantity) - _printed_change(printed, b, quantity)


def _printed_matching(printed: pd.DataFrame) -> float:
    if printed.empty:
        return float("nan")
    # Means over the networks first, as ours of all networks are.
    wide = printed.pivot_table("change", ["epsilon", "n_iterations", "contrast"], "quantity")
    settings = [group.to_numpy().T for _, group in wide[["accuracy", "p_t", "y_t"]].groupby(level=[0, 1])]
    return float(np.mean([_matching(setting[None, :, None]) for setting in settings]))


# --- section 3.2: maps, and what they mask ------------------------------------------------------------------------


def _pictures(cell: Arrays, chosen: np.ndarray | slice = slice(None)) -> list[Hashable]:
    """Which pictures a cell's images are: two networks may have seen the same."""
    return [(cell["data"].item(), int(image)) for image in cell["images"][chosen]]


def of_masking(cells: Mapping[str, Arrays], published: pd.DataFrame) -> Iterator[Margin]:
    """Claims 2 and 3, and what section 3.2.2 and Table 1 say of blur and mask, on images with p_2 above the threshold.

    Args:
        cells: for each network the arrays of the masking stage.
        published: the printed Table 1.
    """
    for network, cell in cells.items():
        pictures = _pictures(cell, cell["above"])
        yield from (margin._replace(images=pictures) for margin in _of_masks(network, cell, published))


def _of_masks(network: str, cell: Arrays, published: pd.DataFrame) -> Iterator[Margin]:
    """The margins of one network."""
    if cell["above"].any():
        above = cell["above"]
        axes = ("explainers", "targets", "baselines", "features", "contrasts", "rules")
        explainers, targets, baselines, features, contrasts, rules = (list(map(str, cell[axis])) for axis in axes)
        w = contrasts.index("weighted")
        # (images, explainers, targets, baselines, features, rules)
        gained, masked = tables.margins(cell)[above][..., w, :], cell["masked"][above][..., w, :]
        printed_ones = [e for e, name in enumerate(explainers) if name in set(published["explainer"])]
        table = printed_ones or list(range(len(explainers)))  # what the sentences about Table 1 are about
        equal_area = [r for r, rule in enumerate(rules) if rule != "unequal"]
        by_rule = dict(zip(rules, np.moveaxis(gained, -1, 0)))
        for rule in [rule for rule in ("published", "equal_kept") if rule in rules]:
            for t, target in enumerate(targets):
                printed = _printed_margin(published, "target", target) if rule == "published" else float("nan")
                values = by_rule[rule][:, table][:, :, t].mean((1, 2, 3))
                yield Margin("claim_2", network, f"{target}_{rule}", values[None], published=printed)
        alike = "its map is GradCAM's: only pooling follows the layer" if cell["constant_gradient"] else ""
        for e, explainer in enumerate(explainers):
            values = gained[:, e][..., equal_area].mean((1, 2, 3, 4))
            yield Margin("claim_3", network, explainer, values[None],
                         published=_printed_margin(published, "explainer", explainer),
                         note=alike if explainer in ("linear_approximation", "xgradcam") else "")  # fmt: skip
        kept = masked[..., rules.index("published")] if "published" in rules else masked[..., equal_area].mean(-1)
        for t, target in enumerate(targets):
            for f, feature in enumerate(features):
                moved = (kept[:, table][:, :, t, :, f].mean((1, 2)) - cell["unmasked"][above][:, t]) * BETTER[feature]
                yield Margin("3.2_direction", network, f"{target}_{feature}_kept", moved[None],
                             published=_printed_direction(published, target, feature))  # fmt: skip
        for (a, first), (b, second) in combinations(enumerate(baselines), 2):
            values = (gained[:, table][:, :, :, a] - gained[:, table][:, :, :, b])[..., equal_area].mean((1, 2, 3, 4))
            yield Margin("3.2_baselines", network, f"{first}_minus_{second}", values[None], EQUIVALENCE,
                         bound=SMALL_PROBABILITY)  # fmt: skip
        if {"xgradcam", "gradcam"} <= set(explainers):
            better = np.array([BETTER[feature] for feature in features])[:, None]
            ahead = masked[:, explainers.index("xgradcam")] - masked[:, explainers.index("gradcam")]
            ahead = (ahead * better)[..., equal_area]
            for name, values in (("negative_features", ahead[:, :, :, features.index("negative")].mean((1, 2, 3))),
                                 ("t2", ahead[:, targets.index("t2")].mean((1, 2, 3)))):  # fmt: skip
                yield Margin("3.2_xgradcam", network, f"{name}_xgradcam_minus_gradcam", values[None])
        for rule in [rule for rule in ("published", "equal_kept") if rule in rules and "unequal" in rules]:
            values = (by_rule["unequal"] - by_rule[rule])[:, table].mean((1, 2, 3, 4))
            yield Margin("3.2_equal", network, f"unequal_minus_{rule}", values[None], EQUIVALENCE,
                         bound=SMALL_PROBABILITY)  # fmt: skip


def _printed_margin(published: pd.DataFrame, axis: str, value: str) -> float:
    rows = published[(published[axis] == value) & published["kept_features"].isin(list(BETTER))]
    if rows.empty:
        return float("nan")
    wide = rows.pivot_table("relative_probability", ["explainer", "target", "baseline", "kept_features"], "contrast")
    better = wide.index.get_level_values("kept_features").map(BETTER).to_numpy()
    return float(((wide["weighted"] - wide["original"]) * better).mean())


def _printed_direction(published: pd.DataFrame, target: str, feature: str) -> float:
    of_target = published[published["target"] == target]
    kept = of_target[(of_target["kept_features"] == feature) & (of_target["contrast"] == "weighted")]
    unmasked = of_target[of_target["kept_features"] == "all"]
    return float(kept["relative_probability"].mean() - unmasked["relative_probability"].mean()) * BETTER[feature]


def of_localisation(cells: Mapping[str, Arrays]) -> Iterator[Margin]:
    """Claim 2's other ground, a measure without p, and the normalised contrast below the threshold.

    The margins are those of share - area of the evidence, paired over images, mean over explainers and targets. Where
    the regions are all the parts of the bird they say less, and are named so.

    Args:
        cells: for each network the arrays of the localisation stage.

    Raises:
        ValueError: a contrast is missing.
    """
    for network, cell in cells.items():
        contrasts, above = list(map(str, cell["contrasts"])), cell["above"]
        if missing := {"original", "weighted"} - set(contrasts):
            raise ValueError(f"{network} was localised without the contrast {min(missing)!r}, which claim 2 needs")
        share = evidence(cell["share"], cell["evidence_signs"]).mean((1, 3))  # (images, contrasts)
        truth = "localisation" if cell["discriminative"] else "on_the_bird"
        ahead = share[:, contrasts.index("weighted")] - share[:, contrasts.index("original")]
        note = "" if cell["discriminative"] else "what tells two classes apart is not known"
        if above.any():
            name = f"{truth}_weighted_minus_original"
            if cell["discriminative"]:
                yield Margin("claim_2", network, name, ahead[None, above], images=_pictures(cell, above))
            yield Margin("4.2_expected", network, name, ahead[None, above], note=note, images=_pictures(cell, above))
        if not above.all() and "normalised" in contrasts:
            gain = share[:, contrasts.index("normalised")] - share[:, contrasts.index("weighted")]
            yield Margin("4.3_normalise", network, f"{truth}_normalised_minus_weighted", gain[None, ~above], note=note,
                         images=_pictures(cell, ~above))  # fmt: skip


# --- sections 3.2, 3.3, 4.3: what maps say of each other ----------------------------------------------------------


def of_relations(cells: Mapping[str, Arrays]) -> Iterator[Margin]:
    """What the review says of maps alone; of GradCAM's, but where an explainer is named.

    Args:
        cells: for each network the arrays of the relations stage.
    """
    for network, cell in cells.items():
        for margin in _of_maps(network, cell):
            yield margin if margin.images else margin._replace(images=_pictures(cell))


def _of_maps(network: str, cell: Arrays) -> Iterator[Margin]:
    """The margins of one network, on all its images but where it says which."""
    if len(cell["images"]):
        explainers, contrasts, pairs = (list(map(str, cell[axis])) for axis in ("explainers", "contrasts", "pairs"))
        g = explainers.index("gradcam")
        between = dict(zip(contrasts, cell["between"][:, g].T))
        alike, rivals, p = dict(zip(pairs, cell["alike"][:, g].T)), cell["rivals"], cell["p"]
        similar = alike["mean and original"]
        note = "the head's class weights sum to zero" if np.allclose(similar, 1, atol=1e-6) else ""
        yield Margin("3.1_mean", network, "correlation_of_maps_above_0.99", similar[None] - SIMILAR, note=note)
        if not np.isnan(cell["strangers"]).all():  # as where there are no two other classes
            yield Margin("3.2_alike", network, "t1_t2_minus_two_other_classes",
                         (between["original"] - cell["strangers"][:, g])[None])  # fmt: skip
        yield Margin("3.2_complementary", network, "minus_correlation_of_t1_and_t2", -between["weighted"][None],
                     note="an identity as p_1 + p_2 goes to 1")  # fmt: skip
        if (left := p.sum(1) < 0.9).any():
            yield Margin("3.2_complementary", network, "the_same_where_p_1_and_p_2_leave_0.1",
                         -between["weighted"][None, left], images=_pictures(cell, left))  # fmt: skip
        original = contrasts.index("original")
        yield Margin(
            "3.2_negative_area", network, "negative_share_minus_half", cell["negative"][None, :, g, original] - 0.5
        )
        yield Margin("3.3_inverse", network, "minus_correlation_of_t1_and_t2", -between["max"][None], IDENTITY)
        detail = np.stack([_ranks(1 - alike["max and weighted"]), _ranks(rivals)], 1)
        yield Margin("3.3_detail", network, "rank_correlation_of_distance_and_rivals", _moments(detail)[None],
                     statistic=_from_moments)  # fmt: skip
        for name, cause in (("p_2_falls", -p[:, 1]), ("rivals_grow", rivals)):
            ranks = np.stack([_ranks(alike["weighted and original"]), _ranks(cause)], 1)
            yield Margin("4.3_dominating", network, f"maps_more_alike_as_{name}", _moments(ranks)[None],
                         statistic=_from_moments,
                         note="" if name == "p_2_falls" else f"{NOT_SAID}: what alpha is made of")  # fmt: skip
        yield Margin("eq_4", network, "correlation_of_maps_from_p_t_and_weighted",
                     alike["probability and weighted"][None], IDENTITY)  # fmt: skip
        if "gradcam++" in explainers:
            own = cell["alike"][:, explainers.index("gradcam++"), pairs.index("probability and weighted")]
            yield Margin("6_gradcam++", network, "maps_from_p_t_and_weighted_less_alike_than_gradcam",
                         (alike["probability and weighted"] - own)[None], IDENTITY,
                         note="not linear in the cotangent: p_t (1 - p_t) does not cancel")  # fmt: skip
        if "fullgrad" in explainers:
            negative = cell["negative"][:, explainers.index("fullgrad"), original]
            yield Margin("fullgrad_negative", network, "negative_share_above_0.95", negative[None] - FULLY)


def _ranks(values: np.ndarray) -> np.ndarray:
    return pd.Series(values).rank().to_numpy() / len(values)


def _moments(pairs: np.ndarray) -> np.ndarray:
    """Of (B, 2): the two, their squares and their product, (B, 5), whose means give their correlation."""
    x, y = pairs.T
    return np.stack([x, y, x * x, y * y, x * y], 1)


def _from_moments(means: np.ndarray) -> np.ndarray:
    x, y, xx, yy, xy = np.moveaxis(means, -1, 0)
    scale = np.sqrt(np.maximum((xx - x * x) * (yy - y * y), 0))
    return np.divide(xy - x * y, scale, out=np.zeros_like(scale), where=scale > 0)


# --- sections 3.4, 3.5: Vision Transformers; 4.3: gradients -------------------------------------------------------


def of_transformers(cells: Mapping[str, Arrays], masked: Mapping[str, Arrays]) -> Iterator[Margin]:
    """Whether the contrast has an effect on a Vision Transformer, by a quarter of its effect on the convolutional ones.

    Args:
        cells: for each transformer the arrays of the vit stage.
        masked: for each convolutional network those of the masking stage.
    """
    effects = []
    for cell in masked.values():
        ahead = tables.margins(cell)[cell["above"]][..., list(cell["contrasts"]).index("weighted"), :]
        effects += [float(ahead.mean())] if len(ahead) >= FEWEST else []
    for network, cell in cells.items():
        above = cell["p_2"] > cell["threshold"]
        variants = list(map(str, cell["variants"]))
        better = np.array([BETTER[str(feature)] for feature in cell["features"]])[:, None]
        with_contrast, without = (
            cell["masked"][..., variants.index(name), :] for name in ("contrastive", "without_relu")
        )
        ahead = with_contrast - without
        ahead = (ahead * better)[above].mean((2, 3, 4, 5))  # (images, explainers)
        for e, explainer in enumerate(map(str, cell["explainers"])):
            if effects and above.any():
                yield Margin("3.4_vit", network, f"{explainer}_contrastive_minus_without_relu", ahead[None, :, e],
                             EQUIVALENCE, bound=abs(float(np.mean(effects))) / 4)  # fmt: skip
        known, standard = cell["area"] > 0, variants.index("standard")
        shares = [cell["share"][known, e, block, standard] for e, block in enumerate(cell["chosen_blocks"])]
        if known.any():
            rollout, gradcam = (shares[list(map(str, cell["explainers"])).index(name)]
                                for name in ("attention_rollout", "vit_gradcam"))  # fmt: skip
            yield Margin("3.5_rollout", network, "share_rollout_minus_gradcam", (rollout - gradcam)[None])


def of_gradients(norms: pd.DataFrame, network: str, saturation: Mapping[str, Arrays]) -> Iterator[Margin]:
    """Section 4.3: the norm of the input gradient beside the logit, and the softmax gradient as p_t goes to 1.

    Args:
        norms: a row for each image and class: columns `image`, `logit`, `norm`.
        network: their network's name.
        saturation: for each network the arrays of the saturation stage.
    """
    correlations = [
        correlation(_ranks(rows["logit"].to_numpy()), _ranks(rows["norm"].to_numpy()))
        for _, rows in norms.groupby("image")
    ]
    if correlations:
        yield Margin("4.3_weights", network, "rank_correlation_of_norm_and_logit", np.array(correlations)[None])
    for name, cell in saturation.items():
        last = cell["agreement"][list(map(str, cell["paths"])).index("probability"), :, -1]
        yield Margin("4.3_saturation", name, "signs_that_float32_keeps_at_the_last_step", last[None], IDENTITY)
