"""Model-parameter randomisation: what changes in a network, and what its maps' likeness is to Quantus."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from quantus import MPRT
from quantus.functions.similarity_func import correlation_spearman
from quantus.helpers.model.pytorch_model import PyTorchModel
from torch import nn

from cxlib import networks
from cxlib.explainers import explain
from cxlib.metrics import model_randomisation, randomised
from cxlib.metrics.randomisation import blocks

LAYERS = ["features.0", "features.1", "features.4", "features.5", "head"]


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def changed(network, before):
    """Modules of which some parameter is another."""
    after = network.state_dict()
    names = {name for name, _ in network.named_parameters() if not torch.equal(before[name], after[name])}
    return {name.rpartition(".")[0] for name in names}


def maps_of(targets, layer="features.4"):
    return lambda network, images: explain(network, images, targets, "gradcam", ["original", "max"], layer)


def test_cascading_goes_from_the_top_down_and_independent_takes_each_alone(network):
    before, expected = state(network), list(reversed(LAYERS))
    for place, (layer, copied) in enumerate(randomised(network, 0, LAYERS)):
        assert layer == expected[place]
        assert changed(copied, before) == set(expected[: place + 1])
    for place, (layer, copied) in enumerate(randomised(network, 0, LAYERS, cascading=False)):
        assert changed(copied, before) == {layer} == {expected[place]}
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the caller's network is left alone"


def test_a_layer_gets_the_same_parameters_in_both_orders_and_with_other_layers_from_one_seed(network):
    *_, (_, whole) = randomised(network, 3, LAYERS)
    for layer, copied in randomised(network, 3, LAYERS, cascading=False):
        own, of_whole = copied.get_submodule(layer).state_dict(), whole.get_submodule(layer).state_dict()
        assert all(torch.equal(own[name], of_whole[name]) for name in own)
    ((_, at_once),) = randomised(network, 3, [""])
    assert all(torch.equal(a, b) for a, b in zip(at_once.parameters(), whole.parameters()))
    *_, (_, other) = randomised(network, 4, LAYERS)
    assert not torch.equal(other.head.weight, whole.head.weight)


def test_cascading_takes_what_is_above_a_layer_though_it_is_not_named(network):
    before = state(network)
    steps = [(layer, changed(copied, before)) for layer, copied in randomised(network, 0, ["features.4", "features.0"])]
    assert steps == [("features.4", set(LAYERS[2:])), ("features.0", set(LAYERS))]
    alone = [
        changed(copied, before) for _, copied in randomised(network, 0, ["features", "features.4"], cascading=False)
    ]
    assert alone == [{"features.4"}, {"features.0", "features.1", "features.5"}]


def test_a_network_that_answers_nothing_has_silent_maps(flat, images, targets):
    def explainer(network, images):
        maps = maps_of(targets)(network, images)
        return maps if torch.equal(network.head.weight, flat.head.weight) else 0 * maps

    found = model_randomisation(flat, images, explainer, 0, ["head", "features.0"], cascading=False)
    assert found.silent.shape == (2, 2, 4)
    assert found.silent[0].all()
    assert not found.silent[1].any()
    assert (found.similarities["rank_correlation"][0] == 0).all()


def test_the_callers_random_state_is_left_alone(network):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(randomised(network, 1))
    assert torch.equal(torch.rand(3), expected)


def test_layers_are_randomised_in_quantus_order_and_by_the_same_initialiser(network):
    """Both draw from the layer's own `reset_parameters`: given one random state, they are the same tensors."""
    theirs = PyTorchModel(copy.deepcopy(network).requires_grad_()).get_random_layer_generator("top_down", seed=0)
    ours = randomised(network, 0, LAYERS)
    for (name, their_network), (layer, our_network) in zip(theirs, ours, strict=True):
        assert name == layer
        assert {n for n, b in our_network.named_buffers() if "running" in n} == {
            n for n, b in their_network.named_buffers() if "running" in n
        }
        a, b = our_network.get_submodule(layer), their_network.get_submodule(layer)
        if isinstance(a, nn.BatchNorm2d):
            assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
        else:  # uniform, with the same bound, from another stream
            bound = a.weight[0].numel() ** -0.5
            for values in (a.weight, b.weight):
                assert values.abs().amax() <= bound
                assert values.abs().amax() > 0.8 * bound


