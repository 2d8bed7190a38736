"""Images in one folder a class, as torchvision's `ImageFolder` reads them: a folder, or its ``train`` and ``test``."""

from pathlib import Path

from cxlib import runtime
from cxlib.datasets.imagenet import SUFFIXES
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
        ValueError: there are fewer than two class folders with images, or none to train on.
    """
    runtime.check_name("split", split, ("train", "test"))
    base = root(folder)
    if base is None:
        raise ValueError(f"{folder} holds no class folders with images")
    if split == "train":
        base = Path(folder) / "train"
        if not base.is_dir():
            raise ValueError(f"{folder} has no folder train/: its images can be tested (0 epochs), not trained on")
    found = _classes(base)
    paths = [path for files in found.values() for path in files]
    labels = [label for label, files in enumerate(found.values()) for _ in files]
    return Samples(tuple(paths), tuple(labels), tuple(found))


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The image files of each sub-folder that has any, both sorted."""
    found = {}
    for directory in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        if files := sorted(file for file in directory.iterdir() if file.suffix.lower() in SUFFIXES):
            found[directory.name] = files
    return found
