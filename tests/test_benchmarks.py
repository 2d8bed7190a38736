"""The benchmarks' other sides are implementations of their own: the same numbers as cxlib's, or there is no ratio."""

import gc
import importlib
from pathlib import Path

import pytest
import torch

from cxlib import networks
from cxlib.metrics.masking import Blur


@pytest.fixture
def benchmark(monkeypatch):
    """A benchmark's module by name."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module


def settle(network, images):
    """Batch norms take the statistics of real activations, without which a deep network of random weights is silent."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(images)
    return network.eval().requires_grad_()


@pytest.mark.parametrize("name", ["pooled", "flat", "squeezenet1_1"])
def test_all_24_settings_of_the_perturbation_on_8_images(benchmark, name, request):
    """With batch norms folded and settings sharing passes, as the pipeline runs it.

    The tiny networks in float64; in float32 a handful of signs at gradients next to zero turns around with the order of
    summation, and SqueezeNet's images agree within the bounds that are asked of them.
    """
    perturbation = benchmark("perturbation")
    deep = name == "squeezenet1_1"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.build(name, num_classes=6) if deep else request.getfixturevalue(name)
        size, dtype = (32, torch.float32) if deep else (16, torch.float64)
        images = torch.nn.functional.interpolate(torch.rand(8, 3, 8, 8, dtype=dtype), (size, size), mode="bilinear")
        targets = torch.randint(6, (8,))
        network = settle(network, images)
    expected = perturbation.literal(network, images, targets)
    actual = perturbation.ours(network, images, targets)
    assert actual.shape == expected.shape == (24, 3, 8)
    accuracy, p_t, y_t = (expected - actual).abs().unbind(1)
    assert not accuracy.any()
    assert p_t.max() < (1e-3 if deep else 1e-9)
    assert y_t.max() < (1e-2 if deep else 1e-9) * expected[:, 2].abs().max()
    assert "accuracy equal" in perturbation.check(actual, expected)
    with pytest.raises(SystemExit, match="the sides differ"):
        perturbation.check(actual * torch.tensor([1, 1.1, 1])[:, None], expected)


def test_blur_and_mask(benchmark, monkeypatch):
    masking = benchmark("masking")
    monkeypatch.setattr(masking, "BLUR", Blur(21, 3.0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.build("vgg16_bn_narrow", num_classes=5)
    noise = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(noise, (48, 48), mode="bilinear")
    layer, explainers, baselines = (
        networks.explanation_layer(network, "features.23"),
        ["gradcam", "xgradcam"],
        ("zeros",),
    )
    expected = masking.literal(network.requires_grad_(), images, layer, explainers, baselines)
    actual, n_evaluated = masking.ours(networks.freeze(network), images, layer, explainers, baselines)
    assert 0 < n_evaluated <= actual.numel() == expected.numel()
    assert "of the spread" in masking.check(actual, expected)
    with pytest.raises(SystemExit, match="the sides differ"):
        masking.check(actual, expected.flip(2))


@pytest.mark.parametrize("spanned", [False, True])
@pytest.mark.parametrize("method", ["integrated_gradients", "smoothgrad"])
def test_captum_has_the_same_twenty_maps(benchmark, method, spanned):
    inputs = benchmark("inputs")
    given = *inputs.build("squeezenet1_1", 32), 5, 2
    actual, expected = inputs.ours(method, *given, spanned), inputs.theirs(method, *given)
    assert actual.shape == (4, 1, 5, 32, 32)
    assert inputs.check(actual, expected) < 1e-4
    with pytest.raises(SystemExit, match="the sides differ"):
        inputs.check(actual, expected.flip(2))


def test_explainers_together_are_those_one_after_the_other(benchmark):
    together = benchmark("together")
    given = together.build("squeezenet1_1", 2, 48)
    actual, expected = together.ours(*given), together.apart(*given)
    assert together.check(actual, expected) < 1e-4
    with pytest.raises(SystemExit, match="the sides differ: gradient by"):
        together.check([maps.flip(0) for maps in actual], expected)


def test_no_explainer_keeps_a_tensor_of_its_calls(benchmark):
    memory = benchmark("memory")

    def tensors_after(calls):
        for explainer in memory.NAMES:
            memory.after_calls(explainer, "cpu", (calls,), float)
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    assert tensors_after(3) == tensors_after(20)


def test_rates_are_images_a_second(benchmark):
    throughput = benchmark("throughput")
    gradcam, perturbation = throughput.rates("squeezenet1_1", torch.device("cpu"), 2, 32, 1)
    assert gradcam > 10 * perturbation > 0  # 104 steps of the grid, each a forward and a backward pass
