"""Tables and verdicts: numbers that can be checked by hand."""

import csv
import itertools
import json
import math
from collections import defaultdict
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from test_variants import compared_cell

from cxlib import runtime
from cxlib.metrics import interventions
from cxlib.review.ledger import claims, statements, statistics, tables

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
QUANTITIES = ("accuracy", "p_t", "y_t")
EXPLAINERS, TARGETS = ("linear_approximation", "gradcam", "xgradcam"), ("t1", "t2")
BASELINES, FEATURES = ("gaussian_blur", "zeros", "channel_mean"), ("positive", "negative")
CONTRASTS, RULES = ("original", "weighted"), ("published", "equal_kept")
PRINTED = ("original", "mean", "max", "weighted")


def perturbation_cell(seed=0, n_images=20, contrasts=PRINTED, shift=0.0, dose=math.nan):
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
        "dose": np.array(dose),
        "n_iterations": np.array([1, 2, 10]),
        "quantities": np.array(QUANTITIES),
        "images": np.arange(n_images),
        "data": np.array("birds"),
    }


def masking_cell(seed=0, n_above=30, n_below=12, shift=0.0, rules=RULES, constant_gradient=False, data="birds"):
    """A masked network as its stage saves it; `shift` favours the weighted contrast everywhere."""
    rng = np.random.default_rng(seed)
    n_images = n_above + n_below
    masked = rng.uniform(0.3, 0.7, (n_images, 3, 2, 3, 2, 2, len(rules)))
    masked[..., 1, :] = masked[..., 0, :] + rng.normal(0, 0.01, masked[..., 0, :].shape)
    masked[..., 1, :] += shift * np.array([1, -1])[:, None]  # positive features, negative features
    return {
        "unmasked": rng.random((n_images, 2)),
        "masked": masked,
        "above": np.arange(n_images) < n_above,
        "threshold": np.array(0.1),
        "p_2": np.where(np.arange(n_images) < n_above, 0.3, 0.05),
        "explainers": np.array(EXPLAINERS),
        "targets": np.array(TARGETS),
        "baselines": np.array(BASELINES),
        "features": np.array(FEATURES),
        "contrasts": np.array(CONTRASTS),
        "rules": np.array(rules),
        "constant_gradient": np.array(constant_gradient),
        "images": np.arange(n_images),
        "data": np.array(data),
    }


def localisation_cell(seed=0, n_above=30, n_below=12, shift=0.0, discriminative=True, contrasts=PRINTED, data="birds"):
    """A localised network as its stage saves it; `shift` favours the weighted contrast's evidence."""
    rng = np.random.default_rng(seed)
    n_images = n_above + n_below
    share = rng.uniform(0.2, 0.6, (n_images, 3, len(contrasts), 2, 3))
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
        "threshold": np.array(0.1),
        "p_2": np.where(np.arange(n_images) < n_above, 0.3, 10.0 ** -(2 + np.arange(n_images) % 3)),
        "above": np.arange(n_images) < n_above,
        "evidence_signs": signs,
        "discriminative": np.array(discriminative),
        "explainers": np.array(EXPLAINERS),
        "contrasts": np.array(contrasts),
        "targets": np.array(TARGETS),
        "signs": np.array(("positive", "negative", "absolute")),
        "images": np.arange(n_images),
        "data": np.array(data),
    }


REPAINTED = ("random", "as_sibling", "sibling", "back")


def intervention_cell(seed=0, n_images=40, shift=0.0, contrasts=("original", "max", "weighted"), data="birds"):
    """A repainted network as its stage saves it: four parts, of which two are marks; `shift` favours weighted."""
    rng = np.random.default_rng(seed)
    explainers, n_parts = ("gradcam", "gradient"), 4
    shape = (n_images, n_parts, 2, len(contrasts), 2, 2)
    original = rng.normal(size=(n_images, 5))
    ways = original[:, None, None] + rng.normal(0, 0.1, (n_images, n_parts, 4, 5))
    telling = np.tile([True, False, False, False], (n_images, 1))
    telling[::3, 1] = True
    lost = rng.uniform(0.5, 3, (n_images, n_parts)) * np.where(np.arange(n_images) % 5 == 0, -1, 1)[:, None]
    ways[:, :, 1] = np.where(telling[..., None], original[:, None], np.nan)
    ways[:, :, 1, 0] -= lost
    ways[:, :, 2:][~telling] = np.nan
    mass = rng.uniform(0.01, 0.05, shape)
    favoured = np.where(telling, np.sign(lost), 0)  # for t1, by sign of the effect; of t2 the other way round
    for t, s in itertools.product(range(2), range(2)):
        mass[:, :, :, -1, t, s] += shift * (favoured == (1 if s == t else -1))[:, :, None]
    perfect = np.stack([np.maximum(favoured, 0), np.maximum(-favoured, 0)], -1)[:, :, None].repeat(2, 2) * 0.4
    return {
        "original": original,
        "ways": ways,
        "dosed": original[:, None, None] + 0.5 * (ways[:, :, [1]] - original[:, None, None]),
        "area": rng.uniform(0.01, 0.03, (n_images, n_parts)),
        "mass": mass,
        "total": np.ones((n_images, *shape[2:])),
        "perfect": perfect,
        "perfect_total": np.ones((n_images, 2, 2)),
        "families": np.arange(n_images) % 2,
        "marks": np.tile([True, True, False, False], (n_images, 1)),
        "leading": np.tile([4, 7], (n_images, 1)),
        "labels": np.where(np.arange(n_images) % 5 == 0, 7, 4),
        "parts": np.array(["crown", "beak", "wing", "leg"]),
        "repainted": np.array(REPAINTED),
        "doses": np.array([0.5]),
        "explainers": np.array(explainers),
        "sensitivity": np.array([False, True]),
        "contrasts": np.array(contrasts),
        "images": np.arange(n_images),
        "data": np.array(data),
    }


PAIRS = ("mean and original", "max and weighted", "weighted and original", "probability and weighted")


