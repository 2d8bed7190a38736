"""A contrast is a cotangent on the logits: the gradient of what it says it contrasts."""

import math

import pytest
import torch

from cxlib.contrasts import CONTRASTS, cotangent, finer, groups, resolve, spanning

# Each contrast as the scalar whose gradient it is, for logits y (K,) and target t, in autograd's words.
OBJECTIVES = {
    "original": lambda y, t: y[t],
    "mean": lambda y, t: y[t] - others(y, t).mean(),
    "max": lambda y, t: y[t] - others(y, t).max(),
    "weighted": lambda y, t: y[t] - others(y, t).logsumexp(0),
    "probability": lambda y, t: y.softmax(0)[t],
    "log_probability": lambda y, t: y.log_softmax(0)[t],
    "finer": lambda y, t: y[t] - 0.6 * nearest(y, t, 3).logsumexp(0),
}


def others(y, t):
    return torch.cat([y[:t], y[t + 1 :]])


def nearest(y, t, n):
    return torch.stack(sorted(others(y, t), key=lambda y_s: abs((y_s - y[t]).item()))[:n])


def draw(n_classes, dtype=torch.float64, n_images=7):
    generator = torch.Generator().manual_seed(n_classes)
    logits = 3 * torch.randn(n_images, n_classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(n_classes, (n_images,), generator=generator)


def gradients(objective, logits, targets):
    leaf = logits.clone().requires_grad_()
    sum(objective(y, int(t)) for y, t in zip(leaf, targets)).backward()
    return leaf.grad


def assert_close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("n_classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("contrast", OBJECTIVES)
def test_a_contrast_is_the_gradient_of_its_objective(contrast, n_classes):
    logits, targets = draw(n_classes)
    assert_close(cotangent(contrast, logits, targets), gradients(OBJECTIVES[contrast], logits, targets))


def test_every_contrast_has_an_objective():
    assert set(OBJECTIVES) == set(CONTRASTS)


@pytest.mark.parametrize("n_classes", [2, 10, 1000])
def test_gradient_of_log_p_t_is_one_minus_p_t_times_weighted(n_classes):
    logits, targets = draw(n_classes)
    p = logits.softmax(-1)
    p_t = p.gather(-1, targets[:, None])
    of_log = gradients(OBJECTIVES["log_probability"], logits, targets)
    assert_close(of_log, cotangent("original", logits, targets) - p)
    assert_close(of_log, (1 - p_t) * cotangent("weighted", logits, targets))


@pytest.mark.parametrize("n_classes", [2, 10, 1000])
def test_probability_is_p_t_times_one_minus_p_t_times_weighted(n_classes):
    logits, targets = draw(n_classes)
    p_t = logits.softmax(-1).gather(-1, targets[:, None])
    weighted = cotangent("weighted", logits, targets)
    assert_close(cotangent("probability", logits, targets), p_t * (1 - p_t) * weighted)


def test_weighted_follows_equations_1_and_2_literally():
    logits, targets = draw(5)
    for y, t, actual in zip(logits.tolist(), targets.tolist(), cotangent("weighted", logits, targets)):
        total = sum(math.exp(y_s) for s, y_s in enumerate(y) if s != t)
        expected = [1 if s == t else -math.exp(y_s) / total for s, y_s in enumerate(y)]
        assert_close(actual, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1, 3, 10, 30])
def test_probability_has_the_arithmetic_of_the_softmax_gradient_in_float32(scale):
    logits, targets = draw(50, torch.float32, n_images=200)
    logits = scale * logits
    expected = gradients(OBJECTIVES["probability"], logits, targets)
    torch.testing.assert_close(cotangent("probability", logits, targets), expected, rtol=1.2e-7, atol=0)


def saturated(t_logit):
    """Float32 logits of ten classes whose first one is far above, or below, the others."""
    logits = torch.linspace(-1, 1, 10)[None].clone()
    logits[0, 0] = t_logit
    return logits, torch.tensor([0])


def cosine(first, second):
    first, second = (vector.double().flatten() / vector.double().norm() for vector in (first, second))
    return (first @ second).item()


def test_probability_loses_the_targets_own_coefficient_where_p_t_rounds_to_one():
    logits, targets = saturated(25.0)
    assert logits.softmax(-1)[0, 0] == 1
    literal, weighted = (cotangent(name, logits, targets) for name in ("probability", "weighted"))
    assert literal[0, 0] == 0
    assert (literal[0, 1:] < 0).all()
    assert cosine(literal, weighted) < 0.5
    assert cosine(cotangent("probability", logits.double(), targets), weighted) == pytest.approx(1, abs=1e-6)


def test_probability_vanishes_where_p_t_rounds_to_zero():
    logits, targets = saturated(-120.0)
    assert logits.softmax(-1)[0, 0] == 0
    assert not cotangent("probability", logits, targets).any()
    assert not gradients(OBJECTIVES["probability"], logits, targets).any()
    assert cotangent("probability", logits.double(), targets).any()


@pytest.mark.parametrize("t_logit", [-1e4, -120.0, 0.0, 25.0, 1e4])
def test_weighted_keeps_its_direction_however_saturated_p_t_is(t_logit):
    logits, targets = saturated(t_logit)
    weighted = cotangent("weighted", logits, targets)
    assert weighted.isfinite().all()
    assert weighted[0, 0] == 1
    assert weighted.sum().item() == pytest.approx(0, abs=1e-6)
    assert_close(weighted.double(), gradients(OBJECTIVES["weighted"], logits.double(), targets), 1e-6)


@pytest.mark.parametrize("t_logit", [-1e4, -120.0, 0.0, 25.0, 80.0])
def test_log_probability_keeps_its_direction_where_p_t_rounds_to_zero_or_one(t_logit):
    logits, targets = saturated(t_logit)
    ours, weighted = (cotangent(name, logits, targets) for name in ("log_probability", "weighted"))
    expected = gradients(OBJECTIVES["weighted"], logits.double(), targets) * (1 - logits.double().softmax(-1)[0, 0])
    if t_logit < 25:
        assert_close(ours.double(), expected, 1e-6)
    assert (ours != 0).all()
    assert cosine(ours, weighted) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("n_classes", [2, 10, 1000])
def test_mean_gives_every_other_class_one_over_k_minus_one(n_classes):
    logits, targets = draw(n_classes)
    coefficients = cotangent("mean", logits, targets)
    assert_close(coefficients.sum(-1), torch.zeros(len(logits), dtype=torch.float64))
    for row, t in zip(coefficients, targets):
        assert row[t] == 1
        assert_close(others(row, int(t)), torch.full((n_classes - 1,), -1 / (n_classes - 1), dtype=torch.float64))


@pytest.mark.parametrize(
    ("logits", "t", "rivals"),
    [([5.0, 2.0, 2.0], 0, {1, 2}), ([5.0, 5.0, 2.0], 0, {1}), ([5.0, 5.0, 5.0], 1, {0, 2}), ([1.0, 7.0, 7.0], 2, {1})],
)
def test_max_contrasts_with_exactly_one_strongest_rival_even_when_tied(logits, t, rivals):
    row = cotangent("max", torch.tensor([logits]), torch.tensor([t]))[0]
    assert row[t] == 1
    assert sorted(row.tolist()) == [-1, 0, 1]
    assert int(row.argmin()) in rivals


@pytest.mark.parametrize("n_classes", [2, 10, 1000])
@pytest.mark.parametrize("contrast", [name for name in CONTRASTS if name not in ("original", "finer")])
def test_coefficients_of_every_contrast_but_original_and_finer_sum_to_zero(contrast, n_classes):
    logits, targets = draw(n_classes)
    assert_close(cotangent(contrast, logits, targets).sum(-1), torch.zeros(len(logits), dtype=torch.float64))


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_many_targets_give_what_each_gives_alone(contrast):
    logits, _ = draw(6)
    targets = torch.randint(6, (7, 4), generator=torch.Generator().manual_seed(0))
    together = cotangent(contrast, logits, targets)
    assert together.shape == (7, 4, 6)
    assert torch.equal(together, torch.stack([cotangent(contrast, logits, t) for t in targets.T], 1))


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_renaming_the_classes_renames_the_coefficients(contrast):
    logits, targets = draw(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    renamed = cotangent(contrast, logits[:, order], order.argsort()[targets])
    assert_close(renamed, cotangent(contrast, logits, targets)[:, order])


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_only_differences_of_logits_matter(contrast):
    logits, targets = draw(9)
    assert_close(cotangent(contrast, logits + 100, targets), cotangent(contrast, logits, targets))


@pytest.mark.parametrize("size", [1e4, 1e30])
@pytest.mark.parametrize("contrast", CONTRASTS)
def test_huge_logits_do_not_overflow(contrast, size):
    logits, targets = draw(10, torch.float32)
    coefficients = cotangent(contrast, size * logits, targets)
    assert coefficients.isfinite().all()
    assert coefficients.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
@pytest.mark.parametrize("contrast", CONTRASTS)
def test_targets_of_any_integer_type_mean_the_same(contrast, dtype):
    logits, targets = draw(9)
    assert torch.equal(cotangent(contrast, logits, targets.to(dtype)), cotangent(contrast, logits, targets))


def test_a_function_is_a_contrast():
    def second_class(logits, targets):
        return torch.zeros_like(logits).index_fill(-1, torch.tensor([1]), 1)

    assert resolve(second_class) is second_class
    logits, targets = draw(4)
    expected = torch.tensor([0.0, 1, 0, 0], dtype=torch.float64).expand(7, 2, 4)
    assert torch.equal(cotangent(second_class, logits, targets[:, None].expand(-1, 2)), expected)


def test_an_unknown_contrast_is_answered_with_the_list():
    with pytest.raises(ValueError, match="unknown contrast 'wieghted'") as error:
        cotangent("wieghted", torch.zeros(1, 3), torch.tensor([0]))
    assert all(name in str(error.value) for name in CONTRASTS)


@pytest.mark.parametrize("shape", [(3,), (2, 0), (1, 2, 3)])
def test_logits_must_be_images_by_classes(shape):
    with pytest.raises(ValueError, match=r"needs logits \(B, K\)"):
        cotangent("weighted", torch.zeros(shape), torch.zeros(shape[0], dtype=torch.long))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 3]), r"in \[0, 3\), got 0 to 3"),
        (torch.tensor([-1, 0]), r"in \[0, 3\), got -1 to 0"),
        (torch.tensor([0.0, 1.0]), "class indices, got torch.float32"),
        (torch.tensor([True, False]), "class indices, got torch.bool"),
        (torch.tensor(1), r"must be \(2,\) or \(2, T\), got shape \(\)"),
        (torch.tensor([0, 1, 2]), r"got shape \(3,\)"),
        (torch.zeros(2, 1, 1, dtype=torch.long), r"got shape \(2, 1, 1\)"),
    ],
)
@pytest.mark.parametrize("contrast", CONTRASTS)
def test_wrong_targets_are_told_what_is_wrong(contrast, targets, message):
    with pytest.raises(ValueError, match=message):
        cotangent(contrast, torch.zeros(2, 3), targets)


