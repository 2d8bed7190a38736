"""A network in two: a frozen part whose features are made once, and what is trained behind it."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cxlib import networks, runtime
from cxlib.datasets import images
from cxlib.networks.build import TRUNK, last_layer
from cxlib.runs import Ranks
from cxlib.synthbirds.species import generate
from cxlib.training import frozen
from cxlib.training.fine_tune import Kept, Recipe, fine_tune

SIZE = 32
RECIPE = Recipe(2, 4, "adamw", 0.01, 0.9, 0.05, "constant", 1.0, "none", "frozen", "float32")
#: Networks, a part of theirs that sees the images first, and their images' size.
SPLIT = {"vit_lite0": (TRUNK, 144), "vgg16_bn_narrow": ("features", SIZE)}


def fresh(name, n_classes=4):
    with runtime.seeded(3):
        return networks.build(name, num_classes=n_classes)


def some_images(size, n=6):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def copied(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_same(state, expected):
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)


# --- without ----------------------------------------------------------------------------------------------------


def test_without_a_part_the_network_passes_its_input_on():
    network, x = fresh("vgg16_bn_narrow"), some_images(SIZE)
    head = last_layer(network.inner)
    logits, order = network(x), list(network.state_dict())
    with frozen.without(network, head) as part:
        features = network(x)
        assert isinstance(part, nn.Linear)
        assert features.shape == (6, 512)
    assert torch.equal(part(features), logits)
    assert network.inner.get_submodule(head) is part
    assert list(network.state_dict()) == order
    assert torch.equal(network(x), logits)


def test_a_part_is_back_after_an_exception():
    network, x = fresh("vgg16_bn_narrow"), some_images(SIZE)
    logits, part = network(x), network.inner.features
    with pytest.raises(KeyError), frozen.without(network, "features"):
        assert network.inner.features is not part
        raise KeyError
    assert network.inner.features is part
    with pytest.raises(RuntimeError), frozen.behind(network, "features", SIZE) as (forward, _):
        forward(x[:, :2])
    assert network.inner.features is part
    assert torch.equal(network(x), logits)


@pytest.mark.parametrize("split", [frozen.without, partial(frozen.behind, image_size=SIZE)])
def test_an_unknown_part_is_one_line(split):
    network = fresh("vgg16_bn_narrow")
    before = copied(network)
    with pytest.raises(ValueError) as caught, split(network, "patch_embed.backbone"):
        pass
    assert str(caught.value).startswith("vgg16_bn_narrow has no part 'patch_embed.backbone' to freeze")
    assert "\n" not in str(caught.value)
    assert_same(network.state_dict(), before)


# --- behind -----------------------------------------------------------------------------------------------------


def test_behind_no_part_is_the_whole_network():
    network = fresh("vgg16_bn_narrow")
    with frozen.behind(network, "none", SIZE) as (forward, rest):
        assert forward is None
        assert rest is network


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("vgg16_bn_narrow", "classifier"),  # vectors are all that it takes
        ("vgg16_bn_narrow", "features.3"),  # eight channels
        ("vgg16_bn_narrow", "features.2"),  # whatever is shown to it: a ReLU
        ("vgg16_bn_narrow", "avgpool"),
        ("mobilenet_v3_small", "features.0.2"),
        ("vit_mini", "blocks"),
    ],
)
def test_a_part_that_does_not_see_the_images_first_is_one_line(name, part):
    network, x = fresh(name), some_images(SIZE)
    logits = network(x)
    with pytest.raises(ValueError) as caught, frozen.behind(network, part, SIZE):
        pass
    told = f"{part} of {name} is not the part that sees the images first: freeze that one, or none"
    assert str(caught.value) == told
    assert torch.equal(network(x), logits)


@pytest.mark.parametrize("name", SPLIT)
def test_both_parts_are_the_network(name):
    part, size = SPLIT[name]
    network, x = fresh(name), some_images(size)
    logits = network(x)
    assert (logits[0] - logits[1]).abs().max() > 1e-4, "a network that sees nothing would prove nothing"
    with frozen.behind(network, part, size) as (forward, rest):
        maps = forward(x)
        assert maps.ndim == 4
        again = rest(maps)
        assert not torch.equal(rest(maps.flip(0)), again)
    assert_close(again, logits, rtol=1e-5, atol=1e-6)
    assert torch.equal(network(x), logits)


@pytest.mark.parametrize("name", SPLIT)
def test_training_behind_a_frozen_part_changes_all_but_this(name):
    part, size = SPLIT[name]
    network, x, labels = fresh(name), some_images(size), [0, 1, 2, 3, 0, 1]
    before = copied(network)
    with frozen.behind(network, part, size) as (forward, rest):
        kept = Kept(forward(x), labels)
        losses = [epoch.loss for epoch in fine_tune(rest, kept, RECIPE, 0, 0)]
    after, inside = network.state_dict(), f"inner.{part}."
    assert list(after) == list(before)
    changed = {key for key in before if not torch.equal(after[key], before[key])}
    assert changed == {key for key, _ in network.named_parameters() if not key.startswith(inside)}
    assert len(changed) >= 4
    assert len([key for key in before if key.startswith(inside)]) > 80
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert np.isfinite(losses).all()


def test_a_training_behind_a_frozen_part_teaches_the_whole_network():
    part, size = SPLIT["vgg16_bn_narrow"]
    network, x, labels = fresh("vgg16_bn_narrow"), some_images(size), [0, 1, 2, 3, 0, 1]
    recipe = Recipe(**{**vars(RECIPE), "epochs": 30, "learning_rate": 0.003})
    with frozen.behind(network, part, size) as (forward, rest):
        kept = Kept(forward(x), labels)
        before = frozen.accuracy(rest, kept, 0)
        list(fine_tune(rest, kept, recipe, 0, 0))
        assert frozen.accuracy(rest, kept, 30) == 1.0 > before
    assert network(x).argmax(1).tolist() == labels


def test_accuracy_is_the_share_of_maps_that_are_told_right():
    """More than one chunk of 64; `rest` tells the class by the larger of two channels."""
    right = np.random.default_rng(0).random(150) < 0.7
    labels = np.arange(150) % 2
    told = np.where(right, labels, 1 - labels)
    maps = torch.eye(2)[torch.from_numpy(told)][..., None, None]
    rest = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    rest[1].weight.data = torch.eye(2)
    accuracy = frozen.accuracy(rest, Kept(maps, labels), 3)
    assert accuracy == pytest.approx(right.mean(), abs=1e-12)
    assert 0.5 < accuracy < 0.9


# --- features ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("birds")
    generate(folder, species_per_family=2, train_per_species=2, test_per_species=1, image_size=SIZE, ambiguity=0)
    return images.read(folder, "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_features_are_those_of_a_direct_forward_pass_and_are_made_once(birds, tmp_path, workers):
    network, transform = fresh("vgg16_bn_narrow"), images.preprocessing(SIZE, crop=False)
    x, _ = images.load(birds, range(len(birds)), transform)

    def made(forward):
        how = (torch.device("cpu"), 5, Ranks(), tmp_path / "train", workers)
        return frozen.features(forward, birds, transform, *how)

    with frozen.behind(network, "features", SIZE) as (forward, _):
        maps = made(forward)
        with torch.no_grad():
            assert_close(maps, forward(x), rtol=1e-4, atol=1e-5)
    assert (maps.dtype, maps.is_contiguous(), maps.requires_grad) == (torch.float32, True, False)
    assert maps.flatten(1).std(0).max() > 1e-3, "the images differ"

    def never(_x):
        raise AssertionError("features are made once")

    assert torch.equal(made(never), maps)


def test_features_of_a_probe_are_vectors(birds, tmp_path):
    network, transform = fresh("vgg16_bn_narrow"), images.preprocessing(SIZE, crop=False)
    x, _ = images.load(birds, range(len(birds)), transform)
    logits, head = network(x), last_layer(network.inner)
    with frozen.without(network, head) as layer:
        vectors = frozen.features(network, birds, transform, torch.device("cpu"), 7, Ranks(), tmp_path / "probe", 0)
    assert vectors.shape == (16, 512)
    assert_close(layer(vectors), logits, rtol=1e-4, atol=1e-5)
