"""A tap records a layer and pulls cotangents back to it, and leaves the network as it found it."""

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch import nn

from cxlib import taps
from cxlib.networks import explanation_layer

# Batch norm (features.1 and 5) stands before an in-place ReLU; None taps the images.
LAYERS = [None, "features.0", "features.1", "features.2", "features.4", "features.5", "features"]
CONTEXTS = {
    "plain": nullcontext,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
}


def tapped(network, layer):
    return None if layer is None else explanation_layer(network, layer)


def hooks(network):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [hook for module in network.modules() for kind in kinds for hook in getattr(module, kind).values()]


def cotangents(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def autograd(network, images, layer, cotangent):
    """Activation and gradient by one ordinary backward pass from the images through an unfrozen copy."""
    network, images, kept = deepcopy(network).requires_grad_(), images.clone().requires_grad_(), []

    def keep(_module, _inputs, output):
        kept.append(output)
        return output.clone()

    if layer is None:
        kept.append(images)
    else:
        explanation_layer(network, layer).register_forward_hook(keep)
    logits = network(images.clone())
    (gradient,) = torch.autograd.grad((logits * cotangent).sum(), kept[-1])
    return kept[-1].detach(), gradient


@pytest.mark.parametrize("layer", LAYERS)
def test_a_record_is_what_autograd_sees_through_the_whole_network(network, images, layer):
    cotangent = cotangents(4, 6)
    recorded = taps.record(network, images, tapped(network, layer))
    activation, gradient = autograd(network, images, layer, cotangent)
    assert torch.equal(recorded.logits, network(images))
    assert torch.equal(recorded.activation, activation)
    torch.testing.assert_close(recorded.pull_back(cotangent), gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("layer", ["features.0", "features.1", "features.4", "features.5", "features"])
def test_a_gradient_is_the_slope_by_finite_differences(network, images, layer):
    cotangent, module = cotangents(4, 6), tapped(network, layer)
    recorded = taps.record(network, images, module)
    direction, step = cotangents(*recorded.activation.shape), 1e-7

    def shifted(by):
        handle = module.register_forward_hook(lambda _m, _i, output: output + by * direction)
        value = (network(images) * cotangent).sum()
        handle.remove()
        return value

    slope = (shifted(step) - shifted(-step)) / (2 * step)
    torch.testing.assert_close((recorded.pull_back(cotangent) * direction).sum(), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer", LAYERS[1:])
def test_an_inplace_relu_behind_the_layer_does_not_overwrite_the_record(network, images, layer):
    seen = []
    handle = tapped(network, layer).register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))
    network(images)
    handle.remove()
    recorded = taps.record(network, images, tapped(network, layer))
    recorded.pull_back(cotangents(4, 6))
    assert torch.equal(recorded.activation, seen[0])
    if layer in ("features.1", "features.5"):
        assert (recorded.activation < 0).any()


@pytest.mark.parametrize("n_images", [1, 4])
def test_a_network_that_begins_in_place_touches_neither_images_nor_record(images, n_images):
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(768, 3)).double().requires_grad_(False)
    images = images[:n_images] - 0.5
    before = images.clone()
    recorded = taps.record(network, images)
    recorded.pull_back(cotangents(n_images, 3))
    assert torch.equal(recorded.activation, before)
    taps.record(network, images, network[1])
    taps.record_each(network, images, network[1:])
    taps.trace(network, images, {network[1]: lambda *_: None})
    taps.logits(network, images)
    assert torch.equal(images, before)


