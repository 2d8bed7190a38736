"""Explainers agree with captum and grad-cam where these have them, and with algebra where they have not."""

import re
from functools import partial
from inspect import signature
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation, Saliency
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, XGradCAM
from test_contrasts import OBJECTIVES
from test_vit import build as tokens_network
from test_vit import pictures
from torch import nn

import cxlib
from cxlib import networks, runtime, taps
from cxlib.contrasts import CONTRASTS, cotangent
from cxlib.explainers import EXPLAINERS, LINEAR, OF_TOKENS, cam, cautions, explain, inputs, vit

# Captum says that it makes the images require gradients.
pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")

OF_ANY_NETWORK = [name for name in EXPLAINERS if name not in OF_TOKENS]  # the others: test_vit.py
LINEAR_OF_ANY = [name for name in OF_ANY_NETWORK if name in LINEAR]


def assert_same(actual, expected, tolerance=1e-5):
    """Equal up to a share of the largest value of each image's map."""
    scale = expected.abs().amax((-2, -1), keepdim=True)
    assert (scale > 0).all()
    assert ((actual - expected).abs() / scale).max() < tolerance


def captum_map(explainer, network, layer, images, targets):
    """Captum wants gradients to reach the layer from the parameters, and keeps one channel for the sum."""
    network.requires_grad_()
    if explainer == "gradient":
        attribution = Saliency(network).attribute(images.clone(), targets, abs=False)
    elif explainer == "gradcam":
        attribution = LayerGradCam(network, layer).attribute(images, targets, relu_attributions=False)
    else:
        attribution = LayerGradientXActivation(network, layer).attribute(images, targets)
    return attribution.sum(1).detach()


IN_CAPTUM = ["gradient", "gradcam", "linear_approximation"]


@pytest.mark.parametrize("layer", ["features.0", "features.1", "features.4", "features.5", "features"])
@pytest.mark.parametrize("explainer", IN_CAPTUM)
def test_captum_has_the_same_map(network, images, targets, explainer, layer):
    ours = explain(network, images, targets, explainer, "original", layer, upsample=False)
    module = networks.explanation_layer(network, layer)
    assert_same(ours, captum_map(explainer, network, module, images, targets))


@pytest.mark.parametrize("contrast", OBJECTIVES)
@pytest.mark.parametrize("explainer", IN_CAPTUM)
def test_captum_has_the_same_contrastive_map_of_the_contrasts_objective(flat, images, targets, explainer, contrast):
    class Contrasted(nn.Module):
        """The one number that captum explains: what the contrast is the gradient of."""

        def __init__(self):
            super().__init__()
            self.inner = flat

        def forward(self, batch):
            return torch.stack([OBJECTIVES[contrast](y, int(t)) for y, t in zip(flat(batch), targets)])

    ours = explain(flat, images, targets, explainer, contrast, "features.4", upsample=False)
    assert_same(ours, captum_map(explainer, Contrasted(), flat.features[4], images, None))


@pytest.fixture(scope="module")
def resnet18():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return networks.build("resnet18", num_classes=10)


@pytest.mark.parametrize("layer", ["layer2", "layer3.1.conv1", "layer4"])
@pytest.mark.parametrize("explainer", IN_CAPTUM)
def test_captum_has_the_same_map_on_torchvisions_resnet18(resnet18, explainer, layer):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([3, 7])
    ours = explain(resnet18, images, targets, explainer, "original", layer, upsample=False)
    module = networks.explanation_layer(resnet18, layer)
    assert_same(ours, captum_map(explainer, resnet18, module, images, targets))
    networks.freeze(resnet18)


