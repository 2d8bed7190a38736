"""Peak memory of every explainer, and memory after many calls: `make bench`.

The peak is what a call takes beyond what is in use before it: on a CPU resident memory, each explainer in a process of
its own, on a GPU what the allocator gave. Two classes under two contrasts for a batch of eight images of 224 pixels,
random weights. After 1 000 calls on a tiny network as much must be in use as after 10.
"""

import gc
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import click
import torch
from _sides import peak, processor, resident, versions
from torch import Tensor, nn

from cxlib import networks, runtime, taps
from cxlib.explainers import EXPLAINERS, OF_TOKENS, ExplanationWarning, explain
from cxlib.explainers.inputs import integrated_gradients, smoothgrad

NAMES = [name for name in EXPLAINERS if name not in OF_TOKENS]
#: Two passes of 16 images: more steps take more time, but no more memory.
SHORT: dict[str, Any] = {
    "integrated_gradients": partial(integrated_gradients, steps=4),
    "smoothgrad": partial(smoothgrad, samples=4),
}
CONTRASTS = ("original", "weighted")
#: MiB that the resident memory of a process may move by without a tensor being kept: 1 KiB a call.
SLACK = 1.0


def peak_of_explainer(network: str, explainer: str, device: str, size: int = 224, n_images: int = 8) -> float:
    """MiB that an explanation takes beyond what is in use."""
    with runtime.seeded(0):
        model, images = networks.build(network).to(device), torch.rand(n_images, 3, size, size, device=device)
    targets = torch.arange(2 * n_images, device=device).view(n_images, 2)
    taps.logits(model, images[:1])  # what the first pass sets up is no explanation's

    def call() -> Tensor:
        with warnings.catch_warnings(action="ignore", category=ExplanationWarning):  # CAMs may coincide here
            return explain(model, images, targets, SHORT.get(explainer, explainer), CONTRASTS)

    if device == "cpu":
        return peak(call)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def after_calls(explainer: str, device: str, counts: tuple[int, int], memory: Callable[[], float]) -> list[float]:
    """What is in use after so many calls on a tiny network."""
    with runtime.seeded(0):
        head = nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 64, 5))
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), *head).eval().to(device)
        images, targets = torch.rand(2, 3, 16, 16, device=device), torch.tensor([[0, 1], [2, 3]], device=device)
    found, done = [], 0
    for count in counts:
        for _ in range(count - done):
            explain(model, images, targets, SHORT.get(explainer, explainer), CONTRASTS)
        done = count
        found.append(memory())
    return found


def in_use_after(explainer: str, device: str, counts: tuple[int, int] = (10, 1000)) -> list[float]:
    """MiB in use after so many calls."""
    return after_calls(explainer, device, counts, resident if device == "cpu" else allocated)


def allocated() -> float:
    """MiB that tensors on the GPU hold."""
    gc.collect()
    return torch.cuda.memory_allocated() / 2**20


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, forked from one that has imported the library only."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cxlib.explainers", "timm"])
    with ProcessPoolExecutor(1, context) as one:
        return one.submit(function, *arguments).result()


@click.command()
@click.option("--networks", "names", default="tf_efficientnet_lite0,resnet18", show_default=True, help="With commas.")
@click.option("--explainers", default=",".join(NAMES), help="With commas.  [default: all]")
def main(names: str, explainers: str) -> None:
    """Print both tables; fail when memory grows with the calls."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    what = f"resident memory; {processor()}" if device == "cpu" else f"allocated; {torch.cuda.get_device_name()}"
    print(f"{versions('torch')}, {torch.get_num_threads()} threads; {what}")
    print(
        f"{'MiB at most, 8 images':22} {' '.join(f'{name:>22}' for name in names.split(','))}   after 10 and 1000 calls"
    )
    grown = []
    for explainer in explainers.split(","):
        peaks = [alone(peak_of_explainer, name, explainer, device) for name in names.split(",")]
        early, late = alone(in_use_after, explainer, device)
        print(f"{explainer:22} {' '.join(f'{mib:22.0f}' for mib in peaks)} {early:16.1f} {late:8.1f}", flush=True)
        grown += [explainer] * (late - early > (SLACK if device == "cpu" else 0))
    if grown:
        raise SystemExit(f"memory grows with the calls of {', '.join(grown)}")


if __name__ == "__main__":
    main()
