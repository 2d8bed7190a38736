"""What the stage `explore` writes, as the page's script takes it."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

#: Qualities of the JPEGs: of images, and of what is blurred anyway.
SHARP, BLURRED = 92, 80


def packed(cell: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """One network's images, maps and answers as JSON holds them.

    Returns:
        `pictures` and `blurred` as data URIs; `maps` by explainer: base64 of int8 (images, contrasts, classes, h, w);
        `answers`: logits (images, explainers, contrasts, classes, shares, classes), the shares from none to all of the
        pixels; and the names of the axes.
    """
    pictures, behind, shares = cell["pictures"], cell["behind"], [0.0, *cell["shares"].tolist(), 1.0]
    shape = (*behind.shape[:4], 1, behind.shape[-1])
    # No pixel stays, or all do: of every map the same.
    none, whole = (np.broadcast_to(end[:, None, None, None, None], shape) for end in np.moveaxis(cell["ends"], 1, 0))
    order = np.argsort(shares, kind="stable")
    answers = np.concatenate([none, behind, whole], -2)[..., order, :]
    return {
        "shares": [shares[place] for place in order],
        "explainers": cell["explainers"].tolist(),
        "contrasts": cell["contrasts"].tolist(),
        "names": [[str(name).replace("_", " ") for name in names] for names in cell["names"]],
        "labels": [str(name).replace("_", " ") for name in cell["labels"]],
        "probabilities": np.round(cell["probabilities"], 4).tolist(),
        "size": list(pictures.shape[2:4]),
        "pictures": [_jpeg(picture, SHARP) for picture in pictures[:, 0]],
        "blurred": [_jpeg(picture, BLURRED) for picture in pictures[:, 1]],
        "maps": {name: _packed_map(cell[f"maps_{name}"]) for name in cell["explainers"].tolist()},
        "answers": np.round(answers.astype(float), 4).tolist(),
    }


def _packed_map(maps: np.ndarray) -> dict[str, Any]:
    return {"size": list(maps.shape[-2:]), "levels": base64.b64encode(maps.astype(np.int8).tobytes()).decode()}


def _jpeg(picture: np.ndarray, quality: int) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
