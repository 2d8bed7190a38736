"""A contrast is a cotangent on the logits: the gradient of what it says it contrasts."""

import math

import pytest
import torch

from cxlib.contrasts import CONTRASTS, cotangent, resolve

# Each contrast as the scalar whose gradient it is, for logits y (K,) and target t, in autograd's words.
OBJECTIVES = {
    "original": lambda y, t: y[t],
    "mean": lambda y, t: y[t] - others(y, t).mean(),
    "max": lambda y, t: y[t] - others(y, t).max(),
    "weighted": lambda y, t: y[t] - others(y, t).logsumexp(0),
    "probability": lambda y, t: y.softmax(0)[t],
}


def others(y, t):
    return torch.cat([y[:t], y[t + 1 :]])


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


@pytest.mark.parametrize("n_classes", [2, 10, 1000])
def test_gradient_of_log_p_t_is_one_minus_p_t_times_weighted(n_classes):
    logits, targets = draw(n_classes)
    p = logits.softmax(-1)
    p_t = p.gather(-1, targets[:, None])
    of_log = gradients(lambda y, t: y.log_softmax(0)[t], logits, targets)
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
@pytest.mark.parametrize("contrast", [name for name in CONTRASTS if name != "original"])
def test_coefficients_of_every_contrast_but_original_sum_to_zero(contrast, n_classes):
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


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 2, 3)])
def test_logits_must_be_of_two_classes_or_more(shape):
    with pytest.raises(ValueError, match="K >= 2"):
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
