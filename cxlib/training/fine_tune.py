"""Fine-tuning, as the review trains VGG-16-BN on CUB-200-2011, for any network and any folder of images."""

import copy
import io
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from cxlib import runtime
from cxlib.datasets.images import Transform, decode, load
from cxlib.datasets.samples import Samples
from cxlib.runs import Part, Ranks, map_batches, prefetched
from cxlib.training.whole_batch import WholeBatch

# What is drawn, each from streams of its own.
AUGMENTATION, DROPOUT = range(2)


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: passes over the training images; 0 takes the weights as they are.
        batch_size: images a step, those of all ranks together.
        optimiser: a name in `OPTIMISERS`.
        learning_rate, momentum, weight_decay: the optimiser's.
        schedule: a name in `SCHEDULES`.
        clip: a gradient of a larger norm is scaled down to this one; 0 scales none.
        augmentation: a name in `AUGMENTATIONS`.
        batch_norm: a name in `BATCH_NORM`.
        precision: a name in `runtime.PRECISIONS`, of the forward pass on a GPU; a CPU computes in float32.
    """

    epochs: int
    batch_size: int
    optimiser: str
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str
    clip: float
    augmentation: str
    batch_norm: str
    precision: str


class Epoch(NamedTuple):
    """A finished epoch: the mean training loss of its images, and what was measured on its network."""

    loss: float
    measured: float | None


def sgd(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum, as published."""
    rate, momentum, decay = recipe.learning_rate, recipe.momentum, recipe.weight_decay
    return torch.optim.SGD(parameters, lr=rate, momentum=momentum, weight_decay=decay)


def adamw(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW, for transformers; the momentum is its first beta."""
    betas = (recipe.momentum, 0.999)
    return torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=betas, weight_decay=recipe.weight_decay)


OPTIMISERS: dict[str, Callable[[list[nn.Parameter], Recipe], torch.optim.Optimizer]] = {"sgd": sgd, "adamw": adamw}


def published(image_size: int) -> list[v2.Transform]:
    """The review's augmentation, with its settings and in its order."""
    return [
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.RandomRotation(30),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1),
        v2.RandomAffine(degrees=0, translate=(0.1, 0.1)),
        v2.RandomResizedCrop((image_size, image_size), scale=(0.7, 1.0), ratio=(0.75, 4 / 3)),
        v2.RandomPerspective(distortion_scale=0.2, p=0.5, interpolation=v2.InterpolationMode.BICUBIC),
        v2.RandomGrayscale(p=0.2),
        v2.RandomApply([v2.GaussianBlur(3, sigma=(0.1, 2.0))], p=0.2),
    ]


def light(image_size: int) -> list[v2.Transform]:
    """Resized crop and horizontal flip: enough for a short training, and cheap."""
    return [
        v2.RandomResizedCrop((image_size, image_size), scale=(0.6, 1.0), ratio=(0.9, 1.1)),
        v2.RandomHorizontalFlip(),
    ]


def none(image_size: int) -> list[v2.Transform]:
    """The images as they are tested without a crop: the same in every epoch."""
    return [v2.Resize((image_size, image_size))]


AUGMENTATIONS: dict[str, Callable[[int], list[v2.Transform]]] = {"published": published, "light": light, "none": none}


def constant(_done: float) -> float:
    """The published schedule: none."""
    return 1.0


def one_cycle(done: float) -> float:
    """Up during the first quarter of the steps, then down to zero along a cosine."""
    return done / 0.25 if done < 0.25 else 0.5 * (1 + np.cos(np.pi * (done - 0.25) / 0.75))


def warm_up(done: float) -> float:
    """Up during the first tenth of the steps, then constant (Goyal et al., arXiv:1706.02677)."""
    return min(1.0, done / 0.1)


#: From the share of steps done, in (0, 1], to the factor on the learning rate.
SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "warm_up": warm_up, "one_cycle": one_cycle}


def learned(_network: nn.Module) -> None:
    """Batch norm learns, with each architecture's own momentum."""


def fast(network: nn.Module) -> None:
    """Batch norm learns with momentum 0.1, for trainings too short for the slower ones of the mobile networks."""
    for module in _batch_norms(network):
        module.momentum = 0.1  # type: ignore[assignment]


def frozen(network: nn.Module) -> None:
    """Batch norm keeps its statistics, for weights whose statistics are not those of the activations."""
    for module in _batch_norms(network):
        module.eval()


BATCH_NORM: dict[str, Callable[[nn.Module], None]] = {"learned": learned, "fast": fast, "frozen": frozen}


