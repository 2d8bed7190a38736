"""Our explainers against grad-cam's and captum's: `python benchmarks/explainers.py [NETWORK [REPEATS]]`.

Outputs are compared before anything is timed, at the layer's resolution and before any post-processing. Then every
library makes its maps at the images' size, in turns; medians of wall clock and of processor time, and the most memory
that a call takes beyond what was in use. Random weights, 224 pixels; threads as OMP_NUM_THREADS says.
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from _sides import draw_batch_norms, peak, processor, versions
from captum.attr import LayerAttribution, LayerGradCam
from pytorch_grad_cam import FullGrad, GradCAM, HiResCAM, XGradCAM
from torch import nn

from cxlib import networks, runtime, taps
from cxlib.adapters import ContrastTarget
from cxlib.contrasts import cotangent
from cxlib.explainers import explain, fullgrad, resized, saliency

THEIRS = {"gradcam": GradCAM, "linear_approximation": HiResCAM, "xgradcam": XGradCAM}
CONTRASTS = ["original", "mean", "max", "weighted"]
Call = Callable[[], object]


def main() -> None:
    """Compare, time and print."""
    warnings.filterwarnings("ignore")
    name, repeats = [*sys.argv[1:], *["resnet18", "11"][len(sys.argv) - 1 :]]
    software = versions("torch", "grad-cam", "captum")
    print(f"{name}, 224 pixels, {torch.get_num_threads()} threads; {software}; {processor()}", flush=True)
    with runtime.seeded(0):
        ours = networks.build(name)
        sixteen = torch.rand(16, 3, 224, 224)
        draw_batch_norms(ours)
    theirs = networks.Network(
        name, ours.inner, {}
    )  # one set of weights; each library gets its gradients as it needs them
    one = sixteen[:1]
    layer = networks.explanation_layer(ours)
    rows = [
        ("GradCAM, batch 1", "grad-cam", 2.5, *gradcam_once(ours, theirs, layer, one)),
        ("GradCAM, batch 16", "grad-cam", 2.5, *gradcam_once(ours, theirs, layer, sixteen)),
        ("GradCAM, batch 1", "captum", 1.0, *captum_once(ours, theirs, layer, one)),
        ("GradCAM, batch 16", "captum", 1.0, *captum_once(ours, theirs, layer, sixteen)),
        ("three CAMs, batch 1", "grad-cam", 8.0, *three_cams(ours, theirs, layer, one)),
        ("FullGrad, batch 1", "grad-cam", 5.0, *full_gradient(ours, theirs, one)),
        ("top 5 x 4 contrasts x 3 CAMs, batch 1", "grad-cam", 30.0, *everything(ours, theirs, layer, one)),
    ]
    print(
        f"{'what':38} {'against':9} {'ours ms':>9} {'theirs ms':>10} {'times':>6} {'cpu':>6} {'floor':>6} {'MiB':>13}"
    )
    for what, against, floor, mine, other in rows:
        wall, cpu = measure(mine, other, int(repeats))
        memory = f"{peak(mine):.0f} / {peak(other):.0f}"
        print(
            f"{what:38} {against:9} {1e3 * wall[0]:9.1f} {1e3 * wall[1]:10.1f} {wall[1] / wall[0]:6.1f} "
            f"{cpu[1] / cpu[0]:6.1f} {floor:6.1f} {memory:>13}",
            flush=True,
        )


def top(network: nn.Module, images: torch.Tensor, n: int) -> torch.Tensor:
    """The n most probable classes (B, n)."""
    with torch.no_grad():
        return network(images).topk(n).indices


def same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to 1e-3 of the largest value: float32, and XGradCAM's 1e-7."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert (actual - expected).abs().max() < 1e-3 * expected.abs().max(), (actual - expected).abs().max()


def three(network: nn.Module, layer: nn.Module, images: torch.Tensor, t: torch.Tensor, contrasts: list[str]) -> list:
    """Our three CAMs of targets (B, T) under some contrasts, (B, C * T, H, W) each, from one forward pass."""
    recorded = taps.record(network, images, layer)
    cotangents = torch.cat([cotangent(contrast, recorded.logits, t) for contrast in contrasts], 1)
    gradients = recorded.pull_back(cotangents)
    return [resized(saliency(name, recorded.activation, gradients), images.shape[-2:]) for name in THEIRS]


def with_gradients(network: nn.Module, call: Call) -> Call:
    """Their call on a network whose parameters have gradients, which ours does without."""

    def run() -> object:
        network.requires_grad_(True)
        try:
            return call()
        finally:
            network.requires_grad_(False)

    return run


def raw(method: GradCAM, layer: nn.Module) -> torch.Tensor:
    """grad-cam's map of the pass it has just made, before rectifying, stretching and resizing."""
    record = method.activations_and_grads
    arrays = [x[0].detach().numpy() for x in (record.activations, record.gradients)]
    return torch.from_numpy(np.asarray(method.get_cam_image(None, layer, None, *arrays, False)))


def gradcam_once(ours: nn.Module, theirs: nn.Module, layer: nn.Module, images: torch.Tensor) -> tuple[Call, Call]:
    """Our weighted GradCAM of the most probable class, and grad-cam's."""
    t = top(ours, images, 1)[:, 0]
    targets = [ContrastTarget("weighted", int(c)) for c in t]
    method = GradCAM(theirs, [layer])
    other = with_gradients(theirs, lambda: method(images, targets=targets))
    other()
    same(explain(ours, images, t, upsample=False), raw(method, layer))
    return lambda: explain(ours, images, t), other


