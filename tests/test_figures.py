"""The figures show the numbers they are given: bars, maps and curves are read back from what matplotlib drew."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.colors import to_rgba
from matplotlib.image import imread
from test_leaderboard import judged_cell
from test_params import command
from test_tables_claims import (
    intervention_cell,
    localisation_cell,
    masking_cell,
    perturbation_cell,
    published,
    saturation_cell,
    synthetic,
)
from test_variants import compared_cell

from cxlib import overlay, runtime
from cxlib.review.ledger import claims, leaderboard, tables
from cxlib.review.report import figures

CONTRASTS = ("original", "mean", "max", "weighted")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, in order."""
    saved = []
    monkeypatch.setattr(overlay, "save", lambda figure, _path: saved.append(figure))
    return saved


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def some_maps(n_images=2):
    rng = np.random.default_rng(1)
    return {
        "images": rng.random((n_images, 5, 5, 3)),
        "maps": rng.normal(size=(n_images, 3, 2, 2, 5, 5)),
        "names": np.array([["Heron_Ashen", "Heron_Marsh"], ["Duck_Mere", "Finch_Barred"]])[:n_images],
        "labels": np.array(["Heron_Marsh", "Duck_Mere"])[:n_images],
        "probabilities": np.array([[0.6, 0.3], [0.5, 0.25]])[:n_images],
        "explainers": np.array(["gradcam", "linear_approximation", "xgradcam"]),
        "contrasts": np.array(["original", "weighted"]),
    }


def gradient_norms():
    rng = np.random.default_rng(2)
    table = pd.DataFrame({"image": np.repeat([4, 9], 30), "rank": [*range(30)] * 2, "logit": rng.normal(size=60)})
    return table.assign(norm=2 + 0.5 * table["logit"] - 0.1 * table["logit"] ** 2)


def beside():
    changes = tables.perturbation({name: perturbation_cell() for name in ("resnet18", "mine")})
    return tables.perturbation_vs_published(changes, published("fig1_fig2_digitised"))


def judged(published=0.2, note="by construction"):
    """A ledger with a row of every verdict."""
    margins = [
        synthetic("claim_2", "t2_published", 0.1, published=published),
        synthetic("claim_2", "t2_published", -0.1, network="other", note=note),
        synthetic("3.1_mean", "p_t_mean_minus_original", 0.001, 0.002, kind="equivalence", bound=0.005, note=note),
        synthetic("3.1_mean", "few", 0.0, n_images=8, kind="equivalence", bound=0.005, published=published),
        synthetic("eq_4", "correlation", 1.0, 0.0, kind="identity"),
        synthetic("4.3_weights", "nothing", 0.0, 0.0),
    ]
    return claims.judge(margins, np.random.default_rng(0))


def dosed():
    cells = {"a": perturbation_cell(dose=3e-3), "b": perturbation_cell(1)}
    return tables.doses(cells, np.random.default_rng(0))


def board(rng):
    """A repainted network, and one whose birds were not."""
    cells = {"a": judged_cell(), "b": judged_cell(1)}
    return leaderboard.leaderboard(cells, tables.intervention({"a": intervention_cell()}, rng), rng)


#: What each figure is drawn from, as the stages make it of two networks.
CONTENT = {
    "figure_1_2": lambda rng: tables.perturbation({"a": perturbation_cell(), "b": perturbation_cell(1)}),
    "perturbation_vs_published": lambda rng: beside(),
    "doses": lambda rng: dosed(),
    "saturation": lambda rng: tables.saturation({"a": saturation_cell([0.2, 0.6, 0.495, 0.995])}),
    "figure_6": lambda rng: gradient_norms(),
    "table1": lambda rng: tables.with_published(tables.masking({"a": masking_cell()}, True, rng), published("table1")),
    "by_ambiguity": lambda rng: tables.by_ambiguity({"a": masking_cell(), "b": masking_cell(1)}, rng),
    "localisation": lambda rng: tables.localisation({"a": localisation_cell(), "b": localisation_cell(1)}, rng),
    "localisation_by_p_2": lambda rng: tables.localisation_by_p_2({"a": localisation_cell()}, rng),
    "intervention": lambda rng: tables.intervention({"a": intervention_cell()}, rng),
    "leaderboard": lambda rng: board(rng),
    "figure_3": lambda rng: some_maps(),
    "figure_4": lambda rng: some_maps(),
    "figure_5": lambda rng: some_maps() | {"contrasts": np.array(["standard", "without_relu"])},
    "vit": lambda rng: tables.transformers({"a": compared_cell(), "b": compared_cell()}, rng),
    "vit_blocks": lambda rng: tables.transformer_blocks({"a": compared_cell()}, rng),
    "ledger": lambda rng: judged(),
}


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_is_drawn_from_its_file_and_is_the_same_bytes_twice(name, rng, tmp_path):
    content = CONTENT[name](rng)
    table = tmp_path / ("table.csv" if isinstance(content, pd.DataFrame) else "maps.npz")
    runtime.write_csv(table, content) if table.suffix == ".csv" else runtime.write_arrays(table, **content)
    for picture in ("first.png", "second.png"):
        words = [name, "--table", str(table), "--out", str(tmp_path / picture), "--shown", str(tmp_path / "s.webp")]
        result = CliRunner().invoke(command("stages/figure.py"), words)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert imread(tmp_path / "first.png").std() > 0.05