# --- Finer-CAM --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3, 10])
@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("n_compared", [1, 2, 3, 50])
def test_finer_is_the_gradient_of_y_t_minus_gamma_times_a_soft_maximum_of_its_neighbours(
    n_classes, strength, n_compared
):
    logits, targets = draw(n_classes)
    expected = gradients(lambda y, t: y[t] - strength * nearest(y, t, n_compared).logsumexp(0), logits, targets)
    assert_close(cotangent(finer(strength, n_compared), logits, targets), expected)


def test_finer_with_full_strength_over_all_classes_is_weighted_and_without_strength_original():
    logits, targets = draw(10)
    assert_close(cotangent(finer(1.0, 9), logits, targets), cotangent("weighted", logits, targets))
    assert_close(cotangent(finer(1.0, range(10)), logits, targets), cotangent("weighted", logits, targets))
    assert_close(cotangent(finer(0.0), logits, targets), cotangent("original", logits, targets))


def test_finer_against_one_class_is_the_difference_of_two_logits():
    logits, targets = draw(10)
    targets[targets == 4] = 5
    expected = cotangent("original", logits, targets) - cotangent("original", logits, torch.full((7,), 4))
    assert_close(cotangent(finer(1.0, [4]), logits, targets), expected)


def test_finers_weighted_difference_is_grad_cams_where_weights_are_held_constant():
    """Theirs, term by term: sum_d p_d (y_t - gamma y_d) / sum_d p_d; the p are made constants here."""
    from pytorch_grad_cam.utils.model_targets import FinerWeightedTarget

    class Constant(FinerWeightedTarget):
        def __call__(self, y):
            p = y.detach().softmax(-1)[self.comparison_categories]
            differences = y[self.main_category] - self.alpha * y[self.comparison_categories]
            return (p * differences).sum() / p.sum()

    logits, targets = draw(10)
    for y, t, ours in zip(logits, targets, cotangent(finer(0.6, [1, 4, 7]), logits, targets)):
        compared = [s for s in (1, 4, 7) if s != t]
        leaf = y.clone().requires_grad_()
        theirs, constant = (kind(int(t), compared, 0.6) for kind in (FinerWeightedTarget, Constant))
        assert theirs(y).item() == pytest.approx(constant(y).item(), abs=1e-6)
        assert_close(ours, torch.autograd.grad(constant(leaf), leaf)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": -0.1}, "strength must be finite and >= 0, got -0.1"),
        ({"strength": float("nan")}, "strength must be finite"),
        ({"classes": 0}, "compare with one class or more"),
        ({"classes": []}, "compare with one class or more"),
        ({"classes": [2]}, r"classes \[2\] leave nothing to compare a target with"),
        ({"classes": [4]}, r"classes must lie in \[0, 4\), got \[4\]"),
        ({"classes": [-1]}, r"classes must lie in \[0, 4\)"),
    ],
)
def test_finer_tells_what_is_wrong_with_its_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        cotangent(finer(**settings), torch.zeros(2, 4), torch.tensor([0, 2]))


