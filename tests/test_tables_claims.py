"""Tables and verdicts: numbers that can be checked by hand."""

import csv
import itertools
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
import pytest

from cxlib import runtime
from cxlib.review.report import claims, tables

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
QUANTITIES = ("accuracy", "p_t", "y_t")
EXPLAINERS, TARGETS = ("linear_approximation", "gradcam", "xgradcam"), ("t1", "t2")
BASELINES, FEATURES = ("gaussian_blur", "zeros", "channel_mean"), ("positive", "negative")
CONTRASTS, RULES = ("original", "weighted"), ("published", "equal_kept")


def perturbation_cell(seed=0, n_images=20, contrasts=("original", "mean", "max", "weighted"), shift=0.0):
    """A perturbed network as its stage saves it; `shift` favours the weighted contrast in all three quantities."""
    rng = np.random.default_rng(seed)
    changes = rng.normal(0, 0.1, (len(contrasts), 2, 3, 3, n_images))
    weighted = contrasts.index("weighted")
    changes[weighted] = changes[0] + rng.normal(0, 0.01, changes[0].shape)
    changes[weighted] += shift * np.array([1, 1, -1])[:, None]
    return {
        "changes": changes,
        "zero_share": rng.random((len(contrasts), 2, 3)),
        "sign_agreement": np.ones(len(contrasts)),
        "contrasts": np.array(contrasts),
        "epsilons": np.array([1e-3, 3e-3]),
        "n_iterations": np.array([1, 2, 10]),
        "quantities": np.array(QUANTITIES),
        "images": np.arange(n_images),
    }


def masking_cell(seed=0, n_above=30, n_below=12, shift=0.0):
    """A masked network as its stage saves it; `shift` favours the weighted contrast everywhere."""
    rng = np.random.default_rng(seed)
    n_images = n_above + n_below
    masked = rng.uniform(0.3, 0.7, (n_images, 3, 2, 3, 2, 2, 2))
    masked[..., 1, :] = masked[..., 0, :] + rng.normal(0, 0.01, masked[..., 0, :].shape)
    masked[..., 1, :] += shift * np.array([1, -1])[:, None]  # positive features, negative features
    return {
        "unmasked": rng.random((n_images, 2)),
        "masked": masked,
        "above": np.arange(n_images) < n_above,
        "p_2": np.where(np.arange(n_images) < n_above, 0.3, 0.05),
        "explainers": np.array(EXPLAINERS),
        "targets": np.array(TARGETS),
        "baselines": np.array(BASELINES),
        "features": np.array(FEATURES),
        "contrasts": np.array(CONTRASTS),
        "rules": np.array(RULES),
        "images": np.arange(n_images),
    }


def localisation_cell(seed=0, n_above=30, n_below=12, shift=0.0, discriminative=True):
    """A localised network as its stage saves it; `shift` favours the weighted contrast's evidence."""
    rng = np.random.default_rng(seed)
    n_images = n_above + n_below
    share = rng.uniform(0.2, 0.6, (n_images, 3, 4, 2, 3))
    share[:, :, 3] = share[:, :, 0] + rng.normal(0, 0.01, share[:, :, 0].shape)
    signs = rng.integers(0, 2, (n_images, 1, 1)) ^ np.arange(2)
    signs = np.repeat(signs, 3, 1)
    at = np.ix_(range(n_images), range(3), range(2))
    share[at[0], at[1], 3, at[2], signs] += shift
    return {
        "share": share,
        "hit": rng.integers(0, 2, share.shape).astype(float),
        "silent": rng.random(share.shape) < 0.1,
        "gaussian_share": rng.random(n_images),
        "gaussian_hit": rng.random(n_images),
        "area": rng.uniform(0.1, 0.2, n_images),
        "p_2": np.where(np.arange(n_images) < n_above, 0.3, 10.0 ** -(2 + np.arange(n_images) % 3)),
        "above": np.arange(n_images) < n_above,
        "evidence_signs": signs,
        "discriminative": np.array(discriminative),
        "explainers": np.array(EXPLAINERS),
        "contrasts": np.array(("original", "mean", "max", "weighted")),
        "targets": np.array(TARGETS),
        "signs": np.array(("positive", "negative", "absolute")),
        "images": np.arange(n_images),
    }


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def published(name):
    return pd.read_csv(REFERENCE / f"{name}.csv")


