"""What maps say of each other: every measure beside a literal loop over single images."""

from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import N_CLASSES
from torch import nn

from cxlib import runtime
from cxlib.explainers import explain
from cxlib.review.relations import CONTRASTS, PAIRS, relate

EXPLAINERS = ("gradcam++", "gradcam", "linear_approximation", "xgradcam")
#: Of a contrast's linear maps; those of GradCAM++ are no combination of the classes' maps.
LINEAR = [name for name in EXPLAINERS if name != "gradcam++"]


def generators(seed, n):
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


def related(network, images, seed=0, explainers=EXPLAINERS):
    return relate(network, images, explainers, network.features, generators(seed, len(images)))


def of_strangers(maps):
    """The correlation of two of these other classes' maps, averaged over their pairs."""
    return np.mean([np.corrcoef(a, b)[0, 1] for a, b in combinations(maps, 2)])


def constant_logits(network, *logits):
    """The network, whose images no longer matter: maps are zero."""
    network.head.weight.zero_()
    network.head.bias.copy_(torch.tensor(logits, dtype=torch.float64))
    return network


@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
def test_every_measure_is_that_of_a_loop_over_single_images(network, images, precision):
    network, images = network.to(precision), images.to(precision)
    measured = related(network, images)
    tolerance = 1e-9 if precision == torch.float64 else 1e-3
    for i, image in enumerate(images):
        y = network(image[None])[0].double().numpy()
        order = np.argsort(-y)
        p = np.exp(y) / np.exp(y).sum()
        np.testing.assert_allclose(measured.p[i], p[order[:2]], rtol=tolerance)
        for e, name in enumerate(EXPLAINERS):
            maps = {}
            for contrast in CONTRASTS:
                of_classes = explain(
                    network, image[None], torch.from_numpy(order)[None], name, contrast, network.features, False, False
                )
                maps[contrast] = of_classes[0].flatten(1).double().numpy()  # (classes by rank, pixels)
            for c, contrast in enumerate(CONTRASTS):
                t1, t2 = maps[contrast][:2]
                assert measured.between[i, e, c] == pytest.approx(np.corrcoef(t1, t2)[0, 1], abs=tolerance)
                assert measured.negative[i, e, c] == pytest.approx(sum(v < 0 for v in t1) / len(t1))
            for pair, (a, b) in enumerate(PAIRS):
                expected = np.corrcoef(maps[a][0], maps[b][0])[0, 1]
                assert measured.alike[i, e, pair] == pytest.approx(expected, abs=tolerance)
            t1, t2 = maps["original"][:2]
            multiple = np.linalg.lstsq(t1[:, None], t2, rcond=None)[0]
            residual = ((t2 - t1 * multiple) ** 2).sum() / (t2**2).sum()
            assert measured.residual[i, e] == pytest.approx(residual, abs=tolerance)
            assert measured.strangers[i, e] == pytest.approx(of_strangers(maps["original"][2:]), abs=tolerance)
    for name, values in measured._asdict().items():
        assert values.dtype == torch.float64, name
        assert len(values) == len(images)


def test_the_maps_are_no_trivial_ones(flat, images):
    """Else the loop above would show nothing."""
    measured = related(flat, images)
    linear = [EXPLAINERS.index(name) for name in LINEAR]
    for values in (measured.between[:, linear, 0], measured.alike[:, linear, 0], measured.strangers):
        assert 0.05 < values.abs().mean() < 0.995
    assert 0.05 < measured.negative.mean() < 0.95
    assert measured.residual.mean() > 0.05


def test_max_maps_of_the_two_leading_classes_are_inverse(network, images):
    between = related(network, images).between[:, :, CONTRASTS.index("max")]
    for name in LINEAR:
        np.testing.assert_allclose(between[:, EXPLAINERS.index(name)], -1, atol=1e-12)
    assert (between[:, EXPLAINERS.index("gradcam++")] > -0.999).any()