# --- groups of classes ------------------------------------------------------------------------------------------


def test_groups_are_the_gradient_of_the_log_odds_of_their_probabilities():
    dogs, cats, logits = [0, 3, 4], [2, 7], draw(9)[0]
    targets = torch.tensor([0, 3, 4, 2, 7, 0, 2])

    def log_odds(y, t):
        p = y.softmax(0)
        odds = p[dogs].sum() / p[cats].sum()
        return odds.log() if t in dogs else -odds.log()

    assert_close(cotangent(groups(dogs, cats), logits, targets), gradients(log_odds, logits, targets))


def test_every_member_of_a_group_asks_the_same_and_the_other_group_the_opposite():
    logits, _ = draw(9)
    rows = cotangent(groups([0, 3], [2, 7, 8]), logits, torch.tensor([0, 3, 2, 7, 8]).expand(7, 5))
    assert_close(rows[:, 0], rows[:, 1])
    for other in (2, 3, 4):
        assert_close(rows[:, other], -rows[:, 0])


def test_groups_of_one_class_each_are_weighted():
    logits, targets = draw(10)
    assert_close(cotangent(groups(*[[s] for s in range(10)]), logits, targets), cotangent("weighted", logits, targets))


def test_groups_keep_their_direction_however_saturated_they_are():
    logits, targets = saturated(1e4)
    row = cotangent(groups([0, 1], [2, 3]), logits, targets)[0]
    assert row[:2].sum().item() == pytest.approx(1)
    assert row[2:].sum().item() == pytest.approx(-1)


