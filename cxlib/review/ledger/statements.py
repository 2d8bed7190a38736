"""What the ledger judges: for each sentence of the review the margins that it speaks of, of every single image.

One function for each kind of stage whose arrays are read; `claims` says what a margin is and judges it.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from cxlib.review.ledger import tables
from cxlib.review.ledger.claims import ALL, DIFFERENCE, EQUIVALENCE, FEWEST, IDENTITY, NOT_SAID, Margin
from cxlib.review.ledger.statistics import correlation, from_moments, moments
from cxlib.review.ledger.tables import BETTER, Arrays, evidence

#: Bounds of the equivalences: of a change of p_t, of a relative probability, and of Moran's I beyond chance.
SMALL_CHANGE, SMALL_PROBABILITY, SMALL_COHERENCE = 0.005, 0.02, 0.1
#: Where p_1 begins to dominate.
DOMINATING = 0.9
#: How alike two maps must be to be "extremely similar", and how much of one must be negative to be "fully negative".
SIMILAR, FULLY = 0.99, 0.95


# --- section 3.1: perturbation ------------------------------------------------------------------------------------


def of_perturbation(cells: Mapping[str, Arrays], published: pd.DataFrame) -> Iterator[Margin]:
    """Claim 1 and the other sentences of section 3.1.

    At the epsilon that the rule chose on training images where there are any (`dose`), over all epsilons elsewhere;
    always over all numbers of iterations. All networks together are asked on the images that all of them saw.

    Args:
        cells: for each network the arrays of the perturbation stage.
        published: the digitised Figures 1 and 2.
    """
    groups = {network: {network: cell} for network, cell in cells.items()}
    if len(cells) > 1 and (shared := _shared(cells)):
        groups = {ALL: shared, **groups}
    for name, members in groups.items():
        chosen = list(members.values())
        contrasts = [str(contrast) for contrast in chosen[0]["contrasts"]]
        printed = published[published["network"].isin(list(members))]
        changes = {
            (contrast, str(quantity)): np.stack([_at_dose(cell)[c, :, :, q].mean((0, 1)) for cell in chosen])
            for c, contrast in enumerate(contrasts)
            for q, quantity in enumerate(chosen[0]["quantities"])
        }  # (networks, images) each

        def difference(
            a: str, b: str, quantity: str, changes: Mapping[tuple[str, str], np.ndarray] = changes
        ) -> np.ndarray:
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


def _shared(cells: Mapping[str, Arrays]) -> dict[str, Arrays]:
    """The perturbed networks on the images that all of them saw, in one order; empty where there is none."""
    places = {name: {picture: i for i, picture in enumerate(_pictures(cell))} for name, cell in cells.items()}
    first, *others = places.values()
    pictures = [picture for picture in first if all(picture in other for other in others)]
    if not pictures:
        return {}
    return {
        name: {**cell, "changes": cell["changes"][..., [places[name][picture] for picture in pictures]]}
        for name, cell in cells.items()
    }


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
        table = _of_table_1(explainers, published)
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


def of_controls(cells: Mapping[str, Arrays], masked: Mapping[str, Arrays], published: pd.DataFrame) -> Iterator[Margin]:
    """Claim 2 beside masks that lie elsewhere and at fixed areas; and section 3.2.2 where each map keeps its own area.

    The masks of equal area that these are held against are of the images, explainers and baselines that both have.

    Args:
        cells: for each network the arrays of the masking stage under the rules `unequal`, `shifted` and `area_…`.
        masked: of these networks at least, those under the rules of equal area.
        published: the printed Table 1.

    Raises:
        ValueError: there are no such masks of a network.
    """
    for network, cell in cells.items():
        if not cell["above"].any():
            continue
        beside = masked.get(network, {})
        own = {"images": cell["images"][cell["above"]]} | {axis: cell[axis] for axis in ("explainers", "baselines")}
        both = [[one for one in values if one in beside.get(axis, ())] for axis, values in own.items()]
        if not all(both):
            raise ValueError(f"no masks of equal area of {network} are of what its controls are of: mask it likewise")
        pictures = _pictures(cell, np.isin(cell["images"], both[0]))
        controls, equal = (_gained(of_one, *both) for of_one in (cell, beside))  # (images, explainers) each
        gain = Margin("claim_2", network, "", np.empty(0), images=pictures)
        if "shifted" in controls and "equal_kept" in equal:
            above = (equal["equal_kept"] - controls["shifted"]).mean(1)
            yield gain._replace(name="gain_above_shifted_masks", values=above[None])
        for rule in [rule for rule in controls if rule.startswith("area_")]:
            yield gain._replace(name=f"gain_at_{rule}_percent", values=controls[rule].mean(1)[None])
        table = _of_table_1(list(map(str, both[1])), published)
        for rule in [rule for rule in ("published", "equal_kept") if rule in equal and "unequal" in controls]:
            values = (controls["unequal"] - equal[rule])[:, table].mean(1)
            yield Margin("3.2_equal", network, f"unequal_minus_{rule}", values[None], EQUIVALENCE,
                         bound=SMALL_PROBABILITY, images=pictures)  # fmt: skip


def _gained(
    cell: Arrays, images: Sequence[int], explainers: Sequence[str], baselines: Sequence[str]
) -> dict[str, np.ndarray]:
    """What weighted gains over original under each rule, on these images by these explainers: (images, explainers)."""
    gained = tables.margins(cell)[..., list(cell["contrasts"]).index("weighted"), :]
    for axis, (name, chosen) in enumerate((("images", images), ("explainers", explainers))):
        gained = gained.take([list(cell[name]).index(one) for one in chosen], axis)
    gained = gained.take([list(cell["baselines"]).index(one) for one in baselines], 3)
    return dict(zip(map(str, cell["rules"]), np.moveaxis(gained.mean((2, 3, 4)), -1, 0)))


def of_batch_norm(with_norm: Arrays, without: Arrays, network: str) -> Iterator[Margin]:
    """Section 4.1: what the contrast gains with batch norm and without, on images that are ambiguous for both.

    Args:
        with_norm: arrays of the masking stage.
        without: those of the same network without batch norm, on the same data.
        network: the name of the pair.
    """
    gains = []
    for cell in (with_norm, without):
        ahead = tables.margins(cell)[..., list(cell["contrasts"]).index("weighted"), :]
        gains.append(dict(zip(cell["images"][cell["above"]].tolist(), ahead[cell["above"]].mean((1, 3, 4, 5)))))
    both = sorted(gains[0].keys() & gains[1].keys())
    if both:
        differences = np.stack([gains[0][image] - gains[1][image] for image in both])  # (images, targets)
        for t, target in enumerate(map(str, with_norm["targets"])):
            yield Margin("4.1_bn", network, f"{target}_with_minus_without", differences[None, :, t], DIFFERENCE)


def _of_table_1(explainers: Sequence[str], published: pd.DataFrame) -> list[int]:
    """Places of the explainers that the sentences about Table 1 are about: the printed ones, or all where none is."""
    printed_ones = [e for e, name in enumerate(explainers) if name in set(published["explainer"])]
    return printed_ones or list(range(len(explainers)))


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


def of_interventions(cells: Mapping[str, Arrays], published: pd.DataFrame) -> Iterator[Margin]:
    """Claim 2 by a measure without p: maps held against what repainting does; means over explainers and targets.

    Args:
        cells: for each network the arrays of the intervention stage.
        published: the printed Table 1, whose explainers the sentence is about.

    Raises:
        ValueError: a contrast is missing.
    """
    for network, cell in cells.items():
        contrasts = list(map(str, cell["contrasts"]))
        if missing := {"original", "weighted"} - set(contrasts):
            raise ValueError(f"{network} was repainted without the contrast {min(missing)!r}, which 4.2_expected needs")
        of, pictures, table = tables.agreeing(cell), _pictures(cell), _of_table_1(list(cell["explainers"]), published)
        compared = [contrasts.index("weighted"), contrasts.index("original")]

        def ahead(means: np.ndarray) -> np.ndarray:
            first, second = np.moveaxis(from_moments(means), 2, 0)
            return (first - second).mean((1, 2))

        share = of.share[of.telling][:, table][:, :, compared].mean((1, 3))
        for name, values, statistic, birds in (
            ("share", share[:, 0] - share[:, 1], None, of.images[of.telling]),
            ("rank", of.ranks[:, table][:, :, compared], ahead, of.images),
        ):
            margin = Margin("4.2_expected", network, f"repainting_{name}_weighted_minus_original", values[None],
                            images=[pictures[bird] for bird in birds])  # fmt: skip
            yield margin._replace(statistic=statistic) if statistic else margin


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
        detail = moments(_ranks(1 - alike["max and weighted"]), _ranks(rivals))
        yield Margin("3.3_detail", network, "rank_correlation_of_distance_and_rivals", detail[None],
                     statistic=from_moments)  # fmt: skip
        for name, cause in (("p_2_falls", -p[:, 1]), ("rivals_grow", rivals)):
            ranks = moments(_ranks(alike["weighted and original"]), _ranks(cause))
            yield Margin("4.3_dominating", network, f"maps_more_alike_as_{name}", ranks[None],
                         statistic=from_moments,
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
        for e, block in np.ndindex(cell["coherence"].shape[1:3]):
            if cell["explainers"][e] == "vit_gradcam" and block != cell["chosen_blocks"][e]:
                coherent = cell["coherence"][:, e, block, variants.index("without_relu")]
                yield Margin("3.4_layers", network, f"coherence_at_block_{block}", coherent[None], EQUIVALENCE,
                             bound=SMALL_COHERENCE)  # fmt: skip
        known, standard = cell["area"] > 0, variants.index("standard")
        shares = [cell["share"][known, e, block, standard] for e, block in enumerate(cell["chosen_blocks"])]
        if known.any():
            rollout, gradcam = (shares[list(map(str, cell["explainers"])).index(name)]
                                for name in ("attention_rollout", "vit_gradcam"))  # fmt: skip
            yield Margin("3.5_rollout", network, "share_rollout_minus_gradcam", (rollout - gradcam)[None])


def of_gradients(norms: pd.DataFrame, network: str, saturation: Mapping[str, Arrays]) -> Iterator[Margin]:
    """Section 4.3: the norm of the input gradient beside the logit, and the softmax gradient as p_t goes to 1.

    Args:
        norms: a row for each image and class: columns `image`, `rank`, `logit`, `probability`, `norm`, `centred_norm`.
        network: their network's name.
        saturation: for each network the arrays of the saturation stage.
    """
    columns = ("logit", "probability", "norm", "centred_norm")
    y, p, *kinds = (norms.pivot(index="image", columns="rank", values=column).to_numpy() for column in columns)
    for column, of_classes in zip(columns[2:], kinds) if len(norms) else ():
        note = "" if column == "norm" else f"{NOT_SAID}: without what all logits have in common"
        grows = [correlation(_ranks(logits), _ranks(own)) for logits, own in zip(y, of_classes)]
        yield Margin("4.3_weights", network, f"rank_correlation_of_{column}_and_logit", np.array(grows)[None],
                     note=note)  # fmt: skip
        # The review: the dominating class has about 3 to 4 times the others'.
        ratio = of_classes[:, 0] / np.median(of_classes[:, 1:], 1)
        if (dominated := p[:, 0] > DOMINATING).any():
            yield Margin("4.3_weights", network, f"{column}_of_t1_over_the_median_minus_1_where_p_1_above_0.9",
                         ratio[None, dominated] - 1, note=note,
                         published=2.5 if column == "norm" else float("nan"))  # fmt: skip
    for name, cell in saturation.items():
        last = cell["agreement"][list(map(str, cell["paths"])).index("probability"), :, -1]
        yield Margin("4.3_saturation", name, "signs_that_float32_keeps_at_the_last_step", last[None], IDENTITY)
