"""Images in one folder a class, as torchvision's `ImageFolder` reads them: a folder, or its ``train`` and ``test``."""

from itertools import permutations
from pathlib import Path

from cxlib import runtime
from cxlib.datasets.imagenet import image_files
from cxlib.datasets.samples import Samples


def root(folder: str | Path) -> Path | None:
    """The folder of the test images' class folders, ``test`` or this one; None when there is none."""
    for candidate in (Path(folder) / "test", Path(folder)):
        if candidate.is_dir() and len(_classes(candidate)) > 1:
            return candidate
    return None


def read(folder: str | Path, split: str = "test") -> Samples:
    """All images of one split, sorted by class and name; labels are the class folders' places when sorted.

    A folder without ``train`` holds test images only.

    Raises:
        ValueError: there are fewer than two class folders with images, or none to train on; or the two sides have
            other classes, so that a class would have another label on each.
    """
    runtime.check_name("split", split, ("train", "test"))
    base = root(folder)
    if base is None:
        raise ValueError(f"{folder} holds no class folders with images")
    sides = {"test": _classes(base)}
    # Where there is no ``test``, ``train`` may be a class.
    if base != Path(folder) and (training := Path(folder) / "train").is_dir():
        sides["train"] = _classes(training)
    if split not in sides:
        raise ValueError(f"{folder} has no train/ beside a test/: its images can be tested, not trained on")
    for side, other in permutations(sides, 2):
        if lacking := next((name for name in sides[other] if name not in sides[side]), None):
            raise ValueError(f"{Path(folder, side)} has no images of {lacking}, which {other}/ has: complete it")
    found = sides[split]
    paths = [path for files in found.values() for path in files]
    labels = [label for label, files in enumerate(found.values()) for _ in files]
    return Samples(tuple(paths), tuple(labels), tuple(found))


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The image files of each sub-folder that has any, both sorted."""
    found = {}
    for directory in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        if files := image_files(directory):
            found[directory.name] = files
    return found
