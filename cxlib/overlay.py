"""A map over its image, one of ours or as the review shows it, and what all figures share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import CenteredNorm, to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image

FOR, AGAINST = "#e66100", "#1a5fb4"
"""What speaks for a class, and what against it: orange and blue, which colour-blind readers tell apart."""

LUMINANCE = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601)."""

STRONGEST = 0.995
"""The quantile of a map's absolute values shown in full colour: a few pixels must not pale the rest."""

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
    "versus": "one against the other",
}
"""Names of explainers and contrasts as they are printed."""


def blended(
    image: ArrayLike, values: ArrayLike, limit: float | None = None, opacity: float = 1.0
) -> NDArray[np.float64]:
    """A map over its image in grey, as RGB (H, W, 3) in [0, 1].

    A pixel is ``(1 - s) grey + s colour`` with the strength ``s = opacity min(|map| / limit, 1)``, and the colour `FOR`
    where the map is positive, `AGAINST` where it is negative: where the map is 0 there is nothing over the image.

    Args:
        image: (H, W, 3) or (3, H, W) in [0, 1].
        values: the map (H, W), or a layer's (h, w), which is resized bilinearly, corners to corners as `explain` does.
        limit: what is shown in full colour; None takes the quantile `STRONGEST` of the map's absolute values.
        opacity: of the full colour, in [0, 1].

    Raises:
        ValueError: another shape, an image outside [0, 1], a map that is not finite, or a limit that is not positive.
    """
    picture, heat = channels_last(image), np.asarray(values, dtype=np.float64)
    if heat.ndim != 2 or not np.isfinite(heat).all():
        raise ValueError(f"a map over an image has two axes and finite values: got shape {heat.shape}")
    heat = resized(heat, picture.shape[:2])
    strengths = np.abs(heat)
    if limit is None:
        # A map that is zero nearly everywhere is shown by its maximum, one that is zero everywhere by none.
        limit = float(np.quantile(strengths, STRONGEST)) or float(strengths.max()) or 1.0
    if not limit > 0:
        raise ValueError(f"the limit of a map is positive, not {limit}")
    strength = opacity * np.minimum(strengths / limit, 1)[..., None]
    grey = (picture @ np.array(LUMINANCE))[..., None]
    colour = np.where(heat[..., None] > 0, to_rgb(FOR), to_rgb(AGAINST))
    mixed: NDArray[np.float64] = (1 - strength) * grey + strength * colour
    return mixed


def channels_last(image: ArrayLike) -> NDArray[np.float64]:
    """An image (H, W, 3) or (3, H, W) in [0, 1] as (H, W, 3).

    Raises:
        ValueError: it is neither, or has values outside [0, 1].
    """
    picture = np.asarray(image, dtype=np.float64)
    if picture.ndim != 3 or 3 not in (picture.shape[-1], picture.shape[0]):
        raise ValueError(f"an image is (H, W, 3) or (3, H, W): got shape {picture.shape}")
    if not (picture.min() >= 0 and picture.max() <= 1):
        raise ValueError("an image lies in [0, 1]: undo the normalisation first")
    return picture if picture.shape[-1] == 3 else picture.transpose(1, 2, 0)


def resized(values: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """A map (h, w) resized bilinearly to a size (H, W), corners to corners; the map itself where it has that size."""
    for axis, (now, wanted) in enumerate(zip(values.shape, size)):
        if now != wanted:
            places = np.linspace(0, now - 1, wanted)
            weights = np.maximum(1 - np.abs(places[:, None] - np.arange(now)), 0)  # (wanted, now), two a row
            values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values


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
