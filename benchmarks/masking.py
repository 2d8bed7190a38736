"""Blur and mask against a literal loop over its settings, on VGG-16-BN with random weights: `make bench`.

The literal loop does as the published code does: for each explainer, target, contrast, baseline and kind of feature
its own forward and backward pass through the whole network, with hooks and the parameters' gradients, a blur by
convolution, and one evaluation of the masked images for each rule. Both sides must give the same numbers first.
Memory is the peak of a process of each side's own.
"""

from itertools import product

import click
import torch
from _sides import interleaved, own_peak, peak_of, ratios
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from cxlib import networks
from cxlib.metrics.masking import FEATURES, PAIR, Blur, blur_and_mask

BASELINES, RULES, BLUR, FLOOR = ("gaussian_blur", "zeros", "channel_mean"), ("published", "equal_kept"), Blur(), 3.0


def setting_map(network: nn.Module, images: Tensor, layer: nn.Module, explainer: str, rank: int, contrast: str):
    """One map of each image, (B, H, W), and the two leading classes, by loss.backward()."""
    kept: dict[str, Tensor] = {}
    forward = layer.register_forward_hook(lambda _m, _i, output: kept.update(a=output.detach().clone()))
    backward = layer.register_full_backward_hook(lambda _m, _i, gradients: kept.update(g=gradients[0]))
    logits = network(images)
    leading = logits.topk(2).indices
    loss = torch.zeros(())
    for y, t in zip(logits, leading[:, rank].tolist()):
        others = [s for s in range(len(y)) if s != t]
        loss = loss + y[t] - (0 if contrast == "original" else y[others].detach().softmax(0) @ y[others])
    loss.backward()
    network.zero_grad()
    forward.remove()
    backward.remove()
    a, g = kept["a"], kept["g"]
    if explainer == "gradcam":
        g = g.mean((2, 3), keepdim=True)
    elif explainer == "xgradcam":
        g = (a * g).sum((2, 3), keepdim=True) / (a.abs().sum((2, 3), keepdim=True) + 1e-7)
    maps = nn.functional.interpolate((a * g).sum(1)[:, None], images.shape[2:], mode="bilinear", align_corners=True)
    return maps[:, 0], leading


def hidden_pixels(maps: list[Tensor], features: str, rule: str) -> list[Tensor]:
    """What is hidden of one image, flat, under the equal-area rules."""
    orders = [m.flatten().argsort(stable=True) for m in maps]
    n_pixels = maps[0].numel()
    counts = [int((m > 0).sum() if features == "positive" else (m < 0).sum()) for m in maps]
    if rule == "published":
        if features == "positive":
            return [order[: min(counts)] for order in orders]
        return [order[n_pixels - max(counts) + 1 :] for order in orders]
    if features == "positive":
        return [order[: n_pixels - min(counts)] for order in orders]
    return [order[min(counts) :] for order in orders]


def literal(network: nn.Module, images: Tensor, layer: nn.Module, explainers: list[str], baselines: tuple[str, ...]):
    """(B, explainers, 2, baselines, 2, 2, rules), a setting at a time."""
    result = torch.empty(len(images), len(explainers), 2, len(baselines), len(FEATURES), len(PAIR), len(RULES))
    for e, t, b, f in product(range(len(explainers)), range(2), range(len(baselines)), range(len(FEATURES))):
        maps = []
        for contrast in PAIR:
            of_contrast, leading = setting_map(network, images, layer, explainers[e], t, contrast)
            maps.append(of_contrast)
        for c in range(len(PAIR)):
            if baselines[b] == "gaussian_blur":
                baseline = gaussian_blur(images, [BLUR.kernel] * 2, [BLUR.sigma] * 2)
            elif baselines[b] == "zeros":
                baseline = network.mean.expand_as(images)
            else:
                baseline = images.mean((2, 3), keepdim=True).expand_as(images)
            for r, rule in enumerate(RULES):
                masked = images.clone()
                for i in range(len(images)):
                    hidden = hidden_pixels([m[i] for m in maps], FEATURES[f], rule)[c]
                    masked[i].flatten(1)[:, hidden] = baseline[i].flatten(1)[:, hidden]
                with torch.no_grad():
                    pair = network(masked).double().gather(1, leading)
                result[:, e, t, b, f, c, r] = (pair[:, t] - pair[:, 1 - t]).sigmoid()
    return result


