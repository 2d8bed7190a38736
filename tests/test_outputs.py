"""Regions, boxes and prompts have the logits and maps that they have when everything is written out."""

import huggingface as hugging
import pytest
import torch
import transformers as hf
from huggingface import PROMPTS
from torch import nn
from torch.nn import functional as F
from torchvision.models.segmentation import deeplabv3_resnet50, fcn_resnet50, lraspp_mobilenet_v3_large

from cxlib import networks, outputs
from cxlib.contrasts import cotangent
from cxlib.explainers import explain, vit

TARGETS = torch.tensor([1, 3])
GENERATOR = torch.Generator().manual_seed(4)
IMAGES = torch.rand(2, 3, 32, 64, generator=GENERATOR, dtype=torch.float64)


# --- regions --------------------------------------------------------------------------------------------------------


def masks(*size):
    return torch.rand(*size, generator=torch.Generator().manual_seed(2)) > 0.7


def written_out(logits, mask):
    """The logits laid over the mask, and averaged inside it, one image after the other."""
    large = F.interpolate(logits, mask.shape[-2:], mode="bilinear", align_corners=False, antialias=True)
    return torch.stack([image[:, inside].mean(1) for image, inside in zip(large, mask.expand(len(logits), -1, -1))])


@pytest.mark.parametrize("size", [(2, 32, 64), (32, 64), (2, 8, 16), (3, 5), (2, 4, 4)])
def test_a_regions_logits_are_the_mean_of_the_logits_laid_over_it(size):
    logits = torch.randn(2, 5, 8, 16, generator=GENERATOR, dtype=torch.float64)
    mask = masks(*size)
    for answer in (logits, {"out": logits, "aux": -logits}, hf.modeling_outputs.SemanticSegmenterOutput(logits=logits)):
        torch.testing.assert_close(outputs.region(mask)(answer), written_out(logits, mask))
    if size[-2:] == (32, 64):  # what segmenters themselves do
        large = F.interpolate(logits, size[-2:], mode="bilinear", align_corners=False)
        torch.testing.assert_close(outputs.region(mask)(logits)[0], large[0][:, mask.expand(2, 32, 64)[0]].mean(1))


@pytest.fixture(scope="module")
def segformer():
    config = hf.SegformerConfig(**hugging._SEGFORMER)
    return hugging.random(hf.SegformerForSemanticSegmentation(config))


@pytest.mark.parametrize("explainer", ["gradcam", "linear_approximation", "gradient"])
def test_the_classes_of_a_region_are_explained_as_autograd_explains_them(segformer, explainer):
    images, mask = IMAGES.clone().requires_grad_(), masks(2, 32, 64)
    ours = explain(segformer, images, TARGETS, explainer, output=outputs.region(mask), upsample=False)
    told = segformer(images, output_hidden_states=True)
    logits, state = written_out(told.logits, mask), told.hidden_states[-1]
    vector = cotangent("weighted", logits.detach(), TARGETS)
    slope, at_images = torch.autograd.grad((logits * vector).sum(), [state, images])
    a = state.detach()
    expected = {
        "gradcam": (slope.mean((2, 3), keepdim=True) * a).sum(1),
        "linear_approximation": (slope * a).sum(1),
        "gradient": at_images.sum(1),
    }[explainer]
    assert expected.any()
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))


def test_a_batchs_regions_are_those_of_its_images(segformer):
    mask = masks(2, 32, 64)
    together = explain(segformer, IMAGES, TARGETS, output=outputs.region(mask))
    for i in range(2):
        alone = explain(segformer, IMAGES[i : i + 1], TARGETS[i : i + 1], output=outputs.region(mask[i]))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-9, atol=1e-15)


