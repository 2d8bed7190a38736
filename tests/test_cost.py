"""What a map costs, against operations that were counted by hand."""

import pytest
import torch
from torch import nn

from cxlib.explainers import explain
from cxlib.metrics import passes
from cxlib.metrics.cost import operations

#: Multiplications and additions of the tiny networks' parts, an image of 16 x 16: outputs x 2 x inputs x 3 x 3.
FIRST, SECOND = 16 * 16 * 8 * 2 * 3 * 9, 8 * 8 * 10 * 2 * 8 * 9
HEADS = {"pooled": 6 * 2 * 10, "flat": 6 * 2 * 640}


def cost(network, images, targets, explainer, contrast="weighted", layer=None):
    return passes(network, images, lambda *asked: explain(*asked, targets, explainer, contrast, layer))


@pytest.mark.parametrize("name", HEADS)
def test_operations_of_a_forward_pass_are_those_by_hand(request, images, name):
    network = request.getfixturevalue(name)
    assert operations(lambda: network(images)) == 4 * (FIRST + SECOND + HEADS[name])


def test_a_depthwise_convolution_costs_one_channels_share(images):
    network = nn.Conv2d(3, 6, 3, groups=3, padding=1, dtype=torch.float64)
    assert operations(lambda: network(images)) == 4 * 16 * 16 * 6 * 2 * 9


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("contrast", ["original", "weighted", "max"])
def test_a_gradient_costs_a_pass_and_the_way_back(request, images, targets, name, contrast):
    network, head = request.getfixturevalue(name), HEADS[name]
    every = FIRST + SECOND + head
    assert cost(network, images, targets, "gradient", contrast) == 2
    assert cost(network, images, targets, "gradcam", contrast, "features.4") == 1 + head / every
    assert cost(network, images, targets, "gradcam", contrast, "features.0") == 1 + (head + SECOND) / every


def test_contrasts_and_targets_share_the_forward_pass(flat, images, targets):
    every, head = FIRST + SECOND + HEADS["flat"], HEADS["flat"]
    pairs = torch.stack([targets, (targets + 1) % 6], 1)
    three = ["original", "max", "weighted"]
    assert cost(flat, images, targets, "gradcam", three, "features.4") == 1 + 3 * head / every
    assert cost(flat, images, pairs, "gradcam", three, "features.4") == 1 + 6 * head / every


def test_the_cost_is_an_images_whatever_it_shows(flat, images, targets):
    one = cost(flat, images[:1], targets[:1], "fullgrad")
    assert cost(flat, images, targets, "fullgrad") == one
    assert cost(flat, torch.zeros_like(images), targets, "fullgrad") == one


def test_a_network_without_anything_to_count_is_an_error(images):
    with pytest.raises(ValueError, match="Flatten has no convolution or matrix product"):
        passes(nn.Flatten(), images, lambda network, x: network(x))