def ours(network: nn.Module, images: Tensor, layer: nn.Module, explainers: list[str], baselines: tuple[str, ...]):
    """The same from cxlib, and how many masked images it evaluated."""
    result = blur_and_mask(network, images, layer, explainers, PAIR, baselines, RULES, BLUR, chunk=16)
    return result.masked, result.n_evaluated


def sides(n_images: int):
    """A network whose parameters want gradients, images, and the layer, all in ordinary memory layout."""
    torch.manual_seed(0)
    network = networks.build("vgg16_bn", num_classes=200).requires_grad_()
    images = nn.functional.interpolate(torch.rand(n_images, 3, 14, 14), (224, 224), mode="bilinear")
    images = (images + 0.2 * torch.rand(n_images, 3, 224, 224)).clamp(0, 1)
    return network, images, networks.explanation_layer(network)


def check(a: Tensor, b: Tensor) -> str:
    """Both sides' log-odds agree, measured by their spread over the settings: a random network hardly leaves 0.5.

    A handful of pixels at a mask's edge falls on the other side in another order of summation, hence two bounds.
    """
    a, b = a.double().logit(), b.double().logit()
    difference = (a - b).abs() / b.std()
    middle, largest = difference.median().item(), difference.max().item()
    if middle > 0.005 or largest > 0.1:
        raise SystemExit(f"the sides differ: median {middle:.2g}, largest {largest:.2g} of the spread")
    return f"median {middle:.1g}, largest {largest:.1g} of the spread over settings"


@click.command()
@click.option("--images", "n_images", default=2, show_default=True, help="Images in the batch.")
@click.option("--explainers", default="gradcam", show_default=True, help="One or several, with commas.")
@click.option("--runs", default=3, show_default=True, help="Interleaved runs.")
@click.option("--memory-of", type=click.Choice(["literal", "cxlib"]), hidden=True)
def main(n_images: int, explainers: str, runs: int, memory_of: str | None) -> None:
    """Print images/s, their ratio and peak memory; fail when the sides differ or the ratio is below the floor."""
    network, images, layer = sides(n_images)
    names = explainers.split(",")
    if memory_of:
        {"literal": literal, "cxlib": ours}[memory_of](network, images, layer, names, ("zeros",))
        print(own_peak())
        return

    both = {"literal": literal, "cxlib": ours}
    runnable = {side: lambda f=f: f(network, images, layer, names, BASELINES) for side, f in both.items()}
    results, timings = interleaved(runnable, runs)
    actual, n_evaluated = results["cxlib"]
    print(f"vgg16_bn, {n_images} images of 224 x 224, {explainers}, float32, {torch.get_num_threads()} threads")
    print(f"same numbers: {check(actual, results['literal'])}")
    print(f"{actual.numel()} settings of these images, {n_evaluated} masked images evaluated")
    for side, timing in timings.items():
        spread = ", ".join(f"{n_images / seconds:.4f}" for seconds in timing.wall)
        memory = peak_of(__file__, "--images", str(n_images), "--memory-of", side)
        print(f"{side:8} images/s {spread}; peak memory of one baseline {memory:.2f} GiB")
    wall, processor = ratios(timings["literal"], timings["cxlib"])
    print(f"ratio {wall:.2f} ({processor:.2f} in processor time), floor {FLOOR}")
    if max(wall, processor) < FLOOR:
        raise SystemExit("below the floor")


if __name__ == "__main__":
    main()
