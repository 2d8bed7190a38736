"""Hugging Face's networks: maps against autograd through the hidden states and attentions that they hand out."""

import huggingface as hugging
import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn import functional as F

from cxlib import networks
from cxlib.contrasts import cotangent
from cxlib.explainers import explain, vit

pytestmark = pytest.mark.filterwarnings("ignore:.*attention mask:UserWarning")

TARGETS = torch.tensor([1, 3])
CONTRASTS = ["original", "weighted"]
CAMS = ("gradcam", "linear_approximation", "xgradcam")
#: Families whose layers are maps: the layers, and the hidden state that each gives.
MAPS = {
    "ResNet": {None: -1, "resnet.encoder.stages.1": 2},
    "ConvNeXT": {None: -1, "convnext.encoder.stages.1": 2},
    "Swin": {"swin.encoder.layers.0.downsample": 1},
    "Swin v2": {"swinv2.encoder.layers.0.downsample": 1},
    "SegFormer": {None: -1, "segformer.stages.1": 1},
}
#: What a plain transformer's classifier reads, where it is not the class token alone.
READ = {"DeiT, distilled": slice(0, 2), "BEiT": slice(1, None), "SigLIP": slice(0, None)}


def answer(network, images, **asked):
    """Logits, in a graph from the images on, and all that a network can be asked for."""
    if hasattr(network, "prompts"):
        told = network.network.get_image_features(pixel_values=images, **asked)
        texts = F.normalize(network.network.get_text_features(input_ids=hugging.PROMPTS).pooler_output, dim=-1)
        cosines = F.normalize(told.pooler_output, dim=-1) @ texts.T
        return cosines * network.network.logit_scale.exp() + getattr(network.network, "logit_bias", 0), told
    if hasattr(network, "network"):
        told = network.network(images, **asked)
        return told.pooler_output[:, : hugging.N_CLASSES], told
    told = network(images, **asked)
    return told.logits, told


def on_grid(values, n_prefix, grid):
    """Tokens (B, N, C), some without a place first, as (B, C, h, w)."""
    return values[:, n_prefix:].reshape(len(values), *grid, -1).permute(0, 3, 1, 2)


def by_hand(explainer, a, g):
    if explainer == "linear_approximation":
        return (g * a).sum(1)
    weights = g.mean((2, 3)) if explainer != "xgradcam" else (a * g).sum((2, 3)) / (a.abs().sum((2, 3)) + 1e-7)
    return torch.einsum("bk,bkij->bij", weights, a)


def same(actual, expected, tolerance=1e-9):
    scale = expected.abs().amax((-2, -1), keepdim=True)
    assert (scale > 0).all()
    assert ((actual - expected).abs() / scale).max() < tolerance


# --- maps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explainer", CAMS)
@pytest.mark.parametrize(("family", "layer"), [(family, layer) for family in MAPS for layer in MAPS[family]])
def test_cams_of_networks_with_maps_are_autograd_through_the_hidden_state(family, layer, explainer):
    network, images = hugging.build(family), hugging.images(family).requires_grad_()
    maps = explain(network, images, TARGETS, explainer, CONTRASTS, layer, upsample=False)
    logits, told = answer(network, images, output_hidden_states=True)
    state = told.hidden_states[MAPS[family][layer]]
    grid = (8, 4)  # of the Swins' tokens
    for name, ours in zip(CONTRASTS, maps):
        vector = cotangent(name, logits.detach(), TARGETS)
        (slope,) = torch.autograd.grad((logits * vector).sum(), state, retain_graph=True)
        a, g = (v if v.ndim == 4 else on_grid(v, 0, grid) for v in (state.detach(), slope))
        same(ours, by_hand(explainer, a, g))


