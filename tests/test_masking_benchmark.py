"""The benchmark's literal loop is an implementation of blur and mask of its own: both must give the same numbers."""

import importlib.util
from pathlib import Path

import pytest
import torch

from cxlib import networks
from cxlib.masking import Blur


@pytest.fixture
def benchmark(monkeypatch):
    specification = importlib.util.spec_from_file_location(
        "masking_benchmark", Path(__file__).parents[1] / "benchmarks" / "masking.py"
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "BLUR", Blur(21, 3.0))
    return module


def test_the_literal_loop_and_cxlib_give_the_same_numbers(benchmark):
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
    expected = benchmark.literal(network.requires_grad_(), images, layer, explainers, baselines)
    actual, n_evaluated = benchmark.ours(networks.freeze(network), images, layer, explainers, baselines)
    assert 0 < n_evaluated <= actual.numel() == expected.numel()
    assert "of the spread" in benchmark.check(actual, expected)
    with pytest.raises(SystemExit, match="the sides differ"):
        benchmark.check(actual, expected.flip(2))
