"""Transformers: GradCAM on tokens and attention rollout agree with a literal transcription, peers and each other."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM
from test_contrasts import OBJECTIVES
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import nn
from torchvision.models import VisionTransformer

from cxlib import networks, taps
from cxlib.contrasts import CONTRASTS, cotangent
from cxlib.explainers import explain, vit

DEPTH, SIDE, PATCH, N_CLASSES = 3, (24, 16), 4, 5
GRID = (SIDE[0] // PATCH, SIDE[1] // PATCH)
KINDS = {
    "class token": {},
    "registers": {"reg_tokens": 2},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "class token, patches pooled": {"global_pool": "avg"},
}


def build(kind, side=SIDE, patch=PATCH):
    """A small transformer of timm, or torchvision's, in float64, with attention and biases that are not negligible."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        shape = {"depth": DEPTH, "num_heads": 2, "embed_dim": 16}
        if kind == "torchvision":
            network = VisionTransformer(4 * patch, patch, DEPTH, 2, 16, 32, num_classes=N_CLASSES)
        elif kind == "distilled":
            network = timm.models.deit.VisionTransformerDistilled(
                img_size=side, patch_size=patch, num_classes=N_CLASSES, **shape
            )
        else:
            network = TimmTransformer(side, patch, num_classes=N_CLASSES, mlp_ratio=2, **shape, **KINDS[kind])
        for parameter in network.parameters():
            parameter.data.normal_(0, 0.5 if parameter.ndim > 1 else 0.3)
    return networks.freeze(network.double())


ALL = [*KINDS, "distilled", "torchvision"]


@pytest.fixture(params=ALL)
def transformer(request):
    return build(request.param)


