"""Folding batch norms changes no logit, no gradient, and no network but its copy."""

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from cxlib import networks, taps
from cxlib.explainers.together import explain_together
from cxlib.metrics import masking
from cxlib.networks import explanation_layer, fast
from cxlib.networks.lean import ClippedInPlace, SamePadded
from cxlib.review import perturbation, saturation
from cxlib.review.gradient_norms import gradient_norms

#: Networks, torchvision's and timm's (whose batch norms end in an activation), and how many norms stay.
FOLDED = {
    "resnet18": 0,
    "googlenet": 0,
    "mobilenet_v3_small": 0,
    "vgg16_bn_narrow": 0,
    "densenet121": 62,
    "squeezenet1_0": 0,
}
FOLDED |= {"tf_efficientnet_lite0": 0, "tf_mobilenetv3_small_minimal_100": 0, "regnetx_002": 0, "dla34": 0}


def with_statistics(network):
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) / 10)
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return network.double()


def norms(network):
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def built(name):
    """A network with statistics of its own in float64, and images for it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return with_statistics(networks.build(name)), torch.rand(2, 3, 64, 64, dtype=torch.float64)


@pytest.mark.parametrize("name", FOLDED)
def test_logits_and_input_gradients_are_those_of_the_network(name):
    """DenseNet keeps the norms that no convolution alone feeds."""
    network, images = built(name)
    expected = taps.record(network, images)
    cotangent = torch.zeros_like(expected.logits)
    cotangent[:, 3] = 1
    gradient = expected.pull_back(cotangent)
    quick = fast(network)
    assert len(norms(quick)) == FOLDED[name]
    recorded = taps.record(quick, images)
    torch.testing.assert_close(recorded.logits, expected.logits, rtol=1e-9, atol=1e-12)
    tolerance = {"rtol": 1e-6, "atol": 1e-9 * float(gradient.abs().max())}
    torch.testing.assert_close(recorded.pull_back(cotangent), gradient, **tolerance)


@pytest.mark.parametrize(
    ("name", "layer"), [(name, None) for name in FOLDED] + [("tf_efficientnet_lite0", "blocks.5.0.bn1")]
)
def test_explanations_of_the_fast_form_are_those_of_the_network(name, layer):
    """Also of a convolution before its batch norm, as VGG's: its output stays what it is. And biases are folded too."""
    network, images = built(name)
    tapped = explanation_layer(network, layer)
    quick = fast(network, tapped)
    asked = ["gradcam", "xgradcam", "layercam", "input_x_gradient", "fullgrad", "lrp"], ["original", "weighted"]
    expected = explain_together(network, images, 2, *asked, tapped)
    found = explain_together(quick, images, 2, *asked, explanation_layer(quick, layer))
    for ours, theirs in zip(found.maps, expected.maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9 * float(theirs.abs().max()))


@pytest.mark.parametrize("layer", ["features.40", "features"])
def test_a_layer_that_is_explained_is_not_folded_across_its_end(layer):
    """VGG's last convolution, and its features, which here end in it, are followed by a batch norm outside of them."""
    network, images = built("vgg16_bn_narrow")
    inner = network.inner
    inner.features, inner.avgpool = inner.features[:41], nn.Sequential(inner.features[41:], inner.avgpool)
    expected = taps.record(network, images, explanation_layer(network, layer)).activation
    quick = fast(network, explanation_layer(network, layer))
    assert len(norms(quick)) == 1
    activation = taps.record(quick, images, explanation_layer(quick, layer)).activation
    torch.testing.assert_close(activation, expected, rtol=1e-9, atol=1e-12)
    assert not norms(fast(network))


