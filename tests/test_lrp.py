"""Layer-wise relevance agrees with zennit's composites, with the gradient where it must, and adds up."""

from functools import partial

import pytest
import torch
from test_explainers import assert_same
from test_fullgrad import random_images, scrambled
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import EpsilonGammaBox, EpsilonPlus, EpsilonPlusFlat
from zennit.torchvision import ResNetCanonizer, VGGCanonizer

from cxlib import networks, runtime, taps
from cxlib.contrasts import cotangent
from cxlib.explainers import explain
from cxlib.explainers.lrp import lrp

TARGETS = torch.tensor([0, 7])
STABLE = {"epsilon": 1e-12, "stabilizer": 1e-12}
COMPOSITES = {
    "EpsilonPlus": (lambda _low, _high, **how: EpsilonPlus(**STABLE, **how), {"first": "plus"}),
    "EpsilonPlusFlat": (lambda _low, _high, **how: EpsilonPlusFlat(**STABLE, **how), {}),
    "EpsilonGammaBox": (
        lambda low, high, **how: EpsilonGammaBox(low, high, gamma=0.3, **STABLE, **how),
        {"convolution": "gamma", "gamma": 0.3, "first": "box"},
    ),
}


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize(
    ("name", "canonizer"),
    [("resnet18", ResNetCanonizer), ("resnet50", ResNetCanonizer), ("vgg16_bn_narrow", VGGCanonizer)],
)
def test_zennits_composites_give_the_same_relevance(name, canonizer, composite):
    network, images = scrambled(name), random_images(side=32)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12  # zennit's merged batch norms still divide by sqrt(1 + eps)
    make, options = COMPOSITES[composite]
    logits = taps.logits(network, images)
    vector = cotangent("weighted", logits, TARGETS)
    low, high, normalised = ((pixels - network.mean) / network.std for pixels in (0.0, 1.0, images))
    with Gradient(
        network.inner.requires_grad_(), make(low[None].double(), high[None].double(), canonizers=[canonizer()])
    ) as attribution:
        _, expected = attribution(normalised, vector * logits)
    ours = explain(network, images, TARGETS, partial(lrp, epsilon=1e-12, **options), "weighted")
    assert_same(ours, expected.sum(1), 1e-8)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet", "efficientnet_lite0", "repvgg_a0"])
def test_epsilon_rules_alone_are_input_times_gradient_of_a_network_of_relu(name):
    """Ancona et al. 2018: there LRP-epsilon and gradient x input are one, biases or not."""
    network, images = scrambled(name), random_images()
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.max_val = 1e9
    ours = explain(network, images, TARGETS, partial(lrp, convolution="epsilon", first="epsilon", epsilon=1e-30))
    assert_same(ours, explain(network, images, TARGETS, "input_x_gradient"), 1e-8)


COMPLETE = [
    *("resnet18", "densenet121", "googlenet", "alexnet", "squeezenet1_1", "mobilenet_v3_small", "efficientnet_b0"),
    *("regnet_y_400mf", "shufflenet_v2_x0_5", "mobilenetv3_small_050", "efficientnet_lite0", "resnet10t", "repvgg_a0"),
]


