"""Several layers in one pass, and outputs that a user's own function lays out as maps."""

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from cxlib import networks, taps
from cxlib.contrasts import CONTRASTS
from cxlib.explainers import EXPLAINERS, cam, explain

LAYERS = ["features.2", "features.6", "features.4"]
#: Those that look at one layer.
AT_LAYERS = list(cam.MAPS)


def random(network):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in network.parameters():
            parameter.data.normal_(0, 0.5)
    return networks.freeze(network.double())


# --- several layers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("explainer", AT_LAYERS)
def test_layers_maps_are_each_ones_own_and_summed_over_the_image(network, images, targets, explainer, relu):
    contrasts = [*CONTRASTS, "normalised"]
    alone = [explain(network, images, targets, explainer, contrasts, layer, relu) for layer in LAYERS]
    each = explain(network, images, targets, explainer, contrasts, LAYERS, relu, each_layer=True)
    torch.testing.assert_close(each, torch.stack(alone), rtol=1e-10, atol=1e-13)
    summed = explain(network, images, targets, explainer, contrasts, tuple(LAYERS), relu)
    torch.testing.assert_close(summed, alone[0] + alone[1] + alone[2], rtol=1e-10, atol=1e-13)


def test_layers_maps_that_are_not_upsampled_have_the_finest_layers_size(network, images, targets):
    alone = [explain(network, images, targets, layer=layer, upsample=False) for layer in LAYERS]
    assert [tuple(maps.shape[1:]) for maps in alone] == [(16, 16), (8, 8), (8, 8)]
    fine = [F.interpolate(maps[None], (16, 16), mode="bilinear", align_corners=True)[0] for maps in alone]
    summed = explain(network, images, targets, layer=LAYERS, upsample=False)
    torch.testing.assert_close(summed, sum(fine))
    coarse = explain(network, images, targets, layer=LAYERS[1:], upsample=False)
    torch.testing.assert_close(coarse, alone[1] + alone[2])


def test_layers_lead_the_contrasts_the_images_and_the_targets(network, images):
    targets = torch.tensor([[0, 1, 2], [3, 4, 5], [5, 5, 0], [2, 1, 0]])
    for n_layers in (1, 3):
        asked = (network, images, targets, "gradcam", ["max", "mean"], LAYERS[:n_layers])
        assert explain(*asked, each_layer=True).shape == (n_layers, 2, 4, 3, 16, 16)
        assert explain(*asked).shape == (2, 4, 3, 16, 16)
    assert explain(network, images, targets[:, 0], layer=LAYERS, each_layer=True).shape == (3, 4, 16, 16)


def test_one_forward_pass_and_one_backward_pass_a_cotangent_serve_all_layers(network, images, targets):
    passes = []
    network.register_forward_hook(lambda *_: passes.append("forward"))
    network.head.register_full_backward_hook(lambda *_: passes.append("backward"))
    network.head.requires_grad_()
    explain(network, images, targets, contrast=["max", "mean"], layer=[network.features[2], "features.4", "features"])
    assert passes == ["forward", "backward", "backward"]


def test_layers_whose_channels_are_last_are_summed_as_maps():
    network = random(SwinTransformer(16, 2, embed_dim=8, depths=(1, 1), num_heads=(2, 2), window_size=4, num_classes=5))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    names, targets = ["layers.0", "patch_embed.proj", "layers.1"], torch.tensor([1, 4])
    for explainer in AT_LAYERS:
        each = explain(network, images, targets, explainer, layer=names, each_layer=True)
        for name, maps in zip(names, each):
            recorded = taps.record(network, images, network.get_submodule(name))
            assert recorded.activation.shape[1] == {"layers.1": 16}.get(name, 8)
            expected = explain(network, images, targets, explainer, layer=name)
            torch.testing.assert_close(maps, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("explainer", [name for name in EXPLAINERS if name not in AT_LAYERS])
def test_those_that_look_at_the_whole_network_take_neither_layers_nor_reshape(network, images, targets, explainer):
    with pytest.raises(ValueError, match=f"{explainer} takes no list of layers: gradcam.* do"):
        explain(network, images, targets, explainer, layer=LAYERS)
    with pytest.raises(ValueError, match=f"{explainer} takes no `reshape`: gradcam.* do"):
        explain(network, images, targets, explainer, reshape=lambda values: values)


def test_lists_that_make_no_sense_are_refused_in_one_line(network, images, targets):
    with pytest.raises(ValueError, match="an empty list names no layer"):
        explain(network, images, targets, layer=[])
    with pytest.raises(ValueError, match="`each_layer` is for a list of layers"):
        explain(network, images, targets, layer="features", each_layer=True)
    with pytest.raises(ValueError, match="gradcam needs a layer with output"):
        explain(network, images, targets, layer=["features", "head"])
    with pytest.raises(ValueError, match=r"no layer 'features\.44'"):
        explain(network, images, targets, layer=["features", "features.44"])


# --- reshape ----------------------------------------------------------------------------------------------------


class OfTokens(nn.Module):
    """Places as tokens (B, h w, C) behind a convolution; as a map they would be what `AsMap` has."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 7), nn.Linear(7 * 16, 6)
        self.relu = nn.ReLU()

    def forward(self, images):
        return self.head(self.relu(self.mix(self.conv(images).flatten(2).mT)).mT.flatten(1))


class AsMap(OfTokens):
    def forward(self, images):
        return self.head(self.relu(self.mix(self.conv(images).movedim(1, -1)).movedim(-1, 1)).flatten(1))


def grid(values):
    return values.mT.unflatten(-1, (4, 4))


@pytest.mark.parametrize("explainer", AT_LAYERS)
def test_tokens_that_are_laid_out_by_hand_have_the_map_that_they_are(images, targets, explainer):
    tokens, maps = random(OfTokens()), random(AsMap())
    expected = explain(maps, images, targets, explainer, list(CONTRASTS), "relu")
    ours = explain(tokens, images, targets, explainer, list(CONTRASTS), "relu", reshape=grid)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-13)
    with pytest.raises(ValueError, match=r"or a `reshape` that makes it so, got shape \(4, 16, 7\)"):
        explain(tokens, images, targets, explainer, layer="relu")


def test_reshape_comes_before_the_rules_and_sees_what_the_layer_gives():
    network = random(VisionTransformer(16, 4, num_classes=5, embed_dim=8, depth=2, num_heads=2))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    asked = (network, images, torch.tensor([1, 4]), "gradcam", "weighted", ["blocks.0", "blocks.1.norm1"])
    by_rule = explain(*asked)
    shapes = []

    def turned(values):
        shapes.append(tuple(values.shape))
        return values[:, 1:].mT.unflatten(-1, (4, 4)).mT

    torch.testing.assert_close(explain(*asked, reshape=turned).mT, by_rule, rtol=1e-10, atol=1e-13)
    assert set(shapes) == {(2, 17, 8)}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda v: v.flatten(1), r"maps \(4, C, h, w\) of \(4, 16, 7\), but gives \(4, 112\)"),
        (lambda v: v, r"but gives \(4, 16, 7\)"),
        (lambda v: grid(v)[:1], r"but gives \(1, 7, 4, 4\)"),
        (lambda v: [grid(v)], "but gives list"),
    ],
)
def test_a_reshape_that_makes_no_maps_is_told_in_one_line(images, targets, wrong, told):
    with pytest.raises(ValueError, match=told):
        explain(random(OfTokens()), images, targets, layer="relu", reshape=wrong)