def captum_once(ours: nn.Module, theirs: nn.Module, layer: nn.Module, images: torch.Tensor) -> tuple[Call, Call]:
    """Our GradCAM of the most probable class's logit, and captum's."""
    t, size = top(ours, images, 1)[:, 0], tuple(images.shape[-2:])
    method = LayerGradCam(theirs, layer)

    def attribute() -> torch.Tensor:
        return method.attribute(images, t, relu_attributions=False)

    same(
        explain(ours, images, t, contrast="original", upsample=False),
        with_gradients(theirs, attribute)().detach()[:, 0],
    )
    interpolated = with_gradients(theirs, lambda: LayerAttribution.interpolate(attribute(), size, "bilinear"))
    return lambda: explain(ours, images, t, contrast="original"), interpolated


def three_cams(ours: nn.Module, theirs: nn.Module, layer: nn.Module, images: torch.Tensor) -> tuple[Call, Call]:
    """GradCAM, HiResCAM and XGradCAM of one class."""
    t = top(ours, images, 1)[:, 0]
    targets = [ContrastTarget("weighted", int(c)) for c in t]
    methods = {name: kind(theirs, [layer]) for name, kind in THEIRS.items()}
    other = with_gradients(theirs, lambda: [method(images, targets=targets) for method in methods.values()])
    other()
    for name, method in methods.items():
        same(explain(ours, images, t, name, upsample=False), raw(method, layer))
    return lambda: three(ours, layer, images, t[:, None], ["weighted"]), other


def full_gradient(ours: nn.Module, theirs: nn.Module, images: torch.Tensor) -> tuple[Call, Call]:
    """FullGrad of one class."""
    t = top(ours, images, 1)[:, 0]
    method = FullGrad(theirs, [])
    other = with_gradients(theirs, lambda: method(images, targets=[ContrastTarget("weighted", int(c)) for c in t]))
    other()
    theirs_gradients = list(method.activations_and_grads.gradients)  # before our passes run through their hooks
    # Post-processing differs by design; what goes into it does not.
    trace = fullgrad.record(ours, images)
    cotangents = cotangent("weighted", trace.logits, t)[:, None]
    ((_, gradients),) = trace.pull_back(cotangents, lambda _, gradient: gradient, lambda *both: both)
    spatial = [(bias, g) for (bias, _), g in zip(trace.kept, gradients) if g is not None and g.ndim == 4]
    order = execution_order(theirs, method, images)
    assert len(spatial) == len(order) == len(theirs_gradients)
    for (bias, gradient), index, theirs_gradient in zip(spatial, order, theirs_gradients):
        same(bias, torch.from_numpy(method.bias_data[index]))
        same(gradient, theirs_gradient)
    return lambda: explain(ours, images, t, "fullgrad"), other


def execution_order(network: nn.Module, method: FullGrad, images: torch.Tensor) -> list[int]:
    """The order in which grad-cam's layers run: it lists biases as the modules stand."""
    order: list[int] = []
    layers = method.target_layers
    handles = [
        layer.register_forward_hook(lambda *_, index=index: order.append(index)) for index, layer in enumerate(layers)
    ]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return order


def everything(ours: nn.Module, theirs: nn.Module, layer: nn.Module, images: torch.Tensor) -> tuple[Call, Call]:
    """Five classes, four contrasts, three CAMs; grad-cam's twenty passes are shared between its CAMs."""
    classes = top(ours, images, 5)
    first, *others = (kind(theirs, [layer]) for kind in THEIRS.values())
    for method in others:
        method.activations_and_grads.release()
        method.activations_and_grads = first.activations_and_grads

    def share_passes() -> list[object]:
        """One forward and one backward pass for each contrast and class; the other CAMs take its record."""
        maps: list[object] = []
        for contrast in CONTRASTS:
            for t in classes[0].tolist():
                maps.append(first(images, targets=[ContrastTarget(contrast, t)]))
                for method in others:
                    maps.append(method.aggregate_multi_layers(method.compute_cam_per_layer(images, None, False)))
        return maps

    other = with_gradients(theirs, share_passes)
    other()  # ends with the last contrast and the last class
    for name, method in zip(THEIRS, (first, *others)):
        same(explain(ours, images, classes[:, 4], name, CONTRASTS[-1], upsample=False), raw(method, layer))
    return lambda: three(ours, layer, images, classes, CONTRASTS), other


def measure(mine: Call, other: Call, repeats: int) -> tuple[list[float], list[float]]:
    """Medians of wall clock and processor time of both, in turns."""
    wall: list[list[float]] = [[], []]
    cpu: list[list[float]] = [[], []]
    for _ in range(repeats):
        for index, call in enumerate((mine, other)):
            start, start_cpu = time.perf_counter(), time.process_time()
            call()
            wall[index].append(time.perf_counter() - start)
            cpu[index].append(time.process_time() - start_cpu)
    return [statistics.median(w) for w in wall], [statistics.median(c) for c in cpu]


if __name__ == "__main__":
    main()
