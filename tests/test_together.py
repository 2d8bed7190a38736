"""Explainers that share their passes give the maps of `explain`, for fewer passes."""

from functools import partial

import pytest
import torch
from test_vit import SIDE, TARGETS, build, pictures

from cxlib.explainers import EXPLAINERS, OF_TOKENS, cam, explain
from cxlib.explainers.together import THROUGHOUT, explain_together

CONTRASTS = ["original", "mean", "max", "weighted", "probability", "normalised"]


def assert_those_of_explain(network, images, targets, explainers, layer, tolerance):
    explained = explain_together(network, images, targets, explainers, CONTRASTS, layer)
    assert torch.equal(explained.targets, targets)
    torch.testing.assert_close(explained.logits, network(images))
    for name, maps in zip(explainers, explained.maps, strict=True):
        alone = explain(network, images, targets, name, CONTRASTS, layer if name in cam.MAPS else None, upsample=False)
        alone = alone.transpose(0, 1)  # (B, C, T, h, w)
        assert maps.shape == alone.shape
        scales = alone.abs().amax((-2, -1), keepdim=True)
        assert (scales > 0).all()
        assert ((maps - alone).abs() / scales).max() < tolerance, name


def test_maps_are_those_of_explain(flat, images):
    of_networks = [name for name in EXPLAINERS if name not in OF_TOKENS]
    leading = flat(images).topk(2).indices
    assert_those_of_explain(flat, images, leading, of_networks, flat.features[4], 1e-9)


def test_maps_are_those_of_explain_in_float32_where_the_softmax_saturates(flat, images):
    flat.head.weight *= 40
    flat, images = flat.float(), images.float()
    leading = flat(images).topk(2).indices
    explainers = ["gradcam", "gradient", "input_x_gradient", "fullgrad", "lrp"]
    assert_those_of_explain(flat, images, leading, explainers, flat.features[4], 1e-4)


def test_transformers_maps_are_those_of_explain():
    transformer = build("class token")
    images = pictures(transformer)
    assert images.shape[-2:] == SIDE
    assert_those_of_explain(transformer, images, TARGETS[:, None], [*OF_TOKENS, "gradient"], None, 1e-9)


def test_the_most_probable_classes_are_found_on_the_way(flat, images):
    leading = flat(images).topk(3).indices
    for explainers in (["gradcam"], ["gradient"]):
        explained = explain_together(flat, images, 3, explainers, ["weighted"], flat.features[4])
        assert torch.equal(explained.targets, leading)
        layer = flat.features[4] if explainers == ["gradcam"] else None
        alone = explain(flat, images, leading, explainers[0], "weighted", layer, upsample=False)
        torch.testing.assert_close(explained.maps[0][:, 0], alone)


def test_a_constant_gradient_is_told(flat, pooled, images):
    ask = partial(explain_together, images=images, targets=2, explainers=["gradcam"], contrasts=["max"])
    assert not ask(flat, layer=flat.features[4]).constant_gradient
    assert ask(pooled, layer=pooled.features[6]).constant_gradient


def test_passes_are_shared(flat, images):
    """Of original, max and weighted of two classes six cotangents, which e_t1, e_t2 and the softmax span."""
    forward, backward = [], []
    flat.register_forward_hook(lambda *_: forward.append(1))
    flat.features[0].register_full_backward_hook(lambda *_: backward.append(1))
    contrasts = ["original", "max", "weighted"]
    explain_together(flat, images, 2, [*THROUGHOUT, *cam.MAPS], contrasts, flat.features[4])
    assert len(forward) == 2  # to the layer, which cuts the graph, and through the whole network
    assert len(backward) == 3


def test_an_unknown_explainer_targets_of_one_axis_and_maps_that_overflow_are_told(flat, images):
    with pytest.raises(ValueError, match="unknown explainer 'gradcan': choose from"):
        explain_together(flat, images, 2, ["gradcan"], ["weighted"])
    with pytest.raises(ValueError, match=r"targets must be \(B, T\) class indices, or how many, got \(3,\)"):
        explain_together(flat, images, torch.zeros(3, dtype=torch.long), ["gradient"], ["weighted"])
    flat.head.weight *= 1e200
    flat.features[4].weight *= 1e150
    flat.features[5].running_var *= 1e300
    with pytest.raises(ValueError, match="maps of gradient are not finite though the logits are"):
        explain_together(flat, 1e-200 * images, 2, ["gradient"], [torch.full((6,), 1e300, dtype=torch.float64)])