@pytest.mark.parametrize("of_classes", [(), ([0, 1],), ([0], []), ([0, 1], [1, 2]), ([0, 0], [1])])
def test_groups_must_be_two_and_disjoint(of_classes):
    with pytest.raises(ValueError, match="groups must be two or more"):
        groups(*of_classes)


def test_a_target_outside_every_group_is_named():
    with pytest.raises(ValueError, match=r"every target must lie in a group, got \[5\]"):
        cotangent(groups([0], [1]), torch.zeros(2, 6), torch.tensor([0, 5]))


# --- one's own cotangent ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (3, 4), (3, 2, 4)])
def test_a_tensor_is_the_cotangent_itself_for_every_target(shape):
    own = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    logits, targets = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.long)
    given = cotangent(own, logits, targets)
    assert given.dtype == torch.float64
    expected = own[:, None] if own.ndim == 2 else own
    assert torch.equal(given, expected.expand(3, 2, 4).double())
    if own.ndim < 3:
        assert torch.equal(cotangent(own, logits, targets[:, 0]), own.expand(3, 4).double())


@pytest.mark.parametrize("shape", [(), (3,), (2, 4), (3, 3), (3, 3, 4), (1, 4)])
def test_a_tensor_of_another_shape_is_told_the_shapes_that_fit(shape):
    with pytest.raises(ValueError, match=r"is \(4,\) or \(3, 4\) or \(3, 2, 4\), got"):
        cotangent(torch.zeros(shape), torch.zeros(3, 4), torch.zeros(3, 2, dtype=torch.long))