def relations_cell(seed=0, n_images=30, explainers=("gradcam", "gradcam++", "fullgrad"), ambiguous=10, data="birds"):
    """A network's related maps as their stage saves them; of `ambiguous` images p_1 and p_2 leave more than 0.1."""
    rng = np.random.default_rng(seed)
    shape, contrasts = (n_images, len(explainers)), (*PRINTED, "probability")
    p_1 = np.where(np.arange(n_images) < ambiguous, 0.5, 0.8) + rng.uniform(0, 0.05, n_images)
    return {
        "between": rng.uniform(-1, 1, (*shape, len(contrasts))),
        "strangers": rng.uniform(-1, 1, shape),
        "residual": rng.random(shape),
        "alike": rng.uniform(-1, 1, (*shape, len(PAIRS))),
        "negative": rng.random((*shape, len(contrasts))),
        "rivals": rng.integers(1, 6, n_images).astype(float),  # with ties
        "p": np.stack([p_1, rng.uniform(0.12, 0.15, n_images)], 1),
        "explainers": np.array(explainers),
        "contrasts": np.array(contrasts),
        "pairs": np.array(PAIRS),
        "images": np.arange(n_images),
        "data": np.array(data),
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


def test_intervention_table_is_the_librarys_agreement(rng):
    cell = intervention_cell(shift=0.02)
    table = tables.intervention({"mine": cell}, rng).set_index(["explainer", "contrast", "quantity"])
    effects = np.nan_to_num(tables._fall(cell["original"][:, None], cell["ways"][:, :, 1]))
    images, parts = np.nonzero(cell["marks"])
    groups = (cell["families"][images] * 10 + parts).tolist()
    area = torch.from_numpy(cell["area"][images, parts])
    for c, contrast in enumerate(cell["contrasts"]):
        by_target = []
        for t, sign in ((0, 1), (1, -1)):
            e = torch.from_numpy(sign * effects[images, parts])
            masses, totals, best = (
                torch.from_numpy(np.ascontiguousarray(values))
                for values in (
                    cell["mass"][images, parts, 0, c, t],
                    cell["total"][images, 0, c, t],
                    cell["perfect"][images, parts, 0, ::sign],
                )
            )
            most = interventions.share(best, totals, e, area)
            by_target.append(interventions.agreement(masses, totals, e, area, groups, most))
        for quantity, values in zip(interventions.Agreement._fields, zip(*by_target)):
            assert table.loc[("gradcam", contrast, quantity), "value"] == pytest.approx(mean(values))
    assert table.loc[("gradcam", "perfect", "found"), "value"] == pytest.approx(1)
    assert ("gradient", "weighted", "sign") not in table.index
    assert set(table["n_images"]) == {40}
    assert set(table["n_pairs"]) == {80, 54}
    for quantity in ("rank", "share", "found"):
        row, reference = (table.loc[("gradcam", contrast, quantity)] for contrast in ("weighted", "original"))
        assert row["margin"] == pytest.approx(row["value"] - reference["value"])
        assert row["margin_low"] <= row["margin"] <= row["margin_high"]
        assert row["margin_low"] > 0


def test_a_sensitivitys_mass_and_effect_have_no_sign():
    cell = intervention_cell()
    of = tables.agreeing(cell)
    swapped = tables.agreeing(cell | {"mass": cell["mass"][..., ::-1]})
    np.testing.assert_allclose(of.share[:, 1], swapped.share[:, 1])
    images, parts = np.nonzero(cell["marks"])
    np.testing.assert_allclose(of.share[:, 1, :3], cell["mass"][images, parts, 1].sum(-1) / 2)


def test_repainting_table_holds_what_each_way_does(rng):
    cell = intervention_cell()
    table = tables.repainting({"mine": cell}, rng).set_index(["repainted", "dose", "quantity"])
    telling = np.isfinite(cell["ways"][:, :, 1, 0])
    shown = np.where(cell["labels"] == 4, 1, -1)

    def by_hand(before, after, chosen):
        rows = [(i, p) for i, p in zip(*np.nonzero(chosen))]
        falls = [shown[i] * float((b := before(i, p))[0] - b[1] - (a := after(i, p))[0] + a[1]) for i, p in rows]
        return mean(falls), mean(float(fall > 0) for fall in falls)

    first = lambda i, p: cell["original"][i]  # noqa: E731
    for name, before, way, chosen in (
        ("as_sibling", first, 1, telling),
        ("random", first, 0, telling),
        ("shared", first, 0, ~telling),
        ("reverse", lambda i, p: cell["ways"][i, p, 3], 2, telling),
    ):
        found = [table.loc[(name, 1.0, quantity), "value"] for quantity in ("effect", "positive")]
        assert found == pytest.approx(by_hand(before, lambda i, p, way=way: cell["ways"][i, p, way], chosen))
    half = table.loc[("as_sibling", 0.5, "effect"), "value"]
    assert half == pytest.approx(table.loc[("as_sibling", 1.0, "effect"), "value"] / 2)
    right = [(i, p) for i, p in zip(*np.nonzero(telling)) if cell["labels"][i] == 4]
    flips = mean(float(cell["ways"][i, p, 1, 0] < cell["ways"][i, p, 1, 1]) for i, p in right)
    assert table.loc[("as_sibling", 1.0, "flips"), "value"] == pytest.approx(flips)
    assert table.loc[("as_sibling", 1.0, "flips"), "n_pairs"] == len(right)
    assert ("reverse", 1.0, "flips") not in table.index


def test_localisation_by_p_2_puts_every_image_into_one_bin(rng):
    cell = localisation_cell()
    cell["p_2"][:3] = 0.1, 0.01, 1e-7  # an edge belongs to the bin below it
    table = tables.localisation_by_p_2({"vgg16_bn": cell}, rng)
    bounds = {"> 0.1": (0.1, 1), "0.01–0.1": (0.01, 0.1), "0.001–0.01": (0.001, 0.01), "< 0.001": (0, 0.001)}
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


@pytest.mark.parametrize(
    ("threshold", "names"),
    [
        (0.2, ["> 0.2", "0.02–0.2", "0.002–0.02", "< 0.002"]),
        (0.05, ["> 0.05", "0.005–0.05", "0.0005–0.005", "< 0.0005"]),
    ],
)
def test_bins_of_p_2_begin_at_the_threshold(threshold, names):
    p_2 = np.array([0.3, 0.2, 0.1, 0.05, 0.02, 0.003, 0.0001])
    cell = {"threshold": np.array(threshold), "p_2": p_2}
    assert list(tables.bins(cell)) == names
    assert (np.sum(list(tables.bins(cell).values()), 0) == 1).all()
    assert (tables.bins(cell)[names[0]] == (p_2 > threshold)).all()


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
    assert list(dict.fromkeys(table["p_2"])) == list(expected)
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
    beside = joined.dropna(subset="published")
    found = {tuple(getattr(row, key) for key in keys): row.published for row in beside.itertuples()}
    assert found == printed
    assert len(beside) == len(printed)
    assert set(beside["rule"]) == {"published", "none"}  # nothing was printed under the other rule


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


# --- the ledger ---------------------------------------------------------------------------------------------------

WITH_PROBABILITY = (*PRINTED, "probability")
ALL_RULES = (*RULES, "unequal")
CONTROLS = ("unequal", "shifted", "area_10", "area_50")


def perturbed(cells):
    return list(statements.of_perturbation(cells, published("fig1_fig2_digitised")))


def masked(cells):
    return list(statements.of_masking(cells, published("table1")))


def controlled(cells, beside):
    return list(statements.of_controls(cells, beside, published("table1")))


def of_statement(margins, statement):
    """The margins of one statement by network and name, none of them twice."""
    chosen = [margin for margin in margins if margin.statement == statement]
    found = {(margin.network, margin.name): margin for margin in chosen}
    assert len(found) == len(chosen)
    return found


def value(margin):
    """A margin's statistic of the means over networks and images."""
    return float(margin.statistic(margin.values.mean((0, 1))[None])[0])


def pearson(x, y):
    """In plain Python."""
    a, b = ([v - mean(values) for v in values] for values in (x, y))
    return sum(p * q for p, q in zip(a, b)) / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))


def synthetic(statement="claim_2", name="m", mean=0.1, spread=0.05, n_images=60, network="mine", **options):
    """A margin of exactly this mean, whose images have about this spread."""
    noise = np.random.default_rng(n_images).normal(0, spread, n_images)
    return claims.Margin(statement, network, name, mean + (noise - noise.mean())[None], **options)


def judged(*margins):
    return claims.judge(margins, np.random.default_rng(0))


@pytest.fixture(scope="module")
def everything():
    """Margins of every statement, of two networks each where that is allowed."""
    transformer = compared_cell()
    return [
        *perturbed(
            {name: perturbation_cell(s, 40, WITH_PROBABILITY, 0.05) for s, name in enumerate(("resnet18", "b"))}
        ),
        *masked({"mine": masking_cell(shift=0.05)}),
        *controlled({"mine": masking_cell(1, shift=0.05, rules=CONTROLS)}, {"mine": masking_cell(shift=0.05)}),
        *statements.of_localisation({"mine": localisation_cell(contrasts=(*PRINTED, "normalised"), n_below=30)}),
        *statements.of_interventions({"mine": intervention_cell(shift=0.02)}, published("table1")),
        *statements.of_relations({"mine": relations_cell()}),
        *statements.of_transformers({"vit": transformer}, {"mine": masking_cell(shift=0.05)}),
        *statements.of_gradients(norms_table(), "mine", {"mine": saturation_cell([0.2, 0.6, 0.9])}),
        *statements.of_batch_norm(masking_cell(), masking_cell(1), "mine and another"),
    ]


@pytest.fixture(scope="module")
def ledger(everything):
    return judged(*everything)


def norms_table(n_images=32, n_sure=20):
    """Twelve classes an image; p_1 is above 0.9 on the first `n_sure` images."""
    rng = np.random.default_rng(4)
    y = -np.sort(-rng.normal(size=(n_images, 12)))
    table = pd.DataFrame({"image": np.repeat(np.arange(n_images), 12), "rank": np.tile(np.arange(12), n_images)})
    sure = (table["rank"] == 0) & (table["image"] < n_sure)
    table = table.assign(logit=y.ravel(), probability=np.where(sure, 0.95, 0.004))
    norm = 5 + table["logit"].round(1) + rng.normal(0, 0.5, len(table))
    return table.assign(norm=norm, centred_norm=norm + rng.normal(0, 0.5, len(table)))


def test_every_statement_has_a_margin_and_stands_in_the_order_of_the_review(everything, ledger):
    assert {margin.statement for margin in everything} == set(claims.STATEMENTS)
    assert list(dict.fromkeys(ledger["statement"])) == list(claims.STATEMENTS)
    assert len(ledger) == len(everything)
    assert not ledger.duplicated(["statement", "network", "margin"]).any()
    assert (ledger["section"] == [claims.STATEMENTS[statement][0] for statement in ledger["statement"]]).all()
    assert set(ledger["verdict"]) <= {"holds", "refuted", "not shown", "identity"}


# --- the ledger: perturbation


@pytest.mark.parametrize(("shift", "verdict"), [(0.05, "holds"), (-0.05, "refuted")])
def test_claim_1_holds_where_weighted_is_favoured_and_is_refuted_where_it_is_not(shift, verdict):
    cells = {name: perturbation_cell(seed, 40, shift=shift) for seed, name in enumerate(("resnet18", "alexnet"))}
    ledger = judged(*of_statement(perturbed(cells), "claim_1").values())
    assert set(ledger["network"]) == {"all networks", *cells}
    names = {"accuracy_weighted_minus_original", "p_t_weighted_minus_original", "y_t_original_minus_weighted"}
    matching = ledger["margin"] == "p_t_matches_accuracy_better_than_y_t"
    assert set(ledger["margin"][~matching]) == names
    assert len(ledger) == 12
    assert set(ledger["verdict"][~matching]) == {verdict}
    for row in ledger[~matching].itertuples():
        assert row.low < row.mean < row.high
        assert row.mean == pytest.approx(shift, abs=0.01)
        assert (row.low > 0) is (row.high > 0) is (shift > 0)
        assert (row.n_images, row.kind) == (40, "comparison")
    assert ledger["published"][~matching].isna().all()  # the printed weighted is another contrast