class Reused(nn.Module):
    """The tapped layer hands its input on as it is, and the input is changed in place later."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Identity(), nn.Linear(768, 3).double()

    def forward(self, images):
        hidden = images - 0.5
        kept = self.layer(hidden)
        return self.head((kept + hidden.relu_()).flatten(1))


def test_a_layer_that_hands_its_input_on_keeps_its_own_record(images):
    network = Reused().requires_grad_(False)
    assert torch.equal(taps.record(network, images, network.layer).activation, images - 0.5)


@pytest.mark.parametrize("layer", LAYERS)
def test_many_cotangents_give_what_each_gives_alone(network, images, layer):
    recorded, many = taps.record(network, images, tapped(network, layer)), cotangents(4, 3, 6)
    together = recorded.pull_back(many)
    assert together.shape == (4, 3, *recorded.activation.shape[1:])
    assert torch.equal(together, torch.stack([recorded.pull_back(many[:, m]) for m in range(3)], 1))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_batch_gives_what_single_images_give(network, images, layer):
    cotangent = cotangents(4, 6)
    together = taps.record(network, images, tapped(network, layer)).pull_back(cotangent)
    for i in range(4):
        alone = taps.record(network, images[i : i + 1], tapped(network, layer)).pull_back(cotangent[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("layer", [None, "features.4"])
def test_frozen_networks_are_explained_in_every_grad_mode_which_is_restored(network, images, layer, context):
    cotangent = cotangents(4, 6)
    _, expected = autograd(network, images, layer, cotangent)
    with CONTEXTS[context]():
        mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        recorded = taps.record(network, images, tapped(network, layer))
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == mode
        gradient = recorded.pull_back(cotangent)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == mode
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    assert not any(tensor.requires_grad for tensor in (recorded.logits, recorded.activation, gradient))


@pytest.mark.parametrize("layer", [None, "features.4"])
def test_images_made_in_inference_mode_are_explained(network, images, layer):
    with torch.inference_mode():
        made = images.clone()
    cotangent = cotangents(4, 6)
    gradient = taps.record(network, made, tapped(network, layer)).pull_back(cotangent)
    torch.testing.assert_close(gradient, autograd(network, images, layer, cotangent)[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_network_is_left_as_it_was(network, images, layer, frozen):
    network.requires_grad_(not frozen)
    network.head.train()
    weights = deepcopy(network.state_dict())
    taps.record(network, images, tapped(network, layer)).pull_back(cotangents(4, 6))
    assert not hooks(network)
    assert all(parameter.requires_grad is not frozen for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [name for name, module in network.named_modules() if module.training] == ["head"]
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert not images.requires_grad
    assert images.grad is None


def test_nothing_before_the_layer_is_differentiated_and_everything_behind_it_is(network, images):
    modes = {}
    for name in ("0", "2", "5", "6"):
        network.features.get_submodule(name).register_forward_pre_hook(
            lambda *_, name=name: modes.update({name: torch.is_grad_enabled()})
        )
    taps.record(network.requires_grad_(), images, network.features[4])
    assert modes == {"0": False, "2": False, "5": True, "6": True}


class Trunk(nn.Module):
    """Convolution, pooling, head; around it what goes wrong in the subclasses."""

    def __init__(self):
        super().__init__()
        self.conv, self.aside, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.double().eval().requires_grad_(False)

    def forward(self, images):
        hidden = self.conv(images)
        self.beside(hidden)
        return self.head(hidden.mean((-2, -1)))

    def beside(self, hidden):
        """Nothing runs beside the trunk."""


class Raises(Trunk):
    def beside(self, hidden):
        raise KeyError("inside the network")


class Aside(Trunk):
    def beside(self, hidden):
        self.aside(hidden)


class Mixes(Trunk):
    """A layer that sees the images' rows as images of their own, as attention heads are folded into the batch."""

    def forward(self, images):
        rows = self.conv(images).permute(0, 2, 1, 3).flatten(0, 1).unsqueeze(2)
        return self.head(self.aside(rows).view(len(images), -1, 4, 14).mean((1, 3)))


class Split(nn.Module):
    def forward(self, hidden):
        return hidden, hidden


class ReturnsTuple(Trunk):
    def __init__(self):
        super().__init__()
        self.aside = Split()

    def beside(self, hidden):
        self.aside(hidden)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("tap_images", [True, False])
def test_no_hook_and_no_grad_mode_survives_an_exception(images, context, tap_images):
    network = Raises()
    with CONTEXTS[context]():
        mode = torch.is_grad_enabled()
        with pytest.raises(KeyError, match="inside the network"):
            taps.record(network, images, None if tap_images else network.conv)
        assert torch.is_grad_enabled() is mode
    assert not hooks(network)


