"""From a folder to batches of images in [0, 1]."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from cxlib.datasets import classfolders, cub, food101, imagenet
from cxlib.datasets.samples import Samples

Transform = Callable[[Image.Image], Tensor]


def read(folder: str | Path, split: str = "test") -> Samples:
    """The samples of a folder, in the layout of CUB, Food-101, ImageNet or class folders.

    Raises:
        ValueError: none of these layouts is found, or the folder is broken.
    """
    if any((Path(folder) / name).is_file() for name in cub.LISTS):
        return cub.read(folder, split)
    if food101.root(folder) is not None:
        return food101.read(folder, split)
    if imagenet.root(folder) is not None or imagenet.is_unsorted(folder):
        return imagenet.read(folder, split)
    if classfolders.root(folder) is not None:
        return classfolders.read(folder, split)
    raise ValueError(
        f"{folder} is in neither CUB's layout (images.txt) nor Food-101's (meta/) nor ImageNet's (folders n01440764, …)"
        " nor does it hold a folder of images for each class"
    )


def preprocessing(image_size: int, crop: bool) -> Transform:
    """From a PIL image to (3, S, S) in [0, 1].

    With `crop`, as for ImageNet: the short side to 256/224 of the size, then the centre. Without, as the
    review does for CUB: both sides to the size.
    """
    short = image_size * 256 // 224
    resize = (
        [partial(_not_too_long, short), v2.Resize(short), v2.CenterCrop(image_size)]
        if crop
        else [v2.Resize((image_size, image_size))]
    )
    prepare: Transform = v2.Compose([*resize, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    return prepare


def _not_too_long(short: int, image: Image.Image) -> Image.Image:
    """The image; an error where it is so much longer than wide that, resized, it would fill the memory.

    Raises:
        ValueError: it would have more pixels than Pillow opens.
    """
    width, height = image.size
    if Image.MAX_IMAGE_PIXELS and short**2 * max(width, height) > Image.MAX_IMAGE_PIXELS * min(width, height):
        raise ValueError(f"a picture of {width} x {height} pixels is too long to be resized, then cropped: crop it")
    return image


def source_pixels(width: int, height: int, image_size: int, crop: bool) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels of a prepared image lie in its source: x of its columns and y of its rows, (S,) each.

    In pixels of the source of that width and height, whose own centres are whole numbers, from 0; what
    `preprocessing` does to an image, for what is known about it in its own coordinates.
    """
    short, sides = min(width, height), []
    for side in (width, height):
        resized, offset = image_size, 0
        if crop:
            target = image_size * 256 // 224
            resized = target * side // short
            offset = round((resized - image_size) / 2)
        sides.append((offset + np.arange(image_size) + 0.5) * side / resized - 0.5)
    return sides[0], sides[1]


def decode(path: Path) -> Image.Image:
    """One image file of a data set as RGB.

    The pixels stay as they lie in the file, for what is known of them, such as a beak's place, is in their coordinates.

    Raises:
        ValueError: the file cannot be decoded.
    """
    with opened(path) as image:
        return image.convert("RGB")


def as_shown(path: Path) -> Image.Image:
    """One picture of one's own as RGB, as viewers show it: upright as its EXIF says, 16 bits as 8, over white.

    Raises:
        ValueError: the file cannot be decoded, or its pixels have no known range.
    """
    with opened(path) as image:
        picture = ImageOps.exif_transpose(image)
        if picture.mode.startswith("I;16"):
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        if picture.mode in ("I", "F"):
            raise ValueError("it has neither 8 nor 16 bits a channel")
        if picture.has_transparency_data:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        return picture.convert("RGB")


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image file; whatever goes wrong inside is one error that names it."""
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise ValueError(f"{path} cannot be decoded ({' '.join(str(error).split())}): replace it") from error


def load(
    samples: Samples, indices: Sequence[int], transform: Transform, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) in [0, 1] and labels (B,) of some of the samples.

    The images lie on the device, channels last in memory; the labels on the CPU.
    """
    images = torch.stack([transform(decode(samples.paths[index])) for index in indices])
    images = images.to(device, memory_format=torch.channels_last)
    return images, torch.tensor([samples.labels[index] for index in indices])


def choose(candidates: Sequence[int], limit: int, seed: int) -> list[int]:
    """At most `limit` of the candidates (0: all), drawn with a seeded generator, in their own order."""
    if not 0 < limit < len(candidates):
        return list(candidates)
    chosen = np.random.default_rng(seed).choice(len(candidates), limit, replace=False)
    return [candidates[index] for index in sorted(chosen)]
