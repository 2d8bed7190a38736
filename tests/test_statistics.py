"""Means over images have honest intervals; Figure 6's norms, fit and correlation are what their names say."""

import numpy as np
import pytest
import torch
from scipy import stats

from cxlib import networks
from cxlib.review.gradient_norms import gradient_norms, ranks_to_explain
from cxlib.review.report.statistics import (
    bootstrap,
    bootstrap_mean,
    correlation,
    rank_correlation,
    second_degree_fit,
    sign_flip_test,
)

# --- bootstrap ---


@pytest.mark.parametrize("n_images", [50, 400])
def test_the_interval_of_a_normal_sample_is_the_textbooks(n_images):
    sample = np.random.default_rng(0).normal(3, 2, n_images)
    interval = bootstrap_mean(sample, np.random.default_rng(1), n_resamples=20_000)
    half = 1.96 * sample.std() / np.sqrt(n_images)
    assert interval.mean == pytest.approx(sample.mean(), abs=1e-12)
    assert interval.low == pytest.approx(sample.mean() - half, abs=0.06 * half)
    assert interval.high == pytest.approx(sample.mean() + half, abs=0.06 * half)


def test_the_interval_holds_the_true_mean_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    samples = rng.normal(1, 1, (100, 400))  # 400 experiments of 100 images
    held = [low <= 1 <= high for low, high in (bootstrap_mean(s, rng, 500)[1:] for s in samples.T)]
    assert 0.91 < np.mean(held) < 0.98


def test_an_interval_is_that_of_a_loop_over_resampled_images():
    values = np.random.default_rng(0).exponential(1, 60)
    rng = np.random.default_rng(1)
    means = [rng.choice(values, 60).mean() for _ in range(10_000)]
    _, low, high = bootstrap_mean(values, np.random.default_rng(2), n_resamples=10_000)
    width = high - low
    assert low == pytest.approx(np.percentile(means, 2.5), abs=0.05 * width)
    assert high == pytest.approx(np.percentile(means, 97.5), abs=0.05 * width)


def test_columns_share_their_resampled_images():
    first = np.random.default_rng(0).normal(0, 1, 40)
    values = np.stack([first, first + 0.25, -first], 1)
    _, low, high = bootstrap_mean(values, np.random.default_rng(1))
    assert low[1] - low[0] == pytest.approx(0.25, abs=1e-12)
    assert high[1] - high[0] == pytest.approx(0.25, abs=1e-12)
    assert (low[2], high[2]) == pytest.approx((-high[0], -low[0]), abs=1e-12)


def test_a_constant_margin_has_an_interval_without_width():
    first = np.random.default_rng(0).normal(0, 1, 40)
    interval = bootstrap_mean((first + 0.25) - first, np.random.default_rng(1))
    assert interval == pytest.approx((0.25, 0.25, 0.25), abs=1e-12)


def test_a_statistic_of_means_is_taken_of_every_resample():
    values = np.random.default_rng(0).exponential(1, (60, 2))
    ratio = bootstrap(values, lambda means: means[:, 0] / means[:, 1], np.random.default_rng(1))
    rng, loop = np.random.default_rng(2), []
    for _ in range(5000):
        first, second = values[rng.integers(0, 60, 60)].mean(0)
        loop.append(first / second)
    assert ratio.mean == pytest.approx(values[:, 0].mean() / values[:, 1].mean())
    width = ratio.high - ratio.low
    assert (ratio.low, ratio.high) == pytest.approx(np.percentile(loop, [2.5, 97.5]), abs=0.08 * width)


def test_correlation_is_pearsons_and_zero_where_nothing_varies():
    x, y = np.random.default_rng(0).normal(0, 1, (2, 3, 20))
    assert correlation(x, y) == pytest.approx([stats.pearsonr(a, b).statistic for a, b in zip(x, y)])
    assert correlation(np.ones(5), np.arange(5.0)) == 0