def test_networks_are_pooled_image_by_image():
    cells = {name: perturbation_cell(seed) for seed, name in enumerate(("a", "b", "c"))}
    margins = perturbed(cells)
    pooled = of_statement(margins, "claim_1")["all networks", "p_t_weighted_minus_original"]
    assert pooled.values.shape == (3, 20)
    by_hand = mean(
        float(cell["changes"][3, e, n, 1, image] - cell["changes"][0, e, n, 1, image])
        for cell in cells.values()
        for e, n, image in itertools.product(range(2), range(3), range(20))
    )
    assert value(pooled) == pytest.approx(by_hand)
    assert judged(pooled)["mean"].item() == pytest.approx(by_hand)
    matching = "p_t_matches_accuracy_better_than_y_t"
    for statement in ("claim_1", "3.1_literal", "3.1_max", "3.1_mean"):
        found = of_statement(margins, statement)
        for name in {name for _, name in found} - {matching}:
            assert value(found["all networks", name]) == pytest.approx(mean(value(found[n, name]) for n in cells))


def test_networks_that_saw_some_images_in_common_are_pooled_on_those():
    cells = {"a": perturbation_cell(0), "b": perturbation_cell(1, n_images=15)}
    cells["b"]["images"] = cells["b"]["images"][::-1] + 10  # 24, 23, …, 10
    margins = perturbed(cells)
    shapes = {(margin.network, margin.values.shape[:2]) for margin in margins}
    assert shapes == {("all networks", (2, 10)), ("a", (1, 20)), ("b", (1, 15))}
    pooled = of_statement(margins, "claim_1")["all networks", "p_t_weighted_minus_original"]
    for values, name in zip(pooled.values, cells):
        changes, images = cells[name]["changes"], list(cells[name]["images"])
        expected = [
            mean(
                float(changes[3, e, n, 1, images.index(image)] - changes[0, e, n, 1, images.index(image)])
                for e, n in itertools.product(range(2), range(3))
            )
            for image in range(10, 20)
        ]
        np.testing.assert_allclose(values, expected)


@pytest.mark.parametrize("other", [{"images": np.arange(20) + 100}, {"data": np.array("others")}])
def test_networks_that_saw_no_image_in_common_are_not_pooled(other):
    cells = {"a": perturbation_cell(0), "b": perturbation_cell(1) | other}
    assert {margin.network for margin in perturbed(cells)} == {"a", "b"}


@pytest.mark.parametrize(("dose", "epsilons"), [(math.nan, (0, 1)), (1e-3, (0,)), (3e-3, (1,))])
def test_only_the_chosen_epsilon_counts(dose, epsilons):
    cell = perturbation_cell(contrasts=WITH_PROBABILITY, dose=dose)
    cell["changes"][:, [e for e in range(2) if e not in epsilons]] = math.nan
    margins = perturbed({"resnet18": cell})
    assert all(np.isfinite(margin.values).all() for margin in margins)
    by_hand = mean(
        float(cell["changes"][0, e, n, 2, image] - cell["changes"][3, e, n, 2, image])
        for e, n, image in itertools.product(epsilons, range(3), range(20))
    )
    assert value(of_statement(margins, "claim_1")["resnet18", "y_t_original_minus_weighted"]) == pytest.approx(by_hand)


def matching_by_hand(changes):
    """From {(setting, contrast, quantity): change}: mean over settings of a difference of correlations."""
    settings = dict.fromkeys(setting for setting, _, _ in changes)
    gains = []
    for setting in settings:
        accuracy, p_t, y_t = ([changes[setting, contrast, q] for contrast in PRINTED] for q in QUANTITIES)
        gains.append(pearson(p_t, accuracy) - pearson(y_t, accuracy))
    return mean(gains)


@pytest.mark.parametrize("dose", [math.nan, 3e-3])
def test_p_t_matches_accuracy_better_than_y_t_by_as_much_as_their_correlations_say(dose):
    order = ("weighted", "original", "probability", "max", "mean")  # contrasts are found by name, not by place
    cells = {name: perturbation_cell(seed, contrasts=order, dose=dose) for seed, name in enumerate(("resnet18", "b"))}
    for cell in cells.values():  # they differ in what p_t has to do with accuracy
        cell["changes"][..., 1, :] += cell["changes"][..., 0, :] * cell["changes"][0, 0, 0, 0, 0] * 20
    found = of_statement(perturbed(cells), "claim_1")

    def by_hand(chosen):
        return matching_by_hand(
            {
                ((e, n), contrast, quantity): mean(
                    float(change) for cell in chosen for change in cell["changes"][order.index(contrast), e, n, q]
                )
                for e, n in itertools.product(range(2) if math.isnan(dose) else [1], range(3))
                for contrast in PRINTED
                for q, quantity in enumerate(QUANTITIES)
            }
        )

    name = "p_t_matches_accuracy_better_than_y_t"
    for network, cell in cells.items():
        assert value(found[network, name]) == pytest.approx(by_hand([cell]))
    assert value(found["all networks", name]) == pytest.approx(by_hand(cells.values()))
    assert value(found["resnet18", name]) != pytest.approx(value(found["b", name]), abs=0.01)


def test_the_printed_match_is_that_of_the_digitised_figures():
    names = ("alexnet", "densenet161", "not_in_the_review")
    found = of_statement(perturbed({name: perturbation_cell() for name in names}), "claim_1")

    def by_hand(networks):
        changes = defaultdict(list)
        for row in read_rows("fig1_fig2_digitised"):
            if row["network"] in networks:
                key = (row["epsilon"], row["n_iterations"]), row["contrast"], row["quantity"]
                changes[key].append(float(row["change"]))
        assert {len(values) for values in changes.values()} == {len(networks)}
        assert len(changes) == 2 * 3 * 4 * 3
        return matching_by_hand({key: mean(values) for key, values in changes.items()})

    printed = {network: found[network, "p_t_matches_accuracy_better_than_y_t"].published for network in names}
    for network in names[:2]:
        assert printed[network] == pytest.approx(by_hand([network]))
    pooled = found["all networks", "p_t_matches_accuracy_better_than_y_t"].published
    assert pooled == pytest.approx(by_hand(names[:2]))
    assert pooled != pytest.approx(mean([printed["alexnet"], printed["densenet161"]]), abs=1e-3)
    assert np.isnan(printed["not_in_the_review"])


def test_what_goes_together_with_accuracy_matches_it_and_what_stands_still_does_not():
    together, opposed = perturbation_cell(n_images=40), perturbation_cell(n_images=40)
    together["changes"][..., 1, :] = 2 * together["changes"][..., 0, :] + 1
    together["changes"][..., 2, :] = 0
    opposed["changes"][..., 1, :] = -opposed["changes"][..., 0, :]
    opposed["changes"][..., 2, :] = opposed["changes"][..., 0, :]
    for cell, expected, verdict in ((together, 1, "holds"), (opposed, -2, "refuted")):
        margin = of_statement(perturbed({"a": cell}), "claim_1")["a", "p_t_matches_accuracy_better_than_y_t"]
        row = judged(margin).iloc[0]
        assert [row["mean"], row["low"], row["high"]] == pytest.approx([expected] * 3, abs=1e-12)
        assert row["verdict"] == verdict


def test_printed_changes_are_those_of_the_digitised_figures():
    names = ("resnet18", "googlenet", "not_in_the_review")
    cells = {name: perturbation_cell(contrasts=WITH_PROBABILITY) for name in names}
    margins = perturbed(cells)
    sums = defaultdict(list)
    for row in read_rows("fig1_fig2_digitised"):
        if row["network"] in names:
            for network in (row["network"], "all networks"):
                sums[network, row["contrast"], row["quantity"]].append(float(row["change"]))

    def printed(network, quantity, contrast, reference=None):
        if network == "not_in_the_review":
            return math.nan
        less = 0 if reference is None else mean(sums[network, reference, quantity])
        return mean(sums[network, contrast, quantity]) - less

    literal = of_statement(margins, "3.1_literal")
    axes = list(itertools.product(("all networks", *names), QUANTITIES, PRINTED))
    assert set(literal) == {(network, f"{quantity}_{contrast}") for network, quantity, contrast in axes}
    for network, quantity, contrast in axes:
        margin = literal[network, f"{quantity}_{contrast}"]
        assert margin.published == pytest.approx(printed(network, quantity, contrast), nan_ok=True)
    raised = of_statement(margins, "3.1_max")
    assert set(raised) == {(n, f"{q}_max_minus_original") for n in ("all networks", *names) for q in QUANTITIES[:2]}
    for (network, name), margin in raised.items():
        quantity = name.removesuffix("_max_minus_original")
        assert margin.published == pytest.approx(printed(network, quantity, "max", "original"), nan_ok=True)
    beside = of_statement(margins, "published_weighted")
    printed_of = ("all networks", *names[:2])
    assert set(beside) == {(n, f"{q}_probability_minus_original") for n in printed_of for q in QUANTITIES}
    for (network, name), margin in beside.items():
        quantity = name.removesuffix("_probability_minus_original")
        sign, q = (-1 if quantity == "y_t" else 1), QUANTITIES.index(quantity)
        assert margin.published == pytest.approx(sign * printed(network, quantity, "weighted", "original"))
        assert margin.published > 0
        chosen = [cells[network]] if network in cells else cells.values()
        ours = mean(float((cell["changes"][4, :, :, q] - cell["changes"][0, :, :, q]).mean()) for cell in chosen)
        assert value(margin) == pytest.approx(sign * ours)


