"""grad-cam, torch-cam, captum, zennit and Quantus, given our contrasts, make of them what we make, in their classes."""

import runpy
import sys
from pathlib import Path

import pytest
import quantus
import torch
from captum.attr import IntegratedGradients, LayerGradCam, LayerGradientXActivation, Saliency
from pytorch_grad_cam import GradCAM, HiResCAM
from torchcam import methods as torchcam
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus

from cxlib import taps
from cxlib.adapters import Contrasted, ContrastTarget, attr_output, explain_func
from cxlib.contrasts import CONTRASTS, cotangent, finer, groups
from cxlib.explainers import explain

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")

ALL = CONTRASTS | {"finer_of_two": finer(1.0, [1, 4]), "groups": groups([0, 2], [1, 3, 5]), "own": torch.arange(6.0)}


@pytest.mark.parametrize("contrast", ALL.values(), ids=ALL)
def test_the_number_has_the_cotangent_as_its_gradient_and_its_product_with_the_logits_as_its_value(contrast):
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    expected = cotangent(contrast, logits.detach(), torch.tensor([2, 2, 2]))
    target = ContrastTarget(contrast, 2)
    for number in (target(logits), torch.stack([target(y) for y in logits])):
        torch.testing.assert_close(torch.autograd.grad(number.sum(), logits, retain_graph=True)[0], expected)
        torch.testing.assert_close(number, (expected * logits).sum(-1))


def stretch(maps):
    """To [0, 1], image by image, as grad-cam does."""
    maps = maps - maps.amin((-2, -1), keepdim=True)
    return maps / (1e-7 + maps.amax((-2, -1), keepdim=True))