def test_torchvisions_segmenters_are_explained_at_the_end_of_their_trunk():
    with torch.device("meta"):
        larger = [kind(weights=None, weights_backbone=None) for kind in (deeplabv3_resnet50, fcn_resnet50)]
    assert all(networks.explanation_layer(network) is network.backbone.layer4 for network in larger)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.freeze(lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5))
    layer = networks.explanation_layer(network)
    assert layer is network.backbone["16"]
    maps = explain(network, IMAGES.float(), TARGETS, output=outputs.region(masks(32, 64)), upsample=False)
    assert maps.shape == (2, 2, 4)
    assert maps.any()


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (torch.zeros(4, 4), "not empty"),
        (torch.ones(2, 4, 4) * torch.tensor([1.0, 0])[:, None, None], "not empty"),
        (-torch.eye(4), "without negative weights"),
        (torch.full((4, 4), torch.nan), "finite"),
        (torch.ones(4), r"\(H, W\) or \(B, H, W\), got torch.float32 \(4,\)"),
        (torch.ones(2, 0, 4), r"\(H, W\) or \(B, H, W\)"),
    ],
)
def test_a_mask_that_is_no_region_is_told_in_one_line(mask, told):
    with pytest.raises(ValueError, match=told):
        outputs.region(mask)


def test_an_answer_that_is_no_segmentation_of_the_images_is_told_in_one_line(segformer):
    with pytest.raises(ValueError, match=r"needs logits \(B, K, h, w\) of its images, got \(2, 5, 8, 16\)"):
        explain(segformer, IMAGES, TARGETS, output=outputs.region(masks(3, 32, 64)))
    with pytest.raises(ValueError, match=r"got \(2, 5\)"):
        outputs.region(masks(4, 4))(torch.ones(2, 5))
    with pytest.raises(ValueError, match="got dict"):
        outputs.region(masks(4, 4))({"logits": 1})
    with pytest.raises(ValueError, match=r"not with logits.*`output`"):
        explain(segformer, IMAGES, TARGETS)


# --- boxes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def yolos():
    config = hf.YolosConfig(**hugging._PLAIN, **hugging._MLP, image_size=(32, 64), patch_size=8)
    config.num_detection_tokens = 7
    return hugging.random(hf.YolosForObjectDetection(config))