@pytest.mark.parametrize("explainer", CAMS)
@pytest.mark.parametrize(("family", "trunk"), [("Swin", "swin"), ("Swin v2", "swinv2")])
def test_swin_is_explained_behind_its_last_normalisation(family, trunk, explainer):
    """By hand: the mean of the places' features, then the classifier; the channels' gradient is one over all places."""
    network, images = hugging.build(family), hugging.images(family)
    features = on_grid(getattr(network, trunk)(images).last_hidden_state, 0, (8, 4))
    vectors = cotangent("weighted", network(images).logits, TARGETS)
    slope = (vectors @ network.classifier.weight / 32)[..., None, None].expand_as(features)
    ours = explain(network, images, TARGETS, explainer, upsample=False)
    same(ours, by_hand(explainer, features, slope))


@pytest.mark.parametrize("explainer", (*CAMS, "vit_gradcam"))
@pytest.mark.parametrize("family", hugging.PLAIN)
def test_cams_of_transformers_are_autograd_through_the_hidden_state(family, explainer):
    network, images = hugging.build(family), hugging.images(family).requires_grad_()
    first = next(iter(vit.blocks(network)))
    maps = explain(network, images, TARGETS, explainer, CONTRASTS, first, upsample=False)
    logits, told = answer(network, images, output_hidden_states=True)
    for name, ours in zip(CONTRASTS, maps):
        vector = cotangent(name, logits.detach(), TARGETS)
        (slope,) = torch.autograd.grad((logits * vector).sum(), told.hidden_states[1], retain_graph=True)
        a, g = (on_grid(v, *hugging.PLAIN[family]) for v in (told.hidden_states[1].detach(), slope))
        same(ours, by_hand(explainer, a, g))


@pytest.mark.parametrize("family", hugging.BUILD)
def test_gradients_are_those_at_the_images(family):
    network, images = hugging.build(family), hugging.images(family).requires_grad_()
    maps = explain(network, images, TARGETS, "gradient", CONTRASTS)
    logits, _ = answer(network, images)
    for name, ours in zip(CONTRASTS, maps):
        vector = cotangent(name, logits.detach(), TARGETS)
        (slope,) = torch.autograd.grad((logits * vector).sum(), images, retain_graph=True)
        same(ours, slope.sum(1))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_full_gradients_of_resnet_add_up_to_the_contrast(activation):
    network, images = hugging.build("ResNet", hidden_act=activation), hugging.images("ResNet")
    logits = network(images).logits
    for name, maps in zip(CONTRASTS, explain(network, images, TARGETS, "fullgrad", CONTRASTS)):
        torch.testing.assert_close(maps.sum((1, 2)), (cotangent(name, logits, TARGETS) * logits).sum(1))


def test_full_gradients_of_a_transformer_add_up_to_what_its_images_and_its_layers_own_biases_give():
    """Layer norm and attention are left out, as `fullgrad` says."""
    network, images = hugging.build("ViT", hidden_act="relu"), hugging.images("ViT", 1).requires_grad_()
    maps = explain(network, images, TARGETS[:1], "fullgrad", "max")
    linear = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    biases = [m.bias.requires_grad_() for m in linear]
    logits = network(images).logits
    vector = cotangent("max", logits.detach(), TARGETS[:1])
    slopes = torch.autograd.grad((logits * vector).sum(), [images, *biases])
    expected = sum((value * slope).sum() for value, slope in zip([images, *biases], slopes))
    torch.testing.assert_close(maps.sum(), expected.detach())


# --- attention ----------------------------------------------------------------------------------------------------


def core(network):
    return getattr(network, "network", network)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("family", hugging.PLAIN)