@pytest.mark.parametrize("contrast", ALL.values(), ids=ALL)
@pytest.mark.parametrize(("theirs", "explainer"), [(GradCAM, "gradcam"), (HiResCAM, "linear_approximation")])
def test_grad_cam_draws_our_map_rectified_and_stretched(flat, images, theirs, explainer, contrast):
    targets = torch.tensor([2, 0, 5, 3])
    ours = explain(flat, images, targets, explainer, contrast, "features.2", relu=True)
    flat.requires_grad_()
    with theirs(flat, [flat.features[2]]) as method:
        drawn = method(images, targets=[ContrastTarget(contrast, int(t)) for t in targets])
    assert ours.flatten(1).any(1).sum() >= 2
    # A layer's map is stretched, then the mean over the layers, of which there is one.
    torch.testing.assert_close(torch.from_numpy(drawn).double(), stretch(stretch(ours)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("contrast", ALL.values(), ids=ALL)
@pytest.mark.parametrize(("theirs", "explainer"), [(torchcam.GradCAM, "gradcam"), (torchcam.XGradCAM, "xgradcam")])
def test_torch_cam_draws_our_map_rectified(flat, images, targets, theirs, explainer, contrast):
    """Behind a ReLU, where its XGradCAM's sum of activations is one of absolute values."""
    ours = explain(flat, images, targets, explainer, contrast, "features.6", relu=True, upsample=False)
    with theirs(flat.requires_grad_(), "features.6") as method:
        asked = [ContrastTarget(contrast, int(t)) for t in targets]
        (drawn,) = method(scores=flat(images), targets=asked, normalized=False)
    assert ours.flatten(1).any(1).sum() >= 2
    torch.testing.assert_close(drawn, ours, rtol=1e-5, atol=1e-6 * float(ours.max()))


@pytest.mark.parametrize("contrast", ALL.values(), ids=ALL)
def test_captum_draws_our_map(flat, images, targets, contrast):
    flat.requires_grad_()
    forward, layer, more = Contrasted(flat, contrast), flat.features[4], {"additional_forward_args": (targets,)}
    drawn = {
        "gradcam": LayerGradCam(forward, layer).attribute(images, relu_attributions=False, **more),
        "linear_approximation": LayerGradientXActivation(forward, layer).attribute(images, **more),
        "gradient": Saliency(forward).attribute(images.clone(), abs=False, **more),
    }
    for explainer, theirs in drawn.items():
        ours = explain(flat, images, targets, explainer, contrast, "features.4", upsample=False)
        torch.testing.assert_close(theirs.sum(1).detach(), ours)


def test_captums_integrated_gradients_follow_the_contrast_along_the_path(flat, images, targets):
    """Captum repeats images and targets together, so each point of the path has its own target."""
    method = IntegratedGradients(Contrasted(flat.requires_grad_(), "weighted"))
    theirs = method.attribute(images, additional_forward_args=(targets,), n_steps=5, method="riemann_left")
    expected = torch.zeros_like(images)
    for step in range(5):
        recorded = taps.record(flat, images * step / 5)
        expected += recorded.pull_back(cotangent("weighted", recorded.logits, targets)) / 5
    torch.testing.assert_close(theirs, expected * images)


# --- zennit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contrast", ALL.values(), ids=ALL)
def test_zennits_gradient_is_our_gradient(flat, images, targets, contrast):
    logits, slope = Gradient(flat)(images.clone(), attr_output(contrast, targets))
    torch.testing.assert_close(logits.detach(), flat(images))
    torch.testing.assert_close(slope.sum(1), explain(flat, images, targets, "gradient", contrast))


@pytest.mark.parametrize("contrast", ALL.values(), ids=ALL)
def test_zennits_relevance_of_a_contrast_is_the_contrast_of_the_classes_relevances(pooled, images, targets, contrast):
    with Gradient(pooled, EpsilonPlus()) as attributor:
        _, relevance = attributor(images.clone(), attr_output(contrast, targets))
        classes = [attributor(images.clone(), torch.eye(6, dtype=torch.float64)[[k] * 4])[1] for k in range(6)]
    coefficients = cotangent(contrast, pooled(images), targets)
    expected = torch.einsum("bk,kb...->b...", coefficients, torch.stack(classes))
    assert relevance.any()
    torch.testing.assert_close(relevance, expected)


# --- Quantus ------------------------------------------------------------------------------------------------------


def flipped(network, images, targets, contrast=None, maps=None, **options):
    """Quantus' pixel flipping: the predictions after each step, of each image."""
    metric = quantus.PixelFlipping(features_in_step=64, disable_warnings=True, perturb_baseline="mean", **options)
    maps = {"a_batch": maps} if contrast is None else {"explain_func_kwargs": {"contrast": contrast}}
    arrays = images.float().numpy(), targets.numpy()
    scores = metric(network.float(), *arrays, explain_func=explain_func, channel_first=True, device="cpu", **maps)
    return torch.tensor(scores)


def test_quantus_judges_our_maps(flat, images, targets):
    maps = explain(flat.float(), images.float(), targets, contrast="max")
    signed = {"abs": False, "normalise": False}
    expected = flipped(flat, images, targets, maps=maps[:, None].numpy(), **signed)
    assert torch.equal(flipped(flat, images, targets, "max", **signed), expected)
    assert explain_func(flat, images.float().numpy(), targets.numpy(), contrast="max").shape == (4, 1, 16, 16)


def test_quantus_absolute_values_cannot_tell_a_contrast_from_its_opposite(flat, images, targets):
    def opposite(logits, targets):
        return -cotangent("max", logits, targets)

    for options, alike in (({"abs": False, "normalise": False}, False), ({"abs": True, "normalise": False}, True)):
        one, other = (flipped(flat, images, targets, contrast, **options) for contrast in ("max", opposite))
        assert torch.equal(one, other) is alike


def test_quantus_usual_normalisation_makes_a_map_depend_on_the_images_beside_it(flat, images, targets):
    maps = explain(flat, images, targets)[:, None].numpy()
    together = quantus.normalise_func.normalise_by_max(maps)
    alone = [quantus.normalise_func.normalise_by_max(one[None])[0] for one in maps]
    assert [bool((a == b).all()) for a, b in zip(together, alone)].count(True) == 1


def test_the_example_runs_without_network_and_writes_its_picture(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["why.py"])
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / "why_not_the_other.py"))
    with Image.open("why_not_the_other.png") as picture:
        assert picture.width > 500
