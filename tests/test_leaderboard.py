"""The leaderboard's table, against means that were taken one image at a time."""

import itertools
from statistics import mean

import numpy as np
import pandas as pd
import pytest
from test_tables_claims import intervention_cell

from cxlib.review.ledger import leaderboard, tables

EXPLAINERS, CONTRASTS = ("gradcam", "lrp", "gradient"), ("original", "max", "weighted")


def judged_cell(seed=0, n_images=40, shift=0.0):
    """A judged network as its stage saves it; `shift` favours the weighted contrast's curves and evidence."""
    rng = np.random.default_rng(seed)
    shape = (n_images, len(EXPLAINERS), len(CONTRASTS))
    areas = rng.normal(size=(*shape, 2, 2, 2))
    areas[:, :, 2] = areas[:, :, 0] + rng.normal(0, 0.01, areas[:, :, 0].shape)
    areas[:, :, 2, 0, 0] += shift
    share = rng.uniform(0.2, 0.6, (*shape, 2, 3))
    share[:, :, 2] = share[:, :, 0] + shift + rng.normal(0, 0.01, share[:, :, 0].shape)
    return {
        "areas": areas,
        "share": share,
        "alike": rng.uniform(-1, 1, shape),
        "randomised": rng.uniform(-1, 1, (*shape, 2)),
        "passes": rng.uniform(1, 6, (len(EXPLAINERS), 1)).repeat(len(CONTRASTS), 1),
        "area": rng.uniform(0.1, 0.2, n_images),
        "evidence_signs": rng.integers(0, 3, (n_images, len(EXPLAINERS), 2)),
        "explainers": np.array(EXPLAINERS),
        "contrasts": np.array(CONTRASTS),
    }


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def repainted():
    cells = {name: intervention_cell(seed, shift=0.02) for seed, name in enumerate(("mine", "another"))}
    return tables.intervention(cells, np.random.default_rng(0))


def by_hand(cell, e, c):
    """Each measure's values of single images."""
    found = {name: [] for name in ("insertion_deletion", "relative_probability", "beyond_shifted", "localisation")}
    for i in range(len(cell["area"])):
        (own, moved) = cell["areas"][i, e, c]
        insertion, deletion = own
        found["insertion_deletion"].append(insertion[0] - deletion[0])
        found["relative_probability"].append(insertion[1] - deletion[1])
        found["beyond_shifted"].append(insertion[0] - deletion[0] - moved[0][0] + moved[1][0])
        signs = cell["evidence_signs"][i, e]
        inside = [cell["share"][i, e, c, target, signs[target]] for target in range(2)]
        found["localisation"].append(mean(inside) - cell["area"][i])
    found["alike"] = cell["alike"][:, e, c].tolist()
    found["head"], found["all"] = (np.abs(cell["randomised"][:, e, c, part]).tolist() for part in range(2))
    return found


def test_every_row_is_the_mean_over_images_and_what_the_contrast_adds(rng, repainted):
    cell = judged_cell()
    table = leaderboard.leaderboard({"mine": cell}, repainted, rng)
    assert list(table) == leaderboard.COLUMNS
    rows = table.set_index(["explainer", "contrast", "measure"])
    assert rows.index.is_unique
    for (e, explainer), (c, contrast) in itertools.product(enumerate(EXPLAINERS), enumerate(CONTRASTS)):
        reference = by_hand(cell, e, 0)
        for measure, values in by_hand(cell, e, c).items():
            row = rows.loc[explainer, contrast, measure]
            assert row["value"] == pytest.approx(mean(map(float, values)))
            assert row["low"] < row["value"] < row["high"]
            assert row["n_images"] == 40
            added = mean(float(a - b) for a, b in zip(values, reference[measure]))
            if contrast == "original":
                assert row[["margin", "margin_low", "margin_high"]].isna().all()
            else:
                assert row["margin"] == pytest.approx(added)
                assert row["margin_low"] < row["margin"] < row["margin_high"]
        passes = rows.loc[explainer, contrast, "passes"]
        assert passes["value"] == cell["passes"][e, c]
        assert passes[["low", "high"]].isna().all()
        assert np.isnan(passes["margin"]) if contrast == "original" else passes["margin"] == 0


def test_margins_are_paired_over_images(rng, repainted):
    """What differs by 0.5 on every image is known far better than either mean."""
    rows = leaderboard.leaderboard({"mine": judged_cell(shift=0.5)}, repainted, rng)
    rows = rows[rows["contrast"] == "weighted"].set_index(["explainer", "measure"])
    for explainer, measure in itertools.product(EXPLAINERS, ("insertion_deletion", "localisation")):
        row = rows.loc[explainer, measure]
        assert row["margin"] == pytest.approx(0.5, abs=0.02)
        assert row["margin_high"] - row["margin_low"] < (row["high"] - row["low"]) / 5


def test_repainting_is_joined_by_network_explainer_and_contrast(rng, repainted):
    table = leaderboard.leaderboard({"mine": judged_cell(), "unpainted": judged_cell(1)}, repainted, rng)
    joined = table[table["measure"].isin(leaderboard.REPAINTED.values())]
    assert set(joined["network"]) == {"mine"}
    assert set(joined["explainer"]) == {"gradcam", "gradient"}
    assert len(joined) == 2 * 3 * 2
    back = {name: quantity for quantity, name in leaderboard.REPAINTED.items()}
    keys = ["network", "explainer", "contrast", "quantity"]
    source = repainted.set_index(keys)
    for row in joined.itertuples():
        expected = source.loc[row.network, row.explainer, row.contrast, back[row.measure]]
        for number in ("value", "low", "high", "margin", "n_images"):
            assert getattr(row, number) == pytest.approx(expected[number], nan_ok=True)
    assert set(table["network"]) == {"mine", "unpainted"}


def test_without_anything_repainted_the_other_judges_are_left(rng):
    none = tables.intervention({}, rng)
    table = leaderboard.leaderboard({"mine": judged_cell()}, none, rng)
    assert set(table["measure"]) == {*leaderboard.measures(judged_cell()), "passes"}
    assert isinstance(table, pd.DataFrame) and table["value"].notna().all()


def test_a_network_judged_without_original_is_an_error(rng):
    cell = judged_cell() | {"contrasts": np.array(("mean", "max", "weighted"))}
    with pytest.raises(ValueError, match="mine was judged without the contrast 'original'"):
        leaderboard.leaderboard({"mine": cell}, tables.intervention({}, rng), rng)
