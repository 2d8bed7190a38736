"""Warnings tell of what makes an explanation mean something else, once and in one line, and of nothing else."""

import subprocess
import sys
import warnings
from functools import partial

import huggingface as hugging
import pytest
import torch
import transformers as hf
from conftest import N_CLASSES
from test_explainers import assert_same
from torch import nn

from cxlib import networks, runtime
from cxlib.contrasts import CONTRASTS, groups
from cxlib.explainers import EXPLAINERS, OF_TOKENS, ExplanationWarning, explain
from cxlib.explainers.cautions import COINCIDING, of_answer
from cxlib.explainers.inputs import integrated_gradients, smoothgrad

FEW = {"integrated_gradients": partial(integrated_gradients, steps=2), "smoothgrad": partial(smoothgrad, samples=2)}


def told(*args, **options):
    """Our warnings in one call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        explain(*args, **options)
    ours = [warning for warning in caught if warning.category is ExplanationWarning]
    assert all(warning.filename == __file__ for warning in ours)
    texts = [str(warning.message) for warning in ours]
    assert not any("\n" in text for text in texts)
    return texts


# --- what is told -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["features", ["features.4", "features"]])
def test_a_chosen_layer_where_the_cams_are_one_map_is_told(pooled, images, targets, layer):
    (text,) = told(pooled, images, targets, "gradcam", ["max", "weighted"], layer)
    assert text.startswith("the gradient is constant over the layer features, so that GradCAM and linear approximation")
    assert not told(pooled, images, targets, "layercam", "weighted", layer)  # no map of theirs
    assert not told(pooled, images, targets, "gradcam", torch.zeros(N_CLASSES).double(), layer)  # 0 everywhere


def test_at_a_networks_own_layer_gradcam_is_as_meant_and_the_others_are_not():
    with runtime.seeded(0):
        network, x = networks.build("resnet18", num_classes=5), torch.rand(2, 3, 64, 64)
    t = torch.tensor([1, 3])
    assert not told(network, x, t)
    for explainer, layer in (("xgradcam", None), ("linear_approximation", None), ("gradcam", "layer4")):
        (text,) = told(network, x, t, explainer, layer=layer)
        assert "constant over the layer inner.layer4" in text
    assert not told(network, x, t, "xgradcam", layer="layer3")


@pytest.mark.parametrize("explainer", ["gradient", "gradcam", "fullgrad", FEW["smoothgrad"]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_softmax_inside_is_told(flat, images, targets, explainer, dtype):
    (text,) = told(nn.Sequential(flat, nn.Softmax(1)).to(dtype), images, targets, explainer)
    assert text.startswith("a softmax is inside the network already")
    assert "output=torch.log" in text


@pytest.mark.parametrize("contrast", ["mean", "max", "weighted", "probability"])
def test_the_logarithm_of_probabilities_serves_a_contrast_as_well_as_logits(flat, images, targets, contrast):
    probable = nn.Sequential(flat, nn.Softmax(1))
    maps = explain(probable, images, targets, "gradient", contrast, output=torch.log)
    assert_same(maps, explain(flat, images, targets, "gradient", contrast), 1e-6)
    assert not told(probable, images, targets, "gradient", contrast, output=torch.log)


class Reshaped(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return {"scores": self.network(images)[:, :, None, None].sigmoid().flatten(1)}


@pytest.mark.parametrize("explainer", ["gradient", "gradcam", "fullgrad", FEW["integrated_gradients"]])
def test_a_sigmoid_inside_is_told(flat, images, targets, explainer):
    for network in (nn.Sequential(flat, nn.Sigmoid()), Reshaped(flat)):
        output = None if isinstance(network, nn.Sequential) else lambda answer: answer["scores"]
        (text,) = told(network, images, targets, explainer, output=output)
        assert text.startswith("the network ends in a sigmoid")
        assert "`weighted` and its kin set labels that are there together against each other" in text


def test_the_logits_before_a_sigmoid_are_explained_in_silence(flat, images, targets):
    certain = nn.Sequential(flat, nn.Sigmoid())
    maps = explain(certain, images, targets, "gradient", "weighted", output=torch.logit)
    assert_same(maps, explain(flat, images, targets, "gradient"), 1e-6)
    assert not told(certain, images, targets, "gradient", output=torch.logit)


def test_a_configured_multi_label_head_is_told_where_classes_compete():
    network, x = hugging.build("ViT", problem_type="multi_label_classification"), hugging.images("ViT")
    t = torch.tensor([1, 3])
    (text,) = told(network, x, t, "vit_gradcam", ["original", "max"])
    assert "multi_label_classification" in text
    assert not told(network, x, t, "vit_gradcam", ["original", groups([1], [3])])


def test_features_that_pass_for_logits_are_told():
    x, t = hugging.images("DINOv3"), torch.tensor([1, 3])
    headless = hugging.random(hugging.BUILD["DINOv3"]())
    (text,) = told(headless, x, t, "gradient")
    assert "features, `pooler_output`, that pass for logits" in text
    assert not told(headless, x, t, "gradient", output=lambda answer: answer.pooler_output)
    config = hf.CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=24, patch_size=8
    )
    projected = hugging.random(hf.CLIPVisionModelWithProjection(config))
    (text,) = told(projected, hugging.images("CLIP"), t, "gradient")
    assert "`image_embeds`" in text


# --- silence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explainer", [name for name in EXPLAINERS if name not in OF_TOKENS])
def test_ordinary_networks_are_explained_in_silence(network, images, targets, explainer):
    layer = "features.4" if explainer in ("linear_approximation", "xgradcam") else None
    assert not told(network, images, targets, FEW.get(explainer, explainer), ["normalised", *CONTRASTS], layer)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        *(("tf_efficientnet_lite0", "blocks.5.0.bn1"), ("mobilenet_v2", "features.13")),
        *(("vgg16_bn_narrow", None), ("squeezenet1_1", None)),
    ],
)
def test_the_pipelines_networks_are_explained_in_silence_at_their_layers(name, layer):
    with runtime.seeded(0):
        network, x = networks.build(name, num_classes=6), torch.rand(2, 3, 64, 64)
    tapped = networks.explanation_layer(network, layer)  # as its stages give it
    for explainer in COINCIDING:
        assert not told(network, x, torch.tensor([[0, 1], [2, 5]]), explainer, list(CONTRASTS), tapped)


@pytest.mark.parametrize("family", [name for name in hugging.BUILD if name not in ("Swin", "Swin v2")])
def test_hugging_faces_networks_are_explained_in_silence(family):
    explainer = "vit_gradcam" if family in hugging.PLAIN else "gradcam"
    assert not told(hugging.build(family), hugging.images(family), torch.tensor([1, 3]), explainer, list(CONTRASTS))


@pytest.mark.parametrize("head", [nn.Hardsigmoid(), nn.Tanh(), nn.ReLU(), nn.LogSoftmax(1)])
def test_other_last_operations_are_no_softmax_and_no_sigmoid(flat, images, targets, head):
    assert not told(nn.Sequential(flat, head), images, targets, "gradient")


def test_a_gate_inside_and_small_logits_are_no_sigmoid_at_the_end(pooled, images, targets):
    gated = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sigmoid(), pooled.float())
    assert not told(gated.double(), images, targets, "gradient")
    assert not told(pooled.double(), images, targets, "gradient", output=lambda logits: logits.tanh() / 4 + 0.5)


@pytest.mark.parametrize("answer", [None, 3, "logits", (), {}, {"pooler_output": None, "logits": 1}, object()])
def test_no_answer_makes_a_warning_fail(answer):
    assert of_answer(answer) == []


def test_a_refused_explanation_warns_of_nothing_and_leaves_no_hook(flat, images, targets):
    network = nn.Sequential(flat, nn.Softmax(1))
    with warnings.catch_warnings(record=True) as caught, pytest.raises(ValueError, match="choose from"):
        explain(network, images, targets, "gradient", "best")
    assert not caught
    assert not network._forward_hooks


def test_a_scripted_network_takes_no_hook_and_is_explained_as_any(flat, images, targets):
    scripted = torch.jit.script(nn.Sequential(*flat.features, nn.Flatten(), flat.head, nn.Softmax(1)))
    (text,) = told(scripted, images, targets, "gradient")
    assert text.startswith("a softmax is inside")


# --- how ----------------------------------------------------------------------------------------------------------

LOOP = """
import torch
from torch import nn
from cxlib.explainers import explain
network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3), nn.Softmax(1))
for explainer in 3 * ["gradient", "fullgrad", "lrp"]:
    explain(network.eval(), torch.rand(2, 3, 8, 8), torch.tensor([0, 2]), explainer)
"""


def test_a_loop_is_warned_once_at_the_line_that_calls(tmp_path):
    (tmp_path / "loop.py").write_text(LOOP)
    done = subprocess.run([sys.executable, "loop.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert "loop.py:7: ExplanationWarning: a softmax is inside" in line