@pytest.mark.parametrize("contrast", OBJECTIVES)
@pytest.mark.parametrize(
    ("explainer", "theirs"), [("gradcam", GradCAM), ("linear_approximation", HiResCAM), ("xgradcam", XGradCAM)]
)
def test_grad_cam_has_the_same_positive_part_after_its_scaling(network, images, targets, explainer, theirs, contrast):
    """Grad-cam keeps the positive part, resizes it, and stretches every map to [0, 1].

    Compared is our `relu=True` map after the same stretch, at a layer of the images' own size, where resizing
    does nothing. That layer ends in a ReLU: grad-cam's XGradCAM divides by the sum of activations, ours by
    the sum of their absolute values (Eq. 3), and these are one where activations are not negative.
    """
    ours = explain(network, images, targets, explainer, contrast, "features.2", relu=True).float()
    low, high = ours.amin((-2, -1), keepdim=True), ours.amax((-2, -1), keepdim=True)
    assert (high > low).sum() >= 3  # a map may have no positive part at all: grad-cam leaves zeros
    # The gradient of p_t is orders of magnitude below the others: grad-cam adds 1e-7 to the maximum it divides by.
    objectives = [lambda y, t=int(t): 1e3 * OBJECTIVES[contrast](y, t) for t in targets]
    network.requires_grad_()
    with theirs(network, [network.features[2]]) as method:
        expected = torch.from_numpy(method(images, objectives))
    stretched = torch.where(high > low, (ours - low) / (high - low), 0)
    torch.testing.assert_close(stretched, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("explainer", ["gradcam", "linear_approximation", "xgradcam"])
def test_the_cams_follow_their_formulas_where_activations_have_both_signs(explainer):
    """By hand on two channels of a 1 x 2 map; Eq. 3 has absolute values in XGradCAM's norm."""
    activation = torch.tensor([[[3.0, -1.0]], [[2.0, 2.0]]], dtype=torch.float64)
    gradient = torch.tensor([[[1.0, 5.0]], [[-1.0, 3.0]]], dtype=torch.float64)
    expected = {
        "gradcam": [[3 * 3.0 + 1 * 2, 3 * -1.0 + 1 * 2]],
        "linear_approximation": [[3 * 1.0 - 2 * 1, -1 * 5.0 + 2 * 3]],
        "xgradcam": [[(3 - 5) / 4 * 3 + (-2 + 6) / 4 * 2, (3 - 5) / 4 * -1.0 + (-2 + 6) / 4 * 2]],
    }[explainer]
    actual = cam.MAPS[explainer](activation, gradient)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


def test_a_silent_channel_leaves_xgradcam_finite():
    activation = torch.stack([torch.zeros(3, 3), torch.ones(3, 3)])
    assert torch.equal(cam.xgradcam(activation, torch.ones(2, 3, 3)), torch.full((3, 3), 9 / (9 + cam.TINY)))


# --- GradCAM++, which is not linear ---


def literal_plus_plus_weights(activation, gradient, eps=0.0):
    """Eq. 19 and the weights of the paper, a number at a time: (C, h, w) twice -> (C,)."""
    weights = []
    for a, g in zip(activation.tolist(), gradient.tolist()):
        total, weight = sum(map(sum, a)), 0.0
        for slope in (slope for row in g for slope in row):
            denominator = 2 * slope**2 + total * slope**3 + eps
            alpha = slope**2 / (denominator if denominator != 0 else 1)
            weight += alpha * max(slope, 0)
        weights.append(weight)
    return torch.tensor(weights, dtype=torch.float64)


def activation_and_gradient(scale=1.0):
    """Of a layer that ends in a ReLU; some gradients are 0."""
    generator = torch.Generator().manual_seed(2)
    activation, gradient = torch.randn(2, 7, 5, 6, generator=generator, dtype=torch.float64)
    return activation.clamp(min=0), gradient.mul(scale).masked_fill(gradient.abs() < 0.2, 0)


@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_grad_cam_plus_plus_is_eq_19_a_number_at_a_time(scale):
    activation, gradient = activation_and_gradient(scale)
    activation[3] = 0  # a channel that is silent
    expected = torch.einsum("k,kij->ij", literal_plus_plus_weights(activation, gradient), activation)
    assert_same(cam.gradcam_plus_plus(activation, gradient), expected, 1e-12)


def test_grad_cam_plus_plus_stays_finite_where_its_denominator_is_0():
    activation, gradient = torch.tensor([[[-1.0, -1]]]), torch.tensor([[[1.0, 0]]])  # A g = -2, and g = 0
    assert torch.equal(cam.gradcam_plus_plus(activation, gradient), activation[0])
    assert not cam.gradcam_plus_plus(activation, torch.zeros(1, 1, 2)).any()


def test_small_gradients_keep_their_grad_cam_plus_plus_in_float32():
    """There g^3, and then g^2, is 0."""
    activation, gradient = (values.float() for values in activation_and_gradient(1e-3))
    for scale in (1e-17, 1e-27):
        actual = cam.gradcam_plus_plus(activation, scale * gradient) / scale
        expected = (0.5 * gradient.clamp(min=0).sum((-2, -1), keepdim=True) * activation).sum(0)
        assert_same(actual, expected, 1e-5)


@pytest.mark.parametrize("layer", ["features.2", "features.6"])
def test_grad_cams_plus_plus_has_the_same_weights_where_its_epsilon_is_small(network, images, targets, layer):
    """It adds 1e-6 to every denominator, about 2 g^2 of a gradient of 1e-3; then it resizes and stretches its maps."""
    recorded = taps.record(network, images, networks.explanation_layer(network, layer))
    gradient = recorded.pull_back(cotangent("original", recorded.logits, targets))
    activation = recorded.activation
    ours = explain(network, images, targets, "gradcam++", "original", layer, upsample=False)
    assert torch.equal(ours, cam.gradcam_plus_plus(activation, gradient))
    with GradCAMPlusPlus(network, [network.features[2]]) as method:
        theirs, of_larger = (
            torch.from_numpy(method.get_cam_weights(None, None, None, activation.numpy(), (c * gradient).numpy()))
            for c in (1, 1e3)
        )
    with_epsilon = [literal_plus_plus_weights(a, g, eps=1e-6) for a, g in zip(activation, gradient)]
    torch.testing.assert_close(theirs, torch.stack(with_epsilon))
    expected = torch.einsum("bk,bkij->bij", of_larger, activation)
    assert_same(cam.gradcam_plus_plus(activation, 1e3 * gradient), expected, 1e-3)


def test_grad_cam_plus_plus_changes_its_shape_with_the_cotangents_scale():
    """alpha(c g) = 1 / (2 + c A g): half the gradients' sum as c -> 0, the share of positive ones over A beyond."""
    activation, gradient = activation_and_gradient()
    positive = gradient.clamp(min=0)

    def scaled(c):
        return cam.gradcam_plus_plus(activation, c * gradient)

    def weighted(weights):
        return torch.einsum("k,kij->ij", weights, activation)

    total = activation.sum((-2, -1))
    for c in (0.1, 1.0, 7.0):
        alpha = 1 / (2 + c * total[:, None, None] * gradient)
        assert_same(scaled(c), c * weighted((alpha * positive).sum((-2, -1))), 1e-12)
    assert_same(scaled(1e-9) / 1e-9, weighted(positive.sum((-2, -1)) / 2), 1e-6)
    assert_same(scaled(1e9), weighted((gradient > 0).sum((-2, -1)) / total), 1e-6)
    low, middle = (scaled(c) / scaled(c).abs().max() for c in (1e-9, 1.0))
    assert (low - middle).abs().max() > 0.01


@pytest.mark.parametrize("explainer", cam.MAPS)
def test_of_the_cams_only_grad_cam_plus_plus_tells_probability_from_weighted(flat, images, targets, explainer):
    """Their cotangents are one vector, p_t (1 - p_t) apart."""
    weighted, probability = explain(flat, images, targets, explainer, ["weighted", "probability"], "features.6")
    p_t = flat(images).softmax(-1).gather(-1, targets[:, None])[..., None]
    difference = (probability / (p_t * (1 - p_t)) - weighted).abs().amax((-2, -1)) / weighted.abs().amax((-2, -1))
    assert (difference > 0.01).all() if explainer == "gradcam++" else (difference < 1e-9).all()


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("explainer", LINEAR_OF_ANY)
def test_the_map_of_a_contrast_is_the_contrast_of_the_classes_maps(network, images, targets, explainer, contrast):
    classes = torch.arange(6).expand(4, 6)
    of_classes = explain(network, images, classes, explainer, "original", "features.4")
    coefficients = cotangent(contrast, network(images), targets)
    expected = torch.einsum("bk,bkhw->bhw", coefficients, of_classes)
    assert_same(explain(network, images, targets, explainer, contrast, "features.4"), expected, 1e-9)


def of_kind_in_float64(explainer, flat, images, targets):
    """A network in float64 that the explainer takes, images and targets."""
    if explainer not in OF_TOKENS:
        return flat, images, targets
    network = tokens_network("class token")
    return network, pictures(network), torch.tensor([4, 0, 2])


def largest_difference(maps, expected):
    """As a share of each image's largest value, of the worst image."""
    return float(((maps - expected).abs().amax((-2, -1)) / expected.abs().amax((-2, -1))).max())


@pytest.mark.parametrize("explainer", EXPLAINERS)
def test_the_linear_ones_alone_have_the_contrast_of_the_classes_maps(flat, images, targets, explainer):
    network, images, targets = of_kind_in_float64(explainer, flat, images, targets)
    logits = network(images)
    classes = torch.arange(logits.shape[1]).expand_as(logits)
    of_classes = explain(network, images, classes, explainer, "original", upsample=False)
    expected = torch.einsum(
        "cbk,bkhw->cbhw", torch.stack([cotangent(c, logits, targets) for c in CONTRASTS]), of_classes
    )
    maps = explain(network, images, targets, explainer, list(CONTRASTS), upsample=False)
    difference = largest_difference(maps[1:], expected[1:])  # `original` is one class's own
    assert difference < 1e-7 if explainer in LINEAR else difference > 0.05


#: Of the others these scale with the cotangent, so that Eq. 4 holds for their maps too.
SCALE = LINEAR | {"layercam", "legrad"}


@pytest.mark.parametrize("explainer", EXPLAINERS)
def test_the_map_of_probability_is_that_of_weighted_up_to_eq_4s_factor(flat, images, targets, explainer):
    network, images, targets = of_kind_in_float64(explainer, flat, images, targets)
    weighted, probability = explain(network, images, targets, explainer, ["weighted", "probability"], upsample=False)
    p_t = network(images).softmax(-1).gather(-1, targets[:, None])[..., None]
    difference = largest_difference(probability / (p_t * (1 - p_t)), weighted)
    assert difference < 1e-7 if explainer in SCALE else difference > 0.001


@pytest.mark.parametrize("upsample", [True, False])
@pytest.mark.parametrize("explainer", OF_ANY_NETWORK)
def test_a_batch_gives_what_single_images_give(network, images, targets, explainer, upsample):
    contrasts = list(CONTRASTS)
    together = explain(network, images, targets, explainer, contrasts, "features.4", upsample=upsample)
    for i in range(4):
        one = slice(i, i + 1)
        alone = explain(network, images[one], targets[one], explainer, contrasts, "features.4", upsample=upsample)
        assert_same(together[:, one], alone, 1e-9)


@pytest.mark.parametrize("explainer", OF_ANY_NETWORK)
def test_shapes_are_those_of_targets_and_contrasts_and_so_are_the_values(network, images, explainer):
    targets = torch.tensor([[0, 1, 2], [3, 4, 5], [5, 5, 0], [2, 1, 0]])

    def maps(targets, contrast):
        return explain(network, images, targets, explainer, contrast, "features.4", upsample=False)

    size = (8, 8) if explainer in cam.MAPS else (16, 16)
    assert maps(targets[:, 0], "max").shape == (4, *size)
    assert maps(targets[:, :1], "max").shape == (4, 1, *size)
    assert maps(targets, "max").shape == (4, 3, *size)
    assert maps(targets[:, 0], ["max"]).shape == (1, 4, *size)
    everything = maps(targets, ["max", "mean"])
    assert everything.shape == (2, 4, 3, *size)
    for c, contrast in enumerate(["max", "mean"]):
        assert torch.equal(everything[c], maps(targets, contrast))
        for t in range(3):
            assert torch.equal(everything[c, :, t], maps(targets[:, t], contrast))
    assert not everything.requires_grad
    assert torch.equal(maps(targets, ("max", "mean")), everything)


def test_one_forward_pass_serves_all_targets_and_contrasts(network, images):
    passes = []
    network.register_forward_hook(lambda *_: passes.append(1))
    explain(network, images, torch.arange(6).expand(4, 6), contrast=list(CONTRASTS))
    assert len(passes) == 1


@pytest.mark.parametrize("explainer", OF_ANY_NETWORK)
def test_explaining_works_without_grad_and_leaves_images_alone(network, images, targets, explainer):
    before = images.clone()
    expected = explain(network, images, targets, explainer)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(explain(network, images, targets, explainer), expected)
            assert torch.equal(explain(network, images.clone(), targets, explainer), expected)
    assert torch.equal(images, before)
    assert not images.requires_grad


def hats(n_out, n_in):
    """(n_out, n_in) weights of bilinear interpolation whose first and last samples coincide."""
    position = torch.arange(n_out, dtype=torch.float64) * (n_in - 1) / (n_out - 1)
    return (1 - (position[:, None] - torch.arange(n_in)).abs()).clamp(min=0)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("explainer", cam.MAPS)
def test_upsampling_is_bilinear_and_keeps_the_corners(pooled, explainer, relu):
    images = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets = torch.tensor([1, 4])
    small, large = (
        explain(pooled, images, targets, explainer, relu=relu, layer="features.5", upsample=u) for u in (False, True)
    )
    assert small.shape == (2, 8, 10)
    assert large.shape == (2, 16, 20)
    corners = torch.tensor([0, -1])
    assert large.abs().max() > 0
    torch.testing.assert_close(large[:, corners][:, :, corners], small[:, corners][:, :, corners], rtol=1e-12, atol=0)
    torch.testing.assert_close(large, hats(16, 8) @ small @ hats(20, 10).T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("explainer", OF_ANY_NETWORK)
def test_relu_keeps_the_positive_part_at_the_layers_resolution(network, images, targets, explainer):
    signed, positive = (
        explain(network, images, targets, explainer, layer="features.4", relu=relu, upsample=False)
        for relu in (False, True)
    )
    assert (signed < 0).any()
    assert torch.equal(positive, signed.clamp(min=0))


def cams(network, images, targets, layer):
    return [explain(network, images, targets, name, "weighted", layer) for name in cam.MAPS if name in LINEAR]


def gradients_at(network, images, layer):
    recorded = taps.record(network, images, networks.explanation_layer(network, layer))
    return recorded.pull_back(cotangent("weighted", recorded.logits, torch.arange(6).expand(len(images), 6)))


def test_the_cams_are_one_map_behind_the_last_convolution_of_a_pooled_network(pooled, images, targets):
    first, *rest = cams(pooled, images, targets, "features")
    for other in rest:
        assert_same(other, first, 1e-5)  # XGradCAM's TINY
    assert cautions.is_constant(gradients_at(pooled, images, "features"))


@pytest.mark.parametrize(("kind", "layer"), [(True, "features.4"), (True, "features.0"), (False, "features")])
def test_the_cams_differ_at_earlier_layers_and_before_a_head_that_does_not_pool(request, images, targets, kind, layer):
    network = request.getfixturevalue("pooled" if kind else "flat")
    first, *rest = cams(network, images, targets, layer)
    for other in rest:
        assert (other - first).abs().max() > 0.01 * first.abs().max()
    assert not cautions.is_constant(gradients_at(network, images, layer))


def test_vgg16_bn_is_explained_at_its_last_convolution_before_batch_norm():
    with torch.device("meta"):  # shapes only: no weights are drawn
        network = networks.build("vgg16_bn", num_classes=4)
        images = torch.empty(1, 3, 224, 224)
    layer = networks.explanation_layer(network)
    assert layer is network.inner.features[40]
    assert isinstance(layer, nn.Conv2d)
    assert isinstance(network.inner.features[41], nn.BatchNorm2d)
    shapes = []
    layer.register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape))
    network(images)
    assert shapes == [(1, 512, 14, 14)]


