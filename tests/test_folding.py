"""A network with its batch norms folded is the same function, and the network itself is left as it was."""

import pytest
import torch
from torch import nn

from cxlib import networks
from cxlib.folding import folded

NAMES = ["vgg16_bn_narrow", "resnet18", "mobilenet_v2", "googlenet", "densenet121", "efficientnet_b0", "alexnet"]


def with_statistics(name):
    """Random weights, and batch norms that do something, which untrained ones do not."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.build(name, num_classes=7)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return network


def norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def called(network):
    """Batch norms that run."""
    runs = []
    handles = [
        m.register_forward_hook(lambda *_: runs.append(1)) for m in network.modules() if type(m) is nn.BatchNorm2d
    ]
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 64, dtype=next(network.parameters()).dtype))
    for handle in handles:
        handle.remove()
    return len(runs)


@pytest.mark.parametrize("name", NAMES)
def test_folding_is_exact_up_to_rounding(name):
    network = with_statistics(name).double()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = network(images)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    result = folded(network)
    after = result(images)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-11 * before.abs().max().item())
    assert torch.equal(network(images), before), "the network itself is as it was"
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    if norms(network):
        # DenseNet has norms in front of its convolutions, too: those stay.
        assert called(result) < called(network)
        assert name == "densenet121" or called(result) == 0


@pytest.mark.parametrize("name", ["vgg16_bn_narrow", "mobilenet_v2"])
def test_in_float32_probabilities_move_by_rounding_alone(name):
    network = with_statistics(name)
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(folded(network)(images).softmax(-1), network(images).softmax(-1), rtol=0, atol=1e-5)


def test_a_convolution_that_is_used_twice_keeps_its_norms():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.second(self.convolution(self.first(self.convolution(x))))

    network = Shared().eval()
    network.first.running_mean += 1
    network.second.running_var += 2
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(folded(network)(images), network(images))
    assert called(folded(network)) == 2


def test_a_network_that_cannot_be_followed_or_still_learns_is_returned_as_it_is():
    class Branching(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    branching = Branching(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).eval()
    assert folded(branching) is branching
    learning = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    assert folded(learning) is learning
