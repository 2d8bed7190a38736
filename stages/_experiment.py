"""What the experiments share: the images a network sees, how they are chosen, and processes that share the batches."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, SHARE, flag, option, settings
from numpy.typing import ArrayLike
from torch import Tensor, nn

from cxlib import networks, runs, runtime
from cxlib.datasets.images import load, preprocessing
from cxlib.datasets.samples import Samples


def image_options(command: Any) -> Any:
    """The options that say which images a network sees, and how they are prepared: one `images` of params.yaml."""
    for add in (flag("--crop/--no-crop"), option("--image-size", POSITIVE), option("--data")):
        command = add(command)
    return command


def network_options(command: Any) -> Any:
    """The options of an experiment on one trained network and its `images`."""
    return option("--network")(image_options(command))


def selection_options(command: Any) -> Any:
    """The options that choose images on both sides of the threshold of p_2, which the network's --report knows."""
    limits = (option("--max-images-below", COUNT), option("--max-images", COUNT))
    for add in (option("--seed", COUNT), *limits, option("--threshold", SHARE), option("--report")):
        command = add(command)
    return command


def chosen_layer(name: str) -> str | None:
    """The layer that --layer names, as the library takes it: `auto` is the network's own."""
    return None if name == "auto" else name


def explained(network: str, layer: str, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """The network of a file, made fast on the device, and the layer of it that --layer names."""
    model, name = networks.load(network).to(device), chosen_layer(layer)
    quick = networks.fast(model, networks.explanation_layer(model, name))
    return quick, networks.explanation_layer(quick, name)


@dataclass(frozen=True)
class Run:
    """One process of a stage at work.

    Attributes:
        ranks: its place among those that share the batches.
        folder: of unfinished work, see `runs.workplace`.
        machine: what it computes with.
        device: the torch device.
    """

    ranks: runs.Ranks
    folder: Path
    machine: runtime.Machine
    device: torch.device

    def map(
        self, samples: Samples, compute: Callable[..., Mapping[str, Tensor]], chosen: Sequence[int]
    ) -> dict[str, np.ndarray] | None:
        """`runs.map_batches` over the chosen samples, prepared as the command's options say; then one array a name.

        Args:
            samples: of a data set.
            compute: from the indices of a batch, its images (B, 3, H, W) on the device, and its labels (B,) to named
                tensors (B, ...).
            chosen: indices of the samples.

        Returns:
            arrays (images, ...) on rank 0, None on the others.

        Raises:
            ValueError: none is chosen.
        """
        if not chosen:
            raise ValueError("no image is left to explain: choose another threshold, or other images")
        context = click.get_current_context()
        options, machine = context.params, self.machine
        decode = partial(load, samples, transform=preprocessing(options["image_size"], options["crop"]))

        def computed(batch, loaded):
            named = compute(batch, loaded[0].to(self.device), loaded[1])
            return {name: values.cpu().numpy() for name, values in named.items()}

        how = (machine.batch_size, self.ranks, self.folder, f"{_script().stem} {options['network']}", machine.workers)
        parts = runs.map_batches(decode, computed, chosen, *how)
        return parts and {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def write(self, out: str, chosen: Sequence[int], **arrays: Any) -> None:
        """Named arrays, or lists, with which images of which data they are of, and what computed them."""
        data = click.get_current_context().params["data"]
        runtime.write_arrays(out, **arrays, images=chosen, data=data, computed_by=runtime.computed_by(self.device))


@contextmanager
def running(files: Sequence[str | Path], *seen: Samples | ArrayLike) -> Iterator[Run]:
    """The current command at work, its unfinished work in `.resume/<stage>/<fingerprint>`.

    Args:
        files: that its results depend on, beside its options, the code and the device.
        seen: likewise the samples, with their labels, and values that were found out beforehand.
    """
    machine, script = settings(), _script()
    device = runtime.device(machine.device, machine.threads)
    options = click.get_current_context().params
    options = options | {"computed_by": runtime.computed_by(device), "batch": machine.batch_size}
    # Of what lies beside the script that which is executed, as of the package's modules.
    beside = [path for path in sorted(script.parent.glob("_*.py")) if path.stem in sys.modules]
    files = [script, *beside, *files]
    values: list[ArrayLike] = []
    for one in seen:
        files += one.paths if isinstance(one, Samples) else []
        values += [one.labels, one.classes] if isinstance(one, Samples) else [one]
    with runs.joined() as ranks:
        name = ranks.broadcast(None if ranks.rank else runs.fingerprint(options, files, values))
        with runs.workplace(Path(".resume", script.stem, name), ranks) as place:
            yield Run(ranks, place, machine, device)


def write_maps(
    out: str,
    samples: Samples,
    chosen: Sequence[int],
    leading: tuple[np.ndarray, np.ndarray],
    classes: np.ndarray,
    x: Tensor,
    maps: Tensor,
    **axes: Any,
) -> None:
    """Images (B, 3, H, W) and their maps (B, explainers, contrasts, classes, H, W), for pictures of them.

    `leading` are the classes of all samples in order of their probability, and these probabilities: (N, classes) each;
    `classes` are the names of those that the network tells apart.
    """
    pictures, shown = x.permute(0, 2, 3, 1).cpu().numpy(), np.array(samples.classes)
    names, labels = classes[leading[0][chosen]], shown[np.array(samples.labels)[chosen]]
    axes |= {"names": names, "labels": labels, "probabilities": leading[1][chosen]}
    runtime.write_arrays(
        out, images=pictures, maps=maps.cpu().numpy(), **axes, computed_by=runtime.computed_by(x.device)
    )


def _script() -> Path:
    """The script of the current command."""
    return Path(click.get_current_context().command.callback.__code__.co_filename)