def read_rows(name):
    with (REFERENCE / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- tables -----------------------------------------------------------------------------------------------------


def test_perturbation_table_holds_the_means_over_images():
    cells = {"resnet18": perturbation_cell(1), "alexnet": perturbation_cell(2, n_images=7)}
    table = tables.perturbation(cells)
    header = (REFERENCE / "fig1_fig2_digitised.csv").read_text().splitlines()[0].split(",")
    assert list(table.columns) == [*header, "n_images"]
    assert len(table) == 2 * 4 * 2 * 3 * 3
    rows = table.set_index(["network", "epsilon", "n_iterations", "contrast", "quantity"])
    assert rows.index.is_unique
    for network, cell in cells.items():
        for (c, contrast), (e, epsilon), (i, n), (q, quantity) in itertools.product(
            enumerate(cell["contrasts"]), enumerate((0.001, 0.003)), enumerate((1, 2, 10)), enumerate(QUANTITIES)
        ):
            values = [float(value) for value in cell["changes"][c, e, i, q]]
            row = rows.loc[network, epsilon, n, str(contrast), quantity]
            assert row["change"] == pytest.approx(mean(values))
            assert row["n_images"] == len(values)


def test_zero_gradient_table_is_the_saved_share():
    cell = perturbation_cell()
    rows = tables.zero_gradients({"resnet18": cell}).set_index(["network", "epsilon", "n_iterations", "contrast"])
    assert len(rows) == cell["zero_share"].size
    assert rows.loc[("resnet18", 0.003, 2, "weighted"), "zero_share"] == cell["zero_share"][3, 1, 1]
    assert rows.loc[("resnet18", 0.001, 10, "mean"), "zero_share"] == cell["zero_share"][1, 0, 2]


@pytest.mark.parametrize("above", [True, False])
def test_masking_table_holds_the_means_of_one_side(rng, above):
    cell = masking_cell()
    table = tables.masking({"vgg16_bn": cell}, above, rng)
    header = (REFERENCE / "table1.csv").read_text().splitlines()[0].split(",")
    tested = ["margin", "margin_low", "margin_high", "p_value"]
    assert list(table.columns) == [*header, "rule", "n_images", "low", "high", *tested, "network"]
    assert len(table) == 3 * 2 * (1 + 3 * 2 * 2 * 2)
    images = range(30) if above else range(30, 42)
    assert set(table["n_images"]) == {len(images)}
    rows = table.set_index(["explainer", "target", "baseline", "kept_features", "contrast", "rule"])
    assert rows.index.is_unique
    axes = (EXPLAINERS, TARGETS, BASELINES, FEATURES, CONTRASTS, RULES)
    for index in np.ndindex(*map(len, axes)):
        value = rows.loc[tuple(axis[i] for axis, i in zip(axes, index)), "relative_probability"]
        assert value == pytest.approx(mean(float(cell["masked"][(image, *index)]) for image in images))
    for explainer, (t, target) in itertools.product(EXPLAINERS, enumerate(TARGETS)):
        value = rows.loc[(explainer, target, "none", "all", "none", "none"), "relative_probability"]
        assert value == pytest.approx(mean(float(cell["unmasked"][image, t]) for image in images))
    assert (table["low"] < table["relative_probability"]).all()
    assert (table["relative_probability"] < table["high"]).all()


def test_localisation_table_holds_the_means_of_one_side(rng):
    cell = localisation_cell()
    table = tables.localisation({"vgg16_bn": cell}, rng)
    rows = table.set_index(["explainer", "contrast", "target", "mass", "quantity"])
    assert rows.index.is_unique
    assert len(table) == 4 * 4 * 3 * 5 * 3 + 3
    assert set(table["n_images"]) == {30}
    contrasts, masses = list(cell["contrasts"]), ("positive", "negative", "absolute", "evidence", "exchanged")
    for (e, explainer), (c, contrast), (t, target), (m, mass) in itertools.product(
        enumerate((*EXPLAINERS, "mean")), enumerate(contrasts), enumerate((*TARGETS, "mean")), enumerate(masses)
    ):
        values = defaultdict(list)
        for i, k, s in itertools.product(range(30), range(3) if e == 3 else [e], range(2) if t == 2 else [t]):
            sign = m if m < 3 else cell["evidence_signs"][i, k, s]
            of = 1 - s if mass == "exchanged" else s
            values["share"].append(float(cell["share"][i, k, c, of, sign]))
            values["gain"].append(float(cell["share"][i, k, c, of, sign] - cell["area"][i]))
            values["hit"].append(float(cell["hit"][i, k, c, of, sign]))
            values["silent"].append(float(cell["silent"][i, k, c, of, sign]))
        for quantity in ("share", "gain", "hit"):
            row = rows.loc[explainer, contrast, target, mass, quantity]
            assert row["value"] == pytest.approx(mean(values[quantity]))
            assert row["silent"] == pytest.approx(mean(values["silent"]))
            assert row["low"] < row["value"] < row["high"]
    for quantity, values in (
        ("share", cell["gaussian_share"]),
        ("gain", cell["gaussian_share"] - cell["area"]),
        ("hit", cell["gaussian_hit"]),
    ):
        row = rows.loc["gaussian", "none", "none", "positive", quantity]
        assert row["value"] == pytest.approx(values[:30].mean())


def test_localisation_by_p_2_puts_every_image_into_one_bin(rng):
    cell = localisation_cell()
    cell["p_2"][:3] = 0.1, 0.01, 1e-7  # an edge belongs to the bin below it
    table = tables.localisation_by_p_2({"vgg16_bn": cell}, [0.1, 0.01, 0.001], rng)
    bounds = {"> 0.1": (0.1, 1), "0.01 to 0.1": (0.01, 0.1), "0.001 to 0.01": (0.001, 0.01), "< 0.001": (0, 0.001)}
    assert list(dict.fromkeys(table["p_2"])) == list(bounds)
    rows = table.set_index(["p_2", "explainer", "contrast", "quantity"])
    counted = 0
    for name, (low, high) in bounds.items():
        chosen = [i for i, p in enumerate(cell["p_2"]) if low < p <= high]
        row = rows.loc[name, "gradcam", "max", "gain"]
        by_hand = mean(
            float(cell["share"][i, 1, 2, t, cell["evidence_signs"][i, 1, t]] - cell["area"][i])
            for i in chosen
            for t in range(2)
        )
        assert row["value"] == pytest.approx(by_hand)
        assert row["n_images"] == len(chosen)
        counted += len(chosen)
    assert counted == 42


def test_bins_of_p_2_must_fall(rng):
    with pytest.raises(ValueError, match=r"must fall: \[0.01, 0.1\]"):
        tables.localisation_by_p_2({"vgg16_bn": localisation_cell()}, [0.01, 0.1], rng)


def test_margin_of_a_contrast_is_what_it_gains_over_original_image_by_image(rng):
    cell = masking_cell(shift=0.02)
    table = tables.masking({"vgg16_bn": cell}, True, rng)
    rows = table.set_index(["explainer", "target", "baseline", "kept_features", "contrast", "rule"])
    for (e, explainer), (f, features), (r, rule) in itertools.product(
        enumerate(EXPLAINERS), enumerate(FEATURES), enumerate(RULES)
    ):
        gained = (-1) ** f * (cell["masked"][:30, e, 1, 2, f, 1, r] - cell["masked"][:30, e, 1, 2, f, 0, r])
        row = rows.loc[explainer, "t2", "channel_mean", features, "weighted", rule]
        assert row["margin"] == pytest.approx(gained.mean())
        assert row["margin_low"] < gained.mean() < row["margin_high"]
        flips = np.random.default_rng(9).choice([-1, 1], (20_000, 30)) @ gained
        assert row["p_value"] == pytest.approx(np.mean(np.abs(flips) >= abs(gained.sum()) - 1e-12), abs=0.02)
    untested = table[table["contrast"].isin(["original", "none"])]
    assert untested[["margin", "margin_low", "margin_high", "p_value"]].isna().all(axis=None)


def test_table_by_ambiguity_holds_the_means_of_each_bin(rng):
    cell = masking_cell(n_above=20, n_below=22)
    cell["p_2"] = np.repeat([0.3, 0.1, 0.0100001, 0.01, 0.002, 0.0001], 7)
    table = tables.by_ambiguity({"vgg16_bn": cell}, rng)
    expected = {"> 0.1": range(7), "0.01–0.1": range(7, 21), "0.001–0.01": range(21, 35), "< 0.001": range(35, 42)}
    assert list(dict.fromkeys(table["p_2"])) == list(expected) == list(tables.BINS)
    assert len(table) == 4 * (2 + 2 * 2 * 2 * 2)
    rows = table.set_index(["p_2", "target", "kept_features", "contrast", "rule"])
    for name, images in expected.items():
        for t, f, c, r in np.ndindex(2, 2, 2, 2):
            values = [
                float(cell["masked"][image, e, t, b, f, c, r])
                for image, e, b in itertools.product(images, range(3), range(3))
            ]
            row = rows.loc[name, TARGETS[t], FEATURES[f], CONTRASTS[c], RULES[r]]
            assert row["relative_probability"] == pytest.approx(mean(values))
            assert row["n_images"] == len(images)
            assert row["low"] < row["relative_probability"] < row["high"]
        unmasked = rows.loc[name, "t1", "all", "none", "none"]["relative_probability"]
        assert unmasked == pytest.approx(mean(float(cell["unmasked"][image, 0]) for image in images))


def test_bins_without_images_have_no_rows(rng):
    table = tables.by_ambiguity({"vgg16_bn": masking_cell()}, rng)
    assert set(table["p_2"]) == {"> 0.1", "0.01–0.1"}


def test_interval_of_a_constant_is_that_constant(rng):
    cell = masking_cell()
    cell["masked"][:] = 0.25
    table = tables.masking({"vgg16_bn": cell}, True, rng)
    kept = table[table["kept_features"] != "all"]
    assert kept[["relative_probability", "low", "high"]].to_numpy() == pytest.approx(0.25)


def test_side_without_images_has_no_rows(rng):
    table = tables.masking({"full": masking_cell(), "empty": masking_cell(n_below=0)}, False, rng)
    assert set(table["network"]) == {"full"}


@pytest.mark.parametrize("name", ["table1", "under_threshold_table"])
def test_printed_value_stands_beside_each_of_ours(rng, name):
    table = tables.masking({"vgg16_bn": masking_cell()}, True, rng)
    joined = tables.with_published(table, published(name))
    assert len(joined) == len(table)
    pd.testing.assert_frame_equal(joined[list(table.columns)], table)
    keys = ("explainer", "target", "baseline", "kept_features", "contrast")
    printed = {tuple(row[key] for key in keys): float(row["relative_probability"]) for row in read_rows(name)}
    found = {tuple(getattr(row, key) for key in keys): row.published for row in joined.itertuples()}
    assert {key: value for key, value in found.items() if not np.isnan(value)} == printed
    for _, group in joined.groupby(list(keys)):
        assert group["published"].nunique(dropna=False) == 1  # the same beside both rules


# --- beside the published numbers -------------------------------------------------------------------------------


def test_every_published_number_stands_beside_ours_where_we_have_one():
    printed = published("fig1_fig2_digitised")
    changes = tables.perturbation({name: perturbation_cell() for name in ("resnet18", "mine")})
    beside = tables.perturbation_vs_published(changes, printed)
    keys = ["network", "epsilon", "n_iterations", "contrast", "quantity"]
    assert not beside.duplicated(keys).any()
    assert beside["published"].notna().sum() == len(printed) == 648
    assert beside["change"].notna().sum() == len(changes) == 144
    assert set(beside.dropna(subset=["change", "published"])["network"]) == {"resnet18"}
    ours, theirs = (table.set_index(keys)["change"] for table in (changes, printed))
    for row in beside.set_index(keys).itertuples():
        assert np.isnan(row.change) or row.change == ours[row.Index]
        assert np.isnan(row.published) or row.published == theirs[row.Index]


def test_closeness_is_correlation_and_mean_absolute_difference_where_networks_coincide():
    printed = published("fig1_fig2_digitised").query("network in ['resnet18', 'vgg16']")
    ours = printed.assign(change=2 * printed["change"] + 0.1, n_images=5).query("network == 'resnet18'")
    close = tables.closeness(tables.perturbation_vs_published(ours, printed))
    for quantity, rows in printed.query("network == 'resnet18'").groupby("quantity"):
        assert close[quantity]["correlation"] == pytest.approx(1)
        assert close[quantity]["mean_absolute_difference"] == pytest.approx((rows["change"] + 0.1).abs().mean())
        assert close[quantity]["n"] == 24
    assert tables.closeness(tables.perturbation_vs_published(ours.assign(network="mine"), printed)) == {}


def saturation_cell(p_t):
    """Two paths of three steps for images that begin at these p_t, as the stage saves them."""
    shape = (2, len(p_t), 3)
    cell = {name: np.zeros(shape) for name in ("log_odds", "p_t_after", "saturated", "zero_literal", "zero_weighted")}
    before = np.broadcast_to(np.array(p_t)[:, None] + [0, 0.001, 0.002], shape)
    y = np.array([1.0, 2.0])[:, None, None] * np.arange(3) * np.ones(shape)  # the second path climbs twice as fast
    cell["saturated"][0, :, 2] = 1
    agreement = np.where(cell["saturated"] == 1, 0.25, 1.0)
    named = {"paths": np.array(["probability", "weighted"]), "images": np.arange(len(p_t)) * 7}
    return (
        cell | named | {"p_t": before, "y_t": y, "y_t_after": y + np.array([[[1.0]], [[2.0]]]), "agreement": agreement}
    )


def test_saturation_has_a_row_for_each_image_step_and_path_and_groups_by_the_first_p_t():
    steps = tables.saturation({"mine": saturation_cell([0.2, 0.6, 0.495, 0.995, 0.0])})
    assert len(steps) == 2 * 5 * 3
    assert steps.groupby(["network", "path", "image", "step"]).size().eq(1).all()
    row = steps.query("path == 'weighted' and image == 14 and step == 2").iloc[0]
    assert (row["p_t"], row["y_t"], row["y_t_after"]) == (pytest.approx(0.496), 2, 4)
    found = tables.dominance(steps)
    counts = {"p_t below 0.5": 3, "p_t 0.5 to 0.9": 1, "p_t above 0.99": 1}  # no image lies in the fourth group
    assert dict(zip(found["group"], found["n_images"])) == counts
    assert list(found["group"]) == list(counts), "the surest come last"
    assert found["saturated"].eq(1).all()
    assert found["agreement"].eq(0.25).all()
    assert found["y_t_gain_probability"].eq(3).all()
    assert found["y_t_gain_weighted"].eq(6).all()


# --- trained networks -------------------------------------------------------------------------------------------


def report(probabilities, labels, accuracies=()):
    """A tested network as its stage saves it."""
    return {
        "probabilities": np.array(probabilities),
        "labels": np.array(labels),
        "accuracies": np.array(accuracies, dtype=float),
        "losses": np.array([2.0, 1.5, 1.25, 1.0][: len(accuracies)]),
        "computed_by": np.array("an abacus"),
    }


def test_a_tested_network_has_its_accuracy_and_counts_its_ambiguous_images():
    p = [[0.5, 0.3, 0.2, 0.0], [0.05, 0.9, 0.05, 0.0], [0.1, 0.1, 0.15, 0.65], [0.25, 0.25, 0.25, 0.25]]
    trained = report(p, [0, 1, 3, 2], accuracies=[0.25, 0.75, 0.75])
    sure = report([[0.95, 0.05], [0.7, 0.3], [0.2, 0.8]], [0, 0, 0])  # two classes: no image has a third
    table = tables.tested({"trained": trained, "as it came": sure}, threshold=0.1)
    assert len(table) == 2
    assert table.to_dict("list") == {
        "network": ["trained", "as it came"],
        "test_accuracy": [3 / 4, 2 / 3],
        "n_images": [4, 3],
        "best_epoch": [2, 0],  # the first of two equal ones; none where nothing was trained
        "n_p2_above_threshold": [3, 2],
        "n_p3_above_threshold": [2, 0],  # 0.1 itself is not above
        "computed_by": ["an abacus"] * 2,
    }


def test_training_has_a_row_for_each_epoch_of_what_was_trained():
    p = [[0.5, 0.5]]
    reports = {"long": report(p, [0], [0.1, 0.2, 0.3]), "none": report(p, [0]), "short": report(p, [0], [0.4])}
    rows = list(tables.training(reports).itertuples(index=False, name=None))
    assert rows == [("long", 1, 2.0, 0.1), ("long", 2, 1.5, 0.2), ("long", 3, 1.25, 0.3), ("short", 1, 2.0, 0.4)]
    empty = tables.training({"none": reports["none"]})
    assert list(empty.columns) == ["network", "epoch", "training_loss", "test_accuracy"]
    assert empty.empty


# --- claims -----------------------------------------------------------------------------------------------------


def test_claim_1_is_positive_when_weighted_moves_p_t_and_accuracy_more_and_y_t_less(rng):
    cells = {name: perturbation_cell(seed, shift=0.05) for seed, name in enumerate(("resnet18", "alexnet"))}
    margins = claims.perturbation_margins(cells, published("fig1_fig2_digitised"), rng)
    assert {margin.network for margin in margins} == {"all networks", *cells}
    names = {"accuracy_weighted_minus_original", "p_t_weighted_minus_original", "y_t_original_minus_weighted"}
    assert {margin.margin for margin in margins} == {*names, claims.AGREEMENT}
    assert len(margins) == 12
    for margin in (margin for margin in margins if margin.margin in names):
        assert 0 < margin.low < margin.mean < margin.high
        assert margin.mean == pytest.approx(0.05, abs=0.01)
        assert (margin.claim, margin.n_images) == (1, 20)


def test_claim_1_pools_the_networks_image_by_image(rng):
    cells = {name: perturbation_cell(seed, shift=0.02) for seed, name in enumerate(("a", "b", "c"))}
    margins = claims.perturbation_margins(cells, published("fig1_fig2_digitised"), rng)
    pooled = {margin.margin: margin for margin in margins if margin.network == claims.ALL}
    by_hand = mean(
        float(cell["changes"][3, e, n, 1, image] - cell["changes"][0, e, n, 1, image])
        for cell in cells.values()
        for e in range(2)
        for n in range(3)
        for image in range(20)
    )
    assert pooled["p_t_weighted_minus_original"].mean == pytest.approx(by_hand)
    assert pooled["p_t_weighted_minus_original"].n_images == 20
    assert np.isnan(pooled["p_t_weighted_minus_original"].published)  # nothing is printed of a, b and c
    verdict = claims.verdicts(margins)["claim_1"]
    assert verdict["p_t_weighted_minus_original"]["mean"] == pytest.approx(by_hand)
    assert set(verdict) == {"holds", "p_t_weighted_minus_original"}  # the leading margin alone
    assert set(verdict["p_t_weighted_minus_original"]) == {"mean", "low", "high"}


def test_the_agreement_is_the_correlation_of_the_mean_changes_over_settings(rng):
    cells = {name: perturbation_cell(seed) for seed, name in enumerate(("resnet18", "alexnet"))}
    margins = claims.perturbation_margins(cells, published("fig1_fig2_digitised"), rng)
    found = {margin.network: margin for margin in margins if margin.margin == claims.AGREEMENT}
    by_hand = {}
    for name, cell in cells.items():
        accuracy, p_t, _ = np.moveaxis(cell["changes"].mean(-1), -1, 0)
        by_hand[name] = np.corrcoef(accuracy.ravel(), p_t.ravel())[0, 1]
        assert found[name].mean == pytest.approx(by_hand[name])
        assert found[name].low <= found[name].mean <= found[name].high
        rows = (
            published("fig1_fig2_digitised")
            .query("network == @name")
            .sort_values(["epsilon", "n_iterations", "contrast"])
        )
        printed = [rows[rows["quantity"] == quantity]["change"] for quantity in ("accuracy", "p_t")]
        assert found[name].published == pytest.approx(np.corrcoef(*printed)[0, 1])
        assert found[name].published > 0.5
    assert found[claims.ALL].mean == pytest.approx(mean(by_hand.values()))


def test_movements_that_go_together_agree_and_one_that_stands_still_agrees_with_nothing(rng):
    together, still = perturbation_cell(), perturbation_cell()
    together["changes"][..., 0, :] = 2 * together["changes"][..., 1, :]
    still["changes"][..., 0, :] = 0
    for cell, expected in ((together, 1), (still, 0)):
        margins = claims.perturbation_margins({"mine": cell}, published("fig1_fig2_digitised"), rng)
        agreement = next(margin for margin in margins if margin.margin == claims.AGREEMENT)
        assert agreement[3:6] == pytest.approx((expected, expected, expected), abs=1e-12)
        assert np.isnan(agreement.published)


def test_contrasts_are_found_by_name_not_by_place(rng):
    cell = perturbation_cell(shift=0.05)
    shuffled = cell | {"changes": cell["changes"][[3, 1, 0, 2]], "contrasts": cell["contrasts"][[3, 1, 0, 2]]}
    a, b = (
        claims.perturbation_margins({"resnet18": c}, published("fig1_fig2_digitised"), np.random.default_rng(0))
        for c in (cell, shuffled)
    )
    assert [margin.mean for margin in a] == [margin.mean for margin in b]


def test_claims_2_and_3_are_positive_when_weighted_raises_positive_and_lowers_negative(rng):
    cells = {"vgg16_bn": masking_cell(shift=0.05)}
    margins = claims.masking_margins(cells, published("table1"), rng)
    assert {margin.margin for margin in margins if margin.claim == 2} == {f"{t}_{r}" for t in TARGETS for r in RULES}
    assert {margin.margin for margin in margins if margin.claim == 3} == set(EXPLAINERS)
    for margin in margins:
        assert 0 < margin.low < margin.mean < margin.high
        assert margin.mean == pytest.approx(0.05, abs=0.01)
        assert (margin.network, margin.n_images) == ("vgg16_bn", 30)


def test_margins_of_masking_are_means_by_hand(rng):
    cell = masking_cell(shift=0.02)
    margins = {m.margin: m.mean for m in claims.masking_margins({"vgg16_bn": cell}, published("table1"), rng)}

    def by_hand(explainers, targets, rules):
        axes = (range(30), explainers, targets, range(3), (0, 1), rules)
        return mean(
            (-1) ** f * float(cell["masked"][i, e, t, b, f, 1, r] - cell["masked"][i, e, t, b, f, 0, r])
            for i, e, t, b, f, r in itertools.product(*axes)
        )

    assert margins["t2_published"] == pytest.approx(by_hand(range(3), (1,), (0,)))
    assert margins["t1_equal_kept"] == pytest.approx(by_hand(range(3), (0,), (1,)))
    assert margins["xgradcam"] == pytest.approx(by_hand((2,), (0, 1), (0, 1)))


def test_claim_holds_only_when_every_interval_is_above_zero(rng):
    cell = masking_cell(shift=0.05)
    assert claims.verdicts(claims.masking_margins({"vgg16_bn": cell}, published("table1"), rng))["claim_2"]["holds"]
    # One target, one rule: weighted loses what it gained, on average over images.
    cell["masked"][:, :, 0, :, :, 1, 0] = cell["masked"][:, :, 0, :, :, 0, 0]
    cell["masked"][:, :, 0, :, :, 1, 0] += np.random.default_rng(1).normal(0, 0.05, (42, 1, 1, 1))
    margins = claims.masking_margins({"vgg16_bn": cell}, published("table1"), rng)
    low = {margin.margin: margin.low for margin in margins}
    assert low["t1_published"] <= 0
    assert low["t2_published"] > 0
    verdicts = claims.verdicts(margins)
    assert verdicts["claim_2"]["holds"] is False
    assert verdicts["claim_2"]["vgg16_bn_t2_published"]["low"] == low["t2_published"]  # what leads may well hold
    assert verdicts["claim_3"]["holds"] is True


def test_margin_of_localisation_is_a_mean_by_hand(rng):
    cell = localisation_cell(shift=0.05)
    (margin,) = claims.localisation_margins({"vgg16_bn": cell}, rng)
    by_hand = mean(
        float(cell["share"][i, e, 3, t, s] - cell["share"][i, e, 0, t, s])
        for i, e, t in itertools.product(range(30), range(3), range(2))
        for s in [cell["evidence_signs"][i, e, t]]
    )
    assert margin.mean == pytest.approx(by_hand)
    assert margin.mean == pytest.approx(0.05, abs=0.01)
    assert 0 < margin.low < margin.mean < margin.high
    assert (margin.claim, margin.margin, margin.n_images) == (2, "localisation_weighted_minus_original", 30)
    assert np.isnan(margin.published)


@pytest.mark.parametrize(("table1", "localisation"), itertools.product([True, False], repeat=2))
def test_claim_2_needs_both_grounds(rng, table1, localisation):
    sign = {True: 0.05, False: -0.05}
    margins = claims.masking_margins({"mine": masking_cell(shift=sign[table1])}, published("table1"), rng)
    margins += claims.localisation_margins({"mine": localisation_cell(shift=sign[localisation], n_above=20)}, rng)
    verdict = claims.verdicts(margins)
    claim = verdict["claim_2"]
    assert claim["holds_table1"] is table1
    assert claim["holds_localisation"] is localisation
    assert claim["holds"] is (table1 and localisation)
    assert verdict["claim_3"]["holds"] is table1
    assert set(claim) == {"holds", "holds_table1", "holds_localisation", "mine_t2_published"}
    counts = {margin.margin: margin.n_images for margin in margins if margin.claim == 2}
    assert counts.pop("localisation_weighted_minus_original") == 20
    assert set(counts.values()) == {30}


def test_localisation_on_the_whole_bird_is_no_ground_for_claim_2(rng):
    margins = claims.masking_margins({"mine": masking_cell(shift=0.05)}, published("table1"), rng)
    (on_the_bird,) = claims.localisation_margins({"mine": localisation_cell(shift=-0.05, discriminative=False)}, rng)
    assert on_the_bird.margin == "on_the_bird_weighted_minus_original"
    assert on_the_bird.high < 0
    claim = claims.verdicts([*margins, on_the_bird])["claim_2"]
    assert claim["holds"] is claim["holds_table1"] is True
    assert "holds_localisation" not in claim


def test_localisation_without_a_contrast_or_an_image_says_so(rng):
    cell = localisation_cell()
    with pytest.raises(ValueError, match="mine was localised without the contrast 'weighted'"):
        claims.localisation_margins({"mine": cell | {"contrasts": np.array(["original", "mean", "max", "own"])}}, rng)
    with pytest.raises(ValueError, match="mine: no test image above the threshold"):
        claims.localisation_margins({"mine": localisation_cell(n_above=0)}, rng)


def test_one_network_that_fails_fails_claim_2(rng):
    cells = {"good": masking_cell(shift=0.05), "bad": masking_cell(shift=-0.05)}
    verdicts = claims.verdicts(claims.masking_margins(cells, published("table1"), rng))
    assert verdicts["claim_2"]["holds"] is False
    assert {"good_t2_published", "bad_t2_published"} < set(verdicts["claim_2"])


@pytest.mark.parametrize("low", [0.0, -1e-9, float("nan")])
def test_interval_that_touches_zero_does_not_hold(low):
    margins = [
        claims.Margin(2, "vgg16_bn", "t1_published", 0.1, 0.05, 0.2, 0.1, 42),
        claims.Margin(2, "vgg16_bn", "t2_published", 0.1, low, 0.2, 0.1, 42),
    ]
    assert claims.verdicts(margins)["claim_2"]["holds"] is False
    assert claims.verdicts(margins[:1])["claim_2"]["holds"] is True


@pytest.mark.parametrize(("n_images", "holds"), [(1, False), (9, False), (10, True)])
def test_a_handful_of_images_shows_no_claim(rng, n_images, holds):
    cell = masking_cell(shift=0.05, n_above=n_images)
    margins = claims.masking_margins({"vgg16_bn": cell}, published("table1"), rng)
    assert all(margin.low > 0 for margin in margins)
    assert claims.verdicts(margins)["claim_2"]["holds"] is holds


def test_a_margin_that_is_no_number_does_not_reach_the_metrics(rng, tmp_path):
    cell = masking_cell(shift=0.05)
    cell["masked"][3] = np.nan
    verdicts = claims.verdicts(claims.masking_margins({"vgg16_bn": cell}, published("table1"), rng))
    with pytest.raises(ValueError, match="not JSON compliant"):
        runtime.write_metrics(tmp_path / "claims.json", verdicts)
    assert list(tmp_path.iterdir()) == []


def test_networks_must_have_perturbed_the_same_images(rng):
    cells = {"resnet18": perturbation_cell(), "alexnet": perturbation_cell()}
    cells["alexnet"]["images"] = cells["alexnet"]["images"] + 1
    with pytest.raises(ValueError, match="resnet18 and alexnet perturbed different images"):
        claims.perturbation_margins(cells, published("fig1_fig2_digitised"), rng)


def test_published_margins_of_claim_1_are_the_reference_files(rng):
    names = ("resnet18", "googlenet")
    cells = {name: perturbation_cell() for name in (*names, "not_in_the_review")}
    margins = claims.perturbation_margins(cells, published("fig1_fig2_digitised"), rng)
    sums = defaultdict(list)
    for row in read_rows("fig1_fig2_digitised"):
        for network in {row["network"], "all networks"} & {*names, "all networks"} if row["network"] in names else ():
            sums[network, row["quantity"], row["contrast"]].append(float(row["change"]))
    compared = 0
    for margin in (margin for margin in margins if margin.margin != claims.AGREEMENT):
        quantity = next(quantity for quantity in QUANTITIES if margin.margin.startswith(quantity))
        if margin.network == "not_in_the_review":
            assert np.isnan(margin.published)
            continue
        weighted, original = (mean(sums[margin.network, quantity, contrast]) for contrast in ("weighted", "original"))
        assert margin.published == pytest.approx(original - weighted if quantity == "y_t" else weighted - original)
        compared += 1
    assert compared == 9
    assert all(margin.published > 0 for margin in margins if margin.network != "not_in_the_review")


def test_published_margins_of_claims_2_and_3_are_the_printed_table(rng):
    printed = {}
    for row in read_rows("table1"):
        if row["kept_features"] != "all":
            key = row["explainer"], row["target"], row["baseline"], row["kept_features"]
            printed.setdefault(key, {})[row["contrast"]] = float(row["relative_probability"])

    def by_hand(wanted):
        gains = [
            (pair["weighted"] - pair["original"]) * (1 if key[3] == "positive" else -1)
            for key, pair in printed.items()
            if wanted in key
        ]
        assert len(gains) in (18, 12)
        return mean(gains)

    for margin in claims.masking_margins({"vgg16_bn": masking_cell()}, published("table1"), rng):
        wanted = margin.margin.split("_", 1)[0] if margin.claim == 2 else margin.margin
        assert margin.published == pytest.approx(by_hand(wanted))
        assert margin.published > 0


def test_no_image_above_the_threshold_is_an_error(rng):
    with pytest.raises(ValueError, match="vgg16_bn: no test image is above"):
        claims.masking_margins({"vgg16_bn": masking_cell(n_above=0)}, published("table1"), rng)


def test_verdicts_are_strict_json_of_few_numbers(tmp_path, rng):
    margins = claims.perturbation_margins({"mine": perturbation_cell()}, published("fig1_fig2_digitised"), rng)
    margins += claims.masking_margins({"mine": masking_cell()}, published("table1"), rng)
    margins += claims.localisation_margins({"mine": localisation_cell()}, rng)
    runtime.write_metrics(tmp_path / "claims.json", claims.verdicts(margins))
    text = (tmp_path / "claims.json").read_text()
    assert "NaN" not in text
    verdicts = json.loads(text)
    assert set(verdicts) == {"claim_1", "claim_2", "claim_3"}
    assert all(verdict["holds"] in (True, False) for verdict in verdicts.values())
    found = {(margin.network, margin.margin): margin for margin in margins}
    leading = {"claim_1": "p_t_weighted_minus_original", "claim_2": "t2_published", "claim_3": "gradcam"}
    for claim, name in leading.items():
        network, key = (claims.ALL, name) if claim == "claim_1" else ("mine", f"mine_{name}")
        expected = {bound: round(getattr(found[network, name], bound), 5) for bound in ("mean", "low", "high")}
        assert verdicts[claim][key] == expected
        assert sum(isinstance(value, dict) for value in verdicts[claim].values()) == 1