@pytest.mark.parametrize("order", ["top_down", "independent"])
def test_the_likeness_is_that_of_quantus_for_the_same_networks(flat, images, targets, order, monkeypatch):
    """Theirs, given our copies of the network, by its own class; signed maps, and those of one contrast."""
    flat = flat.float()
    images, cascading = images.float(), order == "top_down"
    ours = model_randomisation(flat, images, maps_of(targets), 7, LAYERS, cascading, ["rank_correlation"])
    copies = lambda *_args, **_kwargs: randomised(flat, 7, LAYERS, cascading)  # noqa: E731
    monkeypatch.setattr(PyTorchModel, "get_random_layer_generator", copies)
    measure = MPRT(correlation_spearman, order, abs=False, normalise=False, disable_warnings=True)
    theirs = measure(
        flat,
        images.numpy(),
        targets.numpy(),
        maps_of(targets)(flat, images)[0][:, None].numpy(),
        explain_func=lambda model, inputs, targets, **_: maps_of(torch.as_tensor(targets))(
            model, torch.as_tensor(inputs)
        )[0][:, None].numpy(),
    )
    assert theirs.pop("original") == pytest.approx([1] * 4)
    assert list(theirs) == ours.layers
    found = ours.similarities["rank_correlation"]
    assert found.shape == (5, 2, 4)
    np.testing.assert_allclose(found[:, 0].numpy(), list(theirs.values()), atol=1e-6)


def test_a_map_that_looks_at_no_network_survives_and_one_above_the_layer_does_not_change(flat, images, targets):
    edges = model_randomisation(flat, images, lambda _network, x: x.mean(1).diff(dim=-1), 0)
    for values in edges.similarities.values():
        torch.testing.assert_close(values, torch.ones_like(values))
    # What the gradient at the input layer sees does not survive.
    found = model_randomisation(flat, images, maps_of(targets), 0)
    assert list(found.similarities) == ["rank_correlation", "absolute_rank_correlation", "ssim"]
    assert found.similarities["rank_correlation"].abs().mean() < 0.6
    again = model_randomisation(flat, images, maps_of(targets), 0)
    assert all(torch.equal(found.similarities[name], again.similarities[name]) for name in found.similarities)


def test_blocks_are_layers_outside_of_sequences_and_the_members_of_sequences():
    with networks.Weightless():
        resnet, vit = torchvision.models.resnet18(), torchvision.models.vit_b_16()
        lite = networks.build("tf_efficientnet_lite0")
    stages = [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    assert blocks(resnet) == ["conv1", "bn1", *stages, "fc"]
    encoder = [f"encoder.layers.encoder_layer_{i}" for i in range(12)]
    assert blocks(vit) == ["", "conv_proj", "encoder", *encoder, "encoder.ln", "heads.head"]
    inner = ["conv_stem", "bn1", *(f"blocks.{i}" for i in range(7)), "conv_head", "bn2", "classifier"]
    assert blocks(lite) == [f"inner.{name}" for name in inner]
    assert blocks(nn.Linear(2, 3)) == [""]
    assert blocks(nn.Sequential(nn.Linear(2, 3), nn.ReLU())) == ["0"]


def test_every_parameter_of_a_transformer_changes_those_without_an_initialiser_by_shuffling():
    vit = torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32)
    nn.init.normal_(vit.class_token)
    nn.init.normal_(vit.heads.head.weight)
    before = state(vit)
    *_, (_, copied) = randomised(vit, 0)
    assert changed(copied, before) >= {"", "conv_proj", "encoder", "encoder.layers.encoder_layer_1.mlp.0", "heads.head"}
    assert not torch.equal(copied.class_token, vit.class_token)
    assert torch.equal(copied.class_token.sort().values, vit.class_token.sort().values)
    in_proj = "encoder.layers.encoder_layer_0.self_attention"
    assert in_proj in changed(copied, before)


def test_what_is_unknown_is_named(flat, images, targets):
    with pytest.raises(ValueError, match=r"unknown layer 'tail'.*head"):
        model_randomisation(flat, images, maps_of(targets), 0, ["tail"])
    with pytest.raises(ValueError, match=r"unknown similarity 'hog'.*ssim"):
        model_randomisation(flat, images, maps_of(targets), 0, similarities=["hog"])
    with pytest.raises(ValueError, match="an empty list randomises no layer"):
        model_randomisation(flat, images, maps_of(targets), 0, [])
    with pytest.raises(ValueError, match="maps must be finite"):
        model_randomisation(flat, images, lambda _network, x: x.mean(1) / 0, 0)
