"""Names of a network's classes: where they are written, and which one somebody means."""

import re
from difflib import get_close_matches
from pathlib import Path

from torch import Tensor

from cxlib import networks

#: What stands for the next most probable class.
SECOND = "second"


def is_file(name: str) -> bool:
    """Whether a network, or weights, are named by a file."""
    return name.endswith((".pt", ".pth"))


def class_names(
    model: networks.Network, n_classes: int, network: str, weights: str, folder: str | None, file: str | None
) -> list[str]:
    """The classes' names: from a file, from torchvision, from timm, or their indices.

    Without a file given, `classes.txt` beside the network's or the weights' file, or `<weights>.labels.txt` in
    their folder, is one, if it has the right number of names.

    Raises:
        ValueError: the file has another number of names than the network has classes.
    """
    if file:
        names = read_names(Path(file))
        if len(names) != n_classes:
            raise ValueError(f"{file} names {len(names)} classes, {model.name} tells {n_classes} apart")
        return names
    stem = model.name if weights == "DEFAULT" else weights
    beside = [Path(given).with_name("classes.txt") for given in (network, weights) if is_file(given)]
    if folder:
        beside.append(Path(folder, f"{stem}.labels.txt"))
    for candidate in beside:
        if candidate.is_file() and len(names := read_names(candidate)) == n_classes:
            return names
    published = network == model.name and weights != "random" and networks.published(model.name, weights, folder)
    names = networks.published_classes(model) if published else []
    return names if len(names) == n_classes else [str(index) for index in range(n_classes)]


def read_names(path: Path) -> list[str]:
    """One name a line; numbers that count the lines, and those of CUB's `1 001.Laysan_Albatross`, are left out."""
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if all(re.match(r"\d+ \d+\.\S", line) for line in lines):
        return [line.partition(".")[2] for line in lines]
    for first in (0, 1):
        names = [line.removeprefix(f"{number} ").lstrip() for number, line in enumerate(lines, first)]
        if len(set(names)) == len(lines) and not set(names) & set(lines):
            return names
    return lines


def chosen_classes(logits: Tensor, target: str | None, versus: str | None, classes: list[str]) -> tuple[int, int]:
    """The target and the class beside it: as named, or the most probable.

    Raises:
        ValueError: a name or index is none of the classes, or both are the same.
    """
    order = logits.argsort(descending=True, stable=True).tolist()
    s = None if versus in (None, SECOND) else index_of(str(versus), classes)
    t = next(k for k in order if k != s) if target is None else index_of(target, classes)
    if s is None:
        s = next(k for k in order if k != t)
    if s == t:
        raise ValueError(f"--target and --versus are the same class, {classes[t]}: name another")
    return t, s


def index_of(name: str, classes: list[str]) -> int:
    """The class with this index, this name, or the only one whose name has this part.

    Raises:
        ValueError: there is none, or there are several.
    """
    if name.isdecimal() and name not in classes:
        if int(name) >= len(classes):
            raise ValueError(f"there is no class {name}: the indices go from 0 to {len(classes) - 1}")
        return int(name)
    wanted, spelled = plain(name), [plain(known) for known in classes]
    found = [k for k, known in enumerate(spelled) if known == wanted]
    found = found or [k for k, known in enumerate(spelled) if wanted in known]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(f"{classes[k]} ({k})" for k in found[:5])
        raise ValueError(
            f"{name!r} may be any of {len(found)} classes: {some}{', …' * (len(found) > 5)}; give the index"
        )
    near = ", ".join(classes[spelled.index(word)] for word in get_close_matches(wanted, spelled, n=5, cutoff=0.5))
    raise ValueError(f"no class {name!r}; near it: {near or 'none, see --classes'}")


def plain(name: str) -> str:
    """A class name as people type it."""
    return name.replace("_", " ").strip().lower()
