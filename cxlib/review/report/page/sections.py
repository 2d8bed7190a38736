"""What the report shows below the ledger: a section a result, each one entry of `SECTIONS` or of `PICTURES`.

A section has a table, by its name in `plots/`, a chart of it (a Vega-Lite specification without its data), grids that
also stand in print, and the static figure that takes the chart's place there. To add one, write its entry: `TABLES`
and `FIGURES` are the files that the stage then needs, and a test holds dvc.yaml to them.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from cxlib.overlay import COLOURS, LABELS

Chart = dict[str, Any]
#: Colours of what has none in `COLOURS`, in this order; all of them are seen on light and on dark.
SPARE = ("#c44e3f", "#4878a8", "#b98435", "#5b9a68", "#8c6bb1", "#2a9d9d", "#b05c8c", "#808791")


class Grid(NamedTuple):
    """A table for people: what it is of, its head, and rows of text whose first cell names them."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Section(NamedTuple):
    """A result.

    Attributes:
        title: what it is about.
        says: what is to be seen, in a sentence or two, where p_t and its like get subscripts.
        table: name of the CSV.
        interval: what its intervals mean; empty where it has none.
        figure: name of the figure that stands for the chart in print; empty where there is none.
        chart: from the table to a Vega-Lite specification.
        grid: from the table to tables for people.
    """

    title: str
    says: str
    table: str
    interval: str = ""
    figure: str = ""
    chart: Callable[[pd.DataFrame], Chart] | None = None
    grid: Callable[[pd.DataFrame], list[Grid]] | None = None


# --- charts -----------------------------------------------------------------------------------------------------


def chart(
    table: pd.DataFrame,
    x: Mapping[str, Any],
    y: Mapping[str, Any],
    colour: str,
    choose: Mapping[str, Any],
    never: Mapping[str, Sequence[str]] | None = None,
    bounds: tuple[str, str] | None = None,
    printed: str | None = None,
    line: bool = False,
    calculate: Mapping[str, str] | None = None,
) -> Chart:
    """Points, with their intervals, in a colour a contrast; a click on the legend shows one of them alone.

    Args:
        table: of which there is a row a point.
        x: Vega-Lite's encoding.
        y: likewise; one of the two is of numbers.
        colour: the column that the colour tells apart.
        choose: columns of which one value is seen at a time, and the first one; None is the table's first.
        never: values that are left out, by column.
        bounds: the columns of an interval of the numbers.
        printed: the column of the published numbers, drawn as diamonds.
        line: whether points are joined.
        calculate: columns that the chart makes itself, as Vega expressions.
    """
    for column, values in (never or {}).items():
        table = table[~table[column].isin(values)]
    along = "x" if x["type"] == "quantitative" and not line else "y"
    (value, place), across = ((x, y), "y") if along == "x" else ((y, x), "x")
    transform: list[Chart] = [
        {"filter": f"indexof({list(values)!r}, datum['{column}']) < 0"} for column, values in (never or {}).items()
    ]
    params = []
    for number, (column, first) in enumerate(choose.items()):
        options = table[column].drop_duplicates().tolist()
        labels = [str(option) if column == "network" else printed_name(str(option)) for option in options]
        first = first if first in options else next(iter(options), None)
        bind = {"input": "select", "options": options, "labels": labels, "name": column.replace("_", " ")}
        params.append({"name": f"chosen_{number}", "value": first, "bind": bind})
        transform.append({"filter": f"datum['{column}'] == chosen_{number}"})
    transform += [{"calculate": expression, "as": name} for name, expression in (calculate or {}).items()]
    kinds = table[colour].drop_duplicates().tolist()
    spare = iter(SPARE * len(kinds))
    scale = {"domain": kinds, "range": [COLOURS.get(kind) or next(spare) for kind in kinds]}
    legend = {"labelExpr": _printed("datum.label")}
    shade = {"field": colour, "type": "nominal", "scale": scale, "title": None, "legend": legend}
    seen = {"condition": {"param": "legend", "value": 1}, "value": 0.08}
    offset = {} if line else {f"{across}Offset": {"field": colour, "scale": {"domain": kinds}}}
    own = {across: place, "color": shade, "opacity": seen, **offset}
    tooltip = [{"field": str(name), "title": str(name).replace("_", " ")} for name in table.columns]
    layers: list[Chart] = []
    if bounds:
        low, high = bounds
        ends = {along: {**value, "field": low}, f"{along}2": {"field": high}}
        layers.append({"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": own | ends})
    if line:
        layers.append({"mark": {"type": "line", "strokeWidth": 1.5}, "encoding": own | {along: value}})
    mark: Chart = {"type": "point", "filled": True, "size": 55, "opacity": 1}
    layers.append({"mark": mark, "encoding": own | {along: value, "tooltip": tooltip}})
    if printed:
        mark = {"type": "point", "shape": "diamond", "size": 60, "filled": False, "strokeWidth": 1.4}
        layers.append({"mark": mark, "encoding": own | {along: {**value, "field": printed}, "tooltip": tooltip}})
    layers[0]["params"] = [{"name": "legend", "select": {"type": "point", "fields": [colour]}, "bind": "legend"}]
    height = {"step": max(8, 32 / max(1, len(kinds)))} if along == "x" else 280
    return {"width": "container", "height": height, "params": params, "transform": transform, "layer": layers}


