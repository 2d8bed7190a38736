"""A map over its image: pictures of explanations, and what all pictures share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from PIL import Image

COLOURS = {
    "original": "#4878a8",
    "mean": "#9ab6cf",
    "max": "#e0a458",
    "weighted": "#c44e3f",
    "probability": "#7f6a93",
    "normalised": "#5b9a68",
    # Figure 5's variants.
    "standard": "#8a8a8a",
    "without_relu": "#4878a8",
    "contrastive": "#c44e3f",
}
"""One colour a contrast or variant, in every figure."""

LABELS = {
    "gradient": "Gradient",
    "input_x_gradient": "Input x gradient",
    "integrated_gradients": "Integrated gradients",
    "smoothgrad": "SmoothGrad",
    "gradcam": "GradCAM",
    "linear_approximation": "Linear approximation",
    "xgradcam": "XGradCAM",
    "gradcam++": "GradCAM++",
    "layercam": "LayerCAM",
    "fullgrad": "FullGrad",
    "lrp": "LRP",
    "vit_gradcam": "GradCAM",
    "attention_rollout": "Attention rollout",
    "without_relu": "without ReLU",
}
"""Names of explainers and contrasts as they are printed."""


def over_images(maps: Mapping[str, Any], path: Path | str) -> None:
    """Maps over their images: a row a class of an image, a column an explainer and contrast.

    The maps lie over the image with alpha 0.5 in `bwr`, each with its own norm centred on zero, as published.

    Args:
        maps: `images` (N, H, W, 3), `maps` (N, explainers, contrasts, classes, H, W), `names` and `probabilities`
            (N, classes), `labels` (N,), `explainers`, `contrasts`.
        path: PNG to write.
    """
    n_images, n_classes = maps["names"].shape
    columns = [(e, c) for e in range(len(maps["explainers"])) for c in range(len(maps["contrasts"]))]
    if n_images == 0:
        return nothing("No test image has enough dominant classes.", path)
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
                    values = maps["maps"][i][e, c, t]
                    # A map of zeros has no range of its own; any will show it white.
                    norm = CenteredNorm(halfrange=np.abs(values).max() or 1)
                    axis.imshow(values, cmap="bwr", norm=norm, alpha=0.5)
                if row == 0 and column:
                    explainer, contrast = str(maps["explainers"][e]), str(maps["contrasts"][c])
                    colour = COLOURS.get(contrast, "black")
                    names = LABELS.get(explainer, explainer), LABELS.get(contrast, contrast.replace("_", " "))
                    title = "\n".join(names)
                    axis.set_title(title, fontsize=7.5, color=colour)
    return save(figure, path)


def nothing(why: str, path: Path | str) -> None:
    """A picture that says why there is nothing to see."""
    figure = Figure(figsize=(8, 1))
    figure.text(0.5, 0.5, why, ha="center", va="center")
    save(figure, path)


def save(figure: Figure, path: Path | str) -> None:
    """Write a PNG, byte-identical for the same figure, in 256 colours of its own: a third of the size."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(92)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    drawn.quantize(palette=drawn.quantize(256)).save(path, optimize=True)