@pytest.mark.parametrize("explainer", cam.MAPS)
def test_the_narrow_vgg_has_the_same_14_by_14_map(explainer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.build("vgg16_bn_narrow", num_classes=4)
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert networks.explanation_layer(network) is network.inner.features[40]
    maps = explain(network, images, torch.tensor([1]), explainer, upsample=False)
    assert maps.shape == (1, 14, 14)
    assert maps.any()


def test_the_layer_is_a_module_a_name_or_the_networks_own(network, images, targets):
    by_default = explain(network, images, targets)
    assert torch.equal(by_default, explain(network, images, targets, layer="features"))
    assert torch.equal(by_default, explain(network, images, targets, layer=network.features))
    wrapped = networks.Network("tiny", network, {}, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert torch.equal(by_default, explain(wrapped, images, targets, layer="features"))


class Holder(nn.Module):
    """A module of somebody's own that merely holds a network."""

    def __init__(self, held):
        super().__init__()
        self.held, self.temperature = held, nn.Parameter(torch.ones(1))

    def forward(self, images):
        return self.held(images)


def compiled(network):
    return torch.compile(network, backend="eager")


class AnotherProcess:
    """What DistributedDataParallel is, without the processes: its forward would wait for them."""

    def __new__(cls, network):
        wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
        nn.Module.__init__(wrapped)
        wrapped.module = network
        return wrapped


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": AnotherProcess,
    "torch.compile": compiled,
    "a module that holds it": Holder,
    "all of them": lambda network: Holder(compiled(AnotherProcess(Holder(network)))),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_what_wraps_a_network_changes_no_map(resnet18, wrap):
    images, targets = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 7])
    wrapped = wrap(resnet18)
    layers = product(["gradcam", "gradcam++"], ("layer3.0", resnet18.inner.layer3[0]))
    few = {
        "integrated_gradients": partial(inputs.integrated_gradients, steps=2),
        "smoothgrad": partial(inputs.smoothgrad, samples=2),
    }
    for explainer, layer in (*layers, *product([few.get(name, name) for name in OF_ANY_NETWORK], [None])):
        expected = explain(resnet18, images, targets, explainer, layer=layer)
        assert torch.equal(explain(wrapped, images, targets, explainer, layer=layer), expected)
    assert "forward" not in vars(wrapped) or wrap is compiled