# --- heads without a softmax ------------------------------------------------------------------------------------

# What each contrast is the gradient of when p_1 = sigmoid(y), p_0 = 1 - p_1: the log-odds of t, p_t or log p_t.
ONE_LOGIT = dict.fromkeys(CONTRASTS, lambda p_t: (p_t / (1 - p_t)).log()) | {
    "probability": lambda p_t: p_t,
    "log_probability": torch.log,
}


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_a_contrast_of_one_logit_is_the_gradient_of_the_targets_log_odds_or_probability(contrast):
    y = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None].requires_grad_()
    targets = torch.tensor([[0, 1]]).expand(9, 2)
    p_t = torch.cat([1 - torch.sigmoid(y), torch.sigmoid(y)], 1)
    rows = [torch.autograd.grad(ONE_LOGIT[contrast](p_t[:, t]).sum(), y, retain_graph=True)[0] for t in (0, 1)]
    ours = cotangent(contrast, y.detach(), targets)
    assert ours.shape == (9, 2, 1)
    assert_close(ours, torch.stack(rows, 1), 1e-11)


@pytest.mark.parametrize("contrast", [name for name in CONTRASTS if name not in ("original", "finer")])
def test_one_logit_gives_what_two_logits_of_the_same_network_give(contrast):
    y = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None]
    pair, targets = torch.cat([torch.zeros_like(y), y], 1), torch.arange(9) % 2
    assert_close(cotangent(contrast, y, targets), cotangent(contrast, pair, targets)[:, 1:])


def test_functions_and_tensors_serve_one_logit_too():
    y, targets = torch.tensor([[2.0], [-3.0]]), torch.tensor([1, 0])
    assert cotangent(groups([0], [1]), y, targets).tolist() == [[1], [-1]]
    assert cotangent(torch.tensor([7.0]), y, targets).tolist() == [[7], [7]]


def test_one_logit_stands_for_two_classes():
    with pytest.raises(ValueError, match=r"in \[0, 2\), got 2 to 2"):
        cotangent("weighted", torch.zeros(1, 1), torch.tensor([2]))


def test_with_many_labels_original_asks_for_presence_and_probability_asks_of_no_label():
    """A sigmoid for each label: p_t does not depend on the other logits, a softmax's does."""
    logits, targets = draw(6)
    log_odds = gradients(lambda y, t: torch.logit(torch.sigmoid(y[t])), logits, targets)
    assert_close(cotangent("original", logits, targets), log_odds, 1e-9)
    of_sigmoid = gradients(lambda y, t: torch.sigmoid(y[t]), logits, targets)
    assert (cotangent("probability", logits, targets) - of_sigmoid).abs().max() > 0.1
    rather_than_5 = gradients(lambda y, t: torch.logit(torch.sigmoid(y[t])) - y[5], logits, targets % 5)
    assert_close(cotangent(finer(1.0, [5]), logits, targets % 5), rather_than_5, 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_targets", [1, 2, 5])
@pytest.mark.parametrize("scale", [1, 10])
def test_the_reviews_contrasts_span_the_targets_the_rival_the_softmax_and_the_ones(n_targets, scale, dtype):
    logits = scale * draw(40, dtype)[0]
    targets = logits.topk(n_targets).indices
    names = ["original", "mean", "max", "weighted", "probability"]
    cotangents = torch.cat([cotangent(name, logits, targets) for name in names], 1)
    basis, weights = spanning(cotangents)
    assert basis.shape[1] <= max(n_targets, 2) + 2  # of several leading classes the rival is one, too
    combined = weights @ basis.double()
    sizes = cotangents.abs().amax(-1, keepdim=True).double()
    assert ((combined - cotangents).abs() / sizes).max() < 1e3 * torch.finfo(dtype).eps
    # No direction is blown up, or the maps' rounding errors would be.
    assert torch.linalg.matrix_norm(basis.double(), 2).max() < 1.001


def test_what_has_nothing_in_common_spans_itself_and_zeros_span_nothing():
    cotangents = torch.eye(5, dtype=torch.float64)[None, :3]
    assert spanning(cotangents)[0].shape == (1, 3, 5)
    basis, weights = spanning(torch.zeros(2, 3, 5, dtype=torch.float64))
    assert basis.shape == (2, 1, 5)
    assert not (weights @ basis).any()
