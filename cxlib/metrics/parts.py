"""What tells two classes apart, and where in an image it is: the truth that localisation is measured against.

A folder in CUB-200-2011's layout knows parts in one of two ways. SynthBirds has masks (``parts/masks/``: the number of
the visible part at every pixel). CUB has locations (``parts/part_locs.txt``): a part is then a disc around its
location, whose radius is a share of the diagonal of the bird's bounding box.

Where the folder has class attributes, the region of a pair of classes is made of the parts whose attributes tell them
apart (`cub.discriminative_parts`). Where it has none, it is all the visible parts, for any pair: then a map is measured
on the bird, not on what decides between two birds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cxlib import runtime
from cxlib.datasets import cub
from cxlib.datasets.images import opened, source_pixels
from cxlib.datasets.samples import Samples


@dataclass(frozen=True)
class Parts:
    """The parts of a folder's images.

    Attributes:
        folder: in CUB's layout.
        numbers: number of each part, by name.
        discriminative: whether class attributes say which parts tell two classes apart.
        masks: whether parts are known pixel by pixel, not by location.
        discs: by name in ``images.txt``, each image's rows (number, x, y, radius) of visible parts, in pixels.
    """

    folder: Path
    numbers: dict[str, int]
    discriminative: bool
    masks: bool
    discs: dict[str, np.ndarray]


def are_known(folder: str | Path) -> bool:
    """Whether the folder has parts at all."""
    return (Path(folder) / "parts" / "parts.txt").is_file()


def read(folder: str | Path, disc_radius: float) -> Parts:
    """The parts of a folder in CUB's layout.

    Args:
        folder: in CUB's layout.
        disc_radius: of a part known by its location, as a share of its bounding box's diagonal.

    Raises:
        ValueError: a list of the parts is missing or broken, or the radius is not positive.
    """
    folder = Path(folder)
    if not 0 < disc_radius < np.inf:
        raise ValueError(f"the radius of a part must be a positive share of the bounding box's diagonal: {disc_radius}")
    numbers = {name: int(number) for number, name in cub.table(folder / "parts" / "parts.txt").items()}
    masks = (folder / "parts" / "masks").is_dir()
    discs = {} if masks else _discs(folder, disc_radius)
    attributes = folder / "attributes" / "class_attribute_labels_continuous.txt"
    return Parts(folder, numbers, attributes.is_file(), masks, discs)


def regions(
    parts: Parts, samples: Samples, pairs: Sequence[tuple[int, int]], image_size: int, crop: bool
) -> np.ndarray:
    """(N, S, S) bool: the prepared pixels of each image whose centres lie in a part that tells its pair apart.

    Empty where the two classes do not differ in a part that shows.

    Args:
        parts: of the samples' folder.
        samples: N images of the folder.
        pairs: two class indices an image; their order is of no importance.
        image_size: S, with `crop` the arguments of `images.preprocessing`.
        crop: likewise.

    Raises:
        ValueError: an image has no mask or no location, or its mask cannot be decoded.
    """
    ordered = [(int(min(pair)), int(max(pair))) for pair in pairs]
    telling = {pair: _telling(parts, *pair) for pair in set(ordered)}
    region = np.empty((len(samples), image_size, image_size), dtype=bool)
    for index, (path, pair) in enumerate(zip(samples.paths, ordered, strict=True)):
        name = path.relative_to(parts.folder / "images")
        if parts.masks:
            numbers = _mask(parts.folder / "parts" / "masks" / name.with_suffix(".png"))
            height, width = numbers.shape
            x, y = source_pixels(width, height, image_size, crop)
            # A prepared pixel takes the source pixel that its centre lies in.
            shown = numbers[np.ix_(np.floor(y + 0.5).astype(int), np.floor(x + 0.5).astype(int))]
            region[index] = np.isin(shown, telling[pair])
        else:
            if name.as_posix() not in parts.discs:
                raise ValueError(f"{parts.folder / 'parts' / 'part_locs.txt'} has no line for {name}: complete it")
            with opened(path) as image:
                x, y = source_pixels(*image.size, image_size, crop)
            discs = parts.discs[name.as_posix()]
            told = discs[np.isin(discs[:, 0], telling[pair])]
            centre_x, centre_y, radius = told[:, 1:].T[..., None, None]
            region[index] = ((x - centre_x) ** 2 + (y[:, None] - centre_y) ** 2 <= radius**2).any(0)
    return region


def _telling(parts: Parts, class_a: int, class_b: int) -> list[int]:
    """Numbers of the parts that make the region of two classes."""
    if not parts.discriminative:
        return list(parts.numbers.values())
    names = cub.discriminative_parts(parts.folder, class_a, class_b)
    return [number for name, number in parts.numbers.items() if name in names]


def _discs(folder: Path, share: float) -> dict[str, np.ndarray]:
    """Discs around the visible part locations of every image."""
    path = folder / "parts" / "part_locs.txt"
    if not path.is_file():
        raise ValueError(f"{path} is missing: localisation needs part locations, or masks in {path.parent / 'masks'}")
    images = cub.table(folder / "images.txt")
    boxes = cub.table(folder / "bounding_boxes.txt")
    rows: dict[str, list[tuple[float, ...]]] = {}
    for number, line in enumerate(runtime.read_lines(path), 1):
        try:
            image, part, x, y, visible = line.split()
            disc = int(part), float(x), float(y)
            shown = rows.setdefault(image, [])
            if not np.isfinite(disc).all():
                raise ValueError("a place that is no number")
            if int(visible):
                shown.append(disc)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: expected 'image part x y visible', found {line!r}") from error
    discs = {}
    for image, shown in rows.items():
        if image not in images:
            continue
        try:
            _, _, width, height = map(float, boxes[image].split())
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{folder / 'bounding_boxes.txt'} has no box 'x y width height' of image {image}"
            ) from error
        radius = share * np.hypot(width, height)
        if not np.isfinite(radius):
            raise ValueError(f"{folder / 'bounding_boxes.txt'}: the box of image {image} is {boxes[image]}")
        discs[images[image]] = np.array([(*disc, radius) for disc in shown]).reshape(-1, 4)
    return discs


def _mask(path: Path) -> np.ndarray:
    """(H, W): the number of the part at each pixel."""
    try:
        with Image.open(path) as image:
            numbers = np.asarray(image)
        if numbers.ndim != 2:
            raise OSError(f"{numbers.shape[-1]} channels in place of one")
        return numbers
    except (OSError, SyntaxError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): a folder with parts/masks/ needs one for every image"
        ) from error
