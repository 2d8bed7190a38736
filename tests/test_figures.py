"""The figures show the numbers they are given: bars, maps and curves are read back from what matplotlib drew."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from cxlib.review.report import figures

CONTRASTS = ("original", "mean", "max", "weighted")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, in order."""
    saved = []
    monkeypatch.setattr(figures, "_save", lambda figure, _path: saved.append(figure))
    return saved


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


def test_a_table_without_images_says_so(drawn):
    table = pd.DataFrame(columns=["network", "rule", "target", "kept_features", "contrast", "explainer", "baseline"])
    figures.table_1(table, "unused.png")
    assert "No test image" in drawn[0].texts[0].get_text()


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
    rng = np.random.default_rng(1)
    maps = {
        "images": rng.random((2, 5, 5, 3)),
        "maps": rng.normal(size=(2, 3, 2, 2, 5, 5)),
        "names": np.array([["Heron_Ashen", "Heron_Marsh"], ["Duck_Mere", "Finch_Barred"]]),
        "labels": np.array(["Heron_Marsh", "Duck_Mere"]),
        "probabilities": np.array([[0.6, 0.3], [0.5, 0.25]]),
        "explainers": np.array(["gradcam", "linear_approximation", "xgradcam"]),
        "contrasts": np.array(["original", "weighted"]),
    }
    maps["maps"][1, 2, 1, 1] = 0  # a map without a range of its own
    figures.figure_3_4(maps, "unused.png")
    panels = np.array(drawn[0].axes).reshape(2, 2, 7)
    for i, t in product(range(2), range(2)):
        name = panels[i, t, 0].get_ylabel().replace("\n", "_")
        assert maps["names"][i, t] in name
        assert f"{maps['probabilities'][i, t]:.2f}" in name
        assert ("label" in name) is (maps["names"][i, t] == maps["labels"][i])
        for e, c in product(range(3), range(2)):
            photograph, overlay = panels[i, t, 1 + 2 * e + c].images
            np.testing.assert_array_equal(photograph.get_array(), maps["images"][i])
            np.testing.assert_array_equal(overlay.get_array(), maps["maps"][i, e, c, t])
            low, high = overlay.get_clim()
            assert low == -high < 0
            assert overlay.get_cmap().name == "bwr"
            assert overlay.get_alpha() == 0.5
    white = panels[1, 1, 6].images[1]
    np.testing.assert_allclose(white.cmap(white.norm(white.get_array()))[..., :3], 1, atol=0.01)
    titles = [axis.get_title() for axis in panels[0, 0, 1:]]
    assert titles[0] == "GradCAM\noriginal"
    assert titles[5] == "XGradCAM\nweighted"


def test_figure_6_draws_the_points_and_the_fitted_curve(drawn):
    rng = np.random.default_rng(2)
    table = pd.DataFrame({"image": np.repeat([4, 9], 30), "rank": [*range(30)] * 2, "logit": rng.normal(size=60)})
    table["norm"] = 2 + 0.5 * table["logit"] - 0.1 * table["logit"] ** 2
    figures.figure_6(table, {"quadratic": -0.1, "linear": 0.5, "constant": 2.0}, 1.0, "unused.png")
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
    bins = product(("> 0.1", "0.01 to 0.1", "< 0.01"), explainers, CONTRASTS, quantities)
    by_p_2 = pd.DataFrame([row(**dict(zip(names, labels))) for labels in bins])
    figures.localisation(table, by_p_2, "unused.png")
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
    series = by_p_2.set_index(["explainer", "contrast", "quantity"]).loc["mean"]
    curves = [line.get_ydata() for line in drawn[0].axes[2].lines if len(line.get_ydata()) == 3]
    for contrast, curve in zip(CONTRASTS, curves, strict=True):
        np.testing.assert_array_equal(curve, series.loc[contrast, "gain"]["value"])