TOKENS = [
    *product(OF_TOKENS, [None]), ("vit_gradcam", "blocks.1.norm1"), ("attention_rollout", "blocks.1"),
    ("attention_relevance", "blocks.1"), ("legrad", "blocks.1"),
]  # fmt: skip


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_what_wraps_a_transformer_changes_no_map(wrap):
    network = networks.build("vit_mini", num_classes=4)
    images, targets = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 0])
    for explainer, layer in TOKENS:
        expected = explain(network, images, targets, explainer, layer=layer)
        assert torch.equal(explain(wrap(network), images, targets, explainer, layer=layer), expected)
    assert vit.token_layers(wrap(network)) == vit.token_layers(network)


def of_kind(explainer):
    """A network of float32 that the explainer takes, two images, and targets."""
    generator = torch.Generator().manual_seed(1)
    with runtime.seeded(0):
        name = "vit_mini" if explainer in OF_TOKENS else "vgg16_bn_narrow"
        network = networks.build(name, num_classes=4)
    return network, torch.rand(2, 3, 48, 48, generator=generator), torch.tensor([[3, 0], [1, 2]])


@pytest.mark.parametrize("explainer", EXPLAINERS)
def test_autocast_changes_no_map(explainer):
    asked = (*of_kind(explainer), explainer, ["weighted", "normalised"])
    expected = explain(*asked)
    with torch.autocast("cpu", torch.bfloat16):
        maps = explain(*asked)
        assert torch.is_autocast_enabled("cpu")
    assert maps.dtype == torch.float32
    assert torch.equal(maps, expected)