def number(field: str, title: str, zero: bool = False) -> dict[str, Any]:
    """An axis of numbers, which need not begin at zero."""
    axis = {"tickCount": 6}
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": zero}, "axis": axis}


def steps(field: str, title: str) -> dict[str, Any]:
    """An axis of a few values, in the table's order."""
    return {"field": field, "type": "ordinal", "title": title, "sort": None, "axis": {"labelAngle": 0}}


def names(field: str) -> dict[str, Any]:
    """An axis of names, in the table's order, as they are printed."""
    axis = {"labelExpr": _printed("datum.label"), "labelLimit": {"expr": "containerSize()[0] < 500 ? 120 : 260"}}
    return {"field": field, "type": "nominal", "title": None, "axis": axis, "sort": None}


def printed_name(name: str) -> str:
    """A name of the tables as it is printed: underscores become blanks, but for those of symbols such as p_t."""
    return LABELS.get(name, re.sub(r"(?<![py])_|_(?![t12](?![A-Za-z0-9]))", " ", name))


def _printed(value: str) -> str:
    """A Vega expression that does as `printed_name`."""
    return f"({json.dumps(LABELS)})[{value}] || replace({value}, /(?<![py])_|_(?![t12](?![A-Za-z0-9]))/g, ' ')"


# --- tables for people ------------------------------------------------------------------------------------------


def in_brackets(row: Any, value: str = "value", low: str = "low", high: str = "high", digits: int = 2) -> str:
    """A value with its interval; empty where there is none."""
    if pd.isna(row[value]):
        return ""
    mean, *bounds = (f"{row[column]:.{digits}f}".replace("-", "−") for column in (value, low, high))
    return f"{mean} [{bounds[0]}, {bounds[1]}]"


def beside_printed(table: pd.DataFrame) -> list[Grid]:
    """Table 1 by the published rule: a grid a network, ours and the printed number in each cell."""
    grids = []
    for network, own in table[table["rule"].isin(["published", "none"])].groupby("network", sort=False):
        wide = own.set_index(["explainer", "baseline", "target", "kept_features", "contrast"]).sort_index()
        kept = own[own["rule"] == "published"]
        columns = [
            (target, features, contrast)
            for target in ("t1", "t2")
            for features in ("positive", "negative")
            for contrast in ("original", "weighted")
        ]

        rows = [
            [f"{LABELS.get(explainer, explainer)}, {baseline.replace('_', ' ')}"]
            + [_ours_and_printed(wide.loc[(explainer, baseline, *column)]) for column in columns]
            for explainer, baseline in kept[["explainer", "baseline"]].drop_duplicates().itertuples(index=False)
        ]
        first = own["explainer"].iloc[0]
        whole = (_ours_and_printed(wide.loc[(first, "none", target, "all", "none")]) for target in ("t1", "t2"))
        rows.append(["unmasked", *(value for value in whole for _ in range(4))])
        head = ["", *(f"{target} {features}, {contrast}" for target, features, contrast in columns)]
        grids.append(Grid(f"{network}, {own['n_images'].iloc[0]} images", head, rows))
    return grids


