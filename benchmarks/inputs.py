"""Integrated gradients and SmoothGrad against captum's: `make bench`.

The five most probable classes under four contrasts, at equal bounds of memory: as many images pass the network at once
on both sides. captum explains one number an image, so that it repeats its passes for each of the twenty; cxlib shares
the forward passes, and where `spanned` the backward passes too. SmoothGrad sees the same noise on both sides. Same
numbers first; then the best of runs in turn. Random weights.
"""

from functools import partial

import click
import torch
from _sides import draw_batch_norms, interleaved, peak, processor, versions
from captum.attr import IntegratedGradients, NoiseTunnel, Saliency
from torch import Tensor, nn

from cxlib import networks, runtime, taps
from cxlib.contrasts import cotangent
from cxlib.explainers import explain
from cxlib.explainers.inputs import integrated_gradients, smoothgrad

CONTRASTS, NOISE = ("original", "mean", "max", "weighted"), 0.15
METHODS = ("integrated_gradients", "smoothgrad")
#: Times faster, each of twenty cotangents passed back, and what they span.
FLOORS = {"ours": 1.3, "spanned": 3.0}


def build(name: str, size: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, one image in [0, 1], and its five most probable classes (1, 5)."""
    with runtime.seeded(0):
        network, image = networks.build(name), torch.rand(1, 3, size, size)
        draw_batch_norms(network)
    return network, image, taps.logits(network, image).topk(5).indices


def ours(
    method: str, network: nn.Module, image: Tensor, targets: Tensor, copies: int, at_once: int, spanned: bool
) -> Tensor:
    """Maps (4, 1, 5, H, W), of as many copies of the image as there are steps or samples."""
    explainer = {
        "integrated_gradients": partial(
            integrated_gradients, steps=copies, baseline=0.0, chunk=at_once, spanned=spanned
        ),
        "smoothgrad": partial(smoothgrad, samples=copies, noise=NOISE, chunk=at_once, spanned=spanned),
    }[method]
    return explain(network, image, targets, explainer, CONTRASTS)


def theirs(method: str, network: nn.Module, image: Tensor, targets: Tensor, copies: int, at_once: int) -> Tensor:
    """The same from captum, a cotangent of the clean image's logits at a time."""
    logits, sigma = taps.logits(network, image), NOISE * float(image.max() - image.min())
    maps = []
    for contrast in CONTRASTS:
        for fixed in cotangent(contrast, logits, targets)[0]:

            def score(images: Tensor, fixed: Tensor = fixed) -> Tensor:
                return network(images) @ fixed

            if method == "integrated_gradients":
                found = IntegratedGradients(score).attribute(image, 0.0, n_steps=copies, internal_batch_size=at_once)
            else:
                with torch.random.fork_rng():
                    torch.manual_seed(0)  # draws what `smoothgrad` draws
                    found = NoiseTunnel(Saliency(score)).attribute(
                        image, nt_samples=copies, nt_samples_batch_size=at_once, stdevs=sigma, abs=False
                    )
            maps.append(found.sum(1))
    return torch.stack(maps).detach().view(len(CONTRASTS), 1, targets.shape[1], *image.shape[-2:])


def check(actual: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of its map's largest value; both sides are float32."""
    worst = ((actual - expected).abs().amax((-2, -1)) / expected.abs().amax((-2, -1))).max().item()
    if not worst < 1e-4:
        raise SystemExit(f"the sides differ by {worst:.1e} of a map's largest value")
    return worst


@click.command()
@click.option("--network", default="resnet18", show_default=True)
@click.option("--size", default=128, show_default=True, help="Pixels a side.")
@click.option("--copies", default=16, show_default=True, help="Steps on the way, or noisy samples.")
@click.option("--at-once", default=16, show_default=True, help="Images that pass the network at once.")
@click.option("--runs", default=3, show_default=True, help="Interleaved runs.")
def main(network: str, size: int, copies: int, at_once: int, runs: int) -> None:
    """Print seconds, their ratio and memory; fail when the sides differ or a ratio is below the floor."""
    model, image, targets = build(network, size)
    print(
        f"{network}, {size} pixels, 5 classes x {len(CONTRASTS)} contrasts, {copies} copies, {at_once} at once,"
        f" {torch.get_num_threads()} threads; {versions('torch', 'captum')}; {processor()}"
    )
    print(f"{'what':22} {'side':8} {'s':>6} {'captum s':>9} {'times':>6} {'floor':>6} {'MiB':>11} {'difference':>11}")
    slow = []
    for method in METHODS:
        given = method, model, image, targets, copies, at_once
        sides = {
            "ours": lambda given=given: ours(*given, False),
            "spanned": lambda given=given: ours(*given, True),
            "captum": lambda given=given: theirs(*given),
        }
        results, timings = interleaved(sides, runs)
        best, memory = min(timings["captum"].wall), peak(sides["captum"])
        for side, floor in FLOORS.items():
            difference, seconds = check(results[side], results["captum"]), min(timings[side].wall)
            used = f"{peak(sides[side]):.0f} / {memory:.0f}"
            print(
                f"{method:22} {side:8} {seconds:6.2f} {best:9.2f} {best / seconds:6.1f} {floor:6.1f} {used:>11}"
                f" {difference:11.1e}",
                flush=True,
            )
            slow += [f"{method}, {side}"] * (best / seconds < floor)
    if slow:
        raise SystemExit(f"below the floor: {', '.join(slow)}")


if __name__ == "__main__":
    main()
