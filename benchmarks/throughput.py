"""Images a second of GradCAM and of the perturbation on a GPU, and the paper's hours: `make bench`.

The nine networks of Figures 1 and 2 with random weights, 224 pixels, full float32. The perturbation is the paper's
whole grid: four contrasts, two epsilons, 1, 2 and 10 iterations; its hours are those of ILSVRC2012's 50 000 validation
images, without reading them. Where there is no GPU one line says so.
"""

import time
from collections.abc import Callable

import click
import torch
from _sides import versions
from perturbation import ALL

from cxlib import networks, runtime
from cxlib.explainers import explain
from cxlib.review.perturbation import perturbation_grid

NINE = (
    *("resnet18", "alexnet", "googlenet", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0", "vgg16"),
    *("efficientnet_b1", "densenet161"),
)
N_VALIDATION = 50_000


def rates(name: str, device: torch.device, n_images: int, size: int = 224, runs: int = 3) -> tuple[float, float]:
    """Images a second, the best of some runs: of one class's weighted GradCAM, and of the perturbation's grid."""
    with runtime.seeded(0):
        network = networks.build(name).to(device, memory_format=torch.channels_last)
        images = torch.rand(n_images, 3, size, size).to(device)
    targets = torch.arange(n_images, device=device)
    seconds = (
        best(lambda: explain(network, images, targets), device, runs),
        best(lambda: perturbation_grid(network, images, targets, *ALL), device, runs),
    )
    return n_images / seconds[0], n_images / seconds[1]


def best(call: Callable[[], object], device: torch.device, runs: int) -> float:
    """The shortest time of a call in seconds, after one that sets up what the first needs."""
    found = []
    for _ in range(1 + runs):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


@click.command()
@click.option("--networks", "names", default=",".join(NINE), show_default=True, help="With commas.")
@click.option("--images", "n_images", default=64, show_default=True, help="Images in a batch.")
def main(names: str, n_images: int) -> None:
    """Print images a second and hours."""
    if not torch.cuda.is_available():
        print("throughput: there is no GPU here")
        return
    device, hours = runtime.device("cuda"), 0.0
    print(f"{versions('torch', 'torchvision')}; {torch.cuda.get_device_name()}, {n_images} images at once")
    print(f"{'images/s':22} {'GradCAM':>9} {'perturbation':>13} {'hours of 50 000':>16}")
    for name in names.split(","):
        gradcam, perturbation = rates(name, device, n_images)
        of_paper = N_VALIDATION / perturbation / 3600
        hours += of_paper
        print(f"{name:22} {gradcam:9.0f} {perturbation:13.1f} {of_paper:16.2f}", flush=True)
    print(f"Figures 1 and 2: {hours:.1f} hours")


if __name__ == "__main__":
    main()