@pytest.mark.parametrize("n_resamples", [1, 99, 100, 250, 2000])
def test_the_same_seed_gives_the_same_interval_and_another_seed_another(n_resamples):
    values = np.random.default_rng(0).normal(0, 1, 30)
    one, again, other = (bootstrap_mean(values, np.random.default_rng(s), n_resamples) for s in (1, 1, 2))
    assert one == again
    assert one.mean == other.mean
    assert one.low != other.low


def test_shapes_are_those_of_one_image():
    values = np.random.default_rng(0).normal(0, 1, (30, 2, 3))
    interval = bootstrap_mean(values, np.random.default_rng(1))
    assert all(part.shape == (2, 3) for part in interval)
    flat = bootstrap_mean(values.reshape(30, 6), np.random.default_rng(1))
    for part, expected in zip(interval, flat):
        np.testing.assert_array_equal(part.ravel(), expected)
    np.testing.assert_allclose(interval.mean, values.mean(0), atol=1e-15)
    assert (interval.low < interval.mean).all()
    assert (interval.mean < interval.high).all()


def test_one_image_has_no_spread_and_none_has_no_mean():
    assert bootstrap_mean(np.array([0.7]), np.random.default_rng(0)) == pytest.approx((0.7, 0.7, 0.7))
    with pytest.raises(ValueError, match="no images"):
        bootstrap_mean(np.empty((0, 3)), np.random.default_rng(0))


# --- the paired test ---


def scipys(sample, n=np.inf):
    return stats.permutation_test(
        (sample,), np.mean, permutation_type="samples", n_resamples=n, rng=np.random.default_rng(3)
    ).pvalue


@pytest.mark.parametrize("n_images", [2, 7, 12])
def test_the_sign_flip_test_of_few_images_tries_all_signs_as_scipy_does(n_images):
    samples = np.random.default_rng(0).normal(0.3, 1, (n_images, 4))
    p = sign_flip_test(samples, np.random.default_rng(1))
    np.testing.assert_allclose(p, [scipys(sample) for sample in samples.T], rtol=1e-12)


def test_the_sign_flip_test_of_many_images_is_scipys_up_to_its_draws():
    samples = np.random.default_rng(0).normal(0.15, 1, (60, 3, 2))
    p = sign_flip_test(samples, np.random.default_rng(1))
    assert p.shape == (3, 2)
    expected = np.array([scipys(samples[:, i, j], 20_000) for i, j in np.ndindex(3, 2)]).reshape(3, 2)
    np.testing.assert_allclose(p, expected, atol=0.015)
    assert p.min() < 0.3 < p.max()


@pytest.mark.parametrize("n_images", [9, 40])
def test_differences_of_chance_are_significant_one_time_in_twenty(n_images):
    samples = np.random.default_rng(0).normal(0, 1, (n_images, 2000))
    p = sign_flip_test(samples, np.random.default_rng(1))
    assert 0.03 < np.mean(p <= 0.05) < 0.07


def test_a_clear_difference_has_the_smallest_p_value_and_none_has_one():
    clear = np.full((30, 1), 0.2) + np.random.default_rng(0).normal(0, 0.01, (30, 1))
    assert sign_flip_test(clear, np.random.default_rng(1)) == pytest.approx(1e-4)
    assert sign_flip_test(-clear, np.random.default_rng(1)) == pytest.approx(1e-4)
    assert sign_flip_test(clear[:8], np.random.default_rng(1)) == pytest.approx(2 / 2**8)
    assert sign_flip_test(np.zeros((30, 2)), np.random.default_rng(1)).tolist() == [1, 1]
    assert sign_flip_test(np.zeros((5, 2)), np.random.default_rng(1)).tolist() == [1, 1]


def test_no_images_have_no_p_value():
    with pytest.raises(ValueError, match="no images"):
        sign_flip_test(np.empty((0, 2)), np.random.default_rng(0))


# --- Figure 6 ---