def test_the_rollout_is_made_of_the_attentions_that_the_network_hands_out(family, relu):
    """Asked for, these come from its own arithmetic (eager), some of it in float32."""
    network, images = hugging.build(family), hugging.images(family).requires_grad_()
    ours = explain(network, images, TARGETS, "attention_rollout", relu=relu, upsample=False)
    core(network).set_attn_implementation("eager")
    logits, told = answer(network, images, output_attentions=True)
    vector = cotangent("weighted", logits.detach(), TARGETS)
    slopes = torch.autograd.grad((logits * vector).sum(), told.attentions)
    assert len(slopes) == hugging.N_BLOCKS
    n_prefix, grid = hugging.PLAIN[family]
    rolled = eye = torch.eye(slopes[0].shape[-1], dtype=torch.float64)
    for matrix, slope in zip(told.attentions, slopes):
        weighted = matrix.detach() * slope
        mixed = (weighted.clamp(min=0) if relu else weighted).mean(1) + eye
        rolled = mixed / mixed.sum(-1, keepdim=True) @ rolled
    rows = (rolled * (1 - eye))[:, READ.get(family, slice(0, 1))].mean(1)
    same(ours, rows[:, n_prefix:].reshape(2, *grid), 1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_networks_own_attention_is_restored(implementation, fails):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    network, images = hugging.build("ViT"), hugging.images("ViT")
    network.set_attn_implementation(implementation)
    before = list(ALL_ATTENTION_FUNCTIONS)
    logits = network(images).logits
    with vit.unfused(network):
        assert list(ALL_ATTENTION_FUNCTIONS) != before
        torch.testing.assert_close(network(images).logits, logits, rtol=0, atol=1e-6)
    if fails:
        with pytest.raises(ValueError, match="doesn't match model"):
            explain(network, images[..., :-3], TARGETS, "attention_rollout")
    else:
        explain(network, images, TARGETS, "attention_rollout")
    assert list(ALL_ATTENTION_FUNCTIONS) == before
    assert network.config._attn_implementation == implementation


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explainer", vit.MAPS)
@pytest.mark.parametrize("family", MAPS)
def test_what_explains_attention_among_all_tokens_refuses_other_networks(family, explainer):
    with pytest.raises(ValueError, match="is no plain Vision Transformer"):
        explain(hugging.build(family), hugging.images(family), TARGETS, explainer)


@pytest.mark.parametrize("explainer", CAMS)
@pytest.mark.parametrize("family", hugging.PLAIN)
def test_cams_of_a_transformer_want_a_layer_of_tokens_that_is_read(family, explainer):
    network, images = hugging.build(family), hugging.images(family)
    with pytest.raises(ValueError, match=r"ends in no spatial map: name a layer with .* tokens \(B, N, C\)"):
        explain(network, images, TARGETS, explainer)
    names = list(vit.blocks(network))
    if family in ("ViT", "DeiT", "CLIP"):  # the others' classifiers read patches, or a second token
        with pytest.raises(ValueError, match="behind the layer only the class token is read"):
            explain(network, images, TARGETS, explainer, layer=names[-1])


def test_padded_tokens_are_on_no_grid_that_is_known_and_laid_out_by_hand():
    """15 rows are padded to 16 before they are merged to 8; 60 x 32 pixels have no 8 x 4 places."""
    network, layer = hugging.build("Swin"), "swin.encoder.layers.0.downsample"
    images = hugging.images("Swin")[:, :, :60].requires_grad_()
    with pytest.raises(ValueError, match=r"gradcam needs .* or a `reshape` that makes it so, got shape \(2, 32, 16\)"):
        explain(network, images, TARGETS, layer=layer)
    logits, told = answer(network, images, output_hidden_states=True)
    vector = cotangent("weighted", logits.detach(), TARGETS)
    (slope,) = torch.autograd.grad((logits * vector).sum(), told.hidden_states[1])
    a, g = (on_grid(v, 0, (8, 4)) for v in (told.hidden_states[1].detach(), slope))
    ours = explain(network, images, TARGETS, layer=layer, upsample=False, reshape=lambda v: on_grid(v, 0, (8, 4)))
    same(ours, by_hand("gradcam", a, g))


def test_the_last_map_of_a_family_is_that_of_its_relatives():
    shape = {"hidden_sizes": [8, 12, 16], "depths": [1, 1, 1]}
    regnet = hf.RegNetForImageClassification(hf.RegNetConfig(embedding_size=8, groups_width=4, **shape))
    convnext = hf.ConvNextV2ForImageClassification(hf.ConvNextV2Config(num_stages=3, **shape))
    assert networks.explanation_layer(regnet) is regnet.regnet.encoder.stages[-1]
    assert networks.explanation_layer(convnext) is convnext.convnextv2.encoder.stages[-1]
