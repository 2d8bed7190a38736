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
        figure = Figure(figsize=(8, 1))
        figure.text(0.5, 0.5, "No test image has enough dominant classes.", ha="center", va="center")
        return _save(figure, path)
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


def _save(figure: Figure, path: Path | str) -> None:
    # Without the version that matplotlib would write into the file.
    figure.savefig(path, metadata={"Software": None}, dpi=92)