@pytest.mark.parametrize("explainer", EXPLAINERS)
def test_weights_of_half_precision_are_taken_as_they_are_and_maps_are_float32(explainer):
    network, images, targets = of_kind(explainer)
    expected = explain(network.bfloat16().float(), images, targets, explainer, "original")
    network.bfloat16()
    for given in (images, images.bfloat16()):
        maps = explain(network, given, targets, explainer, "original")
        assert maps.dtype == torch.float32
        # The gradient at the input has come through all layers in half precision.
        assert ((maps - expected).flatten(2).norm(dim=-1) < 0.4 * expected.flatten(2).norm(dim=-1)).all()
        assert len(maps[0, 0].unique()) > 256, "the map itself is no rounded one"


class Answers(Holder):
    """A network whose answer is another thing than logits."""

    def __init__(self, held, answer):
        super().__init__(held)
        self.answer = answer

    def forward(self, images):
        return self.answer(self.held(images))


ANSWERS = {
    "an object": lambda y: SimpleNamespace(logits=y, loss=None),
    "a tuple": lambda y: (None, y, y.new_zeros(4, 2, 3), y.argmax(1)),
    "a list": lambda y: [y],
    "a dictionary": lambda y: {"out": y, "aux": y.sum()},
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_logits_are_found_in_what_a_network_answers(network, images, targets, answer):
    for explainer in OF_ANY_NETWORK:
        expected = explain(network, images, targets, explainer)
        assert torch.equal(explain(Answers(network, answer), images, targets, explainer), expected)


@pytest.mark.parametrize("explainer", OF_ANY_NETWORK)
def test_output_makes_logits_of_what_a_network_answers(network, images, targets, explainer):
    twice, head = Answers(network, lambda y: {"a": y, "b": 2 * y}), nn.Linear(6, 6).double()
    for layer in (None, "features.4"):
        expected = explain(Answers(network, lambda y: 2 * y), images, targets, explainer, layer=layer)
        maps = explain(twice, images, targets, explainer, layer=layer, output=lambda answer: answer["b"])
        assert torch.equal(maps, expected)
        expected = explain(Answers(network, head), images, targets, explainer, layer=layer and f"held.{layer}")
        assert torch.equal(explain(network, images, targets, explainer, layer=layer, output=head), expected)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda y: (y, y), "4 images with a tuple ((4, 6), (4, 6)), not with logits"),
        (lambda y: {"out": None, "features": y[..., None]}, "a dict (NoneType, (4, 6, 1))"),
        (lambda y: y[:1], "a Tensor ((1, 6))"),
        (lambda y: y.argmax(1), "a Tensor ((4,))"),
        (lambda y: y.long(), "a Tensor ((4, 6))"),
        (lambda y: y[0], "a Tensor ((6,))"),
        (lambda y: None, "a NoneType (NoneType)"),
        (lambda y: (), "a tuple ()"),
    ],
)
def test_an_answer_without_logits_is_told_in_one_line(network, images, targets, answer, told):
    for ask in (explain, lambda network, images, _targets: taps.logits(network, images)):
        with pytest.raises(ValueError) as caught:
            ask(Answers(network, answer), images, targets)
        assert told in str(caught.value)
        assert "`output`" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("explainer", OF_ANY_NETWORK)