def test_dots_of_repainting_are_the_tables_agreements_and_the_best_explainer_is_on_top(drawn, rng):
    table = tables.intervention({"a": intervention_cell()}, rng)
    figures.intervention(table, "unused.png")
    contrasts = table["contrast"].unique().tolist()
    contrasts.remove("perfect")
    for axis, quantity in zip(drawn[0].axes, ("rank", "found")):
        dots = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o"]
        expected = table[(table["quantity"] == quantity) & table["contrast"].isin(contrasts)]["value"]
        assert sorted(dots) == pytest.approx(sorted(expected))
    ranks = table[(table["quantity"] == "rank") & table["contrast"].isin(contrasts)]
    best = ranks.loc[ranks["value"].idxmax(), "explainer"]
    assert drawn[0].axes[0].get_yticklabels()[-1].get_text() == overlay.LABELS.get(best, best)


def test_the_leaderboard_has_every_judges_dots_and_its_first_ones_best_explainer_on_top(drawn, rng):
    table = board(rng)
    figures.leaderboard(table, "unused.png")
    axes = np.array(drawn[0].axes).reshape(2, len(figures.JUDGES))
    for network, panels in zip(("a", "b"), axes):
        own = table[table["network"] == network]
        for axis, measure in zip(panels, figures.JUDGES):
            dots = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o"]
            assert sorted(dots) == pytest.approx(sorted(own[own["measure"] == measure]["value"]))
            assert [text.get_text() for text in axis.texts] == ([] if dots else ["not painted"])
        first = own[own["measure"] == ("repainting" if network == "a" else "insertion_deletion")]
        best = first.loc[first["value"].idxmax(), "explainer"]
        ranked = first.groupby("explainer")["value"].max().sort_values().index
        ticks = [text.get_text() for text in panels[0].get_yticklabels()]
        assert ticks[-1] == overlay.LABELS[best]
        assert ticks[-len(ranked) :] == [overlay.LABELS[name] for name in ranked]


