"""The perturbation grid against a literal loop over its settings, with random weights at 224 x 224: `make bench`.

The literal loop treats every contrast, epsilon and number of iterations on its own: its own unperturbed evaluation,
and at each step a loss whose `backward()` also computes the parameters' gradients. Both sides must give the same
numbers first.
"""

import time
from collections.abc import Sequence
from itertools import product

import click
import torch
from _sides import interleaved, own_peak, peak_of, ratios
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cxlib import networks
from cxlib.review.perturbation import perturbation_grid, sign_agreement

CONTRASTS, EPSILONS, N_ITERATIONS = ("original", "mean", "max", "weighted"), (1e-3, 3e-3), (1, 2, 10)
Settings = tuple[Sequence[str], Sequence[float], Sequence[int]]
ALL: Settings = (CONTRASTS, EPSILONS, N_ITERATIONS)
#: Enough to reach the peak of memory.
FEW: Settings = (CONTRASTS, EPSILONS, (2,))
#: Network to floor of the ratio.
FLOORS = {"resnet18": 2.0, "squeezenet1_0": 2.0, "alexnet": 2.0, "vgg16": 2.0, "mobilenet_v3_small": 3.0}


def loss_of(contrast: str, y: Tensor, t: int) -> Tensor:
    """What is maximised for one image; its gradient on the logits y (K,) is the contrast's cotangent."""
    others = torch.cat([y[:t], y[t + 1 :]])
    if contrast == "original":
        return y[t]
    if contrast == "mean":
        return y[t] - others.mean()
    if contrast == "max":
        return y[t] - others.max()
    return y[t] - others.detach().softmax(0) @ others


def values(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Correctness, p_t and y_t: (3, B)."""
    with torch.no_grad():
        y = network(images).double()
    rows = torch.arange(len(y))
    return torch.stack([(y.argmax(1) == targets).double(), y.softmax(1)[rows, targets], y[rows, targets]])


def literal(network: nn.Module, images: Tensor, targets: Tensor, settings: Settings = ALL) -> Tensor:
    """Changes (settings, 3, B), a setting at a time."""
    changes = []
    for contrast, epsilon, n in product(*settings):
        before, x = values(network, images, targets), images.clone()
        for _ in range(n):
            x = x.detach().requires_grad_()
            network.zero_grad()
            logits = network(x)
            torch.stack([loss_of(contrast, y, t) for y, t in zip(logits, targets.tolist())]).sum().backward()
            x = x.detach() + epsilon / n * x.grad.sign()
            x = torch.min(torch.max(x, (images - epsilon).clamp(min=0)), (images + epsilon).clamp(max=1))
        changes.append(values(network, x, targets) - before)
    return torch.stack(changes)


def ours(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    settings: Settings = ALL,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """The same from cxlib."""
    grid = perturbation_grid(network, images, targets, *settings, precision=precision)
    return torch.stack([torch.stack(change).cpu() for change in grid.values()])


def build(name: str, n_images: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with parameters that want gradients, images, and targets that it half believes in."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.build(name).requires_grad_()
        images = nn.functional.interpolate(torch.rand(n_images, 3, 28, 28), (224, 224), mode="bilinear")
        with torch.no_grad():
            targets = network(images).topk(2).indices[torch.arange(n_images), torch.arange(n_images) % 2]
    return network, images, targets


def check(actual: Tensor, expected: Tensor) -> str:
    """Both sides agree: accuracy exactly, the rest relative to the largest change of the quantity."""
    if not torch.equal(actual[:, 0], expected[:, 0]):
        raise SystemExit("the sides differ in accuracy")
    worst = ((actual - expected).abs().amax((0, 2)) / expected.abs().amax((0, 2)))[1:]
    if (worst > torch.tensor([1e-2, 1e-2])).any():
        raise SystemExit(f"the sides differ by {worst.tolist()} of the largest change of p_t, y_t")
    return f"accuracy equal, p_t within {worst[0]:.1e}, y_t within {worst[1]:.1e} of the largest change"


def convolution_rate() -> float:
    """Floating-point operations a second of the best of some convolutions, forward."""
    best = 0.0
    for channels, size in ((64, 56), (128, 28), (256, 14)):
        layer = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)
        x = torch.rand(8, channels, size, size).to(memory_format=torch.channels_last)
        work = 2 * 9 * channels**2 * size**2 * len(x)
        with torch.no_grad():
            for _ in range(12):
                start = time.perf_counter()
                layer(x)
                best = max(best, work / (time.perf_counter() - start))
    return best


@click.command()
@click.option("--networks", "names", default=",".join(FLOORS), show_default=True, help="With commas.")
@click.option("--images", "n_images", default=4, show_default=True, help="Images in the batch; half of it for vgg16.")
@click.option("--runs", default=3, show_default=True, help="Interleaved runs.")
@click.option("--bfloat16", is_flag=True, help="Also find directions in bfloat16, and say what that changes.")
@click.option("--memory-of", hidden=True)
def main(names: str, n_images: int, runs: int, bfloat16: bool, memory_of: str | None) -> None:
    """Print images/s, their ratio and peak memory; fail when the sides differ or a ratio is below its floor."""
    if memory_of:
        network, images, targets = build(names, n_images)
        if memory_of == "literal":
            literal(network, images, targets, FEW)
        else:
            ours(network, images, targets, FEW)
        print(own_peak())
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(CONTRASTS) * 6} settings, float32")
    below = []
    for name in names.split(","):
        batch = max(1, n_images // 2) if name == "vgg16" else n_images
        network, images, targets = build(name, batch)
        sides = {
            "literal": lambda *a, n=network, x=images, t=targets: literal(n, x, t),
            "cxlib": lambda *a, n=network, x=images, t=targets: ours(n, x, t),
        }
        results, timings = interleaved(sides, runs)
        with FlopCounterMode(display=False) as counter:
            sides["cxlib"]()
        wall, processor = ratios(timings["literal"], timings["cxlib"])
        print(f"{name}, {batch} images: {check(results['cxlib'], results['literal'])}")
        for side, timing in timings.items():
            memory = peak_of(__file__, "--networks", name, "--images", str(batch), "--memory-of", side)
            spread = ", ".join(f"{batch / seconds:.3f}" for seconds in timing.wall)
            print(f"  {side:8} images/s {spread}; peak memory {memory:.2f} GiB")
        share = counter.get_total_flops() / min(timings["cxlib"].wall) / convolution_rate()
        print(f"  ratio {wall:.2f} ({processor:.2f} in processor time), floor {FLOORS.get(name, 1)}", end="; ")
        print(f"cxlib runs at {share:.0%} of this machine's convolution rate")
        if bfloat16:
            coarse = ours(network, images, targets, precision=torch.bfloat16)
            agreement = sign_agreement(network, images, targets, CONTRASTS, torch.bfloat16).mean()
            change = (coarse - results["cxlib"]).abs().mean((0, 2)) / results["cxlib"].abs().mean((0, 2))
            moved = ", ".join(f"{name} by {part:.1%}" for name, part in zip(("p_t", "y_t"), change[1:].tolist()))
            print(f"  bfloat16: {agreement:.1%} of signs agree; mean change of {moved}")
        if max(wall, processor) < FLOORS.get(name, 1):
            below.append(name)
    if below:
        raise SystemExit(f"below the floor: {', '.join(below)}")


if __name__ == "__main__":
    main()