def fine_tune(
    network: nn.Module,
    source: "Source",
    recipe: Recipe,
    workers: int,
    seed: int,
    measure: Callable[[int], float | None] = lambda _n_epochs: None,
    ranks: Ranks = Ranks(),  # noqa: B008
    folder: Path | None = None,
    every: float = 60.0,
) -> Iterator[Epoch]:
    """Train a network in place; yields each epoch as it ends, those of an interrupted run first.

    The order of the images and every draw are functions of (seed, epoch, image or step), so that neither the number
    of workers nor an interruption changes a weight. Ranks share each batch: the gradient is the whole batch's, and so
    are the statistics of batch norm and the masks of dropout (`training.whole_batch`), which leaves the order of float
    sums as the only difference. Between epochs, and at the end, the network is in eval mode.

    Args:
        network: on its device; the same on all ranks.
        source: the training images, `Augmented`; or what a frozen part made of them, `Kept`.
        recipe: how to train.
        workers: processes that load images, of each rank.
        seed: of every draw.
        measure: called on all ranks after each epoch, with the number of epochs done; rank 0's value is kept.
        ranks: the processes that share the batches.
        folder: where the training is kept as `checkpoint.pt`, and is taken up again, unless the file is damaged; None
            keeps nothing.
        every: seconds between two checkpoints within an epoch; there is one after each epoch's measure.

    Raises:
        ValueError: an unknown name in the recipe.
        FloatingPointError: the loss is no longer finite; the last checkpoint, if there is one, stays.
    """
    runtime.check_name("schedule", recipe.schedule, SCHEDULES)
    runtime.check_name("optimiser", recipe.optimiser, OPTIMISERS)
    runtime.check_name("batch norm", recipe.batch_norm, BATCH_NORM)
    runtime.check_name("precision", recipe.precision, runtime.PRECISIONS)
    n_samples = len(source)
    if n_samples < 2:
        raise ValueError(f"training needs at least two images, there are {n_samples}")
    device = next(network.parameters()).device
    parameters = list(network.requires_grad_().parameters())
    optimiser = OPTIMISERS[recipe.optimiser](parameters, recipe)
    # A batch of one image has no statistics to normalise by.
    n_batches = n_samples // recipe.batch_size + (n_samples % recipe.batch_size > 1)
    reduced = torch.autocast(
        device.type, getattr(torch, recipe.precision), recipe.precision != "float32" and device.type == "cuda"
    )
    checkpoint = _Checkpoint(folder, network, optimiser, ranks, every)
    epochs, step, total = checkpoint.restore()
    yield from epochs
    for epoch in range(len(epochs), recipe.epochs):
        network.train()
        BATCH_NORM[recipe.batch_norm](network)
        order = _epoch_order(n_samples, recipe.batch_size, seed, epoch)[:n_batches]
        mine = [batch[ranks.rank :: ranks.size] for batch in order[step:]]
        loaded = prefetched(source.load, mine, workers)
        bar = runtime.progress(loaded, f"epoch {epoch + 1}/{recipe.epochs}", "batch", len(mine), ranks.rank == 0)
        for images, labels in bar:
            done = (epoch * n_batches + step + 1) / (recipe.epochs * n_batches)
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * float(SCHEDULES[recipe.schedule](done))
            n_images = len(order[step])
            images = images.to(device, memory_format=torch.channels_last)
            # Dropout draws from torch's random state.
            with runtime.seeded(seed, DROPOUT, epoch, step, device=device), reduced, WholeBatch(n_images, ranks):
                loss = F.cross_entropy(network(images), labels.to(device), reduction="sum") / n_images
            optimiser.zero_grad()
            loss.backward()
            loss = loss.detach()
            ranks.add([loss, *(parameter.grad for parameter in parameters if parameter.grad is not None)])
            value = loss.item()
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"the training loss is {value} in epoch {epoch + 1}: lower the learning rate"
                    f" ({recipe.learning_rate}), clip the gradient or train from other weights{checkpoint.kept()}"
                )
            checkpoint.write()
            if recipe.clip:
                nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimiser.step()
            step, total = step + 1, total + value * n_images
            if checkpoint.due():
                checkpoint.take(epochs, step, total)
        network.eval()
        try:
            epochs.append(Epoch(total / sum(len(batch) for batch in order), measure(epoch + 1)))
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}{checkpoint.kept()}") from error
        step, total = 0, 0.0
        checkpoint.take(epochs, step, total)
        if epochs[-1].measured is not None:
            checkpoint.write()
        yield epochs[-1]
    network.requires_grad_(False).eval()


