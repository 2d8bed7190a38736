"""Which layers the app offers: by rule, for any network, those that everything passes."""

import pytest
import torch
from torch import nn

from cxlib import networks, runtime, taps
from cxlib.app import layers
from cxlib.explainers import EXPLAINERS, explain

#: Networks of several families, each with images as small as it takes, and what is offered.
OFFERED = {
    ("vgg16_bn", 64): {"features.40": (4, 4), "features.32": (8, 8), "features.22": (16, 16), "features.12": (32, 32)},
    ("resnet18", 64): {"layer4": (2, 2), "layer3": (4, 4), "layer2": (8, 8), "layer1": (16, 16)},
    ("tf_efficientnet_lite0", 224): {
        "blocks.6": (7, 7),
        "blocks.5.0.bn1": (14, 14),
        "blocks.3.0.bn1": (28, 28),
        "blocks.2.0.bn1": (56, 56),
    },
    ("densenet121", 64): {
        "features": (2, 2),
        "features.transition3.conv": (4, 4),
        "features.transition2.conv": (8, 8),
        "features.transition1.conv": (16, 16),
    },
    # Channels last, and a last map that is no stage.
    ("swin_t", 64): {"permute": (2, 2), "features.5": (4, 4), "features.3": (8, 8), "features.1": (16, 16)},
    ("vit_mini", 48): {f"blocks.{number}.norm1": (6, 6) for number in (2, 1, 0)},
    ("levit_128s", 224): {},
}


def built(name):
    with runtime.seeded(0):
        return networks.build(name, num_classes=5)


def wide(height, width):
    return torch.zeros(1, 3, height, width)


@pytest.mark.parametrize(("name", "side"), OFFERED)
def test_a_layer_of_each_resolution_is_offered_and_everything_passes_it(name, side):
    network = built(name)
    offered = layers.offered(network, wide(side, side))
    assert dict(offered) == OFFERED[name, side]
    if name == "vit_mini":  # blocks are passed by what skips them
        return
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    plain = taps.logits(network, images)
    for layer in offered:
        # Where a layer says the same of two images, the network does, too.
        module = networks.explanation_layer(network, layer.name)
        with taps.rewritten({module: lambda _module, _images, output: output[:1].repeat_interleave(2, 0)}):
            first, second = taps.logits(network, images)
        assert (first - second).abs().max() < 1e-3 * (plain[0] - plain[1]).abs().max()
        assert (first - plain[0]).abs().max() < 1e-3 * (plain[0] - plain[1]).abs().max()


@pytest.mark.parametrize(("name", "side"), [each for each in OFFERED if OFFERED[each]])
def test_a_layer_is_explained_at_the_resolution_that_is_told(name, side):
    network = built(name)
    images, targets = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)), torch.tensor([1])
    for layer in layers.offered(network, images):
        maps = explain(network, images, targets, "layercam", layer=layer.name, upsample=False)
        assert maps.shape[1:] == layer.size


def test_a_layer_beside_a_shortcut_is_not_offered():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.beside = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.down, self.last = nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)

        def forward(self, images):
            first = self.first(images)
            last = self.last(self.down(self.beside(first) + first))
            return last.mean((-2, -1))

    network = networks.freeze(networks.Network("shortcut", Shortcut(), {}))
    assert layers.offered(network, wide(16, 16)) == [("last", (8, 8)), ("first", (16, 16))]
    # Oblong images, too.
    assert layers.offered(network, wide(16, 22)) == [("last", (8, 11)), ("first", (16, 22))]


@pytest.mark.parametrize(
    ("sizes", "side", "first"),
    [
        ((7, 14, 28, 56), 224, 14),
        ((14, 28, 56), 224, 14),
        ((4, 7, 14, 28), 224, 14),
        ((13, 27), 224, 13),
        ((2, 4, 8, 16), 32, 2),
        ((1, 2, 4, 8), 32, 2),
        ((5, 9), 160, 9),
        ((6,), 224, 6),
    ],
)
def test_the_first_one_is_the_last_in_which_a_person_sees_something(sizes, side, first):
    choices = [layers.Layer(str(size), (size, size)) for size in sizes]
    assert layers.readable(choices, side).size == (first, first)


def test_those_that_take_a_layer_are_those_that_change_with_it():
    network = built("vit_mini")
    images, targets = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(1)), torch.tensor([1])

    def changes(name):
        try:
            maps = [explain(network, images, targets, name, layer=f"blocks.{block}.norm1") for block in (1, 2)]
        except ValueError:  # it takes whole blocks
            return False
        return bool((maps[0] - maps[1]).abs().max())

    assert {name for name in EXPLAINERS if changes(name)} == set(layers.TAKERS)