def test_the_review_explains_145_of_1000_classes():
    ranks = ranks_to_explain(1000)
    assert len(ranks) == 145
    assert ranks[:50] == list(range(50))
    assert ranks[-50:] == list(range(950, 1000))
    assert ranks[50:-50] == list(range(50, 950, 20))


@pytest.mark.parametrize("n_classes", [2, 99, 100, 101, 119, 120, 121, 200, 1000])
def test_ranks_are_ascending_distinct_and_exist_and_cover_both_ends(n_classes):
    ranks = ranks_to_explain(n_classes)
    assert ranks == sorted(set(ranks))
    ends = {*range(min(50, n_classes)), *range(max(0, n_classes - 50), n_classes)}
    assert ends <= set(ranks) <= set(range(n_classes))


def test_norms_are_those_of_the_gradient_at_the_normalised_input_one_class_at_a_time(network, images):
    wrapped = networks.freeze(networks.Network("tiny", network, {})).double()
    ranks = [0, 2, 3, 5]
    logits, norms = gradient_norms(wrapped, images, ranks)
    for i, image in enumerate(images):
        leaf = ((image[None] - wrapped.mean) / wrapped.std).requires_grad_()
        y = network(leaf)[0]
        order = sorted(range(6), key=lambda k: -y[k].item())
        for r, rank in enumerate(ranks):
            (gradient,) = torch.autograd.grad(y[order[rank]], leaf, retain_graph=True)
            assert logits[i, r].item() == pytest.approx(y[order[rank]].item(), abs=1e-12)
            assert norms[i, r].item() == pytest.approx(gradient.square().sum().sqrt().item(), rel=1e-9)


def test_a_network_that_tells_no_std_has_the_norm_at_its_own_input(network, images):
    _, plain = gradient_norms(network, images, range(6))
    identity = networks.Network("tiny", network, {}, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).double()
    torch.testing.assert_close(plain, gradient_norms(identity, images, range(6))[1])


def test_the_fit_of_a_parabola_is_the_parabola():
    x = np.linspace(-3, 5, 24).reshape(4, 6)
    coefficients, r2 = second_degree_fit(x, 0.5 * x**2 - 2 * x + 7)
    np.testing.assert_allclose(coefficients, [0.5, -2, 7], atol=1e-12)
    assert r2 == pytest.approx(1, abs=1e-12)


def test_the_fit_is_the_least_squares_one_over_all_points():
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (5, 40))
    y = 0.3 * x**2 + x + rng.normal(0, 2, x.shape)
    coefficients, r2 = second_degree_fit(x, y)
    design = np.stack([x.ravel() ** 2, x.ravel(), np.ones(x.size)], 1)
    expected = np.linalg.solve(design.T @ design, design.T @ y.ravel())  # the normal equations
    np.testing.assert_allclose(coefficients, expected, rtol=1e-9)
    residual = ((y.ravel() - design @ expected) ** 2).sum()
    assert r2 == pytest.approx(1 - residual / ((y - y.mean()) ** 2).sum(), abs=1e-9)


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (6, 30))
    y = x * np.linspace(-1, 1, 6)[:, None] + rng.normal(0, 0.5, x.shape)
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(x, y)]
    np.testing.assert_allclose(rank_correlation(x, y), expected, atol=1e-12)
    np.testing.assert_allclose(rank_correlation(x, np.exp(x)), np.ones(6), atol=1e-12)
    np.testing.assert_allclose(rank_correlation(x, -(x**3)), -np.ones(6), atol=1e-12)


def test_tied_values_share_a_rank():
    """Classes whose gradient vanishes have equal norms, zero."""
    x = np.arange(12.0)[None]
    y = np.array([[3.0, 0, 0, 2, 0, 1, 0, 0, 4, 0, 0, 5]])
    expected = stats.spearmanr(x[0], y[0]).statistic
    np.testing.assert_allclose(rank_correlation(x, y), [expected], atol=1e-12)