def predict(network: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """Softmax probabilities (N, K) float64 on the CPU, of batches of images (B, 3, H, W) in [0, 1].

    Raises:
        FloatingPointError: they are not finite, for the last step of a training may have diverged.
    """
    device = next(network.parameters()).device
    with torch.no_grad():
        probabilities = torch.cat([network(images.to(device)).double().softmax(-1).cpu() for images in batches])
    if not bool(probabilities.isfinite().all()):
        raise FloatingPointError("the network's outputs are not finite: lower the learning rate of its training")
    return probabilities


def test(
    network: nn.Module,
    samples: Samples,
    transform: Transform,
    batch_size: int,
    ranks: Ranks,
    folder: Path,
    workers: int,
    n_epochs: int,
) -> np.ndarray | None:
    """Softmax probabilities (N, K) float64 of the samples on rank 0, None on the others; see `runs.map_batches`.

    They stay in the folder until they are asked for after one more epoch.
    """
    device = next(network.parameters()).device

    def compute(_batch: Sequence[int], loaded: tuple[Tensor, Tensor]) -> Part:
        images = loaded[0].to(device, memory_format=torch.channels_last)
        return {"probabilities": predict(network, [images]).numpy()}

    place = folder / f"test_{n_epochs}"
    read = partial(load, samples, transform=transform)
    parts = map_batches(read, compute, range(len(samples)), batch_size, ranks, place, "test", workers)
    if parts is None:
        return None
    shutil.rmtree(folder / f"test_{n_epochs - 1}", ignore_errors=True)
    return np.concatenate([part["probabilities"] for part in parts])


class _Checkpoint:
    """Where a training stands, in one file: written by rank 0, the same for all ranks.

    What is taken is written only once a later loss, or the test of an epoch, has shown that the weights are good:
    finite ones may be ruined all the same.
    """

    def __init__(
        self, folder: Path | None, network: nn.Module, optimiser: torch.optim.Optimizer, ranks: Ranks, every: float
    ):
        self.path = folder / "checkpoint.pt" if folder else None
        self.network, self.optimiser, self.ranks, self.every = network, optimiser, ranks, every
        self.taken: dict[str, Any] | None = None
        self.stands, self.time = "", time.monotonic()

    def restore(self) -> tuple[list[Epoch], int, float]:
        """Finished epochs, steps of the next one and the sum of their losses, after loading weights and momenta."""
        content = self.ranks.broadcast(self._read() if self.ranks.rank == 0 else None)
        if content is None:
            return [], 0, 0.0
        self.network.load_state_dict(content["network"])
        self.optimiser.load_state_dict(content["optimiser"])
        self._remember(content)
        return [Epoch(*epoch) for epoch in content["epochs"]], content["step"], content["total"]

    def due(self) -> bool:
        """Whether the last checkpoint is old enough."""
        return time.monotonic() - self.time >= self.every

    def take(self, epochs: list[Epoch], step: int, total: float) -> None:
        """Copy the present state, for `write`."""
        if self.path is None or self.ranks.rank:
            return
        state = {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}
        self.taken = copy.deepcopy(state | {"epochs": [tuple(epoch) for epoch in epochs], "step": step, "total": total})

    def write(self) -> None:
        """Replace the file by what was taken, if anything was."""
        if self.path is None or self.taken is None:
            return
        # Through a buffer: of a full disk torch.save would say that a position is unexpected.
        buffer = io.BytesIO()
        torch.save(self.taken, buffer)
        with runtime.atomic(self.path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
        self._remember(self.taken)
        self.taken = None

    def kept(self) -> str:
        """The end of an error's sentence: what remains, and where."""
        return f"; {self.stands} is kept in {self.path}" if self.stands else ""

    def _remember(self, content: dict[str, Any]) -> None:
        self.stands = f"the state after {len(content['epochs'])} epochs and {content['step']} steps"
        self.time = time.monotonic()

    def _read(self) -> dict[str, Any] | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:  # torch.load raises many kinds for a damaged file
            return None


class Source(Protocol):
    """What is trained on: a number of images with labels, of which a training asks for (epoch, index)."""

    def __len__(self) -> int:
        """How many images there are."""

    def load(self, items: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) of a share of a batch, which may have none."""


class Kept:
    """What a frozen part of a network made of the training images, the same in every epoch."""

    def __init__(self, features: Tensor, labels: Sequence[int]):
        self.features, self.labels = features, torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, items: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Features (B, C, h, w) and labels (B,)."""
        chosen = [index for _, index in items]
        return self.features[chosen], self.labels[chosen]


class Augmented:
    """Augmented training images; image (epoch, index) is the same whoever asks for it.

    Raises:
        ValueError: an unknown augmentation.
    """

    def __init__(self, samples: Samples, augmentation: str, image_size: int, seed: int):
        runtime.check_name("augmentation", augmentation, AUGMENTATIONS)
        self.samples, self.image_size, self.seed = samples, image_size, seed
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        self.transform: Transform = v2.Compose([*AUGMENTATIONS[augmentation](image_size), *to_tensor])

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, items: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Images and labels of a share of a batch, which has none when there are more ranks than images."""
        images = [torch.empty(0, 3, self.image_size, self.image_size)]
        for epoch, index in items:
            image = decode(self.samples.paths[index])
            with runtime.seeded(self.seed, AUGMENTATION, epoch, index):
                images.append(self.transform(image)[None])
        return torch.cat(images), torch.tensor([self.samples.labels[index] for _, index in items], dtype=torch.int64)


def _epoch_order(n_samples: int, batch_size: int, seed: int, epoch: int) -> list[list[tuple[int, int]]]:
    """Batches of (epoch, index), shuffled by (seed, epoch)."""
    order = np.random.default_rng([seed, epoch]).permutation(n_samples)
    return [
        [(epoch, int(index)) for index in order[start : start + batch_size]]
        for start in range(0, n_samples, batch_size)
    ]


def _batch_norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