def _ours_and_printed(row: pd.Series) -> str:
    printed = "" if pd.isna(row["published"]) else f" ({row['published']:.2f})"
    return f"{row['relative_probability']:.2f}{printed}"


def agreement(table: pd.DataFrame) -> list[Grid]:
    """Explainers by how well their maps rank the effects of repainting, a grid a network."""
    grids = []
    for network, own in table.groupby("network", sort=False):
        wide = own.set_index(["quantity", "explainer", "contrast"]).sort_index()
        contrasts = [name for name in dict.fromkeys(own["contrast"]) if name != "perfect"]
        ranks = wide.loc["rank"]
        order = ranks.drop("perfect", level="contrast")["value"].groupby("explainer").max().sort_values()[::-1].index
        rows = []
        for explainer in order:
            values = [f"{ranks.loc[(explainer, c), 'value']:.2f}".replace("-", "−") for c in contrasts]
            gains = in_brackets(ranks.loc[(explainer, "weighted")], "margin", "margin_low", "margin_high")
            found = [f"{wide.loc[('found', explainer, c), 'value']:.2f}" for c in contrasts]
            rows.append([LABELS.get(explainer, explainer), *values, gains, *found])
        head = ["", *(f"rank, {c}" for c in contrasts), "weighted adds", *(f"found, {c}" for c in contrasts)]
        grids.append(Grid(f"{network}, {own['n_images'].iloc[0]} birds", head, rows))
    return grids


WAYS = {
    "as_sibling": "the deciding part, as its sibling has it",
    "reverse": "the same, backwards",
    "random": "the deciding part, in a random colour",
    "shared": "a part that the two share",
}


def effects(table: pd.DataFrame) -> list[Grid]:
    """What repainting does, a grid a network."""
    grids = []
    quantities = {
        "effect": "y_t falls by",
        "positive": "falls in",
        "flips": "decision flips in",
        "leaves": "leaves pair",
    }
    for network, own in table.groupby("network", sort=False):
        rows = []
        for (way, dose), these in own.groupby(["repainted", "dose"], sort=False):
            found = these.set_index("quantity")
            values = [in_brackets(found.loc[q]) if q in found.index else "" for q in quantities]
            rows.append([f"{WAYS.get(way, way)}, {dose:.0%}", *values])
        grids.append(Grid(f"{network}, {own['n_images'].max()} birds", ["", *quantities.values()], rows))
    return grids


def reached(table: pd.DataFrame) -> list[Grid]:
    """What the networks reached."""
    columns = ["test_accuracy", "n_images", "n_p2_above_threshold", "n_p3_above_threshold"]
    head = ["", "test accuracy", "test images", "with a second class above the threshold", "with a third"]
    rows = [
        [row["network"], *("" if pd.isna(row[name]) else f"{row[name]:.3g}" for name in columns)]
        for _, row in table.iterrows()
    ]
    return [Grid("the networks of this run", head, rows)]


# --- the sections -----------------------------------------------------------------------------------------------

OVER_IMAGES = "95 % percentile bootstrap interval of the mean, over images"
OVER_BIRDS = "95 % bootstrap interval over birds, all repaintings of a bird kept together"
PROBABILITY = number("relative_probability", "relative probability of the class under blur and mask")