def test_the_printed_weighted_stands_beside_nothing_else():
    margins = perturbed({"resnet18": perturbation_cell()})  # without `probability`
    assert of_statement(margins, "published_weighted") == {}
    for (_, name), margin in of_statement(margins, "claim_1").items():
        assert np.isnan(margin.published) == ("weighted" in name)


def test_what_the_sentence_does_not_say_is_noted():
    said = {(q, c) for q, c in itertools.product(QUANTITIES, PRINTED) if (q == "y_t") == (c in ("original", "mean"))}
    assert len(said) == 6
    cell = perturbation_cell(contrasts=WITH_PROBABILITY)
    found = of_statement(perturbed({"a": cell}), "3.1_literal")
    assert len(found) == 12
    for quantity, contrast in itertools.product(QUANTITIES, PRINTED):
        margin = found["a", f"{quantity}_{contrast}"]
        assert (margin.note == "") is ((quantity, contrast) in said)
        q, c = QUANTITIES.index(quantity), PRINTED.index(contrast)
        assert value(margin) == pytest.approx(cell["changes"][c, :, :, q].mean())


def test_a_head_whose_weights_sum_to_zero_makes_mean_and_original_one():
    cell = perturbation_cell(n_images=30)
    other = of_statement(perturbed({"a": cell}), "3.1_mean")["a", "p_t_mean_minus_original"]
    assert (other.note, other.kind, other.bound) == ("", "equivalence", statements.SMALL_CHANGE)
    cell["changes"][1, ..., 1, :] = cell["changes"][0, ..., 1, :]
    margin = of_statement(perturbed({"a": cell}), "3.1_mean")["a", "p_t_mean_minus_original"]
    assert "sum to zero" in margin.note
    row = judged(margin).iloc[0]
    assert (row["mean"], row["low"], row["high"], row["verdict"]) == (0, 0, 0, "holds")
    cell["changes"][1, ..., 1, :] += 0.01  # twice the bound
    assert judged(*of_statement(perturbed({"a": cell}), "3.1_mean").values())["verdict"].item() == "refuted"


# --- the ledger: masking


@pytest.mark.parametrize(("shift", "verdict"), [(0.05, "holds"), (-0.05, "refuted")])
def test_claims_2_and_3_hold_where_weighted_raises_positive_and_lowers_negative(shift, verdict):
    margins = masked({"vgg16_bn": masking_cell(shift=shift, rules=ALL_RULES)})
    claim_2, claim_3 = (of_statement(margins, claim) for claim in ("claim_2", "claim_3"))
    assert set(claim_2) == {("vgg16_bn", f"{t}_{r}") for t, r in itertools.product(TARGETS, RULES)}
    assert set(claim_3) == {("vgg16_bn", explainer) for explainer in EXPLAINERS}
    for row in judged(*claim_2.values(), *claim_3.values()).itertuples():
        assert row.low < row.mean < row.high
        assert row.mean == pytest.approx(shift, abs=0.01)
        assert (row.verdict, row.n_images) == (verdict, 30)


def gained(cell, explainers=range(3), targets=(0, 1), baselines=range(3), rules=(0, 1)):
    """What weighted gains over original, by hand: mean over images above the threshold and all that is chosen."""
    axes = (range(30), explainers, targets, baselines, (0, 1), rules)
    return mean(
        (-1) ** f * float(cell["masked"][i, e, t, b, f, 1, r] - cell["masked"][i, e, t, b, f, 0, r])
        for i, e, t, b, f, r in itertools.product(*axes)
    )


def test_margins_of_masking_are_means_by_hand():
    cell = masking_cell(shift=0.02, rules=ALL_RULES)
    cell["masked"] += np.random.default_rng(5).normal(0, 0.05, cell["masked"].shape)
    margins = masked({"mine": cell})
    claim_2, claim_3, alike = (
        {name: value(margin) for (_, name), margin in of_statement(margins, statement).items()}
        for statement in ("claim_2", "claim_3", "3.2_baselines")
    )
    assert claim_2["t2_published"] == pytest.approx(gained(cell, targets=(1,), rules=(0,)))
    assert claim_2["t1_equal_kept"] == pytest.approx(gained(cell, targets=(0,), rules=(1,)))
    assert claim_3["xgradcam"] == pytest.approx(gained(cell, explainers=(2,)))  # without the unequal rule
    assert alike == {
        f"{BASELINES[a]}_minus_{BASELINES[b]}": pytest.approx(
            gained(cell, baselines=(a,)) - gained(cell, baselines=(b,))
        )
        for a, b in ((0, 1), (0, 2), (1, 2))
    }
    for margin in of_statement(margins, "3.2_baselines").values():
        assert (margin.kind, margin.bound) == ("equivalence", statements.SMALL_PROBABILITY)


def test_direction_and_xgradcam_are_means_by_hand():
    cell = masking_cell(rules=ALL_RULES)
    margins = masked({"mine": cell})
    direction = of_statement(margins, "3.2_direction")
    assert len(direction) == 4
    for (t, target), (f, feature) in itertools.product(enumerate(TARGETS), enumerate(FEATURES)):
        raised = mean(
            float(cell["masked"][i, e, t, b, f, 1, 0] - cell["unmasked"][i, t])  # weighted, published
            for i, e, b in itertools.product(range(30), range(3), range(3))
        )
        assert value(direction["mine", f"{target}_{feature}_kept"]) == pytest.approx((-1) ** f * raised)
    ahead = of_statement(margins, "3.2_xgradcam")

    def by_hand(targets, features):
        axes = (range(30), targets, range(3), features, range(2))
        return mean(
            (-1) ** f * float(cell["masked"][i, 2, t, b, f, 1, r] - cell["masked"][i, 1, t, b, f, 1, r])
            for i, t, b, f, r in itertools.product(*axes)
        )

    assert {name: value(margin) for (_, name), margin in ahead.items()} == {
        "negative_features_xgradcam_minus_gradcam": pytest.approx(by_hand((0, 1), (1,))),
        "t2_xgradcam_minus_gradcam": pytest.approx(by_hand((1,), (0, 1))),
    }


def test_the_rule_before_the_reviews_is_none_of_equal_area():
    cell = masking_cell(rules=ALL_RULES)
    strange = cell | {"masked": cell["masked"].copy()}
    strange["masked"][..., 2] = np.random.default_rng(1).random(strange["masked"].shape[:-1])
    for one, other in zip(masked({"mine": cell}), masked({"mine": strange}), strict=True):
        np.testing.assert_allclose(one.values, other.values, rtol=0, atol=1e-12)


def test_published_margins_of_masking_are_the_printed_table():
    printed, unmasked = {}, defaultdict(list)
    for row in read_rows("table1"):
        if row["kept_features"] == "all":
            unmasked[row["target"]].append(float(row["relative_probability"]))
        else:
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

    margins = masked({"vgg16_bn": masking_cell(rules=ALL_RULES)})
    for (_, name), margin in of_statement(margins, "claim_2").items():
        target, rule = name.split("_", 1)
        expected = by_hand(target) if rule == "published" else math.nan
        assert margin.published == pytest.approx(expected, nan_ok=True)
    for (_, name), margin in of_statement(margins, "claim_3").items():
        assert margin.published == pytest.approx(by_hand(name))
        assert margin.published > 0
    for (_, name), margin in of_statement(margins, "3.2_direction").items():
        target, feature, _ = name.split("_")
        kept = [pair["weighted"] for key, pair in printed.items() if key[1] == target and key[3] == feature]
        raised = mean(kept) - mean(unmasked[target])
        assert margin.published == pytest.approx(raised if feature == "positive" else -raised)
    others = [margin for margin in margins if margin.statement not in ("claim_2", "claim_3", "3.2_direction")]
    assert np.isnan([margin.published for margin in others]).all()


def test_an_explainer_that_the_review_did_not_print_has_no_published_value():
    cell = masking_cell()
    cell["explainers"] = np.array(("gradcam", "xgradcam", "fullgrad"))
    found = of_statement(masked({"mine": cell}), "claim_3")
    assert {name: np.isnan(margin.published) for (_, name), margin in found.items()} == {
        "gradcam": False,
        "xgradcam": False,
        "fullgrad": True,
    }


@pytest.mark.parametrize("constant", [True, False])
def test_explainers_that_coincide_are_marked(constant):
    margins = masked({"mine": masking_cell(constant_gradient=constant)})
    notes = {name: margin.note for (_, name), margin in of_statement(margins, "claim_3").items()}
    assert notes.pop("gradcam") == ""
    assert set(notes) == {"linear_approximation", "xgradcam"}
    assert all(("GradCAM's" in note) is constant for note in notes.values())


# --- the ledger: localisation


def localised(cell, images, contrast, reference):
    """Mean difference of the evidence's shares, by hand."""
    return mean(
        float(cell["share"][i, e, contrast, t, s] - cell["share"][i, e, reference, t, s])
        for i, e, t in itertools.product(images, range(3), range(2))
        for s in [cell["evidence_signs"][i, e, t]]
    )


