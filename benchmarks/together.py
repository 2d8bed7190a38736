"""Eight explainers in shared passes against one after the other: `python benchmarks/together.py [NETWORK [RUNS]]`.

Original, max and weighted maps of the two most probable classes, as the leaderboard and the repainting ask for them;
the same maps first. Random weights, a batch of 8 at 144 pixels; threads as OMP_NUM_THREADS says.
"""

import sys

import torch
from _sides import draw_batch_norms, interleaved, peak, processor, ratios, versions
from torch import Tensor, nn

from cxlib import networks, runtime
from cxlib.explainers import cam, explain
from cxlib.explainers.together import explain_together

EXPLAINERS = (
    *("gradient", "input_x_gradient", "linear_approximation", "gradcam", "xgradcam"),
    *("layercam", "fullgrad", "lrp"),
)
CONTRASTS = ("original", "max", "weighted")


def main() -> None:
    """Compare, time and print."""
    name, runs = [*sys.argv[1:], *["tf_efficientnet_lite0", "5"][len(sys.argv) - 1 :]]
    runtime.device("cpu")  # as in the pipeline freed memory is kept
    print(f"{name}, {torch.get_num_threads()} threads; {versions('torch')}; {processor()}", flush=True)
    given = build(name, 8, 144)
    sides = {"together": lambda: ours(*given), "apart": lambda: apart(*given)}
    results, timings = interleaved(sides, int(runs))
    difference = check(results["together"], results["apart"])
    clock, busy = ratios(timings["apart"], timings["together"])
    seconds = {side: min(timing.wall) for side, timing in timings.items()}
    memory = ", ".join(f"{peak(side):.0f}" for side in sides.values())
    print(f"{seconds['together']:.2f} s together, {seconds['apart']:.2f} s apart: {clock:.1f} times, {busy:.1f} of the")
    print(f"processor; {memory} MiB; maps differ by {difference:.1e} of their largest value at most")


def build(name: str, n_images: int, image_size: int) -> tuple[nn.Module, Tensor, str | None]:
    """A network of random weights, images, and the layer that is explained; None is the network's own."""
    with runtime.seeded(0):
        network, images = networks.build(name), torch.rand(n_images, 3, image_size, image_size)
        draw_batch_norms(network)
    layer = "blocks.5.0.bn1" if name == "tf_efficientnet_lite0" else None
    return network, images, layer


def ours(network: nn.Module, images: Tensor, layer: str | None) -> list[Tensor]:
    """Maps (B, contrasts, 2, h, w) of each explainer."""
    return explain_together(network, images, 2, EXPLAINERS, CONTRASTS, layer).maps


def apart(network: nn.Module, images: Tensor, layer: str | None) -> list[Tensor]:
    """The same from one explainer after the other."""
    with torch.no_grad():
        leading = network(images).topk(2).indices
    layers = {name: layer if name in cam.MAPS else None for name in EXPLAINERS}
    maps = [explain(network, images, leading, name, CONTRASTS, layers[name], upsample=False) for name in EXPLAINERS]
    return [of_one.transpose(0, 1) for of_one in maps]


def check(actual: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference as a share of a map's largest value; ends the benchmark where it is no rounding."""
    largest = 0.0
    for name, mine, other in zip(EXPLAINERS, actual, expected, strict=True):
        size = other.abs().amax((-2, -1), keepdim=True)
        difference = float(((mine - other).abs() / size.clamp(min=torch.finfo(size.dtype).tiny)).max())
        if not difference < 1e-3:
            sys.exit(f"the sides differ: {name} by {difference:.1e}")
        largest = max(largest, difference)
    return largest


if __name__ == "__main__":
    main()