def pictures(network, n=3):
    side = (16, 16) if isinstance(network, VisionTransformer) else SIDE
    return torch.rand(n, 3, *side, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


TARGETS = torch.tensor([4, 0, 2])


# --- the equations, slowly --------------------------------------------------------------------------------------


def forward_with_attentions(network, image):
    """The network's own layers, called one after another, with attention written out; (logits (K,), matrices)."""
    if isinstance(network, VisionTransformer):
        x = network.conv_proj(image[None]).flatten(2).mT
        x = torch.cat([network.class_token, x], 1) + network.encoder.pos_embedding
        blocks = network.encoder.layers
    else:
        x = network.norm_pre(network._pos_embed(network.patch_embed(image[None])))
        blocks = network.blocks
    matrices = []
    for block in blocks:
        if isinstance(network, VisionTransformer):
            attention, norm, norm2, mlp = block.self_attention, block.ln_1, block.ln_2, block.mlp
            weight, bias, out = attention.in_proj_weight, attention.in_proj_bias, attention.out_proj
        else:
            attention, norm, norm2, mlp = block.attn, block.norm1, block.norm2, block.mlp
            weight, bias, out = attention.qkv.weight, attention.qkv.bias, attention.proj
        q, k, v = (norm(x)[0] @ weight.T + (0 if bias is None else bias)).split(16, -1)
        heads, mixed = [], []
        for h in range(2):
            part = slice(8 * h, 8 * h + 8)
            heads.append((q[:, part] @ k[:, part].T / math.sqrt(8)).softmax(-1))
        matrices.append(torch.stack(heads))
        for h in range(2):
            mixed.append(matrices[-1][h] @ v[:, 8 * h : 8 * h + 8])
        x = x + out(torch.cat(mixed, -1))[None]
        x = x + mlp(norm2(x))
    if isinstance(network, VisionTransformer):
        return network.heads(network.encoder.ln(x)[:, 0])[0], matrices
    return network.forward_head(network.norm(x))[0], matrices


def slow_rollout(network, image, vector, relu, first=0):
    """Section 3.5 word by word, one number at a time; the map of one image and one cotangent."""
    network = network.requires_grad_()
    logits, matrices = forward_with_attentions(network, image)
    gradients = torch.autograd.grad((logits * vector).sum(), matrices)
    matrices = [matrix.detach() for matrix in matrices]
    network.requires_grad_(False)
    n = matrices[0].shape[-1]
    rolled = np.eye(n)
    for matrix, gradient in list(zip(matrices, gradients))[first:]:
        mixed = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                values = [float(gradient[h, i, j] * matrix[h, i, j]) for h in range(2)]
                mixed[i, j] = (sum(max(v, 0) if relu else v for v in values) / 2 + (i == j)) / 2
            mixed[i] /= mixed[i].sum()
        rolled = mixed @ rolled
    n_patches = n - prefix(network)
    if prefix(network) and getattr(network, "global_pool", "token") == "token":
        rows = rolled[: 2 if hasattr(network, "head_dist") else 1]
    else:
        rows = (rolled - np.diag(np.diag(rolled)))[-n_patches:]
    side = (4, 4) if isinstance(network, VisionTransformer) else GRID
    return rows.mean(0)[-n_patches:].reshape(side)


def prefix(network):
    return getattr(network, "num_prefix_tokens", 1)


@pytest.mark.parametrize("contrast", ["original", "weighted"])
@pytest.mark.parametrize("relu", [True, False])
def test_the_rollout_is_the_papers_read_literally(transformer, relu, contrast):
    images = pictures(transformer)
    ours = explain(transformer, images, TARGETS, "attention_rollout", contrast, relu=relu, upsample=False)
    vectors = cotangent(contrast, transformer(images), TARGETS)
    assert ours.abs().amin((1, 2)).max() > 0
    for image, vector, found in zip(images, vectors, ours):
        expected = slow_rollout(transformer, image, vector, relu)
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", ["class token", "torchvision"])
def test_a_rollout_from_a_later_block_leaves_the_earlier_ones_out(kind):
    network = build(kind)
    images = pictures(network)
    name = list(vit.blocks(network))[1]
    vectors = cotangent("max", network(images), TARGETS)
    for layer in (name, network.get_submodule(name)):
        ours = explain(network, images, TARGETS, "attention_rollout", "max", layer, upsample=False)
        expected = slow_rollout(network, images[0], vectors[0], False, first=1)
        np.testing.assert_allclose(ours[0], expected, rtol=1e-8, atol=1e-12)


def test_standard_rollouts_are_shares_that_leave_something_to_the_tokens_without_a_patch():
    network = build("class token")
    maps = explain(network, pictures(network), TARGETS, "attention_rollout", "original", relu=True, upsample=False)
    assert (maps >= 0).all()
    assert ((maps.sum((1, 2)) > 0) & (maps.sum((1, 2)) < 1)).all()


def slow_published_rollout(network, image, vector):
    """The review's code, word by word, for one image: forward hooks collect attentions, backward hooks gradients."""
    network = network.requires_grad_()
    logits, attentions = forward_with_attentions(network, image)
    gradients = list(torch.autograd.grad((logits * vector).sum(), attentions))[::-1]  # as backward reaches them
    network.requires_grad_(False)
    result = torch.eye(attentions[0].shape[-1], dtype=torch.float64)
    for attention, gradient in zip(attentions, gradients):
        fused = (attention.detach() * gradient)[None].mean(axis=1)  # (1, N, N)
        fused[fused < 0] = 0
        a = (fused + torch.eye(fused.shape[-1])) / 2
        a = a / a.sum(dim=-1)
        result = a @ result
    return result[0, 0, prefix(network) :]


@pytest.mark.parametrize("kind", ["class token", "registers", "torchvision"])
def test_the_published_rollout_is_the_reviews_code_read_literally(kind):
    network = build(kind)
    images = pictures(network)
    ours = explain(network, images, TARGETS, "published_rollout", "probability", relu=True, upsample=False)
    vectors = cotangent("probability", network(images), TARGETS)
    correct = explain(network, images, TARGETS, "attention_rollout", "probability", relu=True, upsample=False)
    for image, vector, found, other in zip(images, vectors, ours, correct):
        expected = slow_published_rollout(network, image, vector)
        torch.testing.assert_close(found.flatten(), expected, rtol=1e-8, atol=1e-12)
        assert not torch.allclose(found, other, rtol=1e-3, atol=0)


def matrices(seed, n=4, depth=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, n, n, generator=generator, dtype=torch.float64) for _ in range(depth)]