@pytest.mark.parametrize("size", [(9, 9), (8, 8), (13, 6), (5, 12), (2, 3)])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (4, 3, 1), (1, 2, 1), (3, 2, 2)])
@pytest.mark.parametrize("groups", [1, 6])
def test_same_padding_without_a_copy_is_timms(size, kernel, stride, dilation, groups):
    generator = torch.Generator().manual_seed(0)
    theirs = Conv2dSame(6, 6, kernel, stride, dilation=dilation, groups=groups).double()
    images = torch.randn(2, 6, *size, dtype=torch.float64, generator=generator).requires_grad_()
    ours = fast(theirs)
    assert type(theirs) is Conv2dSame and (type(ours) is SamePadded) == (dilation == 1)
    expected = theirs(images)
    assert expected.shape[2:] == tuple(-(-n // stride) for n in size)
    torch.testing.assert_close(ours(images), expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    gradients = [torch.autograd.grad(module(images), images, cotangent)[0] for module in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_clipping_in_place_is_relu6_and_keeps_its_output_alone(dtype):
    values = torch.tensor([-1, -0.0, 0, 1e-30, 3, 5.99, 6, 6.01, 9], dtype=dtype)
    images = values.repeat(2, 3, 5, 1).requires_grad_()
    theirs = nn.ReLU6(inplace=True)
    ours = fast(theirs)
    assert type(theirs) is nn.ReLU6 and type(ours) is ClippedInPlace
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.data_ptr()) or saved, lambda x: x):
        output = ours(images + 0)
    assert kept == [output.data_ptr()]
    for one in (output, ours((images + 0)[:, 1:])):  # a view too
        expected = theirs((images + 0)[:, -one.shape[1] :])
        assert torch.equal(one, expected)
        cotangent = torch.randn(one.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert torch.equal(*(torch.autograd.grad(y, images, cotangent)[0] for y in (one, expected)))


def test_relu6_that_works_on_a_copy_stays():
    assert type(fast(nn.ReLU6())) is nn.ReLU6


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


class TwoNames(nn.Module):
    """The forward pass goes by the second name of either layer."""

    def __init__(self):
        super().__init__()
        self.named, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.first, self.second = nn.Sequential(self.named, nn.BatchNorm2d(4)), nn.Sequential(self.norm)

    def forward(self, images):
        return self.second(self.first[0](images)).mean((-2, -1))


class LookedAt(nn.Module):
    """Its code needs what an identity does not have."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))

    def forward(self, images):
        x = self.layers(images).mean((-2, -1))
        return x * self.layers[1].weight + self.layers[3].running_mean


@pytest.mark.parametrize("kind", [Twice, Untraceable, TwoNames, LookedAt])
def test_what_cannot_be_folded_is_kept(kind, images):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = with_statistics(kind().eval())
    quick = fast(network)
    assert len(norms(quick)) == 2
    torch.testing.assert_close(quick(images), network(images), rtol=0, atol=1e-12)


# --- the fast form ----------------------------------------------------------------------------------------------


def state(network):
    """All of a network but its function: what it holds, where and how that lies in memory, its modes and hooks."""
    held = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        {name: (value.data_ptr(), value.stride(), value.requires_grad, value.grad) for name, value in held.items()},
        {name: value.tolist() for name, value in held.items()},
        {name: (id(module), module.training) for name, module in network.named_modules()},
        {name: [list(getattr(module, kind)) for kind in hooks] for name, module in network.named_modules()},
        vars(network).keys(),
    )


def ready_to_train(network):
    """A network as its owner may hand it over: training, parameters with gradients, contiguous in memory."""
    network.train().requires_grad_()
    assert all(parameter.is_contiguous() for parameter in network.parameters())
    return network


def test_fast_is_folded_frozen_in_eval_mode_and_channels_last(pooled, images):
    quick = fast(ready_to_train(pooled))
    assert norms(quick) == []
    assert not any(parameter.requires_grad for parameter in quick.parameters())
    assert not any(module.training for module in quick.modules() if not any(module.children()))  # layers, not folders
    weights = [parameter for parameter in quick.parameters() if parameter.ndim == 4]
    assert len(weights) == 2
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    torch.testing.assert_close(quick(images), pooled.eval()(images), rtol=1e-9, atol=1e-12)


def test_fast_shares_nothing_with_the_network_and_leaves_it_alone(network, images):
    ready_to_train(network)
    network(images).sum().backward()  # gradients that somebody wants to step along
    before = state(network)
    quick = fast(network)
    taps.record(quick, images).pull_back(torch.ones(4, 6, dtype=torch.float64))
    assert state(network) == before
    own = {value.data_ptr() for value in network.state_dict().values()}
    assert not own & {value.data_ptr() for value in quick.state_dict().values()}
    assert not {id(module) for module in network.modules()} & {id(module) for module in quick.modules()}


def test_what_is_fast_stays_the_same_object(pooled):
    for network in (pooled, Untraceable().eval(), nn.Flatten()):  # folded, folded in part, nothing to fold
        quick = fast(network)
        assert quick is not network
        assert fast(quick) is quick


def test_fast_networks_have_the_normalisation_that_they_were_built_with():
    """Its mean is the colour that masks take for zero, its std scales the gradient norms."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.build("vgg16_bn_narrow", num_classes=3)
    quick = fast(network)
    assert torch.equal(quick.mean, network.mean)
    assert torch.equal(quick.std, network.std)


def test_hooks_still_see_the_forward_pass_of_the_fast_form(pooled, images):
    seen = []
    handle = pooled.features[4].register_forward_hook(lambda *_: seen.append(1))
    quick = fast(pooled)
    quick(images)
    assert len(seen) == 1
    assert len(norms(quick)) == 2, "a trace would have lost the hook"
    handle.remove()
    pooled(images)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, nn.Sequential, lambda network: torch.compile(network, backend="eager")]
)
def test_a_wrapped_network_is_fast_all_the_same(pooled, images, wrap):
    wrapped = wrap(pooled)
    quick = fast(wrapped)
    assert norms(quick) == []
    torch.testing.assert_close(quick(images), pooled(images), rtol=1e-9, atol=1e-12)
    assert len(norms(wrapped)) == 2


def masked(network, images, targets):
    maps = torch.randn(4, 1, 2, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leading, blur = torch.stack([targets, (targets + 1) % 6], 1), masking.Blur(5, 1.0)
    return masking.mask_maps(network, images, maps, leading, (0, 1), ["zeros"], ["equal_kept"], blur, 8)[0]


#: What makes a network fast by itself.
CALLERS = {
    "grid": lambda network, images, targets: torch.stack(
        perturbation.perturbation_grid(network, images, targets, ["weighted"], [0.01], [2])["weighted", 0.01, 2]
    ),
    "sign agreement": lambda network, images, targets: perturbation.sign_agreement(
        network, images.float(), targets, ["weighted"], torch.bfloat16
    ),
    "saturation": lambda network, images, targets: torch.stack(
        saturation.follow(network, images, targets, "weighted", 0.01, 2)
    ),
    "gradient norms": lambda network, images, _targets: torch.stack(gradient_norms(network, images, [0, 2])),
    "masks": masked,
}


@pytest.mark.parametrize("caller", CALLERS)
def test_whoever_makes_a_network_fast_leaves_it_alone_and_gives_what_the_fast_form_gives(
    network, images, targets, caller
):
    ready_to_train(network)
    if caller == "sign agreement":
        network.float()
    before = state(network)
    result = CALLERS[caller](network, images, targets)
    assert state(network) == before
    assert torch.equal(CALLERS[caller](fast(network), images, targets), result)
    assert result.isfinite().all()