def test_controls_are_held_against_masks_of_equal_area_by_hand():
    cell, beside = masking_cell(1, rules=CONTROLS), masking_cell(2, shift=0.02)
    cells = {"mine": cell, "none": masking_cell(n_above=0, rules=CONTROLS)}
    margins = controlled(cells, {"mine": beside})
    found = {name: value(margin) for (_, name), margin in of_statement(margins, "claim_2").items()}
    above = gained(beside, rules=(1,)) - gained(cell, rules=(1,))
    areas = {f"gain_at_{CONTROLS[r]}_percent": gained(cell, rules=(r,)) for r in (2, 3)}
    assert found == pytest.approx({"gain_above_shifted_masks": above} | areas)
    equal = of_statement(margins, "3.2_equal")
    assert {name: value(margin) for (_, name), margin in equal.items()} == {
        f"unequal_minus_{rule}": pytest.approx(gained(cell, rules=(0,)) - gained(beside, rules=(r,)))
        for r, rule in enumerate(RULES)
    }
    for margin in equal.values():
        assert (margin.kind, margin.bound) == ("equivalence", statements.SMALL_PROBABILITY)
    assert {margin.network for margin in margins} == {"mine"}


def only(cell, baselines, explainers, first):
    """A cell of some baselines and explainers, and of the images from a first one on."""
    cell = cell | {name: cell[name][first:] for name in ("images", "above", "masked", "unmasked", "p_2")}
    cell["masked"] = cell["masked"][:, explainers][:, :, :, baselines]
    axes = {"baselines": baselines, "explainers": explainers}
    return cell | {axis: cell[axis][places] for axis, places in axes.items()}


def test_controls_are_held_against_masks_of_the_same_images_explainers_and_baselines():
    cell, beside = masking_cell(1, rules=CONTROLS), masking_cell(2, shift=0.02)
    blurred, few = only(cell, [2], [2, 0], 0), only(beside, [1, 2], [0, 1], 5)
    expected = controlled({"mine": only(cell, [2], [0], 5)}, {"mine": only(beside, [2], [0], 5)})
    found = controlled({"mine": blurred}, {"mine": few})
    assert [(margin.name, margin.images) for margin in found] == [(margin.name, margin.images) for margin in expected]
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one.values, other.values, rtol=0, atol=1e-12)
    for lacking in ({}, {"another": beside}, {"mine": only(beside, [0, 1], [0, 1], 0)}):
        with pytest.raises(ValueError, match="no masks of equal area of mine"):
            controlled({"mine": blurred}, lacking)


def test_with_and_without_batch_norm_are_compared_on_images_that_are_ambiguous_for_both():
    cells = masking_cell(0), masking_cell(1, n_above=35)
    for cell, first in zip(cells, (0, 5)):
        cell["images"] = cell["images"] + first
    found = of_statement(statements.of_batch_norm(*cells, "pair"), "4.1_bn")
    for t, target in enumerate(TARGETS):
        margin = found["pair", f"{target}_with_minus_without"]
        places = [
            {image: place for place, image in enumerate(cell["images"]) if cell["above"][place]} for cell in cells
        ]
        by_hand = []
        for image in sorted(places[0].keys() & places[1].keys()):
            gains = [
                mean(
                    (-1) ** f * float(masked[e, t, b, f, 1, r] - masked[e, t, b, f, 0, r])
                    for e, b, f, r in itertools.product(range(3), range(3), (0, 1), (0, 1))
                )
                for masked in (cell["masked"][where[image]] for cell, where in zip(cells, places))
            ]
            by_hand.append(gains[0] - gains[1])
        assert len(by_hand) == 25
        np.testing.assert_allclose(margin.values, [by_hand])
        assert margin.kind == "difference"
    apart = masking_cell(1) | {"images": masking_cell(1)["images"] + 1000}
    assert list(statements.of_batch_norm(cells[0], apart, "pair")) == []


@pytest.mark.parametrize(("mean_", "verdict"), [(0.1, "holds"), (-0.1, "holds"), (0.0, "not shown")])
def test_a_difference_holds_whatever_its_sign(mean_, verdict):
    values = mean_ + 0.1 * np.random.default_rng(0).normal(size=(1, 60))
    margin = claims.Margin("4.1_bn", "pair", "any", values - (values.mean() if not mean_ else 0), claims.DIFFERENCE)
    assert judged(margin)["verdict"].tolist() == [verdict]


def test_margins_of_localisation_are_means_by_hand():
    cell = localisation_cell(shift=0.05, n_below=31, contrasts=(*PRINTED, "normalised"))
    margins = list(statements.of_localisation({"mine": cell}))
    named = {(margin.statement, margin.name): margin for margin in margins}
    grounds = {(claim, "localisation_weighted_minus_original") for claim in ("claim_2", "4.2_expected")}
    normalised = "4.3_normalise", "localisation_normalised_minus_weighted"
    assert set(named) == {*grounds, normalised}
    for row in judged(*margins).itertuples():
        if row.statement == "4.3_normalise":
            assert row.mean == pytest.approx(localised(cell, range(30, 61), 4, 3))
            assert row.n_images == 31
        else:
            assert row.mean == pytest.approx(localised(cell, range(30), 3, 0))
            assert row.mean == pytest.approx(0.05, abs=0.01)
            assert 0 < row.low < row.mean < row.high
            assert (row.n_images, row.verdict) == (30, "holds")
        assert np.isnan(row.published)
        assert row.note == ""


def test_localisation_on_the_whole_bird_is_no_ground_for_claim_2():
    cell = localisation_cell(shift=-0.05, discriminative=False, contrasts=(*PRINTED, "normalised"))
    margins = list(statements.of_localisation({"mine": cell}))
    assert [(margin.statement, margin.name) for margin in margins] == [
        ("4.2_expected", "on_the_bird_weighted_minus_original"),
        ("4.3_normalise", "on_the_bird_normalised_minus_weighted"),
    ]
    assert {margin.note for margin in margins} == {"what tells two classes apart is not known"}
    assert value(margins[0]) == pytest.approx(localised(cell, range(30), 3, 0))
    ground = masked({"mine": masking_cell(shift=0.05)})
    verdicts = claims.headlines(judged(*of_statement(ground, "claim_2").values(), *margins))
    assert verdicts["claim_2"]["holds"] is True
    assert verdicts["4.2_expected"]["holds"] is False


def test_claim_2_needs_both_grounds():
    for shifts in itertools.product((0.05, -0.05), repeat=2):
        margins = list(of_statement(masked({"mine": masking_cell(shift=shifts[0])}), "claim_2").values())
        of_parts = statements.of_localisation({"mine": localisation_cell(shift=shifts[1])})
        margins += [margin for margin in of_parts if margin.statement == "claim_2"]
        assert len(margins) == 5
        assert claims.headlines(judged(*margins))["claim_2"]["holds"] is (shifts == (0.05, 0.05))


def test_margins_of_interventions_are_means_by_hand():
    cell = intervention_cell(shift=0.02)
    share, rank = statements.of_interventions({"mine": cell}, published("table1"))
    assert {margin.statement for margin in (share, rank)} == {"4.2_expected"}
    assert [share.name, rank.name] == [f"repainting_{name}_weighted_minus_original" for name in ("share", "rank")]
    effects = tables._fall(cell["original"][:, None], cell["ways"][:, :, 1])
    by_hand = mean(
        float(masses[2, t, s] - masses[0, t, s])
        for i, p in zip(*np.nonzero(np.isfinite(effects)))
        for t in range(2)
        for masses in [cell["mass"][i, p, 0]]  # GradCAM's; the gradient is not in Table 1
        for s in [int((effects[i, p] < 0) ^ t)]
    )
    assert value(share) == pytest.approx(by_hand)
    table = tables.intervention({"mine": cell}, np.random.default_rng(0))
    ranks = table[(table["quantity"] == "rank") & (table["contrast"] == "weighted")]
    ranks = ranks[ranks["explainer"] == "gradcam"]
    rows = judged(share, rank).set_index("margin")
    assert rows.loc[rank.name, "mean"] == pytest.approx(ranks["margin"].mean())
    assert rows["n_images"].tolist() == [40, 40]
    assert set(rows["verdict"]) == {"holds"}
    assert len(rank.images) == 80 and len(set(rank.images)) == 40  # a bird's parts are drawn together


@pytest.mark.parametrize("absent", ["original", "weighted"])
def test_interventions_without_a_contrast_say_so(absent):
    cell = intervention_cell(contrasts=tuple({"original", "max", "weighted"} - {absent}))
    with pytest.raises(ValueError, match=f"mine was repainted without the contrast '{absent}'"):
        list(statements.of_interventions({"mine": cell}, published("table1")))


@pytest.mark.parametrize("absent", ["original", "weighted"])
def test_localisation_without_a_contrast_says_so(absent):
    cell = localisation_cell()
    cell["contrasts"][list(PRINTED).index(absent)] = "own"
    with pytest.raises(ValueError, match=f"mine was localised without the contrast '{absent}'"):
        list(statements.of_localisation({"mine": cell}))


# --- the ledger: relations