def test_the_published_rollout_is_the_correct_one_where_nothing_tells_the_three_differences_apart():
    """One block has one order, one head no order of mean and ReLU, a row sum that all rows share no axis."""
    attentions, gradients = ([m[:, :1] for m in matrices(seed, depth=1)] for seed in (0, 1))
    weighted = (attentions[0] * gradients[0]).clamp(min=0)
    attentions = [weighted / weighted.sum(-1, keepdim=True)]
    gradients = [torch.ones_like(weighted)]
    one, other = (vit.rollout(attentions, gradients, slice(0, 1), True, published) for published in (True, False))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("relu", [True, False])
def test_a_batchs_published_rollout_is_that_of_its_images(relu):
    attentions, gradients = matrices(0), matrices(1)
    together = vit.rollout(attentions, gradients, slice(0, 1), relu, published=True)
    for i in range(2):
        one = ([m[i : i + 1] for m in each] for each in (attentions, gradients))
        torch.testing.assert_close(vit.rollout(*one, slice(0, 1), relu, published=True)[0], together[i])


@pytest.mark.parametrize("total", [0.0, 1e-9, -1e-9])
def test_a_row_that_sums_to_nothing_leaves_the_rollout_finite(total):
    attention = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    # Row 0 of A + I is (1 - a, b) with 1 - a + b = total.
    gradient = torch.tensor([[[[-2.0, 2 * total], [0.1, 0.2]]]], dtype=torch.float64)
    rolled = vit.rollout([attention, attention], [gradient, gradient], slice(0, 1), relu=False)
    assert rolled.isfinite().all()