def without_biases(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            module.bias.zero_()
    return network


def scores(network, images, targets, contrast):
    logits = taps.logits(network, images)
    return (cotangent(contrast, logits, targets) * logits).sum(-1)


def assert_adds_up(network, images, targets, **options):
    maps = explain(network, images, targets, partial(lrp, epsilon=1e-30, **options), ["original", "max"])
    assert maps.shape[-2:] == images.shape[-2:]
    expected = torch.stack([scores(network, images, targets, contrast) for contrast in ("original", "max")])
    torch.testing.assert_close(maps.sum((-2, -1)), expected, rtol=1e-9, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("options", [{}, {"convolution": "gamma", "first": "box"}], ids=["default", "gamma, box"])
@pytest.mark.parametrize("name", COMPLETE)
def test_relevance_is_conserved_where_there_are_no_biases(name, options):
    """Skip connections, concatenations, gates, branches that all see the image, images made smaller before."""
    network, images = without_biases(scrambled(name)), random_images()
    if options or name in ("resnet18", "densenet121", "googlenet", "alexnet", "squeezenet1_1", "repvgg_a0"):
        assert_adds_up(network, images, TARGETS, **options)
    else:  # an output whose inputs all have weights of the other sign gets nothing under z+
        lost = explain(network, images, TARGETS, "lrp", "max").sum((1, 2)) / scores(network, images, TARGETS, "max")
        assert ((lost > 0) & (lost < 1.01)).all()


def test_what_is_missing_is_the_biases_share(images, targets):
    """Of a network without batch norm, whose biases can be given the relevance of an input that is 1."""
    with runtime.seeded(0):
        layers = nn.Linear(768, 20).double(), nn.ReLU(), nn.Linear(20, 6).double()
    plain = nn.Sequential(nn.Flatten(), *layers)

    class WithOnes(nn.Module):
        def forward(self, x):
            return torch.cat([x, torch.ones_like(x[:, :1])], 1)

    def absorbed(layer):
        wide = nn.Linear(layer.in_features + 1, layer.out_features, bias=False).double()
        wide.weight.data = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
        return nn.Sequential(WithOnes(), wide)

    maps = explain(plain, images, targets, partial(lrp, first="epsilon", epsilon=1e-12), "max")
    assert maps.shape == (4, 16, 16)
    twin = nn.Sequential(nn.Flatten(), absorbed(layers[0]), nn.ReLU(), absorbed(layers[2]))
    torch.testing.assert_close(twin(images), plain(images))
    inputs = images.flatten(1).requires_grad_()
    score = (cotangent("max", plain(images).detach(), targets) * twin[1:](inputs)).sum()
    (gradient,) = torch.autograd.grad(score, inputs)
    torch.testing.assert_close(maps.flatten(1), (gradient * inputs).detach().view_as(images).sum(1).flatten(1))


class Odd(nn.Module):
    """A batch norm behind an in-place ReLU, whose input is the convolution's own tensor, and one that comes first."""

    def __init__(self):
        super().__init__()
        self.first, self.convolution = nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3, bias=False)
        self.relu, self.norm = nn.ReLU(inplace=True), nn.BatchNorm2d(5)
        self.next, self.head = nn.Conv2d(5, 7, 3, bias=False), nn.Linear(7, 6, bias=False)

    def forward(self, x):
        x = self.norm(self.relu(self.convolution(self.first(x))))
        y = self.next(x)
        y += y.clone()  # on what a layer with a rule has given
        return self.head(y.mean((-2, -1)))


def test_a_batch_norm_behind_an_activation_is_not_folded_and_in_place_work_does_no_harm(images, targets):
    with runtime.seeded(0):
        network = Odd().double().eval()
        for norm in (network.norm, network.first):
            norm.running_var.uniform_(0.2, 0.5)
            norm.weight.data.uniform_(-0.5, 1)
        network.norm.bias.data.uniform_(-1, 1)
    alone = partial(lrp, convolution="epsilon", first="epsilon", epsilon=1e-30)
    assert_same(explain(network, images, targets, alone), explain(network, images, targets, "input_x_gradient"), 1e-9)
    maps = explain(network, images, targets, "lrp")
    assert torch.equal(maps, explain(networks.freeze(network), images, targets, "lrp"))


def test_branches_that_see_the_image_end_in_any_order(images, targets):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3), nn.Linear(5, 6)
            self.norm_a, self.norm_b = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
            self.norm_a.weight.data.uniform_(1, 2)

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            b = self.norm_b(b)
            return self.head((self.norm_a(a) + b).relu().mean((-2, -1)))

    with runtime.seeded(0):
        network = Branches().double().eval()
    alone = partial(lrp, convolution="epsilon", first="epsilon", epsilon=1e-30)
    assert_same(explain(network, images, targets, alone), explain(network, images, targets, "input_x_gradient"), 1e-9)


def test_hooks_are_gone_and_activations_work_in_place_again(flat, images, targets):
    explain(flat, images, targets, "lrp")
    hidden = [module for module in flat.modules() if module._forward_hooks or "forward" in vars(module)]
    assert not hidden
    assert flat.features[2].inplace


def test_what_lrp_has_no_rule_for_is_one_line(images, targets):
    class Standardised(nn.Conv2d):
        pass

    with pytest.raises(ValueError, match="unknown rule 'z'"):
        explain(nn.Flatten(), images, targets, partial(lrp, convolution="z"))
    with pytest.raises(ValueError, match="unknown rule of the first layer 'z'"):
        explain(nn.Flatten(), images, targets, partial(lrp, first="z"))
    with pytest.raises(ValueError, match=r"lrp has rules for Conv1d, .*, of which Flatten runs none"):
        explain(nn.Flatten(), images, targets, "lrp")
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6)
    with pytest.raises(ValueError, match="no rule for the layer that sees the image, a Standardised"):
        explain(nn.Sequential(Standardised(3, 4, 3), *head).double(), images, targets, "lrp")
    pooled = nn.Sequential(*head[:2], nn.Linear(3, 6)).double()
    with pytest.raises(ValueError, match=r"has a rule for sees \(4, 3\), which is no image"):
        explain(pooled, images, targets, "lrp")