def test_no_hook_survives_images_or_cotangents_of_the_wrong_shape(network, images):
    layer = tapped(network, "features.4")
    with pytest.raises(RuntimeError):
        taps.record(network, images[:, :2], layer)
    assert not hooks(network)
    recorded = taps.record(network, images, layer)
    with pytest.raises(RuntimeError):
        recorded.pull_back(cotangents(4, 7))
    assert not hooks(network)
    assert recorded.pull_back(cotangents(4, 6)).isfinite().all()


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Trunk, "Conv2d did not run"),
        (Aside, "nothing links the tapped layer"),
        (ReturnsTuple, "Split returns tuple, not one tensor"),
        (Mixes, r"Conv2d gives \(56, 4, 1, 14\) for 4 images"),
    ],
)
def test_a_layer_that_cannot_be_explained_gives_one_clear_error(images, kind, message, frozen):
    network = kind().requires_grad_(not frozen)
    with pytest.raises(ValueError, match=message):
        taps.record(network, images, network.aside).pull_back(cotangents(4, 3))
    assert not hooks(network)


def test_images_that_do_not_influence_the_logits_give_one_clear_error(images):
    class Deaf(Trunk):
        def forward(self, images):
            return self.head(torch.ones(len(images), 4, dtype=torch.float64))

    for network in (Deaf(), Deaf().requires_grad_()):
        with pytest.raises(ValueError, match="nothing links the tapped layer"):
            taps.record(network, images).pull_back(cotangents(4, 3))


def test_a_layer_that_runs_twice_is_recorded_at_its_last_run(images):
    class Twice(Trunk):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1).double().requires_grad_(False)
            self.head = nn.Linear(3, 3).double().requires_grad_(False)

        def forward(self, images):
            first = self.conv(images)
            return self.head((self.conv(first.relu()) * first.sigmoid()).mean((-2, -1)))

    network, cotangent = Twice(), cotangents(4, 3)
    first = network.conv(images)
    second = network.conv(first.relu()).requires_grad_()
    logits = network.head((second * first.sigmoid()).mean((-2, -1)))
    (gradient,) = torch.autograd.grad((logits * cotangent).sum(), second)
    recorded = taps.record(network, images, network.conv)
    assert torch.equal(recorded.activation, second.detach())
    torch.testing.assert_close(recorded.pull_back(cotangent), gradient, rtol=1e-12, atol=1e-14)
    assert not hooks(network)


@pytest.mark.parametrize("layer", [None, "features.4"])
def test_a_network_in_training_mode_is_explained_in_evaluation_mode(network, images, layer):
    """Batch statistics would mix the images, and a forward pass in training mode would change the running ones."""
    cotangent = cotangents(4, 6)
    expected = taps.record(network, images, tapped(network, layer))
    gradient, weights = expected.pull_back(cotangent), deepcopy(network.state_dict())
    network.train()
    recorded = taps.record(network, images, tapped(network, layer))
    assert torch.equal(recorded.logits, expected.logits)
    assert torch.equal(recorded.pull_back(cotangent), gradient)
    assert torch.equal(taps.logits(network, images), expected.logits)
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_training_mode_is_restored_behind_an_exception(network, images):
    network.train()
    with pytest.raises(RuntimeError):
        taps.logits(network, images[:, :2])
    assert all(module.training for module in network.modules())


def precision():
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    return *(backend.fp32_precision for backend in backends), torch.is_autocast_enabled("cpu")