def test_gradients_of_the_attention_are_slopes_by_finite_differences(transformer):
    images = pictures(transformer, 1)
    vector = torch.randn(1, N_CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with vit.unfused(transformer) as probes:
        traced = taps.record_each(transformer, images, probes)
        gradients = traced.pull_back(vector)
        step = 1e-6
        for probe, gradient in zip(probes, gradients):
            for index in [(0, 0, 0, 0), (0, 1, 0, 3), (0, 0, 5, 2), (0, 1, 7, 7)]:

                def shifted(sign, index=index, probe=probe):
                    def shift(_module, _inputs, output):
                        output = output.clone()
                        output[index] += sign * step
                        return output

                    handle = probe.register_forward_hook(shift)
                    value = float((transformer(images) * vector).sum())
                    handle.remove()
                    return value

                slope = (shifted(1) - shifted(-1)) / (2 * step)
                assert float(gradient[index]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


# --- peers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contrast", OBJECTIVES)
@pytest.mark.parametrize("kind", ["class token", "registers", "no class token", "torchvision"])
def test_grad_cam_with_its_reshape_has_the_same_halves_after_its_scaling(kind, contrast):
    """Patches of one pixel, so that grad-cam's resizing does nothing; it stretches every map to [0, 1].

    Its ReLU hides the negative half: that is the positive one of the negated objective.
    """
    network = build(kind, side=(6, 4), patch=1)
    grid = (4, 4) if kind == "torchvision" else (6, 4)
    images = torch.rand(3, 3, *grid, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    signed = explain(network, images, TARGETS, "vit_gradcam", contrast)
    assert torch.equal(explain(network, images, TARGETS, "vit_gradcam", contrast, relu=True), signed.clamp(min=0))
    layer = networks.explanation_layer(network, vit.token_layers(network)[-1])
    network.requires_grad_()

    def reshape(tokens):
        return tokens[:, prefix(network) :].reshape(len(tokens), *grid, -1).permute(0, 3, 1, 2)

    for sign in (1, -1):
        ours = (sign * signed).clamp(min=0).float()
        low, high = ours.amin((-2, -1), keepdim=True), ours.amax((-2, -1), keepdim=True)
        stretched = torch.where(high > low, (ours - low) / (high - low), 0)
        objectives = [lambda y, t=int(t), s=sign: s * 1e3 * OBJECTIVES[contrast](y, t) for t in TARGETS]
        with GradCAM(network, [layer], reshape_transform=reshape) as method:
            expected = torch.from_numpy(method(images, objectives))
        torch.testing.assert_close(stretched, expected, rtol=0, atol=1e-5)


def as_torchvision(network):
    """The state of timm's transformer under torchvision's names."""
    renamed = {}
    for key, value in network.state_dict().items():
        key = key.replace("cls_token", "class_token").replace("pos_embed", "encoder.pos_embedding")
        key = key.replace("patch_embed.proj", "conv_proj").replace("blocks.", "encoder.layers.encoder_layer_")
        key = key.replace("attn.qkv.", "self_attention.in_proj_").replace("attn.proj", "self_attention.out_proj")
        key = key.replace("norm1", "ln_1").replace("norm2", "ln_2").replace("mlp.fc1", "mlp.0").replace("fc2", "3")
        key = "heads.head." + key[5:] if key.startswith("head.") else key
        key = "encoder.ln." + key[5:] if key.startswith("norm.") else key
        renamed[key] = value
    return renamed


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("explainer", vit.MAPS)
def test_timm_and_torchvision_with_the_same_weights_give_the_same_maps(explainer, relu):
    torch.manual_seed(0)
    ours = TimmTransformer(16, PATCH, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, num_classes=N_CLASSES).double()
    for parameter in ours.parameters():
        parameter.data.normal_(0, 0.5)
    theirs = VisionTransformer(16, PATCH, 2, 2, 16, 32, num_classes=N_CLASSES).double()
    theirs.load_state_dict(as_torchvision(ours))
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps = [
        explain(network.eval(), images, TARGETS, explainer, list(CONTRASTS), relu=relu) for network in (ours, theirs)
    ]
    assert maps[0].abs().max() > 0
    torch.testing.assert_close(*maps, rtol=1e-9, atol=1e-12)


# --- attention is taken apart and put together again -----------------------------------------------------------------


def fused(network):
    return [module.fused_attn for module in network.modules() if hasattr(module, "fused_attn")]


def patched(network):
    return [module for module in network.modules() if "forward" in vars(module)]


def test_attention_taken_apart_gives_the_same_logits_and_rows_that_sum_to_one(transformer):
    images = pictures(transformer)
    expected = transformer(images)
    before = fused(transformer)
    with vit.unfused(transformer) as probes:
        assert not any(fused(transformer))
        traced = taps.record_each(transformer, images, probes)
    torch.testing.assert_close(traced.logits, expected, rtol=1e-10, atol=1e-12)
    assert len(traced.activations) == DEPTH
    for matrix in traced.activations:
        torch.testing.assert_close(matrix.sum(-1), torch.ones_like(matrix[..., 0]))
    assert fused(transformer) == before
    assert not patched(transformer)


@pytest.mark.parametrize("explainer", vit.MAPS)
def test_fused_attention_is_restored_behind_an_exception(transformer, explainer):
    before = fused(transformer)
    assert all(before)
    for images in (pictures(transformer)[..., :-3], pictures(transformer)[:, :2]):
        with pytest.raises((AssertionError, RuntimeError)):
            explain(transformer, images, TARGETS, explainer)
        assert fused(transformer) == before
        assert not patched(transformer)
        assert not any(module._forward_hooks for module in transformer.modules())


# --- what holds for every explainer -------------------------------------------------------------------------------


@pytest.mark.parametrize("explainer", vit.MAPS)
def test_a_batch_gives_what_single_images_give_and_all_is_finite(transformer, explainer):
    images = pictures(transformer)
    together = explain(transformer, images, TARGETS, explainer, list(CONTRASTS), upsample=False)
    assert together.isfinite().all()
    assert (together.abs().amax((-2, -1)) > 0).all()
    for i in range(3):
        one = slice(i, i + 1)
        alone = explain(transformer, images[one], TARGETS[one], explainer, list(CONTRASTS), upsample=False)
        torch.testing.assert_close(together[:, one], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("explainer", vit.MAPS)
def test_shapes_are_those_of_targets_contrasts_and_a_grid_that_is_not_square(explainer):
    network = build("class token")
    images, targets = pictures(network), torch.tensor([[0, 1], [2, 3], [4, 0]])
    passes = []
    network.register_forward_hook(lambda *_: passes.append(1))
    assert explain(network, images, targets, explainer, ["max", "mean", "weighted"]).shape == (3, 3, 2, *SIDE)
    assert len(passes) == 1
    small = explain(network, images, targets, explainer, "max", upsample=False)
    assert small.shape == (3, 2, *GRID)
    assert torch.equal(small[:, 1], explain(network, images, targets[:, 1], explainer, "max", upsample=False))
    with pytest.raises(ValueError, match="targets must"):
        explain(network, images, targets + 1, explainer)


def test_vit_gradcam_of_a_contrast_is_the_contrast_of_the_classes_maps(transformer):
    images, classes = pictures(transformer), torch.arange(N_CLASSES).expand(3, -1)
    of_classes = explain(transformer, images, classes, "vit_gradcam", "original")
    for contrast in CONTRASTS:
        coefficients = cotangent(contrast, transformer(images), TARGETS)
        expected = torch.einsum("bk,bkhw->bhw", coefficients, of_classes)
        ours = explain(transformer, images, TARGETS, "vit_gradcam", contrast)
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


def test_every_block_can_be_explained_and_they_differ(transformer):
    images = pictures(transformer)
    maps = [explain(transformer, images, TARGETS, "vit_gradcam", layer=name) for name in vit.token_layers(transformer)]
    assert len(maps) == DEPTH
    assert torch.equal(maps[-1], explain(transformer, images, TARGETS, "vit_gradcam"))
    assert not torch.allclose(maps[0], maps[1])


@pytest.mark.parametrize("explainer", vit.MAPS)
def test_a_transformer_inside_other_modules_is_found(explainer):
    network = build("class token")
    images = pictures(network)
    expected = explain(network, images, TARGETS, explainer)
    mean, std = torch.zeros(3).tolist(), torch.ones(3).tolist()
    for outer in (nn.Sequential(nn.Identity(), network), networks.Network("tiny", network, {}, mean, std)):
        assert torch.equal(explain(outer, images, TARGETS, explainer), expected)


@pytest.mark.parametrize("context", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("explainer", vit.MAPS)
def test_transformers_are_explained_in_every_grad_mode_and_keep_their_training_mode(explainer, context):
    network = build("torchvision")
    images = pictures(network)
    expected = explain(network, images, TARGETS, explainer)
    network.train()
    with context():
        assert torch.equal(explain(network, images, TARGETS, explainer), expected)
    assert all(module.training for module in network.modules())


# --- one clear line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explainer", vit.MAPS | vit.PUBLISHED)
def test_a_network_without_attention_is_refused(pooled, images, targets, explainer):
    with pytest.raises(ValueError, match="Tiny is no plain Vision Transformer"):
        explain(pooled, images, targets, explainer)


def test_blocks_whose_attention_is_out_of_reach_are_named_and_explained_at_a_layer_of_theirs():
    block = timm.models.vision_transformer.ParallelScalingBlock
    network = TimmTransformer(16, PATCH, embed_dim=16, depth=2, num_heads=2, num_classes=N_CLASSES, block_fn=block)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"the attention matrix of blocks\.0 \(ParallelScalingBlock\) is out of reach"):
        explain(network, images, TARGETS, "attention_rollout")
    assert explain(network, images, TARGETS, "vit_gradcam", layer="blocks.1.in_norm").any()


def test_layers_that_hold_no_tokens_or_no_gradient_of_them_are_refused():
    network = build("class token")
    images = pictures(network)
    with pytest.raises(ValueError, match=r"needs a layer with output \(B, 25, C\), got shape \(3, 5\)"):
        explain(network, images, TARGETS, "vit_gradcam", layer="head")
    with pytest.raises(ValueError, match=r"only the class token is read.*blocks\.2\.norm1"):
        explain(network, images, TARGETS, "vit_gradcam", layer="blocks.2")
    with pytest.raises(ValueError, match=r"begins at a block, 'blocks\.0\.norm1' is none: .*blocks\.0 to blocks\.2"):
        explain(network, images, TARGETS, "attention_rollout", layer="blocks.0.norm1")
    with pytest.raises(ValueError, match=r"no layer 'blocks\.7'"):
        explain(network, images, TARGETS, "vit_gradcam", layer="blocks.7")