def test_logits_that_are_not_finite_are_one_error_and_no_map_of_nan(network, images, targets, explainer, value):
    network.head.bias[4] = value
    with pytest.raises(ValueError, match=rf"the logit of class 4 of image 0 is {value}: "):
        explain(network, images, targets, explainer)
    with pytest.raises(ValueError, match=rf"the logit of class 4 of image 0 is {value}: "):
        taps.logits(network, images)


def test_a_pixel_that_is_not_finite_is_named_by_its_image(network, images, targets):
    images[2, 0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="of image 2 is nan"):
        explain(network, images, targets)


@pytest.mark.parametrize("explainer", OF_ANY_NETWORK)
def test_gradients_that_are_not_finite_are_one_error_and_no_map_of_nan(pooled, images, targets, explainer):
    class Root(nn.Module):
        def forward(self, x):
            return (x * 0).sqrt()

    pooled.pool = nn.Sequential(Root(), pooled.pool)
    assert pooled(images).isfinite().all()
    with pytest.raises(ValueError, match=rf"the maps of {re.escape(explainer)} are not finite"):
        explain(pooled, images, targets, explainer)


def test_a_network_that_was_compiled_and_has_run_is_still_recorded(network, images, targets):
    """Compiled code runs without the hooks that came later."""
    expected = explain(network, images, targets)
    network.compile(backend="eager")
    network(images)
    assert torch.equal(explain(network, images, targets), expected)