def test_margins_of_relations_are_means_by_hand():
    cell = relations_cell(explainers=("fullgrad", "gradcam", "gradcam++"))  # found by name
    margins = list(statements.of_relations({"mine": cell}))
    between = {name: cell["between"][:, 1, c] for c, name in enumerate((*PRINTED, "probability"))}
    alike = {name: cell["alike"][:, 1, pair] for pair, name in enumerate(PAIRS)}
    rest = [i for i in range(30) if cell["p"][i, 0] + cell["p"][i, 1] < 0.9]
    assert rest == list(range(10))
    by_hand = {
        ("3.1_mean", "correlation_of_maps_above_0.99"): alike["mean and original"] - 0.99,
        ("3.2_alike", "t1_t2_minus_two_other_classes"): between["original"] - cell["strangers"][:, 1],
        ("3.2_complementary", "minus_correlation_of_t1_and_t2"): -between["weighted"],
        ("3.2_complementary", "the_same_where_p_1_and_p_2_leave_0.1"): -between["weighted"][rest],
        ("3.2_negative_area", "negative_share_minus_half"): cell["negative"][:, 1, 0] - 0.5,
        ("3.3_inverse", "minus_correlation_of_t1_and_t2"): -between["max"],
        ("eq_4", "correlation_of_maps_from_p_t_and_weighted"): alike["probability and weighted"],
        ("6_gradcam++", "maps_from_p_t_and_weighted_less_alike_than_gradcam"): alike["probability and weighted"]
        - cell["alike"][:, 2, 3],
        ("fullgrad_negative", "negative_share_above_0.95"): cell["negative"][:, 0, 0] - 0.95,
    }
    named = {(margin.statement, margin.name): margin for margin in margins}
    ranked = {
        ("3.3_detail", "rank_correlation_of_distance_and_rivals"): (1 - alike["max and weighted"], cell["rivals"]),
        ("4.3_dominating", "maps_more_alike_as_p_2_falls"): (alike["weighted and original"], -cell["p"][:, 1]),
        ("4.3_dominating", "maps_more_alike_as_rivals_grow"): (alike["weighted and original"], cell["rivals"]),
    }
    assert set(named) == {*by_hand, *ranked}
    assert len(margins) == len(named)
    for key, values in by_hand.items():
        np.testing.assert_allclose(named[key].values, values[None])
        assert named[key].kind == ("identity" if key[0] in ("3.3_inverse", "eq_4", "6_gradcam++") else "comparison")
    for key, (x, y) in ranked.items():
        assert value(named[key]) == pytest.approx(spearmanr(x, y).statistic)
    noted = {key for key, margin in named.items() if margin.note}
    assert noted == {
        ("3.2_complementary", "minus_correlation_of_t1_and_t2"),
        ("4.3_dominating", "maps_more_alike_as_rivals_grow"),
        ("6_gradcam++", "maps_from_p_t_and_weighted_less_alike_than_gradcam"),
    }
    for key, margin in named.items():
        left = rest if key[1] == "the_same_where_p_1_and_p_2_leave_0.1" else range(30)
        assert margin.images == [("birds", i) for i in left]


def test_a_relation_that_is_no_number_is_seen_in_the_ledger():
    """Without its image the margin would look as sound as any."""
    cell = relations_cell()
    cell["between"][3] = math.nan
    ledger = judged(*statements.of_relations({"mine": cell})).set_index("margin")
    assert np.isnan(ledger.loc["t1_t2_minus_two_other_classes", "mean"])
    assert ledger.loc["t1_t2_minus_two_other_classes", ["n_images", "verdict"]].tolist() == [30, "not shown"]


def test_a_network_of_two_classes_is_not_asked_about_two_others():
    cell = relations_cell()
    cell["strangers"][:] = math.nan
    found = {margin.statement for margin in statements.of_relations({"mine": cell})}
    everything = {margin.statement for margin in statements.of_relations({"mine": relations_cell()})}
    assert found == everything - {"3.2_alike"}


@pytest.mark.parametrize("network_knows", [True, False])
def test_relations_that_were_not_measured_have_no_rows(network_knows):
    cell = relations_cell(ambiguous=10 if network_knows else 0, explainers=("gradcam",))
    margins = list(statements.of_relations({"mine": cell}))
    assert {"6_gradcam++", "fullgrad_negative"}.isdisjoint(margin.statement for margin in margins)
    assert len(of_statement(margins, "3.2_complementary")) == 1 + network_knows


def test_maps_of_a_head_whose_weights_sum_to_zero_are_marked():
    cell = relations_cell()
    notes = []
    for correlations in (1.0, 1 - 1e-9, 0.999):
        cell["alike"][:, 0, 0] = correlations
        found = of_statement(statements.of_relations({"mine": cell}), "3.1_mean")
        notes.append(found["mine", "correlation_of_maps_above_0.99"].note)
    assert "sum to zero" in notes[0] == notes[1]
    assert notes[2] == ""


def test_the_rank_correlation_is_spearmans_with_ties_and_zero_of_a_constant():
    rng = np.random.default_rng(3)
    for x, y in [
        (rng.normal(size=25), rng.normal(size=25)),
        (rng.integers(0, 4, 40), rng.integers(0, 3, 40)),
        (np.arange(9), -(np.arange(9.0) ** 3)),
    ]:
        moments = statistics.moments(statements._ranks(x), statements._ranks(y))
        assert statistics.from_moments(moments.mean(0)[None])[0] == pytest.approx(spearmanr(x, y).statistic)
    several = np.stack([moments.mean(0), moments[:5].mean(0)])
    assert statistics.from_moments(several) == pytest.approx([-1, -1])
    constant = statistics.moments(np.full(8, 0.5), np.arange(8))
    assert statistics.from_moments(constant.mean(0)[None]) == [0]


def dominating(cell):
    found = of_statement(statements.of_relations({"mine": cell}), "4.3_dominating")
    return found["mine", "maps_more_alike_as_p_2_falls"]


def test_a_rank_correlation_is_judged_on_resampled_images():
    cell = relations_cell(n_images=60)
    cell["alike"][:, 0, 2] = -cell["p"][:, 1] + np.random.default_rng(0).normal(0, 0.003, 60)
    margin = of_statement(statements.of_relations({"mine": cell}), "4.3_dominating")[
        "mine", "maps_more_alike_as_p_2_falls"
    ]
    row = judged(margin).iloc[0]
    assert 0 < row["low"] < row["mean"] < row["high"] <= 1
    assert row["mean"] == pytest.approx(spearmanr(cell["alike"][:, 0, 2], -cell["p"][:, 1]).statistic)
    assert row["verdict"] == "holds"
    cell["p"] = 1 - cell["p"]
    margin = of_statement(statements.of_relations({"mine": cell}), "4.3_dominating")[
        "mine", "maps_more_alike_as_p_2_falls"
    ]
    assert judged(margin)["verdict"].item() == "refuted"


# --- the ledger: transformers and gradients


def test_the_bound_of_the_transformer_is_a_quarter_of_the_convolutional_effect():
    cell, cnns = compared_cell(), {"a": masking_cell(shift=0.08), "b": masking_cell(1, shift=-0.02)}
    cnns["few"] = masking_cell(n_above=29, shift=9.0)  # too few images to say what the effect is
    found = of_statement(statements.of_transformers({"vit": cell}, cnns), "3.4_vit")
    bound = abs(mean([gained(cnns["a"]), gained(cnns["b"])])) / 4
    assert bound == pytest.approx(0.0075, abs=0.002)
    explainers = cell["explainers"].tolist()
    assert set(found) == {("vit", f"{explainer}_contrastive_minus_without_relu") for explainer in explainers}
    assert cell["variants"].tolist()[1:3] == ["without_relu", "contrastive"]
    for e, explainer in enumerate(explainers):
        margin = found["vit", f"{explainer}_contrastive_minus_without_relu"]
        assert (margin.kind, margin.bound) == ("equivalence", pytest.approx(bound))
        assert margin.values.shape == (1, 3)  # images whose p_2 is above the first edge
        by_hand = mean(
            (-1) ** f * float(cell["masked"][i, e, t, b, f, 2, r] - cell["masked"][i, e, t, b, f, 1, r])
            for i, t, b, f, r in itertools.product(range(3), (0, 1), range(3), (0, 1), (0, 1))
        )
        assert value(margin) == pytest.approx(by_hand)


def test_a_bound_is_positive_though_the_effect_is_not():
    found = of_statement(
        statements.of_transformers({"vit": compared_cell()}, {"a": masking_cell(shift=-0.04)}), "3.4_vit"
    )
    assert [margin.bound for margin in found.values()] == pytest.approx([0.01, 0.01], abs=0.001)


