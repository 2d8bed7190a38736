"""ImageNet photographs in one folder a class, named by WordNet id; a subset of the classes is welcome."""

import re
from pathlib import Path

from cxlib import runtime
from cxlib.datasets.samples import Samples

WNID = re.compile(r"n\d{8}")
#: What registered users download, with the md5 of each archive.
DEVKIT, VALIDATION = "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_val.tar"
ARCHIVES = {DEVKIT: "fa75699e90414af021442c21a62c3abf", VALIDATION: "29b22e2961454d5413ddabcf34fc5622"}
SOURCE = "image-net.org (Download, ILSVRC2012, after registration)"
SUFFIXES = {".jpeg", ".jpg", ".png"}


def root(folder: str | Path, split: str = "test") -> Path | None:
    """The folder that holds one side's WordNet ids; None when there is none.

    Test images lie in this folder or in its ``val``, training images in its ``train``.
    """
    folder = Path(folder)
    for candidate in {"train": (folder / "train",), "test": (folder, folder / "val")}[split]:
        if candidate.is_dir() and any(WNID.fullmatch(entry.name) for entry in candidate.iterdir()):
            return candidate
    return None


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder, sorted; a folder may be called `x.jpg` too."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())


def is_unsorted(folder: str | Path) -> bool:
    """Whether the folder holds ILSVRC2012's archives and no class folders."""
    return root(folder) is None and any((Path(folder) / name).is_file() for name in ARCHIVES)


def read(folder: str | Path, split: str = "test") -> Samples:
    """All images of one split, sorted by WordNet id and name, with all 1000 classes; see `root` for where they lie.

    A label is the WordNet id's place among ILSVRC2012's 1000 sorted ones, torchvision's order; the place among
    the folders on disk or the devkit's number would be another class.

    Raises:
        ValueError: no class folders, an unknown WordNet id, or no images; or none to train on.
    """
    runtime.check_name("split", split, ("train", "test"))
    if is_unsorted(folder):
        raise ValueError(f"{folder} holds ILSVRC2012's archives, not sorted: use fetch.ilsvrc2012_validation")
    # Only here: the table of 1000 ids lives in timm, whose import takes seconds.
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    index = {wnid: position for position, wnid in enumerate(info.label_names())}
    base = root(folder, split)
    if base is None and split == "train":
        raise ValueError(f"{folder} has no train/ with folders n01440764, …: its images can be tested, not trained on")
    if base is None:
        raise ValueError(f"{folder} holds no class folders named by WordNet id (n01440764, …), nor does its val/")
    paths, labels = [], []
    for directory in sorted(entry for entry in base.iterdir() if entry.is_dir()):
        if directory.name not in index:
            raise ValueError(f"{directory} is none of ILSVRC2012's 1000 classes: remove it or rename it to its wnid")
        files = image_files(directory)
        paths += files
        labels += [index[directory.name]] * len(files)
    if not paths:
        raise ValueError(f"{base} holds class folders but no images")
    classes = tuple(info.index_to_description(position).split(",")[0] for position in range(len(index)))
    return Samples(tuple(paths), tuple(labels), classes)
