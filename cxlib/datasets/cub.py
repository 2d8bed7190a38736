"""A folder in the layout of CUB-200-2011, with any number of classes."""

from pathlib import Path

import numpy as np

from cxlib import runtime
from cxlib.datasets.samples import Samples

LISTS = ("images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt")
"""What a folder in CUB's layout must have, beside the images."""

ATTRIBUTE_PARTS = {
    "has_back_": ("back",),
    "has_bill_": ("beak",),
    "has_belly_": ("belly",),
    "has_breast_": ("breast",),
    "has_crown_": ("crown",),
    "has_forehead_": ("forehead",),
    "has_eye_": ("left eye", "right eye"),
    "has_leg_": ("left leg", "right leg"),
    "has_wing_": ("left wing", "right wing"),
    "has_nape_": ("nape",),
    "has_tail_": ("tail",),
    "has_upper_tail_": ("tail",),
    "has_under_tail_": ("tail",),
    "has_throat_": ("throat",),
}
"""Beginning of an attribute's name to the parts it speaks of, for SynthBirds and for CUB alike."""

MAJORITY = 50.0
"""Percentage points: more than this share of the annotators must see the difference."""


def read(folder: str | Path, split: str = "test") -> Samples:
    """The images of one split (`train` or `test`), in the order of ``images.txt``.

    Labels are positions in ``classes.txt``; a class name loses its number (``001.Black_footed_Albatross``). An image
    on disk that ``images.txt`` does not list is left out.

    Raises:
        ValueError: a list is missing or broken, an image is not on disk, or the split is empty.
    """
    sides = {"train": "1", "test": "0"}
    runtime.check_name("split", split, sides)
    folder = Path(folder)
    classes = table(folder / "classes.txt")
    images = table(folder / "images.txt")
    labels = table(folder / "image_class_labels.txt")
    training = table(folder / "train_test_split.txt")
    for what, listed in (("image_class_labels.txt", labels), ("train_test_split.txt", training)):
        if unknown := next((image for image in listed if image not in images), None):
            raise ValueError(f"{folder / what} has image {unknown}, which images.txt lacks: complete one of them")
    position = {class_id: index for index, class_id in enumerate(classes)}
    paths, targets = [], []
    for image, name in images.items():
        for what, listed in (("image_class_labels.txt", labels), ("train_test_split.txt", training)):
            if image not in listed:
                raise ValueError(f"{folder / what} has no line for image {image} ({name}): complete it")
        if training[image] not in sides.values():
            raise ValueError(f"{folder / 'train_test_split.txt'}: image {image} has {training[image]!r}, not 0 or 1")
        if training[image] != sides[split]:
            continue
        if labels[image] not in position:
            raise ValueError(f"{folder / 'image_class_labels.txt'}: image {image} has unknown class {labels[image]}")
        path = folder / "images" / name
        if not path.is_file():
            raise ValueError(f"{path} is listed in images.txt but is not there: copy it, or remove its line")
        paths.append(path)
        targets.append(position[labels[image]])
    if not paths:
        raise ValueError(f"{folder / 'train_test_split.txt'} leaves the {split} side empty")
    return Samples(tuple(paths), tuple(targets), tuple(name.split(".", 1)[-1] for name in classes.values()))


def table(path: Path) -> dict[str, str]:
    """The lines ``id value`` of one of CUB's lists, in file order.

    Raises:
        ValueError: the file is missing, empty or no text; or a line has no value, or an id that is no number, or twice.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: a folder in CUB-200-2011's layout needs it")
    rows: dict[str, str] = {}
    for number, line in enumerate(runtime.read_lines(path), 1):
        if not line.strip():
            continue
        key, _, value = line.strip().partition(" ")
        if not value:
            raise ValueError(f"{path}, line {number}: expected 'id value', found {line!r}")
        if not key.isdecimal():
            raise ValueError(f"{path}, line {number}: the id {key!r} is not a number")
        if key in rows:
            raise ValueError(f"{path}, line {number}: the id {key} has a line before")
        rows[key] = value
    if not rows:
        raise ValueError(f"{path} is empty: copy it again")
    return rows


def discriminative_parts(folder: Path | str, class_a: int, class_b: int) -> set[str]:
    """Names of the parts whose attributes tell two classes apart.

    A part does when one of its attributes differs by more than `MAJORITY` between the classes. Only the attribute files
    are read, so real CUB folders answer too (in CUB's archive `attributes.txt` lies beside the folder).

    Args:
        folder: in CUB's layout.
        class_a: index in [0, K), the place in ``classes.txt``.
        class_b: likewise.

    Raises:
        ValueError: a class has no line of attributes, or one that is damaged.
    """
    folder = Path(folder)
    listing = folder / "attributes" / "attributes.txt"
    beside = folder.parent / "attributes.txt"
    names = list(table(beside if beside.is_file() and not listing.is_file() else listing).values())
    values = folder / "attributes" / "class_attribute_labels_continuous.txt"
    lines = runtime.read_lines(values)
    # The lines are those of CUB's own numbers, also where a folder has only some of the classes.
    numbers = [int(number) for number in table(folder / "classes.txt")]
    if max(numbers) > len(lines) or min(numbers) < 1:
        counted = f"classes.txt counts from {min(numbers)} to {max(numbers)}"
        raise ValueError(f"{folder / 'attributes'} has {len(lines)} classes, but {counted}")
    a, b = (_shares(values, numbers[index], lines[numbers[index] - 1], len(names)) for index in (class_a, class_b))
    differing = [name for name, gap in zip(names, np.abs(a - b)) if gap > MAJORITY]
    return {
        part
        for beginning, parts in ATTRIBUTE_PARTS.items()
        for part in parts
        if any(name.startswith(beginning) for name in differing)
    }


def _shares(path: Path, number: int, line: str, n_attributes: int) -> np.ndarray:
    """A line of percentages, one an attribute."""
    try:
        shares = np.array(line.split(), dtype=float)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}") from error
    if len(shares) != n_attributes or not np.isfinite(shares).all():
        raise ValueError(f"{path}, line {number}: expected {n_attributes} percentages, found {line!r}")
    return shares