def test_rollout_is_compared_with_gradcam_where_the_part_is_known():
    cell = compared_cell()
    margin = of_statement(statements.of_transformers({"vit": cell}, {}), "3.5_rollout")[
        "vit", "share_rollout_minus_gradcam"
    ]
    explainers = cell["explainers"].tolist()
    r, g = explainers.index("attention_rollout"), explainers.index("vit_gradcam")
    blocks = cell["chosen_blocks"]
    assert blocks[r] != blocks[g]
    by_hand = [float(cell["share"][i, r, blocks[r], 0] - cell["share"][i, g, blocks[g], 0]) for i in (0, 1, 3, 4)]
    np.testing.assert_allclose(margin.values, [by_hand])
    (left,) = statements.of_transformers({"vit": cell | {"area": np.zeros(6)}}, {})
    assert left.statement == "3.4_layers"
    for cnns in ({}, {"few": masking_cell(n_above=29)}, {"none": masking_cell(n_above=0)}):
        assert of_statement(statements.of_transformers({"vit": cell}, cnns), "3.4_vit") == {}
    sure = cell | {"p_2": np.full(6, 0.3), "threshold": np.array(0.3)}
    assert of_statement(statements.of_transformers({"vit": sure}, {"a": masking_cell()}), "3.4_vit") == {}


def test_every_block_but_the_chosen_one_is_asked_for_coherence():
    cell = compared_cell()
    found = of_statement(statements.of_transformers({"vit": cell}, {}), "3.4_layers")
    g = cell["explainers"].tolist().index("vit_gradcam")
    (other,) = {0, 1} - {int(cell["chosen_blocks"][g])}
    assert list(found) == [("vit", f"coherence_at_block_{other}")]
    margin = found["vit", f"coherence_at_block_{other}"]
    np.testing.assert_array_equal(margin.values, cell["coherence"][None, :, g, other, 1])
    assert (margin.kind, margin.bound) == ("equivalence", statements.SMALL_COHERENCE)


def test_gradients_grow_with_the_logit_within_each_image_and_the_dominating_class_has_the_largest():
    table = norms_table()
    cell = saturation_cell([0.2, 0.6, 0.9])
    cell["paths"], cell["agreement"] = cell["paths"][::-1], cell["agreement"][::-1]
    found = list(statements.of_gradients(table.sample(frac=1, random_state=0), "a", {"b": cell}))
    *weights, kept = found
    assert {(margin.statement, margin.network, margin.kind) for margin in weights} == {
        ("4.3_weights", "a", "comparison")
    }
    named = {margin.name: margin for margin in weights}
    for column in ("norm", "centred_norm"):
        by_hand = [spearmanr(rows["logit"], rows[column]).statistic for _, rows in table.groupby("image")]
        np.testing.assert_allclose(named[f"rank_correlation_of_{column}_and_logit"].values, [by_hand])
        ratios = []
        for image, rows in table.groupby("image"):
            first, *others = rows.sort_values("rank")[column]
            ratios += [first / np.median(others) - 1] if image < 20 else []
        margin = named[f"{column}_of_t1_over_the_median_minus_1_where_p_1_above_0.9"]
        np.testing.assert_allclose(margin.values, [ratios])
        assert margin.note.startswith("not said") is (column == "centred_norm")
    np.testing.assert_array_equal(kept.values, [[0.25, 0.25, 0.25]])  # of p_t, at the last step
    assert (kept.statement, kept.network, kept.kind) == ("4.3_saturation", "b", "identity")


def test_where_no_class_dominates_nothing_is_said_of_it():
    found = list(statements.of_gradients(norms_table(n_sure=0), "a", {}))
    assert [margin.name for margin in found] == [
        f"rank_correlation_of_{column}_and_logit" for column in ("norm", "centred_norm")
    ]


# --- the ledger: verdicts


@pytest.mark.parametrize(
    ("mean_", "spread", "verdict"),
    [
        (0.001, 0.002, "holds"),
        (-0.001, 0.002, "holds"),
        (0.05, 0.002, "refuted"),
        (-0.05, 0.002, "refuted"),
        (0.001, 0.2, "not shown"),
        (0.0, 0.0, "holds"),
    ],
)
def test_an_equivalence_holds_inside_its_bound_and_is_refuted_outside(mean_, spread, verdict):
    row = judged(synthetic(mean=mean_, spread=spread, kind="equivalence", bound=0.005)).iloc[0]
    assert row["verdict"] == verdict
    assert row["mean"] == pytest.approx(mean_, abs=1e-12)
    assert row["bound"] == 0.005
    assert (row["p_value"] < 0.05) == (verdict == "holds")
    if verdict == "refuted":
        assert min(abs(row["low"]), abs(row["high"])) > 0.005


@pytest.mark.parametrize(
    ("mean_", "spread", "verdict"),
    [(0.1, 0.05, "holds"), (-0.1, 0.05, "refuted"), (0.001, 0.05, "not shown"), (-0.001, 0.05, "not shown")],
)
def test_a_comparison_holds_above_zero_and_is_refuted_below(mean_, spread, verdict):
    row = judged(synthetic(mean=mean_, spread=spread)).iloc[0]
    assert row["verdict"] == verdict
    assert row["low"] < row["mean"] < row["high"]
    assert (row["low"] > 0 or row["high"] < 0) == (verdict != "not shown")


def test_an_identity_is_shown_without_a_test():
    for shown in (-1.0, 0.0, 1.0):
        row = judged(synthetic("eq_4", mean=shown, kind="identity")).iloc[0]
        assert row["mean"] == pytest.approx(shown)
        assert np.isnan(row["p_value"])
        assert np.isnan(row["p_holm"])
        assert row["verdict"] == "identity"


@pytest.mark.parametrize("n_images", [1, 29, 30])
@pytest.mark.parametrize(
    ("kind", "mean_", "verdict"),
    [
        ("comparison", 5.0, "holds"),
        ("comparison", -5.0, "refuted"),
        ("equivalence", 0.0, "holds"),
        ("equivalence", 5.0, "refuted"),
    ],
)
def test_few_images_are_no_verdict_whatever_the_effect(n_images, kind, mean_, verdict):
    margin = synthetic(mean=mean_, spread=0.001, n_images=n_images, kind=kind, bound=0.1 * (kind == "equivalence"))
    row = judged(margin).iloc[0]
    few = n_images < 30
    assert row["verdict"] == ("not shown" if few else verdict)
    assert np.isnan(row["p_value"]) == np.isnan(row["p_holm"]) == few
    assert row["n_images"] == n_images
    assert row["mean"] == pytest.approx(mean_, abs=1e-12)


def test_holm_counts_the_tested_rows_only():
    weak = synthetic(name="weak", mean=0.0146, spread=0.05)
    alone = judged(weak)
    p = alone["p_value"].item()
    assert 0.02 < p < 0.05
    assert alone["p_holm"].item() == p
    untested = [
        *(synthetic("eq_4", name=f"identity {i}", kind="identity") for i in range(3)),
        *(synthetic("claim_3", name=f"few {i}", n_images=29) for i in range(3)),
    ]
    beside = judged(weak, *untested)  # it comes first, so that its resamples are the same
    assert beside["p_holm"][0] == p
    assert beside["verdict"][0] == "holds"
    assert beside["p_holm"][1:].isna().all()
    tested = judged(weak, synthetic("claim_3", name="weaker", mean=0.0), *untested)
    assert tested["p_holm"][0] == pytest.approx(2 * p)
    assert tested["verdict"][0] == "not shown"
    clear = judged(weak, synthetic("claim_3", name="clear"), *untested)
    assert clear["p_holm"][0] == pytest.approx(p)  # the smaller one is stepped over
    assert clear["p_holm"][1] == pytest.approx(2 * clear["p_value"][1])
    assert list(clear["verdict"][:2]) == ["holds", "holds"]


def test_the_ledger_holds_each_margin_as_it_is():
    margins = [
        synthetic("eq_4", kind="identity", mean=0.9, note="by construction"),
        synthetic("claim_2", published=0.25, network="second"),
        synthetic("claim_1", name="other", mean=0.3),
        synthetic("claim_2", network="first"),
    ]
    ledger = judged(*margins)
    assert list(ledger.columns) == [
        *("statement", "section", "network", "margin", "kind", "mean", "low", "high", "bound", "published"),
        *("n_images", "p_value", "p_holm", "note", "verdict"),
    ]
    assert list(ledger["statement"]) == ["claim_1", "claim_2", "claim_2", "eq_4"]
    assert list(ledger["network"]) == ["mine", "second", "first", "mine"]
    assert list(ledger["note"]) == ["", "", "", "by construction"]
    assert ledger["published"].isna().tolist() == [True, False, True, True]
    assert ledger["published"][1] == 0.25
    assert ledger["mean"].to_numpy() == pytest.approx([0.3, 0.1, 0.1, 0.9])
    pd.testing.assert_frame_equal(ledger, judged(*margins))


def test_what_several_networks_have_is_pooled_over_their_pictures():
    cells = {"a": masking_cell(1, shift=0.06), "b": masking_cell(2, 35, shift=0.02), "c": masking_cell(3, data="else")}
    cells["a"]["images"] = cells["a"]["images"] + 10
    margins = list(of_statement(masked(cells), "claim_2").values())
    pooled = of_statement(claims.pooled(margins), "claim_2")
    assert set(pooled) == {("all networks", f"{t}_{r}") for t, r in itertools.product(TARGETS, RULES)}
    own = of_statement(margins, "claim_2")
    for (_, name), margin in pooled.items():
        values = [float(v) for network in cells for v in own[network, name].values[0]]
        assert len(values) == 30 + 35 + 30
        np.testing.assert_allclose(margin.values, [values])
        assert len(margin.images) == len(values)
        assert margin.published == pytest.approx(own["a", name].published, nan_ok=True)
    ledger = judged(*margins).set_index(["network", "margin"])
    assert len(ledger) == 4 * 4
    row = ledger.loc["all networks", "t2_equal_kept"]
    assert row["mean"] == pytest.approx(value(pooled["all networks", "t2_equal_kept"]))
    assert row["n_images"] == 40 + 30  # a has pictures 10 to 39, b has 0 to 34; those of c are others
    assert set(claims.headlines(ledger.reset_index())["claim_2"]) == {"holds", "margin"}