SECTIONS: dict[str, Section] = {
    "networks": Section(
        "Networks",
        "What explains and is explained. Only images with a second dominant class have something to contrast.",
        table="networks",
        grid=reached,
    ),
    "perturbation": Section(
        "Perturbing the input",
        "Figures 1 and 2: one small step along the sign of each contrast's gradient. If a contrast points at what the "
        "class is made of, p_t and accuracy rise with it. Filled: ours. Open diamonds: the printed bars, digitised.",
        table="perturbation_vs_published",
        figure="perturbation_vs_published",
        chart=partial(
            chart,
            x=number("change", "change (filled: ours, open: printed)", zero=True),
            y={**names("network"), "axis": {}},
            colour="contrast",
            choose={"quantity": "p_t", "epsilon": 0.001, "n_iterations": 1},
            printed="published",
        ),
    ),
    "doses": Section(
        "By dose",
        "What each contrast moves beyond `original`, by the size of the step: above zero it moves more.",
        interval=OVER_IMAGES,
        table="doses",
        figure="doses",
        chart=partial(
            chart,
            x=steps("epsilon", "epsilon"),
            y=number("margin", "more than original", zero=True),
            colour="contrast",
            choose={"quantity": "p_t", "n_iterations": 1, "network": None},
            bounds=("low", "high"),
            line=True,
        ),
    ),
    "saturation": Section(
        "Saturation",
        "Section 4.3: the share of pixels in which the literal softmax gradient and its closed form have the same sign."
        " It falls once p_t rounds to 1 in float32.",
        table="saturation",
        figure="saturation",
        chart=partial(
            chart,
            x=steps("step", "step"),
            y=number("agreement", "share of pixels with the same sign"),
            colour="path",
            choose={"network": None},
        ),
    ),
    "table1": Section(
        "Table 1: blur and mask",
        "Keep only a map's positive (or negative) pixels, and see what is left of the balance of t1 and t2. Positive "
        "kept: higher is better. Negative kept: lower is better. In brackets the printed numbers, of another network.",
        interval=OVER_IMAGES,
        table="table1",
        figure="table1",
        chart=partial(
            chart,
            x=PROBABILITY,
            y=names("setting"),
            colour="contrast",
            choose={"network": None, "rule": "equal_kept", "target": "t1", "kept_features": "positive"},
            never={"kept_features": ["all"]},
            bounds=("low", "high"),
            printed="published",
            calculate={"setting": f"({_printed('datum.explainer')}) + ', ' + ({_printed('datum.baseline')})"},
        ),
        grid=beside_printed,
    ),
    "by_ambiguity": Section(
        "As the second class fades",
        "The same by p_2, from ambiguous images to clear ones: the number of images is in each point's tooltip.",
        interval=OVER_IMAGES,
        table="by_ambiguity",
        figure="by_ambiguity",
        chart=partial(
            chart,
            x=steps("p_2", "p_2"),
            y={**PROBABILITY, "title": "relative probability"},
            colour="contrast",
            choose={"network": None, "rule": "equal_kept", "target": "t2", "kept_features": "positive"},
            never={"kept_features": ["all"]},
            bounds=("low", "high"),
            line=True,
        ),
    ),
    "localisation": Section(
        "Localisation",
        "How much of a map lies in the parts that tell the two classes apart, which are known: `gain` is the share of "
        "its mass there beyond the parts' own area, `hit` whether its peak is there.",
        interval=OVER_IMAGES,
        table="localisation",
        figure="localisation",
        chart=partial(
            chart,
            x=number("value", "value", zero=True),
            y=names("explainer"),
            colour="contrast",
            choose={"quantity": "gain", "mass": "evidence", "target": "mean", "network": None},
            never={"contrast": ["none"]},
            bounds=("low", "high"),
        ),
    ),
    "intervention": Section(
        "Which explainer? Maps against repainting",
        "The truth can be made: repaint one part of a bird as its sibling has it, and the decision moves. `rank` is how"
        " well a map's mass ranks these effects across birds, `found` the share of its mass where the effect is, of"
        " what a perfect map has there.",
        interval=OVER_BIRDS,
        table="intervention",
        figure="intervention",
        chart=partial(
            chart,
            x=number("value", "agreement", zero=True),
            y=names("explainer"),
            colour="contrast",
            choose={"quantity": "rank", "network": None},
            never={"contrast": ["perfect"]},
            bounds=("low", "high"),
        ),
        grid=agreement,
    ),
    "leaderboard": Section(
        "The leaderboard",
        "Every explainer and contrast under every judge. More is better, but for `alike`, the correlation of the maps"
        " of t1 and t2, for `head` and `all`, how much of a map's order is left when the classifier, or all layers, are"
        " new, and for `passes`, what a map costs.",
        interval="95 % BCa bootstrap interval over images; over birds for repainting; what a map costs is counted",
        table="leaderboard",
        figure="leaderboard",
        chart=partial(
            chart,
            x=number("value", "measure", zero=True),
            y=names("explainer"),
            colour="contrast",
            choose={"measure": "insertion_deletion", "network": None},
            bounds=("low", "high"),
        ),
    ),
    "repainting": Section(
        "What repainting does",
        "The deciding part alone decides: repainting it turns most decisions over, a part that the two species share "
        "few.",
        interval=OVER_BIRDS,
        table="repainting",
        chart=partial(
            chart,
            x=steps("dose", "share of the other colour"),
            y=number("value", "value", zero=True),
            colour="repainted",
            choose={"quantity": "flips", "network": None},
            bounds=("low", "high"),
            line=True,
        ),
        grid=effects,
    ),
    "vit": Section(
        "Vision Transformers",
        "Figure 5 in numbers, by block: what ReLU and the contrast change. `gain` and `hit` are as in localisation, "
        "`coherence` is Moran's I beyond that of shuffled patches.",
        interval=OVER_IMAGES,
        table="vit_blocks",
        figure="vit_blocks",
        chart=partial(
            chart,
            x=steps("block", "block"),
            y=number("value", "value"),
            colour="variant",
            choose={"quantity": "gain", "explainer": None, "network": None},
            never={"quantity": ["alike", "between"]},
            bounds=("low", "high"),
            line=True,
        ),
    ),
}
"""Results, in the order of the review, by their name on the page."""

