"""Food-101 in its own layout, as torchvision's `Food101` downloads and reads it."""

import json
from pathlib import Path

from cxlib import runtime
from cxlib.datasets.samples import Samples


def root(folder: str | Path) -> Path | None:
    """The folder that holds ``meta/classes.txt``, this one or its ``food-101``; None when there is none."""
    for candidate in (Path(folder), Path(folder) / "food-101"):
        if (candidate / "meta" / "classes.txt").is_file():
            return candidate
    return None


def read(folder: str | Path, split: str = "test") -> Samples:
    """The images of one split (`train` or `test`), in the order of ``meta/<split>.json``.

    Labels are positions in the sorted ``meta/classes.txt``, torchvision's numbers.

    Raises:
        ValueError: a list is missing or broken, an image is not on disk, or the split is empty.
    """
    runtime.check_name("split", split, ("train", "test"))
    base = root(folder)
    if base is None:
        raise ValueError(f"{folder} lacks meta/classes.txt: a folder in Food-101's layout needs it")
    named = base / "meta" / "classes.txt"
    classes = sorted(name for line in runtime.read_lines(named) for name in line.split())
    if len(set(classes)) < len(classes):
        raise ValueError(f"{named} names a class twice: copy it again")
    listing = base / "meta" / f"{split}.json"
    try:
        listed = json.loads(listing.read_text())
        names = [(classes.index(label), name) for label, members in listed.items() for name in members]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{listing} is missing or broken ({error}): copy it again") from error
    paths = [base / "images" / f"{name}.jpg" for _, name in names]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path} is listed in {listing.name} but is not there: copy it")
    if not paths:
        raise ValueError(f"{listing} lists no image")
    return Samples(tuple(paths), tuple(label for label, _ in names), tuple(classes))