def test_a_boxs_classes_are_those_of_the_query_that_overlaps_most(yolos):
    """The overlaps by counting points of a fine grid; the tokens of the queries stand behind the patches."""
    corners, images = torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.3, 0.0, 1.0, 0.5]]), IMAGES.clone().requires_grad_()
    told = yolos(images)
    y, x = torch.meshgrid(*2 * [(torch.arange(400) + 0.5) / 400], indexing="ij")

    def inside(left, top, right, bottom):
        return (x > left) & (x < right) & (y > top) & (y < bottom)

    chosen = []
    for given, boxes in zip(corners, told.pred_boxes.detach()):
        asked, overlaps = inside(*given), []
        for cx, cy, w, h in boxes:
            query = inside(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
            overlaps.append(float((asked & query).sum() / (asked | query).sum()))
        chosen.append(overlaps.index(max(overlaps)))
    logits = told.logits[[0, 1], chosen]
    torch.testing.assert_close(outputs.box(corners)(told), logits)
    vector = cotangent("max", logits.detach(), TARGETS)
    (slope,) = torch.autograd.grad((logits * vector).sum(), images)
    ours = explain(yolos, images, TARGETS, "gradient", "max", output=outputs.box(corners))
    torch.testing.assert_close(ours, slope.sum(1), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"gradcam needs .* or a `reshape`.*\(2, 40, 16\)"):
        explain(yolos, images, TARGETS, layer="vit.encoder.layer.0", output=outputs.box(corners))
    maps = explain(
        *(yolos, images, TARGETS, "gradcam", "max", "vit.encoder.layer.0"),
        output=outputs.box(corners),
        reshape=lambda tokens: tokens[:, 1:-7].mT.unflatten(-1, (4, 8)),
    )
    assert maps.shape == (2, 32, 64)
    assert maps.any()


@pytest.mark.parametrize("corners", [[0.5, 0.1, 0.4, 0.9], [0.1, 0.2, 0.3], [[[0.0, 0, 1, 1]]]])
def test_corners_that_are_no_box_are_told_in_one_line(corners):
    with pytest.raises(ValueError, match=r"a box is \(left, top, right, bottom\)"):
        outputs.box(torch.tensor(corners))


def test_a_box_that_nothing_overlaps_is_told_in_one_line(yolos):
    with pytest.raises(ValueError, match="no predicted box overlaps"):
        explain(yolos, IMAGES, TARGETS, "gradient", output=outputs.box(torch.tensor([100.0, 100, 200, 200])))
    with pytest.raises(ValueError, match="needs an answer with `logits` and `pred_boxes`, got Tensor"):
        outputs.box(torch.tensor([0.0, 0, 1, 1]))(IMAGES)


# --- prompts --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["CLIP", "SigLIP"])
def two_towers(request):
    return hugging.build(request.param).network


PICTURES = hugging.images("CLIP")


def test_prompts_are_classes_whose_logits_are_the_models_own(two_towers):
    expected = two_towers(input_ids=PROMPTS, pixel_values=PICTURES).logits_per_image
    torch.testing.assert_close(outputs.ImageText(two_towers, PROMPTS)(PICTURES), expected)
    embeddings = two_towers.get_text_features(input_ids=PROMPTS).pooler_output
    torch.testing.assert_close(outputs.ImageText(two_towers, 7 * embeddings)(PICTURES), expected)


def test_padding_of_prompts_is_masked():
    clip = hugging.build("CLIP").network
    padded = torch.cat([PROMPTS, PROMPTS.new_full((5, 3), 47)], 1)
    mask = (torch.arange(8) < 5).long().expand(5, 8)
    expected = clip(input_ids=padded, attention_mask=mask, pixel_values=PICTURES).logits_per_image
    torch.testing.assert_close(outputs.ImageText(clip, padded, mask)(PICTURES), expected)


def test_one_prompt_rather_than_another_is_the_difference_of_their_scores(two_towers):
    """`max` of two prompts, against autograd through the whole model."""
    network, images = outputs.ImageText(two_towers, PROMPTS[:2]), PICTURES.clone().requires_grad_()
    scores = two_towers(input_ids=PROMPTS[:2], pixel_values=images).logits_per_image
    (slope,) = torch.autograd.grad((scores[:, 0] - scores[:, 1]).sum(), images)
    pair = torch.tensor([[0, 1], [0, 1]])
    maps = explain(network, images, pair, "gradient", "max")
    torch.testing.assert_close(maps, torch.stack([slope.sum(1), -slope.sum(1)], 1), rtol=1e-9, atol=1e-12)
    maps = explain(network, images, pair, "vit_gradcam", "weighted")  # of two prompts, weighted is max
    assert maps.any()
    torch.testing.assert_close(maps[:, 0], -maps[:, 1])


def test_texts_are_encoded_once_and_without_graph(two_towers):
    runs = []
    two_towers.text_model.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    network = outputs.ImageText(two_towers.requires_grad_().train(), PROMPTS)
    assert two_towers.training
    assert all(module.training for module in two_towers.modules())
    for explainer in vit.MAPS:
        explain(network, PICTURES, TARGETS, explainer)
    assert runs == [False]
    assert not network.prompts.requires_grad
    assert list(network.state_dict()) == [f"network.{name}" for name in two_towers.state_dict()]


def test_layers_of_a_model_with_prompts_have_the_models_own_names(two_towers):
    network = outputs.ImageText(two_towers, PROMPTS)
    names = vit.token_layers(network)
    assert names[-1] == "vision_model.encoder.layers.2.layer_norm1"
    assert networks.explanation_layer(network, names[-1]) is two_towers.get_submodule(names[-1])


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS[0], torch.ones(3, 2, 2)])
def test_prompts_of_another_shape_are_told_in_one_line(prompts):
    with pytest.raises(ValueError, match=r"prompts are input_ids \(P, L\) or embeddings \(P, D\), P >= 2"):
        outputs.ImageText(nn.Identity(), prompts)