EMPTY = {
    "table1": lambda rng: tables.masking({"a": masking_cell(n_above=0)}, True, rng),
    "localisation": lambda rng: tables.localisation({"a": localisation_cell(n_above=0)}, rng),
    "localisation_by_p_2": lambda rng: tables.localisation_by_p_2({}, rng),
    "intervention": lambda rng: tables.intervention({}, rng),
    "figure_3": lambda rng: some_maps(n_images=0),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_figure_without_images_says_so(drawn, rng, name):
    figures.FIGURES[name](EMPTY[name](rng), "unused.png")
    assert drawn[0].axes == []
    assert drawn[0].texts[0].get_text().startswith("No test image")


def test_every_bar_of_figures_1_and_2_is_its_change(drawn):
    rng = np.random.default_rng(0)
    networks, epsilons, steps, quantities = ("vgg16", "alexnet"), (0.003, 0.001), (1, 10), ("accuracy", "p_t", "y_t")
    rows = [(*cell, rng.normal()) for cell in product(networks, epsilons, steps, CONTRASTS, quantities)]
    table = pd.DataFrame(rows, columns=["network", "epsilon", "n_iterations", "contrast", "quantity", "change"])
    figures.figure_1_2(table, "unused.png")
    axes = np.array(drawn[0].axes).reshape(3, 4)
    changes = {tuple(row[:-1]): row[-1] for row in rows}
    for (r, quantity), (c, (epsilon, n)) in product(enumerate(quantities), enumerate(product((0.001, 0.003), steps))):
        axis = axes[r, c]
        ticks = [text.get_text() for text in axes[-1, c].get_xticklabels()]
        bars = {}
        for bar in axis.patches:
            middle = bar.get_x() + bar.get_width() / 2
            bars[ticks[round(middle)], bar.get_facecolor()] = bar.get_height()
        assert len(bars) == len(networks) * len(CONTRASTS)
        for network, contrast in product(networks, CONTRASTS):
            expected = changes[network, epsilon, n, contrast, quantity]
            assert bars[network, to_rgba(figures.COLOURS[contrast])] == expected
        assert f"{epsilon:g}, n = {n}" in axes[0, c].get_title()


def intervals(axis):
    """What an axis shows as error bars: {colour: (x, y, segments)}."""
    return {
        to_rgba(points.get_color()): (*np.array(points.get_data(), float), np.array(bars[0].get_segments()))
        for points, _, bars in (container.lines for container in axis.containers)
    }


def test_every_dot_of_table_1_is_its_mean_with_its_interval_and_the_printed_value(drawn):
    rng = np.random.default_rng(0)
    explainers, baselines, rules = ("xgradcam", "gradcam"), ("zeros", "gaussian_blur"), ("published", "equal_kept")
    columns = list(product(("t1", "t2"), ("positive", "negative")))
    contrasts = ("original", "weighted", "normalised")
    rows = [
        (e, t, "none", "all", "none", "none", 0.2 + 0.5 * (t == "t1")) for e, t in product(explainers, ("t1", "t2"))
    ]
    for e, b, r, (t, f), c in product(explainers, baselines, rules, columns, contrasts):
        rows.append((e, t, b, f, c, r, rng.random()))
    keys = ["explainer", "target", "baseline", "kept_features", "contrast", "rule"]
    table = pd.DataFrame(rows, columns=[*keys, "relative_probability"]).assign(network="vgg16_bn")
    table["low"], table["high"] = table["relative_probability"] - 0.1, table["relative_probability"] + 0.2
    table["published"] = np.where(table["contrast"] == "normalised", np.nan, rng.random(len(table)))
    figures.table_1(table, "unused.png")
    axes = np.array(drawn[0].axes).reshape(2, 4)
    names = [text.get_text() for text in axes[0, 0].get_yticklabels()]
    assert names == ["XGradCAM, zeros", "XGradCAM, gaussian blur", "GradCAM, zeros", "GradCAM, gaussian blur"]
    cells = table.set_index(["rule", "target", "kept_features", "contrast", "explainer", "baseline"])
    for (r, rule), (c, (target, features)) in product(enumerate(rules), enumerate(columns)):
        axis = axes[r, c]
        assert features in axes[0, c].get_title()
        assert axis.lines[0].get_xdata()[0] == pytest.approx(0.7 if target == "t1" else 0.2)  # the unmasked image
        printed = [line.get_xdata() for line in axis.lines if line.get_marker() == "D"]
        assert len(printed) == 2
        for k, contrast in enumerate(contrasts):
            expected = [cells.loc[rule, target, features, contrast, e, b] for e, b in product(explainers, baselines)]
            x, y, segments = intervals(axis)[to_rgba(figures.COLOURS[contrast])]
            np.testing.assert_allclose(x, [row["relative_probability"] for row in expected])
            np.testing.assert_allclose(np.round(y), range(4))
            np.testing.assert_allclose(segments[..., 0], [(row["low"], row["high"]) for row in expected])
            if contrast != "normalised":
                np.testing.assert_allclose(printed[k], [row["published"] for row in expected])


def test_every_point_by_ambiguity_is_its_row(drawn):
    rng = np.random.default_rng(0)
    bins, contrasts, rules = ("> 0.1", "0.01–0.1", "< 0.001"), ("original", "weighted"), ("published", "equal_kept")
    columns = list(product(("t1", "t2"), ("positive", "negative")))
    rows = [(p, t, "all", "none", "none") for p, t in product(bins, ("t1", "t2"))]
    rows += [(p, t, f, c, r) for p, (t, f), c, r in product(bins, columns, contrasts, rules)]
    keys = ["p_2", "target", "kept_features", "contrast", "rule"]
    table = pd.DataFrame(rows, columns=keys).assign(network="vgg16_bn", baseline="all")
    table["n_images"] = table["p_2"].map({"> 0.1": 40, "0.01–0.1": 12, "< 0.001": 3})
    table["relative_probability"] = rng.random(len(table))
    table["low"], table["high"] = table["relative_probability"] - 0.1, table["relative_probability"] + 0.2
    figures.by_ambiguity(table, "unused.png")
    axes = np.array(drawn[0].axes).reshape(2, 4)
    ticks = [text.get_text() for text in axes[1, 0].get_xticklabels()]
    assert ticks == ["> 0.1\n(40)", "0.01–0.1\n(12)", "< 0.001\n(3)"]
    cells = table.set_index(["rule", "target", "kept_features", "contrast", "p_2"])
    for (r, rule), (c, (target, features)) in product(enumerate(rules), enumerate(columns)):
        for contrast in ("none", *contrasts):
            kind = (rule, features) if contrast != "none" else ("none", "all")
            expected = [cells.loc[kind[0], target, kind[1], contrast, p] for p in bins]
            x, y, segments = intervals(axes[r, c])[to_rgba(figures.COLOURS.get(contrast, "0.6"))]
            np.testing.assert_allclose(y, [row["relative_probability"] for row in expected])
            np.testing.assert_allclose(np.round(x), range(3))
            np.testing.assert_allclose(segments[..., 1], [(row["low"], row["high"]) for row in expected])


def test_every_panel_of_figures_3_and_4_is_its_map(drawn):
    maps = some_maps()
    maps["maps"][1, 2, 1, 1] = 0  # a map without a range of its own
    overlay.over_images(maps, "unused.png")
    panels = np.array(drawn[0].axes).reshape(2, 2, 7)
    for i, t in product(range(2), range(2)):
        name = panels[i, t, 0].get_ylabel().replace("\n", "_")
        assert maps["names"][i, t] in name
        assert f"{maps['probabilities'][i, t]:.2f}" in name
        assert ("label" in name) is (maps["names"][i, t] == maps["labels"][i])
        for e, c in product(range(3), range(2)):
            photograph, coloured = panels[i, t, 1 + 2 * e + c].images
            np.testing.assert_array_equal(photograph.get_array(), maps["images"][i])
            np.testing.assert_array_equal(coloured.get_array(), maps["maps"][i, e, c, t])
            low, high = coloured.get_clim()
            assert low == -high < 0
            assert coloured.get_cmap().name == "bwr"
            assert coloured.get_alpha() == 0.5
    white = panels[1, 1, 6].images[1]
    np.testing.assert_allclose(white.cmap(white.norm(white.get_array()))[..., :3], 1, atol=0.01)
    titles = [axis.get_title() for axis in panels[0, 0, 1:]]
    assert titles[0] == "GradCAM\noriginal"
    assert titles[5] == "XGradCAM\nweighted"


def test_figure_6_draws_the_points_and_the_fitted_curve(drawn):
    table = gradient_norms()
    figures.figure_6(table, "unused.png")
    (axis,) = drawn[0].axes
    np.testing.assert_array_equal(axis.collections[0].get_offsets(), table[["logit", "norm"]])
    x, y = axis.lines[0].get_data()
    np.testing.assert_allclose(y, 2 + 0.5 * x - 0.1 * x**2)
    assert (x.min(), x.max()) == (table["logit"].min(), table["logit"].max())


def test_every_dot_of_localisation_is_its_value_with_its_interval_and_controls(drawn):
    rng = np.random.default_rng(3)
    explainers, quantities = ("gradient", "gradcam", "mean"), ("share", "gain", "hit")
    same = {"silent": 0.0, "area": 0.07, "n_images": 12, "truth": "discriminative parts"}

    def row(**labels):
        low, value, high = np.sort(rng.normal(size=3))
        return {"network": "vgg16_bn", **labels, "value": value, "low": low, "high": high, **same}

    axes = product(explainers, CONTRASTS, ("t1", "mean"), ("positive", "evidence", "exchanged"), quantities)
    names = ("explainer", "contrast", "target", "mass", "quantity")
    table = pd.DataFrame([row(**dict(zip(names, labels))) for labels in axes])
    control = [row(**dict(zip(names, ("gaussian", "none", "none", "positive", q)))) for q in quantities]
    table = pd.concat([table, pd.DataFrame(control)])
    names = ("p_2", "explainer", "contrast", "quantity")
    bins = product(("> 0.1", "0.01–0.1", "< 0.01"), explainers, CONTRASTS, quantities)
    by_p_2 = pd.DataFrame([row(**dict(zip(names, labels))) for labels in bins])
    figures.localisation(table, "unused.png")
    figures.localisation_by_p_2(by_p_2, "unused.png")
    values = table.set_index(["explainer", "contrast", "target", "mass", "quantity"])
    for axis, quantity, uniform in zip(drawn[0].axes, ("gain", "hit"), (0, 0.07)):
        lines = [tuple(map(tuple, line.get_data())) for line in axis.lines]
        colours = [to_rgba(line.get_color()) for line in axis.lines]
        for (y, explainer), (c, contrast) in product(enumerate(explainers), enumerate(CONTRASTS)):
            value, low, high = values.loc[explainer, contrast, "mean", "evidence", quantity][["value", "low", "high"]]
            exchanged = values.loc[explainer, contrast, "mean", "exchanged", quantity]["value"]
            place = y - 0.3 + 0.2 * c
            for x, width in ((value, 1), (exchanged, 1), ((low, high), 2)):
                (found,) = (
                    i
                    for i, (xs, ys) in enumerate(lines)
                    if len(xs) == width and np.allclose(xs, x) and np.allclose(ys, place)
                )
                assert colours[found] == to_rgba(figures.COLOURS[contrast])
        vertical = {xs[0] for xs, ys in lines if ys == (0, 1)}
        assert vertical == {uniform, values.loc["gaussian", "none", "none", "positive", quantity]["value"]}
    labels = [text.get_text() for text in drawn[0].axes[0].get_yticklabels()]
    assert labels == ["Gradient", "GradCAM", "mean of all"]
    ticks = [text.get_text() for text in drawn[1].axes[0].get_xticklabels()]
    assert ticks == ["> 0.1\n(12)", "0.01–\n0.1\n(12)", "< 0.01\n(12)"]
    series = by_p_2.set_index(["explainer", "contrast", "quantity"]).loc["mean"]
    curves = [line.get_ydata() for line in drawn[1].axes[0].lines if len(line.get_ydata()) == 3]
    for contrast, curve in zip(CONTRASTS, curves, strict=True):
        np.testing.assert_array_equal(curve, series.loc[contrast, "gain"]["value"])


def test_every_dot_beside_the_published_ones_is_its_change(drawn):
    table = beside()
    figures.perturbation_vs_published(table, "unused.png")
    quantities = ("accuracy", "p_t", "y_t")
    panels = np.array(drawn[0].axes).reshape(2, 3)
    networks = [text.get_text() for text in panels[0, 0].get_yticklabels()]
    assert networks[:2] == ["mine", "resnet18"]  # those that we ran come first
    for (r, epsilon), (c, quantity) in product(enumerate((0.001, 0.003)), enumerate(quantities)):
        assert figures.LABELS[quantity] in panels[0, c].get_title()
        shown = table[(table["epsilon"] == epsilon) & (table["quantity"] == quantity)]
        dots = panels[r, c].collections
        assert len(dots) == 2 * len(CONTRASTS)
        for contrast, printed, ours in zip(CONTRASTS, dots[::2], dots[1::2]):
            rows = shown[shown["contrast"] == contrast]
            assert len(printed.get_facecolor()) == 0, "published dots are open"
            assert to_rgba(figures.COLOURS[contrast]) == tuple(ours.get_facecolor()[0])
            for points, column in ((printed, "published"), (ours, "change")):
                places = points.get_offsets()  # a dot without a number is masked
                np.testing.assert_array_equal(places[:, 0].filled(np.nan), rows[column])
                named = [networks[int(y // (len(CONTRASTS) + 1))] for y in places.data[:, 1]]
                assert named == list(rows["network"])
                sizes = dict(zip(rows["n_iterations"], points.get_sizes()))
                assert sizes[1] < sizes[2] < sizes[10]


def test_every_step_of_the_saturation_is_its_image_and_every_line_the_mean_gain_of_its_group(drawn):
    cell = saturation_cell([0.2, 0.6, 0.495, 0.995])
    cell["log_odds"] = np.random.default_rng(0).normal(size=(2, 4, 3))
    cell["y_t_after"] = cell["y_t_after"] * np.arange(1.0, 5)[:, None]  # every image has a gain of its own
    steps = tables.saturation({"mine": cell})
    figures.saturation(steps, "unused.png")
    left, right = drawn[0].axes
    for dots, saturated in zip(left.collections, (0, 1)):
        rows = steps[(steps["path"] == "probability") & (steps["saturated"] == saturated)]
        np.testing.assert_array_equal(dots.get_offsets(), rows[["log_odds", "agreement"]])
    gains = {}
    for members in ([0, 2], [1], [3]):  # below 0.5, to 0.9, above 0.99
        for path, colour in enumerate(("probability", "weighted")):
            gain = np.mean([cell["y_t_after"][path, i] - cell["y_t"][path, i, 0] for i in members], 0)
            gains[tuple(members), to_rgba(figures.COLOURS[colour])] = [0, *gain]
    assert len(right.lines) == len(gains) == 6
    for line, ((_, colour), gain) in zip(right.lines, gains.items()):
        np.testing.assert_array_equal(line.get_xdata(), range(4))
        np.testing.assert_allclose(line.get_ydata(), gain)
        assert to_rgba(line.get_color()) == colour


@pytest.mark.parametrize("kind", ["p_2", "block"])
def test_every_dot_of_figure_5_is_its_value_with_its_interval(drawn, rng, kind):
    make, panels = (
        (tables.transformers, ["alike", "between", "coherence", "gain", "positive_kept"])
        if kind == "p_2"
        else (tables.transformer_blocks, ["alike", "between", "coherence", "gain"])
    )
    table = make({"mine": compared_cell()}, rng)
    figures.transformers(table, "unused.png")
    axes = np.array(drawn[0].axes).reshape(2, len(panels))
    for row, explainer in zip(axes, ("vit_gradcam", "attention_rollout")):
        assert row[0].get_title("left") == f"mine: {figures.LABELS[explainer]}"
        for axis, quantity in zip(row, panels):
            ticks = [text.get_text() for text in axis.get_xticklabels()]
            assert ticks == (["> 0.1", "0.01–0.1", "< 0.001"] if kind == "p_2" else ["0", "1"])
            shown = table[(table["explainer"] == explainer) & (table["quantity"] == quantity) & (table[kind] != "all")]
            if quantity == "positive_kept":
                shown = shown[(shown["target"] == "t2") & (shown["rule"] == "equal_kept")]
            lines = {line.get_label(): line for line in axis.lines[:-1]}  # the last one is zero
            assert len(lines) == len(axis.collections) == 4
            for line, bars, (variant, rows) in zip(
                lines.values(), axis.collections, shown.groupby("variant", sort=False)
            ):
                assert line.get_label() == variant.replace("without_relu", "without ReLU")
                np.testing.assert_array_equal(line.get_ydata(), rows["value"])
                assert [ticks[round(x)] for x in line.get_xdata()] == [str(name) for name in rows[kind]]
                segments = np.array(bars.get_segments())
                np.testing.assert_array_equal(segments[..., 1], rows[["low", "high"]])


@pytest.mark.parametrize(("published", "note"), [(0.2, ""), (np.nan, "a note"), (np.nan, "")])
def test_a_ledger_without_published_values_or_notes_is_drawn_too(published, note, tmp_path):
    runtime.write_csv(tmp_path / "claims.csv", judged(published, note))
    table = pd.read_csv(tmp_path / "claims.csv")
    assert table["published"].isna().all() == np.isnan(published)
    assert table["note"].isna().all() == (note == "")
    for name in ("first", "second"):
        figures.ledger(table, tmp_path / f"{name}.png")
    figures.ledger(judged(published, note), tmp_path / "not_from_a_file.png")
    pictures = [(tmp_path / f"{name}.png").read_bytes() for name in ("first", "second")]
    assert pictures[0] == pictures[1]
    assert imread(tmp_path / "first.png").std() > 0.05
    assert imread(tmp_path / "first.png").shape == imread(tmp_path / "not_from_a_file.png").shape


@pytest.mark.parametrize("from_file", [True, False])
def test_every_line_of_the_ledger_is_its_margin_under_its_sentence(drawn, from_file, tmp_path):
    table = judged()
    if from_file:
        runtime.write_csv(tmp_path / "claims.csv", table)
        table = pd.read_csv(tmp_path / "claims.csv")
    assert set(table["verdict"]) == set(figures.VERDICTS)
    figures.ledger(table, "unused.png")
    (axis,) = drawn[0].axes
    texts = {}
    for text in axis.texts:
        texts.setdefault(text.get_position()[1], []).append(text)
    lines = {}
    for line in axis.lines[:-1]:  # the last one is zero
        lines.setdefault(line.get_ydata()[0], []).append(line)
    bounds = {round(bar.get_y() + bar.get_height() / 2): bar for bar in axis.patches}
    y, said = 0, None
    for row in table.itertuples():
        if row.statement != said:
            said = row.statement
            (heading,) = texts.pop(y)
            section, sentence = claims.STATEMENTS[said]
            assert heading.get_text() == f"{said}  ({section}): {sentence}"
            y += 1
        name, network, numbers, verdict = texts.pop(y)
        assert name.get_text() == row.margin.replace("_", " ")
        assert network.get_text() == row.network
        assert numbers.get_text().split() == [
            f"{row.mean:+.3f}",
            f"[{row.low:+.3f},",
            f"{row.high:+.3f}]",
            *("n", "=", str(row.n_images)),
        ]
        noted = isinstance(row.note, str) and row.note
        assert verdict.get_text() == (f"{row.verdict} ({row.note})" if noted else row.verdict)
        interval, dot, *printed = lines.pop(y)
        widest = max(abs(v) for v in (row.mean, row.low, row.high, row.bound, row.published) if not np.isnan(v)) or 1
        np.testing.assert_allclose(interval.get_xdata(), [row.low / widest, row.high / widest])
        np.testing.assert_allclose(dot.get_xdata(), [row.mean / widest])
        for shown in (interval, dot, verdict):
            assert to_rgba(shown.get_color()) == to_rgba(figures.VERDICTS[row.verdict])
        assert len(printed) == (not np.isnan(row.published))
        for diamond in printed:
            assert diamond.get_marker() == "D"
            np.testing.assert_allclose(diamond.get_xdata(), [row.published / widest])
        assert (y in bounds) == (row.kind == "equivalence")
        if y in bounds:
            bar = bounds[y]
            edges = [bar.get_x(), bar.get_x() + bar.get_width()]
            np.testing.assert_allclose(edges, [-row.bound / widest, row.bound / widest])
        y += 1
    assert texts == lines == {}
    bottom, top = axis.get_ylim()
    assert top < 0 < y - 1 < bottom
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [*figures.VERDICTS, "published"]


def test_a_ledger_without_rows_is_drawn(tmp_path):
    runtime.write_csv(tmp_path / "claims.csv", claims.judge([], np.random.default_rng(0)))
    figures.ledger(pd.read_csv(tmp_path / "claims.csv"), tmp_path / "empty.png")
    assert imread(tmp_path / "empty.png").std() > 0


def test_every_dose_is_the_margin_of_its_row_and_the_chosen_one_is_marked(drawn):
    table = dosed()
    figures.doses(table, "unused.png")
    axes = np.array(drawn[0].axes).reshape(2, 3)
    for (i, network), (j, quantity) in product(enumerate("ab"), enumerate(("accuracy", "p_t", "y_t"))):
        axis = axes[i, j]
        assert axis.get_title() == f"{network}: {figures.LABELS[quantity]}"
        rows = table[(table["network"] == network) & (table["quantity"] == quantity) & (table["n_iterations"] == 10)]
        curves = {line.get_label(): line for line in axis.lines if line.get_marker() == "o"}
        assert list(curves) == list(CONTRASTS[1:])
        for contrast, line in curves.items():
            own = rows[rows["contrast"] == contrast]
            np.testing.assert_array_equal(line.get_data(), [own["epsilon"], own["margin"]])
            assert to_rgba(line.get_color()) == to_rgba(figures.COLOURS[contrast])
        marked = [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"]
        assert marked == ([3e-3] if network == "a" else [])