def test_pictures_that_two_networks_saw_are_resampled_together():
    once = synthetic(n_images=40, images=[("birds", i) for i in range(40)])
    same = once._replace(network="other")
    other = same._replace(images=[("else", i) for i in range(40)])
    own, together, apart = (judged(*margins).iloc[0] for margins in ([once], [once, same], [once, other]))
    assert (together["network"], together["n_images"], apart["n_images"]) == ("all networks", 40, 80)
    assert together["mean"] == pytest.approx(own["mean"]) == pytest.approx(apart["mean"])
    widths = [row["high"] - row["low"] for row in (own, together, apart)]
    assert widths[1] == pytest.approx(widths[0], rel=0.05)  # a picture seen twice says nothing new
    assert widths[2] == pytest.approx(widths[0] / math.sqrt(2), rel=0.1)


def test_few_pictures_are_few_though_many_networks_saw_them():
    margins = [synthetic(n_images=29, network=n, images=[("birds", i) for i in range(29)]) for n in ("a", "b", "c")]
    ledger = judged(*margins)
    assert list(ledger["n_images"]) == [29] * 4
    assert set(ledger["verdict"]) == {"not shown"}
    several = [m._replace(images=[(m.network, i) for i in range(29)]) for m in margins]
    assert list(judged(*several)["verdict"]) == ["holds", "not shown", "not shown", "not shown"]


def test_margins_of_one_network_of_all_or_without_pictures_are_not_pooled():
    pictures = [("birds", i) for i in range(60)]
    one = synthetic(images=pictures, network="a")
    for others in ([], [synthetic(network="b")], [synthetic(network=claims.ALL, images=pictures)]):
        assert list(claims.pooled([one, *others])) == []
    different = [one._replace(name="other", network="b"), one._replace(statement="claim_3", network="b")]
    assert list(claims.pooled([one, *different])) == []
    noted = [one._replace(note="x"), one._replace(note="x", network="b")]
    assert [margin.note for margin in claims.pooled(noted)] == ["x"]
    assert [margin.note for margin in claims.pooled([one, *noted[1:]])] == [""]


def test_holm_is_of_each_network_and_of_all_together():
    weak = synthetic(name="weak", mean=0.0146, spread=0.05)
    p = judged(weak)["p_value"].item()
    elsewhere = [synthetic("claim_3", f"other {i}", 0.0, network=n) for i, n in enumerate(("b", "b", claims.ALL))]
    beside = judged(weak, *elsewhere)
    assert beside["p_holm"][0] == p
    assert beside["p_holm"][1] == pytest.approx(min(1, 2 * beside["p_value"][1]))


def test_four_networks_speak_of_others_and_three_do_not():
    """Networks that disagree widen the interval, once there are enough of them to resample."""
    noise = np.random.default_rng(0).normal(0, 0.01, 60)
    far = np.array([0.0, 0.2, 0.1, 0.1])
    three, four = (
        judged(claims.Margin("claim_1", claims.ALL, "m", far[:n, None] + noise))["high"].item()
        - judged(claims.Margin("claim_1", claims.ALL, "m", far[:n, None] + noise))["low"].item()
        for n in (3, 4)
    )
    assert three < 0.01
    assert four > 0.05


# --- the ledger: headlines


def test_headlines_are_strict_json_of_few_numbers(tmp_path, ledger):
    runtime.write_metrics(tmp_path / "claims.json", claims.headlines(ledger))
    text = (tmp_path / "claims.json").read_text()
    assert "NaN" not in text
    verdicts = json.loads(text)
    assert set(verdicts) == set(claims.STATEMENTS)
    assert all(verdict["holds"] in (True, False) for verdict in verdicts.values())
    rows = ledger.set_index(["statement", "network", "margin"])
    leading = {
        "claim_1": ("all networks", "p_t_weighted_minus_original"),
        "claim_2": ("mine", "t2_equal_kept"),
        "claim_3": ("mine", "gradcam"),
    }
    for statement, verdict in verdicts.items():
        if statement not in leading:
            assert set(verdict) == {"holds"}
            continue
        row = rows.loc[(statement, *leading[statement])]
        assert verdict == {"holds": verdict["holds"], "margin": round(row["mean"], 5)}


def test_a_margin_that_is_no_number_does_not_reach_the_metrics(tmp_path):
    cell = masking_cell()
    cell["masked"][3] = math.nan
    verdicts = claims.headlines(judged(*of_statement(masked({"mine": cell}), "claim_2").values()))
    assert verdicts["claim_2"]["holds"] is False
    with pytest.raises(ValueError, match="not JSON compliant"):
        runtime.write_metrics(tmp_path / "claims.json", verdicts)
    assert list(tmp_path.iterdir()) == []


def holds(*margins):
    return {statement: verdict["holds"] for statement, verdict in claims.headlines(judged(*margins)).items()}


def test_a_statement_holds_where_all_that_is_tested_holds():
    good, bad = synthetic(name="good"), synthetic(name="bad", mean=-0.1)
    unclear, few = synthetic(name="unclear", mean=0.0), synthetic(name="few", n_images=29)
    identity = synthetic(name="identity", mean=-1.0, kind="identity")
    for margins, expected in [
        ([good], True),
        ([bad], False),
        ([good, bad], False),
        ([good, unclear], False),
        ([good, few], True),
        ([few], False),
        ([good, identity], True),
        ([identity], True),
        ([few, identity], False),
    ]:
        assert holds(*margins) == {"claim_2": expected}, [margin.name for margin in margins]


def test_one_network_that_fails_fails_what_is_not_pooled():
    margins = [synthetic(network="good"), synthetic(network="bad", mean=-0.1)]
    verdicts = claims.headlines(judged(*margins))
    assert verdicts["claim_2"]["holds"] is False
    assert holds(margins[0]) == {"claim_2": True}
    leading = [margin._replace(name="t2_equal_kept") for margin in margins]
    mean_of_both = judged(*leading)["mean"].mean()
    assert claims.headlines(judged(*leading))["claim_2"] == {"holds": False, "margin": pytest.approx(mean_of_both)}


def test_networks_together_speak_for_a_margin_that_they_share():
    def margin(network, mean, name="shared", **options):
        return synthetic("3.1_mean", name, mean, network=network, **options)

    together = margin(claims.ALL, 0.1)
    assert holds(together, margin("a", -0.1), margin("b", 0.3)) == {"3.1_mean": True}
    assert holds(margin(claims.ALL, -0.1), margin("a", 0.1)) == {"3.1_mean": False}
    # A margin of the same statement that is on no network but its own is judged there.
    assert holds(together, margin("a", -0.1), margin("a", 0.1, "own")) == {"3.1_mean": True}
    assert holds(together, margin("a", 0.1), margin("a", -0.1, "own")) == {"3.1_mean": False}


# --- the ledger: nothing to say


def test_without_networks_there_are_no_rows():
    empty = norms_table(0)
    margins = [*perturbed({}), *masked({}), *statements.of_localisation({}), *statements.of_relations({})]
    margins += [
        *statements.of_interventions({}, published("table1")),
        *statements.of_transformers({}, {}),
        *statements.of_gradients(empty, "none", {}),
    ]
    assert margins == []
    ledger = judged(*margins)
    assert ledger.empty
    assert "verdict" in ledger
    assert claims.headlines(ledger) == {}


def test_without_images_above_the_threshold_there_are_no_rows_of_them():
    assert masked({"none": masking_cell(n_above=0)}) == []
    assert {margin.network for margin in masked({"none": masking_cell(n_above=0), "some": masking_cell()})} == {"some"}
    cell = localisation_cell(n_above=0, contrasts=(*PRINTED, "normalised"))
    assert [margin.statement for margin in statements.of_localisation({"none": cell})] == ["4.3_normalise"]
    cell = localisation_cell(n_below=0, contrasts=(*PRINTED, "normalised"))
    assert {margin.statement for margin in statements.of_localisation({"all": cell})} == {"claim_2", "4.2_expected"}
    assert list(statements.of_localisation({"none": localisation_cell(n_above=0)})) == []


def test_what_is_noted_as_not_said_does_not_decide():
    row = {"statement": "3.1_literal", "network": "mine", "kind": "comparison", "n_images": 50, "mean": 1.0, "low": 0.5,
           "high": 1.5, "p_value": 0.0}  # fmt: skip
    rows = [row | {"margin": "said", "verdict": "holds", "note": ""},
            row | {"margin": "beside", "verdict": "refuted", "note": "not said: we looked"}]  # fmt: skip
    assert claims.headlines(pd.DataFrame(rows))["3.1_literal"]["holds"] is True
    assert claims.headlines(pd.DataFrame(rows[1:]))["3.1_literal"]["holds"] is False
