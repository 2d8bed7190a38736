"""The contrast of normalised maps, against a literal loop over classes, and what normalising is for."""

import math

import pytest
import torch
from test_explainers import OF_ANY_NETWORK

from cxlib import taps
from cxlib.contrasts import cotangent
from cxlib.explainers import explain, normalised

LAYER = "features.4"


def literal(network, image, target, explainer, rivals):
    """phi_t / |phi_t| - sum_s alpha_s phi_s / |phi_s|, a class at a time, with Python's own exp and sqrt."""
    y = network(image[None])[0].tolist()
    others = sorted((s for s in range(len(y)) if s != target), key=lambda s: -y[s])[:rivals]
    total = sum(math.exp(y[s]) for s in others)
    result = 0
    for s, alpha in [(target, -1.0), *((s, math.exp(y[s]) / total) for s in others)]:
        phi = explain(network, image[None], torch.tensor([s]), explainer, "original", LAYER, upsample=False)[0]
        result = result - alpha * phi / math.sqrt(sum(v * v for v in phi.flatten().tolist()))
    return result


@pytest.mark.parametrize("rivals", [1, 2, 3, 10])
@pytest.mark.parametrize("explainer", OF_ANY_NETWORK)
def test_it_is_the_literal_loop_over_the_most_probable_rivals(network, images, explainer, rivals, monkeypatch):
    monkeypatch.setattr(normalised.weighing, "__defaults__", (rivals,))
    targets = torch.tensor([[2, 0], [0, 5], [5, 5], [3, 1]])
    ours = explain(network, images, targets, explainer, "normalised", LAYER, upsample=False)
    for i, image in enumerate(images):
        for t, target in enumerate(targets[i].tolist()):
            expected = literal(network, image, target, explainer, rivals)
            torch.testing.assert_close(ours[i, t], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("explainer", OF_ANY_NETWORK)
def test_it_stands_in_a_list_of_contrasts_and_leaves_the_others_as_they_are(network, images, targets, explainer):
    listed = explain(network, images, targets, explainer, ["max", "normalised", "weighted"], LAYER)
    for maps, contrast in zip(listed, ("max", "normalised", "weighted")):
        torch.testing.assert_close(maps, explain(network, images, targets, explainer, contrast, LAYER))
    assert (listed[1] - listed[2]).abs().max() > 0.01


@pytest.mark.parametrize("explainer", ["gradcam", "linear_approximation", "xgradcam", "gradient"])
def test_a_class_whose_logit_row_is_scaled_speaks_no_louder(network, images, targets, explainer):
    """Each row of the head by its own factor, one image, its logits restored by the bias: alpha is as before."""
    one, target = images[:1], targets[:1]
    before = explain(network, one, target, explainer, ["normalised", "weighted"], LAYER)
    y = network(one)[0]
    network.head.weight *= torch.tensor([0.5, 3.0, 20.0, 0.1, 1.0, 7.0], dtype=torch.float64)[:, None]
    network.head.bias += y - network(one)[0]
    torch.testing.assert_close(network(one)[0], y)
    after = explain(network, one, target, explainer, ["normalised", "weighted"], LAYER)
    torch.testing.assert_close(after[0], before[0], rtol=1e-6, atol=1e-9)
    assert (after[1] - before[1]).abs().max() > 0.1 * before[1].abs().max()


def test_coefficients_over_all_classes_are_the_weighted_contrasts(targets):
    logits = 3 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weigh = normalised.weighing(logits, targets[:, None], rivals=5)
    everything = torch.zeros(4, 6, dtype=torch.float64)
    everything.scatter_(-1, weigh.classes, weigh.coefficients[:, 0])
    torch.testing.assert_close(everything, cotangent("weighted", logits, targets))


@pytest.mark.parametrize("rivals", [1, 3, 4, 5, 9])
def test_no_more_classes_are_pulled_back_than_a_batch_needs(rivals):
    logits = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    leading = logits.topk(2).indices
    assert normalised.weighing(logits, leading, rivals).classes.shape == (5, rivals + 1)
    last = logits.topk(12).indices[:, -1:]
    weigh = normalised.weighing(logits, last, rivals)
    assert weigh.classes.shape == (5, rivals + 1)
    assert all(row.unique().numel() == rivals + 1 for row in weigh.classes)
    torch.testing.assert_close(weigh.coefficients.sum(-1), torch.zeros(5, 1), rtol=0, atol=1e-6)


def test_the_norm_of_a_map_is_one_however_small_it_is_and_zero_stays_zero():
    noise = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    maps = noise * torch.tensor([1e-30, 1.0, 1e30])[:, None, None]
    torch.testing.assert_close(normalised.unit(maps), noise / noise.flatten(1).norm(dim=1)[:, None, None])
    assert torch.equal(normalised.unit(torch.zeros(2, 3, 3)), torch.zeros(2, 3, 3))


def test_a_class_without_a_map_counts_as_zero(flat, images, targets):
    flat.head.weight[4] = 0
    maps = explain(flat, images, targets, contrast="normalised", layer=LAYER)
    assert maps.isfinite().all()
    own = explain(flat, images, torch.full((4,), 4), contrast="normalised", layer=LAYER)
    assert own.isfinite().all()
    assert own.abs().max() > 0, "its rivals still have maps"


def test_it_is_a_contrast_of_maps_and_says_so_where_a_cotangent_is_asked_for(network, images, targets):
    with pytest.raises(ValueError, match=r"'normalised' contrasts maps.*explain\(\)") as error:
        cotangent("normalised", taps.logits(network, images), targets)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"unknown contrast 'normalized': choose from .*weighted.*normalised"):
        explain(network, images, targets, contrast="normalized")


def test_one_logit_has_no_rivals_to_be_weighed_against(pooled, images):
    pooled.head = torch.nn.Linear(10, 1).double()
    with pytest.raises(ValueError, match="a head of one logit has one"):
        explain(pooled, images, torch.tensor([1, 0, 1, 0]), contrast="normalised")