class Spy(nn.Module):
    """The identity, which notes PyTorch's precision of float32 in both directions."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(precision())
        x = x.clone()
        if x.requires_grad:
            x.register_hook(lambda _gradient: self.seen.append(precision()))
        return x


def test_tf32_and_autocast_are_off_in_both_directions_and_restored(network, images):
    spy = Spy()
    network.pool = nn.Sequential(network.pool, spy)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.autocast("cpu", torch.bfloat16):
            outside = precision()
            taps.record(network, images, network.features).pull_back(cotangents(4, 6))
            taps.logits(network, images)
            assert spy.seen == [("ieee", "ieee", False)] * 3
            assert precision() == outside
        assert outside == ("tf32", outside[1], True)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("layer", [None, "features.4"])
def test_coarser_passes_are_made_where_they_are_asked_for(network, images, layer):
    network, images = network.float(), images.float()
    cotangent = cotangents(4, 6).float()
    exact = taps.record(network, images, tapped(network, layer))
    coarse = taps.record(network, images, tapped(network, layer), torch.bfloat16)
    assert coarse.logits.dtype == coarse.pull_back(cotangent).dtype == torch.float32
    for a, b in ((exact.logits, coarse.logits), (exact.pull_back(cotangent), coarse.pull_back(cotangent))):
        assert 1e-4 < (a - b).norm() / a.norm() < 0.2


def test_records_of_several_layers_are_the_record_of_each(network, images):
    names = ["features.0", "features.1", "features.4", "features"]
    traced = taps.record_each(network, images, [explanation_layer(network, name) for name in names])
    assert not hooks(network)
    cotangent = cotangents(4, 6)
    gradients = traced.pull_back(cotangent)
    for name, activation, gradient in zip(names, traced.activations, gradients, strict=True):
        recorded = taps.record(network, images, explanation_layer(network, name))
        assert torch.equal(activation, recorded.activation)
        assert not activation.requires_grad
        torch.testing.assert_close(gradient, recorded.pull_back(cotangent), rtol=1e-12, atol=1e-14)


class InTuples(nn.Module):
    """Its layer returns a tensor and what is none, as blocks of transformers do."""

    class Block(nn.Module):
        def forward(self, x):
            return (x.tanh(), None)

    def __init__(self, inner):
        super().__init__()
        self.block, self.inner = self.Block(), inner

    def forward(self, images):
        hidden, _ = self.block(images)
        return self.inner(hidden)


def test_a_layer_that_returns_one_tensor_in_a_tuple_is_recorded_there(network, images):
    recorded = taps.record(InTuples(network), images, None).logits
    tapped_at = InTuples(network)
    ours, expected = taps.record(tapped_at, images, tapped_at.block), taps.record(network, images.tanh())
    assert torch.equal(ours.logits, recorded)
    assert torch.equal(ours.activation, images.tanh())
    assert torch.equal(ours.pull_back(cotangents(4, 6)), expected.pull_back(cotangents(4, 6)))


def test_records_are_in_the_order_of_the_layers_and_of_their_last_run(network, images):
    names = ["features.4", "features.0"]
    layers = [explanation_layer(network, name) for name in names]
    traced = taps.record_each(nn.Sequential(network, nn.Identity()), images, layers)
    for layer, activation in zip(layers, traced.activations):
        assert torch.equal(activation, taps.record(network, images, layer).activation)


def test_records_say_which_layers_did_not_run_or_do_not_count(network, images):
    apart = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="1 of 2 layers did not run"):
        taps.record_each(network, images, [network.features[0], apart])
    with pytest.raises(ValueError, match="nothing links the tapped layer"):
        taps.record_each(Wasteful(network), images, [network.features]).pull_back(cotangents(4, 6))


class Wasteful(nn.Module):
    """Runs a network and answers with something else."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return images.flatten(1)[:, :6] + 0 * self.inner(images).detach()


def test_gradient_of_one_image_is_that_of_the_batch_whatever_its_layout_in_memory():
    """PyTorch 2.13 on a CPU fails where one image is not channels last; finite differences say what is right."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("levit_128s", num_classes=5).double().eval().requires_grad_(False)
        for parameter in network.head.parameters():
            parameter.normal_(0, 0.1)
        image, direction = torch.rand(2, 1, 3, 224, 224, dtype=torch.float64)
    cotangent = torch.eye(5, dtype=torch.float64)[:1]
    gradient = taps.record(network, image).pull_back(cotangent)
    step = 1e-6 * direction
    slope = (network(image + step) - network(image - step))[0, 0] / 2e-6
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-3)
