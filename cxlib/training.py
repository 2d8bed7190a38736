"""Fine-tuning, as the review trains VGG-16-BN on CUB-200-2011, for any network and any folder of images."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from cxlib import runtime
from cxlib.datasets.images import Transform, decode
from cxlib.datasets.samples import Samples


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: passes over the training images; 0 takes the weights as they are.
        batch_size: images a step.
        learning_rate, momentum, weight_decay: of SGD.
        schedule: a name in `SCHEDULES`.
        augmentation: a name in `AUGMENTATIONS`.
        batch_norm: a name in `BATCH_NORM`.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str
    augmentation: str
    batch_norm: str


def published(image_size: int) -> list[v2.Transform]:
    """The review's augmentation, with its settings and in its order."""
    return [
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.RandomRotation(30),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1),
        v2.RandomAffine(degrees=0, translate=(0.1, 0.1)),
        v2.RandomResizedCrop((image_size, image_size), scale=(0.7, 1.0), ratio=(0.75, 4 / 3)),
        v2.RandomPerspective(distortion_scale=0.2, p=0.5),
        v2.RandomGrayscale(p=0.2),
        v2.RandomApply([v2.GaussianBlur(3, sigma=(0.1, 2.0))], p=0.2),
    ]


def light(image_size: int) -> list[v2.Transform]:
    """Resized crop and horizontal flip: enough for a short training, and cheap."""
    return [
        v2.RandomResizedCrop((image_size, image_size), scale=(0.6, 1.0), ratio=(0.9, 1.1)),
        v2.RandomHorizontalFlip(),
    ]


AUGMENTATIONS: dict[str, Callable[[int], list[v2.Transform]]] = {"published": published, "light": light}


def constant(_done: float) -> float:
    """The published schedule: none."""
    return 1.0


def one_cycle(done: float) -> float:
    """Up during the first quarter of the steps, then down to zero along a cosine."""
    return done / 0.25 if done < 0.25 else 0.5 * (1 + np.cos(np.pi * (done - 0.25) / 0.75))


#: From the share of steps done, in (0, 1], to the factor on the learning rate.
SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "one_cycle": one_cycle}


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
    network: nn.Module, samples: Samples, recipe: Recipe, image_size: int, workers: int, seed: int
) -> Iterator[float]:
    """Train a network in place; yields the mean training loss of each epoch as it ends.

    The order of the images and every augmentation are functions of (seed, epoch, image), whatever the number of
    workers. After each epoch, and at the end, the network is in eval mode.

    Raises:
        ValueError: an unknown name in the recipe.
        FloatingPointError: the loss is no longer finite.
    """
    runtime.check_name("schedule", recipe.schedule, SCHEDULES)
    runtime.check_name("augmentation", recipe.augmentation, AUGMENTATIONS)
    runtime.check_name("batch norm", recipe.batch_norm, BATCH_NORM)
    if len(samples) < 2:
        raise ValueError(f"training needs at least two images, there are {len(samples)}")
    device = next(network.parameters()).device
    parameters = list(network.requires_grad_().parameters())
    optimiser = torch.optim.SGD(
        parameters, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    augmented = _Augmented(samples, recipe.augmentation, image_size, seed)
    # A batch of one image has no statistics to normalise by.
    n_batches = len(samples) // recipe.batch_size + (len(samples) % recipe.batch_size > 1)
    step, n_steps = 0, n_batches * recipe.epochs
    for epoch in range(recipe.epochs):
        network.train()
        BATCH_NORM[recipe.batch_norm](network)
        order = _epoch_order(len(samples), recipe.batch_size, seed, epoch)[:n_batches]
        loader = DataLoader(augmented, batch_sampler=order, num_workers=workers, pin_memory=device.type == "cuda")
        batches = _loaded(loader)
        total = 0.0
        # Dropout draws from torch's random state.
        with runtime.seeded(seed, epoch):
            for images, labels in runtime.progress(batches, f"epoch {epoch + 1}/{recipe.epochs}", "batch", n_batches):
                step += 1
                for group in optimiser.param_groups:
                    group["lr"] = recipe.learning_rate * SCHEDULES[recipe.schedule](step / n_steps)
                images = images.to(device, memory_format=torch.channels_last)
                loss = F.cross_entropy(network(images), labels.to(device))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                value = loss.item()
                if not np.isfinite(value):
                    raise FloatingPointError(
                        f"the training loss is {value} in epoch {epoch + 1}: lower the learning rate"
                        f" ({recipe.learning_rate}) or train from other weights"
                    )
                total += value * len(labels)
        network.eval()
        yield total / sum(len(batch) for batch in order)
    network.requires_grad_(False).eval()


def _loaded(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's batches; what a worker complains of keeps its one line, without the worker's traceback."""
    try:
        yield from loader
    except ValueError as error:
        raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from error


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


class _Augmented(Dataset):
    """Augmented training images; item (epoch, index) is the same whoever asks for it."""

    def __init__(self, samples: Samples, augmentation: str, image_size: int, seed: int):
        self.samples, self.seed = samples, seed
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        self.transform: Transform = v2.Compose([*AUGMENTATIONS[augmentation](image_size), *to_tensor])

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = item
        image = decode(self.samples.paths[index])
        with runtime.seeded(self.seed, epoch, index):
            return self.transform(image), self.samples.labels[index]


def _epoch_order(n_samples: int, batch_size: int, seed: int, epoch: int) -> list[list[tuple[int, int]]]:
    """Batches of (epoch, index), shuffled by (seed, epoch)."""
    order = np.random.default_rng([seed, epoch]).permutation(n_samples)
    return [
        [(epoch, int(index)) for index in order[start : start + batch_size]]
        for start in range(0, n_samples, batch_size)
    ]


def _batch_norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
