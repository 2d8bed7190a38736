"""Chefer's relevance and LeGrad agree with their definitions, on attention written out layer by layer."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from test_vit import (
    ALL,
    DEPTH,
    GRID,
    TARGETS,
    VisionTransformer,
    as_torchvision,
    build,
    forward_with_attentions,
    fused,
    patched,
    pictures,
    prefix,
)
from timm.models.vision_transformer import VisionTransformer as TimmTransformer

from cxlib.contrasts import CONTRASTS, cotangent
from cxlib.explainers import attention, explain, vit


def side(network):
    return (4, 4) if isinstance(network, VisionTransformer) else GRID


def read_tokens(network, n_tokens):
    """The tokens that the classifier reads."""
    if prefix(network) and getattr(network, "global_pool", "token") == "token":
        return range(2 if hasattr(network, "head_dist") else 1)
    return range(prefix(network), n_tokens)


def literal_relevance(network, image, vector, first=0):
    """Eq. 5 and 6 of Chefer et al. 2021 in the order of the authors' notebook: R = I; R += A R; the class row."""
    network = copy.deepcopy(network).requires_grad_()
    logits, attentions = forward_with_attentions(network, image)
    gradients = torch.autograd.grad((logits * vector).sum(), attentions)
    r = np.eye(attentions[0].shape[-1])
    for matrix, gradient in list(zip(attentions, gradients))[first:]:
        r = r + np.maximum((gradient * matrix).detach().numpy(), 0).mean(0) @ r
    rows = (r - np.eye(len(r)))[read_tokens(network, len(r))]
    return rows.mean(0)[prefix(network) :].reshape(side(network))


def literal_legrad(network, image, vector, first=0):
    """E = mean_l 1/(h n) sum_h sum_i relu(d s^l / d A^l)_{h, i, .}, s^l read from block l's own tokens."""
    layers = []
    for depth in range(first, DEPTH):
        cut = copy.deepcopy(network).requires_grad_()
        if isinstance(cut, VisionTransformer):
            cut.encoder.layers = cut.encoder.layers[: depth + 1]
        else:
            cut.blocks = cut.blocks[: depth + 1]
        logits, attentions = forward_with_attentions(cut, image)
        (gradient,) = torch.autograd.grad((logits * vector).sum(), attentions[-1])
        layers.append(np.maximum(gradient.numpy(), 0).mean((0, 1)))
    return np.mean(layers, 0)[prefix(network) :].reshape(side(network))


LITERAL = {"attention_relevance": literal_relevance, "legrad": literal_legrad}


@pytest.mark.parametrize("contrast", ["original", "weighted", "probability"])
@pytest.mark.parametrize("explainer", LITERAL)
@pytest.mark.parametrize("kind", ALL)
def test_maps_are_the_papers_read_literally(kind, explainer, contrast):
    network = build(kind)
    images = pictures(network)
    ours = explain(network, images, TARGETS, explainer, contrast, upsample=False)
    assert (ours.amax((1, 2)) > 0).all() and (ours >= 0).all()
    for image, vector, found in zip(images, cotangent(contrast, network(images), TARGETS), ours):
        np.testing.assert_allclose(found, LITERAL[explainer](network, image, vector), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("explainer", LITERAL)
@pytest.mark.parametrize("kind", ["class token", "torchvision"])
def test_maps_from_a_later_block_on_leave_the_earlier_ones_out(kind, explainer):
    network = build(kind)
    images, name = pictures(network), list(vit.blocks(network))[1]
    vectors = cotangent("max", network(images), TARGETS)
    for layer in (name, network.get_submodule(name)):
        ours = explain(network, images, TARGETS, explainer, "max", layer, upsample=False)
        np.testing.assert_allclose(ours[0], LITERAL[explainer](network, images[0], vectors[0], 1), rtol=1e-8)
    with pytest.raises(ValueError, match=rf"begins at a block, '{name}.x' is none"):
        explain(network, images, TARGETS, explainer, layer=f"{name}.x")


@pytest.mark.parametrize("explainer", attention.MAPS)
def test_small_cotangents_keep_their_relevance_in_float32(explainer):
    """Relevance of 1e-12 would be lost beside the identity that R begins with."""
    network = build("class token, patches pooled").float()
    images = pictures(network).float()
    vectors = cotangent("max", network(images), TARGETS)
    large, small = explain(network, images, TARGETS, explainer, [vectors * 1e-4, vectors * 1e-12], upsample=False)
    torch.testing.assert_close(small * 1e8, large, rtol=1e-2, atol=float(1e-3 * large.max()))


@pytest.mark.parametrize("context", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("explainer", attention.MAPS)
def test_a_batch_gives_what_single_images_give_and_the_network_is_left_as_it_was(explainer, context):
    network = build("class token")
    images, before = pictures(network), fused(network)
    with context():
        together = explain(network.train(), images, TARGETS, explainer, list(CONTRASTS))
        for i in range(3):
            alone = explain(network, images[i : i + 1], TARGETS[i : i + 1], explainer, list(CONTRASTS))
            torch.testing.assert_close(together[:, i : i + 1], alone, rtol=1e-9, atol=1e-14)
    assert all(module.training for module in network.modules())
    network.head.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="class 0 of image 0 is nan"):
        explain(network, images, TARGETS, explainer)
    assert fused(network) == before and not patched(network)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("explainer", attention.MAPS)
def test_timm_and_torchvision_with_the_same_weights_give_the_same_maps(explainer):
    torch.manual_seed(0)
    ours = TimmTransformer(16, 4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, num_classes=5).double()
    for parameter in ours.parameters():
        parameter.data.normal_(0, 0.5)
    theirs = VisionTransformer(16, 4, 2, 2, 16, 32, num_classes=5).double()
    theirs.load_state_dict(as_torchvision(ours))
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps = [explain(network.eval(), images, TARGETS, explainer, list(CONTRASTS)) for network in (ours, theirs)]
    torch.testing.assert_close(*maps, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("explainer", attention.MAPS)
def test_what_makes_logits_of_the_answer_is_part_of_what_is_explained(explainer):
    """LeGrad's logits of an inner block go the same way as the network's own."""
    network = build("class token")
    images, flip = pictures(network), torch.tensor([4, 3, 2, 1, 0])
    maps = explain(network, images, TARGETS, explainer, output=lambda logits: logits[:, flip])
    torch.testing.assert_close(maps, explain(network, images, 4 - TARGETS, explainer))


@pytest.mark.parametrize("explainer", attention.MAPS)
def test_a_network_without_attention_is_refused(pooled, images, targets, explainer):
    with pytest.raises(ValueError, match="Tiny is no plain Vision Transformer"):
        explain(pooled, images, targets, explainer)
