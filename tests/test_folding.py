"""Folding batch norms changes no logit, no gradient, and no network but its copy."""

import copy

import pytest
import torch
from torch import nn

from cxlib import networks, taps
from cxlib.networks.folding import folded

FOLDED = {"resnet18": 0, "googlenet": 0, "mobilenet_v3_small": 0, "vgg11_bn": 0, "densenet121": 62, "squeezenet1_0": 0}


def with_statistics(network):
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) / 10)
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return network.double()


def norms(network):
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", FOLDED)
def test_logits_and_input_gradients_are_those_of_the_network(name):
    """DenseNet keeps the norms that no convolution alone feeds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = with_statistics(networks.build(name))
        images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    quick = folded(network)
    assert len(norms(quick)) == FOLDED[name]
    recorded = [taps.record(each, images) for each in (network, quick)]
    torch.testing.assert_close(recorded[1].logits, recorded[0].logits, rtol=1e-9, atol=1e-12)
    cotangent = torch.zeros_like(recorded[0].logits)
    cotangent[:, 3] = 1
    first, second = (r.pull_back(cotangent) for r in recorded)
    torch.testing.assert_close(second, first, rtol=1e-6, atol=1e-9 * float(first.abs().max()))


def test_the_network_itself_is_left_alone(pooled, images):
    before = copy.deepcopy(pooled.state_dict())
    quick = folded(pooled)
    assert len(norms(pooled)) == 2
    assert quick.head is pooled.head
    assert all(torch.equal(value, before[key]) for key, value in pooled.state_dict().items())


class Twice(nn.Module):
    """One convolution before and after its norm, and a norm behind a branch: neither may be folded."""

    def __init__(self):
        super().__init__()
        self.shared, self.first = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.branched, self.second = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images):
        x = self.shared(self.first(self.shared(images)))
        y = self.branched(x)
        return (self.second(y) + y).mean((-2, -1))


class Untraceable(Twice):
    def forward(self, images):
        return super().forward(images) if float(images.sum()) > -1 else images


@pytest.mark.parametrize("kind", [Twice, Untraceable])
def test_what_cannot_be_folded_is_kept(kind, images):
    network = with_statistics(kind().eval())
    quick = folded(network)
    assert len(norms(quick)) == 2
    torch.testing.assert_close(quick(images), network(images), rtol=0, atol=1e-12)
