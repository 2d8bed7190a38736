"""FullGrad's maps add up to what they explain, wherever a network is made of layers that we say it holds for."""

import pytest
import torch
from pytorch_grad_cam import FullGrad
from torch import nn

from cxlib import networks, runtime, taps
from cxlib.contrasts import CONTRASTS, cotangent
from cxlib.explainers import explain, fullgrad
from cxlib.networks.build import _skeleton

COMPLETE = [
    *("resnet18", "vgg11_bn", "mobilenet_v2", "densenet121", "googlenet", "alexnet", "squeezenet1_1", "mnasnet0_5"),
    *("mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "shufflenet_v2_x0_5"),
    *("test_resnet.r160_in1k", "mobilenetv3_small_050", "efficientnet_lite0", "repvgg_a0"),
]


def scrambled(name):
    """A network in float64 whose batch norms have seen data, and whose biases all matter."""
    with runtime.seeded(3):
        network = networks.build(name, num_classes=10).double()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
            if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
                bias.normal_(0, 0.3)
    return network


def random_images(n=2, side=64):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", COMPLETE)
def test_the_map_adds_up_to_the_logit_or_its_contrast(name):
    network, images, targets = scrambled(name), random_images(), torch.tensor([0, 7])
    maps = explain(network, images, targets, "fullgrad", ["original", "weighted"])
    assert maps.shape == (2, 2, 64, 64)
    logits = taps.logits(network, images)
    expected = torch.stack([(cotangent(name, logits, targets) * logits).sum(-1) for name in ("original", "weighted")])
    torch.testing.assert_close(maps.sum((-2, -1)), expected, rtol=0, atol=1e-10 * expected.abs().max().item())


def test_the_biases_are_part_of_the_sum():
    """Input times gradient alone does not add up, so that the test above can fail."""
    network, images = scrambled("resnet18"), random_images()
    targets = torch.tensor([0, 3])
    gradient = taps.record(network, images).pull_back(cotangent("original", taps.logits(network, images), targets))
    alone = ((images - network.mean) * gradient).sum((1, 2, 3))
    logits = taps.logits(network, images)[torch.arange(2), targets]
    assert ((alone - logits).abs() > 0.3 * logits.abs()).all()


def test_googlenets_own_normalisation_is_taken_for_the_colour_it_sees_as_zero():
    with runtime.seeded(0):
        skeleton = _skeleton("googlenet", 10, {"transform_input": True})
    network, images = networks.freeze(skeleton).double(), random_images()
    maps = explain(network, images, torch.tensor([0, 1]), "fullgrad", "original")
    torch.testing.assert_close(maps.sum((-2, -1)), taps.logits(network, images)[[0, 1], [0, 1]])


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_the_map_of_a_contrast_is_the_contrast_of_the_classes_maps(network, images, targets, contrast):
    of_classes = explain(network, images, torch.arange(6).expand(4, 6), "fullgrad", "original")
    expected = torch.einsum("bk,bkhw->bhw", cotangent(contrast, network(images), targets), of_classes)
    torch.testing.assert_close(explain(network, images, targets, "fullgrad", contrast), expected)


def test_the_terms_are_those_of_the_paper_term_by_term(pooled, images, targets):
    """By hand: gradients at the input and at each layer's output, times image and bias, spread by hats."""
    layers = [pooled.features[i] for i in (0, 1, 4, 5)]
    scale = [(bn.weight / (bn.running_var + bn.eps).sqrt()) for bn in (layers[1], layers[3])]
    biases = [
        layers[0].bias,
        layers[1].bias - layers[1].running_mean * scale[0],
        layers[2].bias,
        layers[3].bias - layers[3].running_mean * scale[1],
    ]
    cotangents = cotangent("weighted", pooled(images), targets)
    expected = (images * taps.record(pooled, images).pull_back(cotangents)).sum(1)
    for layer, bias in zip(layers, biases):
        gradient = taps.record(pooled, images, layer).pull_back(cotangents)
        term = (bias[:, None, None] * gradient).sum(1)
        expected += term if term.shape[-1] == 16 else halved(16) @ term @ halved(16).T
    expected += ((cotangents * pooled.head.bias).sum(1) / 256)[:, None, None]
    torch.testing.assert_close(explain(pooled, images, targets, "fullgrad"), expected)


def halved(n):
    """(n, n / 2): linear interpolation between the centres of places twice as wide, held at the edges; sums of 1."""
    position = ((torch.arange(n, dtype=torch.float64) + 0.5) / 2 - 0.5).clamp(0, n / 2 - 1)
    return (1 - (position[:, None] - torch.arange(n // 2)).abs()).clamp(min=0) / 2


def test_grad_cams_maps_are_ours_with_absolute_values_and_rescaling(flat, images, targets):
    """At the images' size nothing is resized: |terms|, rescaled to [0, 1] channel by channel, are what they sum."""
    narrow = nn.Sequential(*flat.features[:3], nn.Flatten(), nn.Linear(8 * 256, 6).double()).eval()
    with FullGrad(narrow, []) as method:
        theirs = torch.from_numpy(method(images, [lambda y, t=int(t): y[t] for t in targets]))
    trace = fullgrad.record(narrow, images)
    cotangents = cotangent("original", trace.logits, targets)
    ((image_gradient, gradients),) = trace.pull_back(cotangents[:, None], lambda _, g: g, lambda *both: both)
    terms = [(image_gradient * images).abs()]
    terms += [(b[:, None, None] * g).abs() for (b, _), g in zip(trace.kept, gradients) if g.ndim == 4]

    def stretch(x, dims):
        low = x.amin(dims, keepdim=True)
        return (x - low) / (1e-7 + (x - low).amax(dims, keepdim=True))

    summed = sum(stretch(term, (-2, -1)).sum(1) for term in terms)
    torch.testing.assert_close(theirs.double(), stretch(summed, (-2, -1)), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU6(),
        nn.Hardswish(inplace=True),
        nn.SiLU(inplace=True),
        nn.GELU(),
        nn.ELU(),
        nn.Sigmoid(),
        nn.Tanh(),
        nn.Mish(),
    ],
)
def test_implicit_biases_make_up_for_activations_that_are_not_piecewise_linear(images, activation):
    with runtime.seeded(0):
        inner = [nn.Conv2d(3, 5, 3), activation, nn.Conv2d(5, 4, 3), activation, nn.Flatten(), nn.Linear(4 * 144, 3)]
    network = nn.Sequential(*inner).double().eval()
    network[0].weight.data *= 20
    in_place = getattr(activation, "inplace", None)
    maps = explain(network, images, torch.tensor([0, 1, 2, 0]), "fullgrad", "original")
    logits = taps.logits(network, images)[range(4), [0, 1, 2, 0]]
    torch.testing.assert_close(maps.sum((-2, -1)), logits)
    assert getattr(activation, "inplace", None) is in_place


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_bias_of_relu6_is_what_its_slope_leaves_also_beside_where_it_clips(dtype):
    ulp = torch.finfo(dtype).eps * 4  # of numbers from 4 to 8
    x = torch.tensor([-1, 0, 1e-3, 3, 6 - 2 * ulp, 6 - ulp, 6, 6 + ulp, 9], dtype=dtype).requires_grad_()
    y = nn.functional.relu6(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    bias, channels = fullgrad._of_relu6(nn.ReLU6(), x, y)
    assert channels is None
    assert torch.equal(bias, (y - x * slope).detach())
    assert bias.tolist() == [0] * 6 + [6] * 3


def test_a_layer_that_sees_no_image_counts_too(images):
    """As one that mixes learned tokens: it does not lie between the images and the logits."""

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.beside, self.token = nn.Linear(768, 3), nn.Linear(5, 3), nn.Parameter(torch.zeros(1, 5))

        def forward(self, x):
            return self.head(x.flatten(1)) + self.beside(self.token.expand(len(x), -1))

    network, targets = Beside().double(), torch.tensor([0, 1, 2, 0])
    targets = torch.stack([targets, targets.flip(0)], 1)
    maps = explain(network, images, targets, "fullgrad", "original")
    torch.testing.assert_close(maps.sum((-2, -1)), taps.logits(network, images).gather(1, targets))


def test_timms_batch_norm_with_its_activation_inside_is_complete(images):
    from timm.layers import BatchNormAct2d

    network = nn.Sequential(nn.Conv2d(3, 5, 3), BatchNormAct2d(5), nn.Flatten(), nn.Linear(5 * 196, 3)).double().eval()
    network[1].running_mean.uniform_(-0.5, 0.5)
    maps = explain(network, images, torch.tensor([0, 1, 2, 0]), "fullgrad", "original")
    torch.testing.assert_close(maps.sum((-2, -1)), taps.logits(network, images)[range(4), [0, 1, 2, 0]])


def test_channels_last_are_summed_over_channels(images):
    """As in ConvNeXt's blocks: a linear layer and its activation on (B, h, w, C)."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.act, self.head = nn.Linear(3, 7), nn.SiLU(), nn.Linear(7 * 256, 3)

        def forward(self, x):
            return self.head(self.act(self.mix(x.permute(0, 2, 3, 1))).flatten(1))

    with runtime.seeded(0):
        network = Last().double()
    maps = explain(network, images, torch.tensor([0, 1, 2, 0]), "fullgrad", "original")
    torch.testing.assert_close(maps.sum((-2, -1)), taps.logits(network, images)[range(4), [0, 1, 2, 0]])
    # The head is blind to the right half, so no term may lie there.
    network.head.weight.data.view(3, 16, 16, 7)[:, :, 8:] = 0
    network.head.bias.data.zero_()
    maps = explain(network, images, torch.tensor([0, 1, 2, 0]), "fullgrad", "original")
    assert maps[..., :8].abs().min() > 0
    assert not maps[..., 8:].any()


def test_layer_norm_is_not_complete():
    """What the docstring says: its terms are left out, and the sum is short."""
    network, images = scrambled("convnext_tiny"), random_images(1)
    maps = explain(network, images, torch.tensor([0]), "fullgrad", "original")
    logit = taps.logits(network, images)[0, 0]
    assert maps.isfinite().all()
    assert abs(maps.sum() - logit) > 0.01 * abs(logit)


@pytest.mark.parametrize(("n", "n_pixels"), [(1, 5), (2, 4), (7, 224), (13, 224), (55, 224), (9, 9), (20, 8)])
def test_spreading_keeps_every_places_mass_and_a_constant_where_sizes_divide(n, n_pixels):
    weights = fullgrad._weights(n, n_pixels)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(n, dtype=torch.float64))
    if n_pixels % n == 0:
        torch.testing.assert_close(weights.sum(1), torch.full((n_pixels,), n / n_pixels, dtype=torch.float64))


def test_a_layer_that_runs_twice_gives_a_bias_each_time(images):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 3)

        def forward(self, images):
            return self.head(self.conv(self.conv(images).relu()).relu().mean((-2, -1)))

    with runtime.seeded(0):
        network = Twice().double()
    network.conv.bias.data += 1
    maps = explain(network, images, torch.tensor([0, 1, 2, 0]), "fullgrad", "original")
    torch.testing.assert_close(maps.sum((-2, -1)), taps.logits(network, images)[range(4), [0, 1, 2, 0]])


def test_a_frozen_network_in_training_mode_is_left_as_it_was(network, images, targets):
    network.head.train()
    expected = explain(network, images, targets, "fullgrad")
    with torch.inference_mode():
        assert torch.equal(explain(network, images.clone(), targets, "fullgrad"), expected)
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(module, kind) for module in network.modules() for kind in kinds)
    assert [name for name, module in network.named_modules() if module.training] == ["head"]
    assert network.features[2].inplace
    assert not images.requires_grad
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_no_hook_survives_an_exception_and_in_place_layers_are_again(network, images):
    with pytest.raises(RuntimeError):
        explain(network, images[:, :2], torch.tensor([0, 1, 2, 3]), "fullgrad")
    assert not any(module._forward_hooks for module in network.modules())
    assert network.features[2].inplace


class Windows(nn.Module):
    """A layer with a bias that sees the halves of each image as a batch of their own, as window attention does."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.layer, self.head = nn.Linear(24, 5), nn.Linear(10, 4)

    def forward(self, images):
        windows = images.reshape(2 * len(images), 24)  # (B * 2, 24)
        return self.head(self.layer(windows).relu().reshape(len(images), 10))


def test_the_biases_of_windows_are_their_images():
    network, images, t = Windows().double(), torch.rand(3, 3, 4, 4, dtype=torch.float64), torch.tensor([0, 3, 1])
    maps = explain(network, images, t, "fullgrad", "original")
    torch.testing.assert_close(maps.sum((-2, -1)), network(images).gather(1, t[:, None])[:, 0])


class Positions(nn.Module):
    """A layer with a bias that all images share, as a projected encoding of positions."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 3, 1), nn.Linear(48, 4)

    def forward(self, images):
        return self.head((images + self.layer(torch.ones(1, 3, 4, 4))).flatten(1))


def test_a_bias_that_all_images_share_is_refused_for_more_than_one():
    network, images, t = Positions(), torch.rand(2, 3, 4, 4), torch.tensor([0, 3])
    with pytest.raises(ValueError, match="cannot share a bias of 1 outputs among 2 images: pass one image"):
        explain(network, images, t, "fullgrad", "original")
    assert explain(network, images[:1], t[:1], "fullgrad", "original").isfinite().all()