def test_maps_from_p_t_and_of_weighted_are_one_where_the_explainer_is_linear(network, images):
    alike = related(network, images).alike[:, :, PAIRS.index(("probability", "weighted"))]
    for name in LINEAR:
        np.testing.assert_allclose(alike[:, EXPLAINERS.index(name)], 1, atol=1e-9)


def test_rivals_are_counted_by_how_evenly_they_share_alpha(network, images):
    measured = related(network, images, explainers=["gradcam"])
    for i, image in enumerate(images):
        y = sorted(network(image[None])[0].tolist(), reverse=True)
        odds = [np.exp(value - y[1]) for value in y[1:]]
        by_hand = 1 / sum((value / sum(odds)) ** 2 for value in odds)
        assert measured.rivals[i] == pytest.approx(by_hand)
        assert 1 <= by_hand <= N_CLASSES - 1
    assert measured.rivals.std() > 0.01


@pytest.mark.parametrize(
    ("logits", "rivals"),
    [
        ((5.0, 1.0, 1.0, 1.0, 1.0, 1.0), 5),
        ((1.0, 1.0, 1.0, 1.0, 1.0, 1.0), 5),
        ((-90.0, 5.0, -90.0, 4.0, -90.0, -90.0), 1),
        ((-90.0, 4.0, -90.0, 4.0, 9.0, -90.0), 2),
        ((500.0, 4.0, 4.0, 4.0, -90.0, -90.0), 3),  # p_t rounds to one
    ],
)
def test_rivals_lie_between_one_and_all_others(pooled, images, logits, rivals):
    measured = related(constant_logits(pooled, *logits), images, explainers=["gradcam"])
    np.testing.assert_allclose(measured.rivals, rivals, rtol=1e-9)


def test_a_constant_map_correlates_with_nothing(pooled, images):
    measured = related(constant_logits(pooled, 5, 4, 3, 2, 1, 0), images)
    for values in (measured.between, measured.strangers, measured.alike, measured.negative):
        assert (values == 0).all()
    assert (measured.residual == 1).all()  # no multiple of nothing explains it


@pytest.fixture
def wide(flat):
    """A network of eight classes: fifteen ways to draw four that an image does not show."""
    with runtime.seeded(1):
        flat.head = nn.Linear(flat.head.in_features, 8).double().requires_grad_(False)
    return flat


def test_a_seed_draws_the_same_strangers_and_another_one_others(wide, images):
    first, again, other = (related(wide, images, seed) for seed in (1, 1, 2))
    for a, b in zip(first, again):
        assert torch.equal(a, b)
    assert not torch.equal(first.strangers, other.strangers)
    for name in set(first._fields) - {"strangers"}:
        assert torch.equal(getattr(first, name), getattr(other, name))


def test_strangers_are_classes_that_the_image_does_not_show(wide, images):
    image, e = images[:1], EXPLAINERS.index("gradcam")
    drawn = {round(related(wide, image, seed).strangers[0, e].item(), 9) for seed in range(120)}
    order = wide(image).argsort(1, descending=True)
    maps = explain(wide, image, order, "gradcam", "original", wide.features, False, False)[0].flatten(1).numpy()
    possible = {round(float(of_strangers(four)), 9) for four in combinations(maps[2:], 4)}
    assert len(possible) == 15
    assert drawn == possible


@pytest.mark.parametrize(("n_classes", "known"), [(2, False), (3, False), (4, True)])
def test_fewer_than_four_classes_leave_no_strangers(pooled, images, n_classes, known):
    pooled.head = nn.Linear(10, n_classes).double().requires_grad_(False)
    measured = related(pooled, images)
    assert measured.strangers.shape == (4, 4)
    assert (measured.strangers.isfinite() == known).all()
    assert all(values.isfinite().all() for name, values in measured._asdict().items() if name != "strangers")


def test_one_class_is_related_to_none(pooled, images):
    pooled.head = nn.Linear(10, 1).double().requires_grad_(False)
    with pytest.raises(ValueError, match="the network knows one"):
        related(pooled, images)


def test_an_unknown_explainer_is_an_error(pooled, images):
    with pytest.raises(ValueError, match="explainer"):
        related(pooled, images, explainers=["gradcam", "oracle"])
