"""What a frozen part of a network makes of its images: computed once, for all that is trained behind it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cxlib import runs
from cxlib.datasets.images import Transform, load
from cxlib.datasets.samples import Samples
from cxlib.networks import Network
from cxlib.training.fine_tune import Kept


@contextmanager
def without(network: Network, name: str) -> Iterator[nn.Module]:
    """Inside, a part of `network.inner` passes its input on; it is given, and back in its place afterwards.

    Raises:
        ValueError: there is no such part.
    """
    try:
        part = network.inner.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"{network.name} has no part {name!r} to freeze: see `cxlib list layers`") from error
    network.inner.set_submodule(name, nn.Identity())
    try:
        yield part
    finally:
        network.inner.set_submodule(name, part)


@contextmanager
def behind(
    network: Network, name: str, image_size: int
) -> Iterator[tuple[Callable[[Tensor], Tensor] | None, nn.Module]]:
    """Inside, a network in eval mode in two: a part that sees the images first, and what lies behind it.

    Given are the part, from images (B, 3, H, W) in [0, 1] to feature maps (B, C, h, w), and the rest, from these to
    logits (B, K). The part `none` is None, and the rest is the whole network.

    Raises:
        ValueError: there is no such part, or another sees images of this size first.
    """
    if name == "none":
        yield None, network
        return

    def forward(images: Tensor) -> Tensor:
        made = part((images - network.mean) / network.std)
        return made[-1] if isinstance(made, list | tuple) else made  # timm's trunks give a list of feature maps

    image = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(network.mean)
    logits = network(image)
    with without(network, name) as part:
        if not _in_two(forward, network.inner, image, logits):
            raise ValueError(
                f"{name} of {network.name} is not the part that sees the images first: freeze that one, or none"
            )
        yield forward, network.inner


def _in_two(forward: Callable[[Tensor], Tensor], rest: nn.Module, image: Tensor, logits: Tensor) -> bool:
    """Whether a part of a network and the rest make the same of an image as the network does."""
    try:
        with torch.no_grad():
            again = rest(forward(image))
    except Exception:  # whatever a part raises that is shown what it is not made for
        return False
    return again.shape == logits.shape and bool((again - logits).abs().max() < 1e-4 * logits.abs().max())


def accuracy(rest: nn.Module, shown: Kept, _n_epochs: int) -> float:
    """The share of the shown feature maps that what lies behind the frozen part gets right."""
    device = next(rest.parameters()).device
    with torch.no_grad():
        right = [
            rest(x.to(device)).argmax(1).cpu() == y for x, y in zip(shown.features.split(64), shown.labels.split(64))
        ]
    return float(torch.cat(right).double().mean())


def features(
    forward: Callable[[Tensor], Tensor],
    samples: Samples,
    transform: Transform,
    device: torch.device,
    batch_size: int,
    ranks: runs.Ranks,
    folder: Path,
    workers: int,
) -> Tensor:
    """What `forward` makes of all samples: (N, ...) on the CPU, on every rank; see `runs.map_batches`."""

    def compute(_batch: Sequence[int], loaded: tuple[Tensor, Tensor]) -> runs.Part:
        with torch.no_grad():
            images = loaded[0].to(device, memory_format=torch.channels_last)
            return {"features": forward(images).cpu().contiguous().numpy()}

    read = partial(load, samples, transform=transform)
    parts = runs.map_batches(read, compute, range(len(samples)), batch_size, ranks, folder, folder.name, workers)
    return torch.from_numpy(ranks.broadcast(parts and np.concatenate([part["features"] for part in parts])))
