"""The figures: functions from tables and maps to PNG files, byte-identical for the same input."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from PIL import Image

from cxlib.datasets.cub import discriminative_parts, table

COLOURS = {
    "original": "#4878a8",
    "mean": "#9ab6cf",
    "max": "#e0a458",
    "weighted": "#c44e3f",
    "probability": "#7f6a93",
    "normalised": "#5b9a68",
}
"""One colour a contrast, in every figure."""

LABELS = {
    "accuracy": "change of accuracy",
    "p_t": "change of $p_t$",
    "y_t": "change of $y_t$",
    "gradcam": "GradCAM",
    "linear_approximation": "Linear approximation",
    "xgradcam": "XGradCAM",
}

SHEET_IMAGES = 3
"""Test images of each species on the contact sheet."""


def figure_1_2(changes: pd.DataFrame, path: Path | str) -> None:
    """Figures 1 and 2: grouped bars a network, a row a quantity, a column an epsilon and number of iterations.

    Args:
        changes: columns network, epsilon, n_iterations, contrast, quantity, change.
        path: PNG to write.
    """
    networks, contrasts, quantities = (
        list(dict.fromkeys(changes[axis])) for axis in ("network", "contrast", "quantity")
    )
    settings = sorted(set(zip(changes["epsilon"], changes["n_iterations"])))
    wide = changes.set_index(["epsilon", "n_iterations", "quantity", "contrast", "network"])["change"].sort_index()
    width = max(2.4, 0.11 * len(networks) * (len(contrasts) + 1))
    figure = Figure(figsize=(1.2 + width * len(settings), 2.2 * len(quantities) + 1.2), layout="constrained")
    axes = figure.subplots(len(quantities), len(settings), sharey="row", sharex=True, squeeze=False)
    places = np.arange(len(networks))
    for row, quantity in zip(axes, quantities):
        for axis, (epsilon, n) in zip(row, settings):
            for index, contrast in enumerate(contrasts):
                offset = (index - (len(contrasts) - 1) / 2) * 0.8 / len(contrasts)
                heights = wide[epsilon, n, quantity, contrast].reindex(networks)
                axis.bar(places + offset, heights, 0.8 / len(contrasts), color=COLOURS.get(contrast), label=contrast)
            axis.axhline(0, color="black", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_xticks(places, networks, rotation=35, ha="right", fontsize=8)
        row[0].set_ylabel(LABELS[quantity])
    for axis, (epsilon, n) in zip(axes[0], settings):
        axis.set_title(f"$\\epsilon$ = {epsilon:g}, n = {n}", fontsize=10)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(contrasts), frameon=False)
    _save(figure, path)


def table_1(table: pd.DataFrame, path: Path | str) -> None:
    """Table 1 as dots with their 95 % intervals, and the printed values beside them as open diamonds.

    A row of panels a network and rule, a column what is kept of which class; the grey line is the unmasked image.

    Args:
        table: columns as `tables.with_published` gives them.
        path: PNG to write.
    """
    kept = table[table["kept_features"] != "all"]
    if kept.empty:
        return _nothing("No test image is above the threshold.", path)
    blocks = list(kept[["network", "rule"]].drop_duplicates().itertuples(index=False))
    columns = list(kept[["target", "kept_features"]].drop_duplicates().itertuples(index=False))
    lines = list(kept[["explainer", "baseline"]].drop_duplicates().itertuples(index=False))
    contrasts = list(dict.fromkeys(kept["contrast"]))
    offsets = 0.26 * (np.arange(len(contrasts)) - (len(contrasts) - 1) / 2)
    keys = ["network", "rule", "target", "kept_features", "contrast", "explainer", "baseline"]
    wide = kept.set_index(keys)[["relative_probability", "low", "high", "published"]].sort_index()
    figure = Figure(
        figsize=(3 + 2.3 * len(columns), 0.9 + len(blocks) * (0.7 + 0.3 * len(lines))), layout="constrained"
    )
    axes = figure.subplots(len(blocks), len(columns), sharex=True, sharey=True, squeeze=False)
    places = np.arange(len(lines))
    for row, (network, rule) in zip(axes, blocks):
        for axis, (target, features) in zip(row, columns):
            unmasked = table[
                (table["network"] == network) & (table["target"] == target) & (table["contrast"] == "none")
            ]
            axis.axvline(unmasked["relative_probability"].mean(), color="0.75", linewidth=1, label="unmasked")
            for offset, contrast in zip(offsets, contrasts):
                values = wide.loc[network, rule, target, features, contrast].reindex(lines)
                x, y, colour = values["relative_probability"], places + offset, COLOURS[contrast]
                axis.errorbar(
                    x,
                    y,
                    xerr=np.maximum([x - values["low"], values["high"] - x], 0),
                    fmt="o",
                    color=colour,
                    markersize=3.5,
                    elinewidth=1,
                    label=contrast,
                )
                printed = values["published"].to_numpy()
                if not np.isnan(printed).all():
                    axis.plot(
                        printed,
                        y,
                        "D",
                        markerfacecolor="white",
                        markeredgecolor=colour,
                        markersize=4,
                        zorder=1.5,
                        label=f"{contrast}, printed",
                    )
            for line in places[1:]:
                new = lines[line].explainer != lines[line - 1].explainer
                axis.axhline(line - 0.5, color="0.6" if new else "0.9", linewidth=0.6, zorder=0)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8)
            if axis in axes[0]:
                sense = "higher" if features == "positive" else "lower"
                axis.set_title(f"{_class(target)}, {features} kept\n({sense} is better)", fontsize=9)
        names = [f"{LABELS.get(line.explainer, line.explainer)}, {line.baseline.replace('_', ' ')}" for line in lines]
        row[0].set_yticks(places, names, fontsize=8)
        row[0].set_ylim(len(lines) - 0.5, -0.5)
        row[0].set_ylabel(f"{network}\nrule: {rule.replace('_', ' ')}", fontsize=9)
    figure.supxlabel("relative probability of the class under blur and mask", fontsize=9)
    entries = sorted(zip(*axes[0, 0].get_legend_handles_labels()), key=lambda entry: entry[1])
    figure.legend(*zip(*entries), loc="outside upper center", ncols=len(entries), frameon=False, fontsize=8)
    return _save(figure, path)


def by_ambiguity(table: pd.DataFrame, path: Path | str) -> None:
    """Relative probability under blur and mask from ambiguous images to clear ones, with 95 % intervals.

    A row of panels a network and rule, a column what is kept of which class; grey is the unmasked image.

    Args:
        table: columns as `tables.by_ambiguity` gives them.
        path: PNG to write.
    """
    kept = table[table["kept_features"] != "all"]
    blocks = list(kept[["network", "rule"]].drop_duplicates().itertuples(index=False))
    columns = list(kept[["target", "kept_features"]].drop_duplicates().itertuples(index=False))
    contrasts = list(dict.fromkeys(kept["contrast"]))
    figure = Figure(figsize=(1.2 + 2.4 * len(columns), 0.9 + 2.2 * len(blocks)), layout="constrained")
    axes = figure.subplots(len(blocks), len(columns), sharex="row", sharey=True, squeeze=False)
    for row, (network, rule) in zip(axes, blocks):
        own = table[table["network"] == network]
        bins = own.drop_duplicates("p_2").set_index("p_2")["n_images"]
        places = np.arange(len(bins))
        for axis, (target, features) in zip(row, columns):
            here = own[own["target"] == target]
            lines = {"unmasked": here[here["contrast"] == "none"]}
            masked = here[(here["rule"] == rule) & (here["kept_features"] == features)]
            lines |= {contrast: masked[masked["contrast"] == contrast] for contrast in contrasts}
            for index, (name, line) in enumerate(lines.items()):
                values = line.set_index("p_2").reindex(bins.index)
                y = values["relative_probability"]
                bounds = np.maximum([y - values["low"], values["high"] - y], 0)
                x, colour = places + 0.1 * (index - (len(lines) - 1) / 2), COLOURS.get(name, "0.6")
                axis.errorbar(
                    x, y, yerr=bounds, fmt="o-", color=colour, markersize=3.5, linewidth=1, elinewidth=1, label=name
                )
            axis.set_ylim(0, 1)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8)
            axis.set_xticks(places, [f"{name}\n({n})" for name, n in bins.items()], fontsize=7.5)
            if axis in axes[0]:
                axis.set_title(f"{_class(target)}, {features} kept", fontsize=9)
        row[0].set_ylabel(f"{network}\nrule: {rule.replace('_', ' ')}", fontsize=9)
    figure.supxlabel("$p_2$ (number of images)", fontsize=9)
    figure.supylabel("relative probability", fontsize=9)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize=8)
    _save(figure, path)


def figure_3_4(maps: Mapping[str, np.ndarray], path: Path | str) -> None:
    """Figures 3 and 4: a row a class of an image, a column an explainer and contrast.

    The maps lie over the image with alpha 0.5 in `bwr`, each with its own norm centred on zero, as published.

    Args:
        maps: `images` (N, H, W, 3), `maps` (N, explainers, contrasts, classes, H, W), `names` and `probabilities`
            (N, classes), `labels` (N,), `explainers`, `contrasts`.
        path: PNG to write.
    """
    n_images, n_classes = maps["names"].shape
    columns = [(e, c) for e in range(len(maps["explainers"])) for c in range(len(maps["contrasts"]))]
    if n_images == 0:
        return _nothing("No test image has enough dominant classes.", path)
    # Inches: a panel's side, the column of names, the titles, and the gap between two images.
    side, left, top, gap = 1.35, 1.35, 0.45, 0.15
    width = left + (side + 0.05) * (len(columns) + 1)
    height = top + n_images * (n_classes * (side + 0.05) + gap)
    figure = Figure(figsize=(width, height))
    for i in range(n_images):
        for t in range(n_classes):
            row = i * n_classes + t
            for column in range(len(columns) + 1):
                x, y = left + column * (side + 0.05), top + row * (side + 0.05) + i * gap
                axis = figure.add_axes((x / width, 1 - (y + side) / height, side / width, side / height))
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
                axis.imshow(maps["images"][i])
                if column == 0:
                    name = maps["names"][i, t].replace("_", "\n")
                    marked = " (label)" if maps["names"][i, t] == maps["labels"][i] else ""
                    text = f"$t_{t + 1}$: {name}\np = {maps['probabilities'][i, t]:.2f}{marked}"
                    axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=7)
                else:
                    e, c = columns[column - 1]
                    values = maps["maps"][i, e, c, t]
                    # A map of zeros has no range of its own; any will show it white.
                    norm = CenteredNorm(halfrange=np.abs(values).max() or 1)
                    axis.imshow(values, cmap="bwr", norm=norm, alpha=0.5)
                if row == 0 and column:
                    explainer, contrast = str(maps["explainers"][e]), str(maps["contrasts"][c])
                    axis.set_title(f"{LABELS[explainer]}\n{contrast}", fontsize=7.5, color=COLOURS[contrast])
    return _save(figure, path)


def figure_6(norms: pd.DataFrame, fit: Mapping[str, float], r2: float, path: Path | str) -> None:
    """Figure 6: norm of the input gradient against the logit, a colour an image, with the second-degree fit.

    Args:
        norms: columns image, rank, logit, norm.
        fit: quadratic, linear and constant coefficient.
        r2: of the fit.
        path: PNG to write.
    """
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axis = figure.subplots()
    order = norms["image"].rank(method="dense")
    axis.scatter(norms["logit"], norms["norm"], c=order, cmap="viridis", s=4, alpha=0.5, linewidths=0)
    x = np.linspace(norms["logit"].min(), norms["logit"].max(), 200)
    y = np.polyval([fit["quadratic"], fit["linear"], fit["constant"]], x)
    axis.plot(x, y, color=COLOURS["weighted"], label=f"second degree, $R^2$ = {r2:.2f}")
    axis.set_xlabel("logit $y_s$")
    axis.set_ylabel(r"norm of its input gradient")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    _save(figure, path)


def contact_sheet(folder: Path | str, path: Path | str) -> None:
    """Draw a sheet of SynthBirds: a row a family, a few test images a species, and what tells the siblings apart."""
    folder = Path(folder)
    classes = list(table(folder / "classes.txt").items())
    paths, labels, is_train = (
        table(folder / name).values() for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    )
    families: dict[str, list[int]] = {}
    for index, (_, name) in enumerate(classes):
        families.setdefault(name.split(".")[1].split("_")[0], []).append(index)

    widest = max(len(members) for members in families.values())
    figure = Figure(figsize=(1.5 * SHEET_IMAGES * widest, 2.0 * len(families)))
    rows = figure.subfigures(len(families), 1, squeeze=False)[:, 0]
    for row, (family, members) in zip(rows, families.items()):
        parts = set().union(*(discriminative_parts(folder, a, b) for a, b in combinations(members, 2)))
        row.suptitle(
            f"{family}: told apart by {', '.join(sorted(parts))}", x=0.01, y=0.97, ha="left", fontsize=11, weight="bold"
        )
        axes = row.subplots(1, len(members), squeeze=False)[0]
        row.subplots_adjust(left=0.01, right=0.99, top=0.82, bottom=0.01, wspace=0.03)
        for axis, index in zip(axes, members):
            number, name = classes[index]
            tests = [p for p, label, train in zip(paths, labels, is_train) if label == number and train == "0"]
            shown = [np.asarray(Image.open(folder / "images" / test)) for test in tests[:SHEET_IMAGES]]
            axis.imshow(np.concatenate(shown, axis=1))
            axis.set_title(name.split(".")[1].replace("_", " "), fontsize=10, pad=3)
            axis.set_axis_off()
    _save(figure, path)


def _class(target: str) -> str:
    """`t1` as it is set in a formula."""
    return f"${target[0]}_{target[1:]}$"


def _nothing(why: str, path: Path | str) -> None:
    figure = Figure(figsize=(8, 1))
    figure.text(0.5, 0.5, why, ha="center", va="center")
    _save(figure, path)


def _save(figure: Figure, path: Path | str) -> None:
    # Without the version that matplotlib would write into the file.
    figure.savefig(path, metadata={"Software": None}, dpi=92)