SHEET = (
    "What the species look like",
    "Test images of {name}, a row a family, with the parts that tell its species apart.",
)
"""A contact sheet: title and what is to be seen."""

PICTURES: dict[str, tuple[str, str]] = {
    "figure_3": (
        "Figure 3: two classes, original beside weighted",
        "Red speaks for the class, blue against it. The original maps of t1 and t2 look alike; the weighted ones tend"
        " to be each other's negative.",
    ),
    "figure_4": ("Figure 4: three classes, four contrasts", "GradCAM where a third class is dominant, too."),
    "figure_5": (
        "Figure 5: a Vision Transformer",
        "GradCAM and attention rollout: standard, without ReLU, and contrastive.",
    ),
    "figure_6": (
        "Figure 6: gradients against logits",
        "Norm of the input gradient against the logit, a colour an image, with the second-degree fit.",
    ),
    "figure_1_2": (
        "Figures 1 and 2 as the review draws them",
        "A row a quantity, a column a step and its repetitions.",
    ),
}
"""Figures that no chart stands for: title and what is to be seen, by the name of the file."""

TABLES = ("claims", *dict.fromkeys(section.table for section in SECTIONS.values()))
FIGURES = (*(section.figure for section in SECTIONS.values() if section.figure), *PICTURES)


def pictures(figures: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Title and what is to be seen of the figures that no chart stands for: contact sheets, then `PICTURES`.

    Behind a figure there are others of its kind, such as ``figure_5_imagenet``.
    """
    more = [name for name in figures if name not in FIGURES]
    found = {name: (SHEET[0], SHEET[1].format(name=name)) for name in more if not name.startswith("figure_")}
    for own, (title, says) in PICTURES.items():
        kin = [name for name in more if name.startswith(f"{own}_")]
        found |= {own: (title, says)} | {name: (f"{title} ({name[len(own) + 1 :]})", says) for name in kin}
    return found