@pytest.mark.parametrize("explainer", LINEAR_OF_ANY)
def test_a_users_own_function_is_a_contrast(network, images, targets, explainer):
    def first_against_second(logits, _targets):
        return torch.tensor([1.0, -1, 0, 0, 0, 0]).to(logits).expand_as(logits)

    ours = explain(network, images, targets, explainer, first_against_second)
    classes = explain(network, images, torch.tensor([0, 1]).expand(4, 2), explainer, "original")
    assert_same(ours, classes[:, 0] - classes[:, 1], 1e-9)
    listed = explain(network, images, targets, explainer, [first_against_second, "weighted"])
    assert torch.equal(listed[0], ours)


def test_the_public_face_is_the_contract():
    assert cxlib.explain is explain
    defaults = {"explainer": "gradcam", "contrast": "weighted", "layer": None, "relu": False, "upsample": True}
    defaults |= {"output": None, "reshape": None, "each_layer": False}
    parameters = signature(cxlib.explain).parameters
    assert list(parameters) == ["network", "images", "targets", *defaults]
    assert {name: parameters[name].default for name in defaults} == defaults


def test_unknown_names_are_answered_with_the_list(network, images, targets):
    with pytest.raises(ValueError, match="unknown explainer 'gradcamp'") as error:
        explain(network, images, targets, "gradcamp")
    assert all(name in str(error.value) for name in EXPLAINERS)
    with pytest.raises(ValueError, match="unknown contrast 'wieghted'") as error:
        explain(network, images, targets, contrast=["max", "wieghted"])
    assert all(name in str(error.value) for name in CONTRASTS)
    with pytest.raises(ValueError, match=r"no layer 'features\.44'.*features\.4"):
        explain(network, images, targets, layer="features.44")


@pytest.mark.parametrize("explainer", cam.MAPS)
def test_a_layer_without_a_spatial_map_is_refused(network, images, targets, explainer):
    with pytest.raises(ValueError, match=rf"{re.escape(explainer)} needs a layer with output \(B, C, h, w\)"):
        explain(network, images, targets, explainer, layer="head")


def test_a_network_without_a_spatial_map_asks_for_a_layer(images, targets):
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 6)).double()
    with pytest.raises(ValueError, match="Sequential ends in no spatial map: name a layer"):
        explain(network, images, targets)
    assert explain(network, images, targets, "gradient").shape == (4, 16, 16)


@pytest.mark.parametrize(
    "targets",
    [
        torch.tensor(1),
        torch.tensor([0, 1]),
        torch.tensor([0, 1, 2, 6]),
        torch.tensor([-1, 0, 0, 0]),
        torch.zeros(4),
        torch.zeros(4, 1, 1, dtype=torch.long),
    ],
)
@pytest.mark.parametrize("explainer", OF_ANY_NETWORK)
def test_wrong_targets_are_refused(network, images, targets, explainer):
    with pytest.raises(ValueError, match="targets must"):
        explain(network, images, targets, explainer)
