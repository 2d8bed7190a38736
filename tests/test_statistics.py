"""Means over images have honest intervals; Figure 6's norms, fit and correlation are what their names say."""

import numpy as np
import pytest
import torch
from scipy import stats

from cxlib import networks
from cxlib.review.gradient_norms import gradient_norms, ranks_to_explain
from cxlib.review.ledger.statistics import (
    bootstrap,
    bootstrap_mean,
    correlation,
    crossed,
    holm,
    inside,
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


# --- BCa ---


def itself(means):
    return means


def bca(values, statistic, rng, *more, **options):
    """Of a single network."""
    return crossed(values[None], statistic, rng, *more, **options)


def ratio(means):
    return means[:, 0] / means[:, 1]


def the_one(columns, seed=1, n_resamples=10_000, **options):
    return bca(columns, itself, np.random.default_rng(seed), n_resamples=n_resamples, **options)


def is_close(estimate, expected, tolerance):
    """Both bounds, to a share of the expected interval's width."""
    width = expected.high - expected.low
    np.testing.assert_allclose((estimate.low - expected.low) / width, 0, atol=tolerance)
    np.testing.assert_allclose((estimate.high - expected.high) / width, 0, atol=tolerance)


def scipys_bca(columns, statistic, **options):
    return stats.bootstrap(
        columns, statistic, method="BCa", n_resamples=40_000, batch=1000, rng=np.random.default_rng(2), **options
    ).confidence_interval


def test_the_bca_interval_of_a_skewed_mean_is_scipys_and_not_the_percentile_interval():
    sample = np.random.default_rng(0).lognormal(0, 1, 25)
    estimate = the_one(sample, n_resamples=40_000)
    is_close(estimate, scipys_bca((sample,), np.mean), 0.02)  # two Monte-Carlo errors of some 0.006
    assert estimate.mean == pytest.approx(sample.mean(), abs=1e-12)
    percentile = bootstrap_mean(sample, np.random.default_rng(1), 40_000)
    assert estimate.low - percentile.low > 0.04 * (percentile.high - percentile.low)
    assert estimate.high - percentile.high > 0.04 * (percentile.high - percentile.low)


def test_the_bca_interval_of_a_statistic_of_means_is_scipys():
    values = np.random.default_rng(3).exponential([1, 1.3], (25, 2))
    estimate = bca(values, ratio, np.random.default_rng(1), n_resamples=40_000)
    expected = scipys_bca(tuple(values.T), lambda x, y, axis: x.mean(axis) / y.mean(axis), paired=True)
    is_close(estimate, expected, 0.02)
    assert estimate.mean == pytest.approx(values[:, 0].mean() / values[:, 1].mean())


@pytest.mark.parametrize(("n_images", "under", "over"), [(10, 0.027, 0.093), (30, 0.030, 0.051)])
def test_skewed_images_mislead_bca_less_than_the_percentile_interval(n_images, under, over):
    """Bounds that leave out the true mean, zero, should be one in forty on each side.

    The percentile interval is too careful on the side of the long tail and errs on the other. BCa repairs the one
    side, and about a third to a half of the excess on the other; `over` is what few images leave of it.
    """
    samples = np.random.default_rng(0).exponential(1, (n_images, 4000)) - 1
    bounds = the_one(samples, n_resamples=2000), bootstrap_mean(samples, np.random.default_rng(1))
    (bca_low, plain_low), (bca_high, plain_high) = zip(*(((b.low > 0).mean(), (b.high < 0).mean()) for b in bounds))
    assert bca_low == pytest.approx(under, abs=0.007)  # the simulation's own error is 0.0025
    assert abs(bca_low - 0.025) < abs(plain_low - 0.025)
    assert bca_high == pytest.approx(over, abs=0.012)
    assert bca_high < plain_high - 0.015
    # The same data turned round: what is too often called positive are margins with a long tail below.
    turned = the_one(-samples, n_resamples=2000)
    assert (turned.low > 0).mean() == pytest.approx(bca_high, abs=0.005)


@pytest.mark.parametrize("values", ["smooth", "a few whole numbers"])
def test_the_p_value_is_below_one_in_twenty_where_the_interval_leaves_out_zero(values):
    rng = np.random.default_rng(0)
    samples = rng.exponential(1, (20, 1000)) - 1 if values == "smooth" else rng.integers(-1, 3, (20, 1000)) / 3 - 1 / 6
    samples += 0 if values == "smooth" else rng.choice([-1, 0, 1], 1000) / 6
    low, high, p = the_one(samples, n_resamples=400)[1:]  # few, so that many are a single one from the bound
    np.testing.assert_array_equal(p < 0.05, (low > 0) | (high < 0))
    assert 0.05 < (p < 0.05).mean() < 0.95


def test_the_p_value_is_the_level_at_which_scipys_interval_ends_at_zero():
    sample = np.random.default_rng(5).exponential(1, 25) - 0.6
    p = the_one(sample, n_resamples=40_000).p_value
    assert 0.01 < p < 0.3
    assert scipys_bca((sample,), np.mean, confidence_level=1 - float(p)).low == pytest.approx(0, abs=0.01)
    assert the_one(-sample, n_resamples=40_000).p_value == pytest.approx(float(p), rel=0.05)


def test_p_values_of_nothing_are_uniform():
    p = the_one(np.random.default_rng(0).normal(0, 1, (80, 3000)), n_resamples=2000).p_value
    for level in (0.05, 0.1, 0.25, 0.5, 0.75, 0.9):
        assert (p <= level).mean() == pytest.approx(level, abs=0.035)
    assert (p <= 0.05).mean() < 0.07


def test_p_values_are_never_zero_and_a_clear_mean_has_the_smallest():
    clear = 6 - np.random.default_rng(0).exponential(1, 40)  # its long tail is on the side of zero
    for n_resamples in (99, 1999):
        assert the_one(clear, n_resamples=n_resamples).p_value == pytest.approx(1 / (n_resamples + 1))
        assert the_one(-clear, n_resamples=n_resamples).p_value == pytest.approx(1 / (n_resamples + 1))


@pytest.mark.filterwarnings("error")
def test_images_without_spread_have_an_interval_without_width():
    columns = np.array([0.3, 0.0, -0.1])
    for values in (np.tile(columns, (7, 1)), columns[None]):
        for clusters in (None, ["one"] * len(values)):
            estimate = the_one(values, clusters=clusters, n_resamples=999)
            for part in estimate[:3]:
                np.testing.assert_allclose(part, columns, rtol=1e-15, atol=0)
            np.testing.assert_allclose(estimate.p_value, [0.001, 1, 0.001], rtol=1e-9)
    equal = bca(np.full((7, 2), 0.3), lambda m: m[:, 0] - m[:, 1], np.random.default_rng(1))
    assert equal == (0, 0, 0, 1)
    first = np.random.default_rng(0).normal(0, 1, 40)
    shifted = bca(np.stack([first + 0.25, first], 1), lambda m: m[:, 0] - m[:, 1], np.random.default_rng(1))
    assert shifted == pytest.approx((0.25, 0.25, 0.25, 1e-4), rel=1e-4)


@pytest.mark.filterwarnings("error")
def test_an_undefined_statistic_has_no_interval_and_leaves_its_neighbours_theirs():
    values = np.random.default_rng(0).normal(0, 1, (20, 2))
    lost = values.copy()
    lost[3, 0] = np.nan
    estimate = the_one(lost, n_resamples=500)
    assert all(np.isnan(part[0]) for part in estimate)
    assert [part[1] for part in estimate] == pytest.approx([part[1] for part in the_one(values, n_resamples=500)])
    # Undefined of few resamples, which would pass for high ones.
    positive = bca(values[:, 0] + 0.5, lambda m: np.where(m > 0.1, m, np.nan), np.random.default_rng(1))
    assert positive.mean == pytest.approx(values[:, 0].mean() + 0.5)
    assert np.isnan(positive[1:]).all()


def test_a_bound_of_whole_numbers_is_zero_and_not_zero_up_to_rounding():
    """Thirds add up to zero but for rounding, which must not look like an interval above zero."""
    samples = np.random.default_rng(0).integers(-1, 3, (25, 400)) / 3
    estimate = the_one(samples, n_resamples=1000)
    assert (estimate.low == 0).any()
    assert not ((np.abs(estimate.low) > 0) & (np.abs(estimate.low) < 1e-6)).any()


def test_bca_has_the_shape_of_one_image_and_takes_yes_and_no():
    values = np.random.default_rng(0).normal(0, 1, (30, 2, 3)) > 0
    estimate = the_one(values, n_resamples=250)
    assert all(part.shape == (2, 3) for part in estimate)
    np.testing.assert_allclose(estimate.mean, values.mean(0), atol=1e-15)
    flat = the_one(values.reshape(30, 6).astype(np.float32), n_resamples=250)
    for part, expected in zip(estimate, flat):
        np.testing.assert_array_equal(part.ravel(), expected)


def test_no_images_have_no_estimate():
    with pytest.raises(ValueError, match="no images"):
        bca(np.empty((0, 3)), itself, np.random.default_rng(0))
    with pytest.raises(ValueError, match="4 images, but 3 labels"):
        bca(np.ones((4, 3)), itself, np.random.default_rng(0), [1, 2, 3])


# --- clusters ---


def test_copies_of_an_image_count_once_where_the_clusters_tell():
    sample = np.random.default_rng(0).exponential(1, 30) - 0.8
    copies, labels = np.tile(sample, 4), [("bird", i) for i in range(30)] * 4
    single, told = the_one(sample), the_one(copies, seed=2, clusters=labels)
    is_close(told, single, 0.03)
    assert told.p_value == pytest.approx(float(single.p_value), rel=0.15)
    untold = the_one(copies, seed=2)
    assert untold.high - untold.low == pytest.approx((single.high - single.low) / 2, rel=0.1)  # sqrt(4)
    assert untold.p_value < single.p_value / 2


def test_clusters_of_one_image_are_no_clusters():
    sample = np.random.default_rng(0).exponential(1, 30)
    assert the_one(sample, clusters=list(range(30))) == the_one(sample)


def test_unequal_clusters_are_drawn_whole_and_weigh_as_much_as_their_images():
    """Against scipy's paired resampling of (sum, size), whose statistic is the ratio."""
    rng = np.random.default_rng(4)
    sizes = rng.geometric(0.15, 20)
    labels = rng.permutation(np.repeat(np.arange(20), sizes))
    values = rng.exponential(1, 20)[labels] * (1 + 0.1 * sizes[labels]) + rng.normal(0, 0.3, len(labels))
    estimate = the_one(values, clusters=labels, n_resamples=40_000)
    sums = np.array([values[labels == label].sum() for label in range(20)])
    expected = scipys_bca((sums, sizes), lambda x, n, axis: x.sum(axis) / n.sum(axis), paired=True)
    assert estimate.mean == pytest.approx(values.mean(), abs=1e-12)
    is_close(estimate, expected, 0.02)


# --- networks and images ---


def two_way(n_networks, of_networks, of_images, of_rest, n_images=60):
    rng = np.random.default_rng(0)
    networks = of_networks * rng.normal(0, 1, (n_networks, 1))
    return networks + of_images * rng.normal(0, 1, n_images) + of_rest * rng.normal(0, 1, (n_networks, n_images))


def two_way_deviation(values):
    """Closed form of the pigeonhole bootstrap's standard deviation: the variances of rows, columns and the rest."""
    rows, columns = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    rest = values - rows - columns + values.mean()
    return np.sqrt(rows.var() / values.shape[0] + columns.var() / values.shape[1] + rest.var() / values.size)


@pytest.mark.parametrize(
    ("n_networks", "effects"), [(5, (1, 0.5, 0.5)), (12, (0.3, 1, 1)), (8, (0.1, 0.1, 3)), (6, (0, 1, 0))]
)
def test_the_crossed_interval_has_the_two_way_variance(n_networks, effects):
    values = two_way(n_networks, *effects)
    estimate = crossed(values, itself, np.random.default_rng(1))
    assert estimate.mean == pytest.approx(values.mean(), abs=1e-12)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * two_way_deviation(values), rel=0.06)


def test_the_crossed_interval_speaks_of_other_networks_only_where_there_are_enough():
    values = two_way(5, 1, 0.3, 0.3)
    many = crossed(values, itself, np.random.default_rng(1))
    fixed = the_one(values.mean(0))
    assert many.high - many.low > 3 * (fixed.high - fixed.low)
    few = values[:3]
    assert crossed(few, itself, np.random.default_rng(1)) == the_one(few.mean(0))
    enough = crossed(values[:4], itself, np.random.default_rng(1))
    fixed = the_one(values[:4].mean(0))
    assert enough.high - enough.low > 2 * (fixed.high - fixed.low)


def test_crossed_draws_are_those_of_a_loop_over_networks_and_clusters_corrected_by_the_book():
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(0, 12, 40))
    values = two_way(5, 0.4, 0.5, 0.5, 40)[..., None] + rng.normal(2, 0.3, (5, 40, 2))
    estimate = crossed(values, ratio, np.random.default_rng(1), labels)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def of(networks, clusters):
        first, second = values[networks][:, np.concatenate([groups[i] for i in clusters])].mean((0, 1))
        return first / second

    n, networks = len(groups), np.arange(5)
    loop = [of(rng.integers(0, 5, 5), rng.integers(0, n, n)) for _ in range(10_000)]
    left_out = np.array([of(networks, [i for i in range(n) if i != out]) for out in range(n)])
    bias = stats.norm.ppf(np.mean(np.array(loop) < of(networks, range(n))))
    acceleration = stats.skew(-left_out) / (6 * np.sqrt(n))
    z = bias + stats.norm.ppf([0.025, 0.975])
    expected = np.quantile(loop, stats.norm.cdf(bias + z / (1 - acceleration * z)))
    assert (estimate.low, estimate.high) == pytest.approx(expected, abs=0.05 * np.ptp(expected))


def test_no_networks_have_no_estimate():
    with pytest.raises(ValueError, match="no networks"):
        crossed(np.empty((0, 5)), itself, np.random.default_rng(0))


# --- Holm, and equivalence ---


def test_holms_p_values_are_those_worked_out_by_hand():
    # Ascending: 0.005 * 4 = 0.02, 0.01 * 3 = 0.03, 0.03 * 2 = 0.06, 0.04 * 1 raised to the 0.06 before it.
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    with_gaps = np.array([np.nan, 0.01, 0.04, np.nan, 0.03, 0.005])
    np.testing.assert_allclose(holm(with_gaps), [np.nan, 0.03, 0.06, np.nan, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])).tolist() == [1, 1]
    assert holm(np.array([0.02])).tolist() == [0.02]
    assert np.isnan(holm(np.array([np.nan]))).all()
    assert len(holm(np.array([]))) == 0


def test_holm_keeps_the_order_and_is_never_below_what_it_adjusts():
    p = np.random.default_rng(0).uniform(0, 0.2, 12)
    adjusted = holm(p)
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(12 * p, 1)).all()


def test_means_inside_the_bound_are_told_from_those_that_are_not_and_from_those_unknown():
    noise = np.random.default_rng(0).normal(0, 1, 100)
    noise = (noise - noise.mean()) / noise.std(ddof=1) / 10  # the mean's standard error is 0.01
    values = noise[:, None] + [0, 0.03, -0.03, 0.05, 0.2]
    estimate = inside(values, 0.05, np.random.default_rng(1))
    expected = stats.norm.cdf([-5, -2, -2, 0, 15])
    np.testing.assert_allclose(estimate.p_value, np.maximum(expected, 1e-4), atol=0.03)
    assert estimate.p_value[0] == pytest.approx(1e-4, rel=1e-3)
    np.testing.assert_allclose(estimate.p_value[1:3], expected[1:3], rtol=0.3)
    plain = the_one(values)
    for part, same in zip(estimate[:3], plain[:3]):
        np.testing.assert_array_equal(part, same)
    wide = inside(noise * 20, 0.05, np.random.default_rng(1))  # a mean of zero, but known to 0.2 only
    assert wide.p_value > 0.2
    outlier = np.array([10.0] * 49 + [15])  # so clear and skewed that a bound is past the pole of BCa's transform
    estimate = inside(np.stack([outlier, -outlier], 1), 50, np.random.default_rng(1))
    assert estimate.p_value == pytest.approx([1e-4, 1e-4], rel=1e-3)


def test_a_mean_at_the_bound_is_called_inside_one_time_in_twenty():
    samples = np.random.default_rng(0).normal(0.5, 1, (100, 3000))
    p = inside(samples, 0.5, np.random.default_rng(1), n_resamples=2000).p_value
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.015)
    mirrored = inside(-samples, 0.5, np.random.default_rng(1), n_resamples=2000).p_value
    np.testing.assert_allclose(mirrored, p, atol=0.01)


def test_a_resample_at_the_bound_is_not_inside_it_whatever_the_rounding():
    whole = np.random.default_rng(0).integers(-1, 2, (25, 40))
    p = inside(whole, 0.2, np.random.default_rng(1), n_resamples=1000).p_value
    np.testing.assert_allclose(inside(whole / 3, 0.2 / 3, np.random.default_rng(1), n_resamples=1000).p_value, p)


@pytest.mark.filterwarnings("error")
def test_equal_values_are_inside_or_not():
    values = np.tile([0.0, 0.1, -0.1, 0.2, -0.3], (6, 1))
    p = inside(values, 0.2, np.random.default_rng(1), n_resamples=999).p_value
    np.testing.assert_allclose(p, [0.001, 0.001, 0.001, 1, 1], atol=1e-3)


def test_clusters_make_it_harder_to_show_that_nothing_is_there():
    sample = np.random.default_rng(0).normal(0, 1, 20)
    copies = np.tile(sample - sample.mean(), 5)
    told = inside(copies, 0.3, np.random.default_rng(1), list(range(20)) * 5)
    assert told.p_value > 3 * inside(copies, 0.3, np.random.default_rng(1)).p_value


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
    logits, probabilities, norms, centred = gradient_norms(wrapped, images, ranks)
    for i, image in enumerate(images):
        leaf = ((image[None] - wrapped.mean) / wrapped.std).requires_grad_()
        y = network(leaf)[0]
        order = sorted(range(6), key=lambda k: -y[k].item())
        for r, rank in enumerate(ranks):
            (gradient,) = torch.autograd.grad(y[order[rank]], leaf, retain_graph=True)
            assert logits[i, r].item() == pytest.approx(y[order[rank]].item(), abs=1e-12)
            assert norms[i, r].item() == pytest.approx(gradient.square().sum().sqrt().item(), rel=1e-9)
            assert probabilities[i, r].item() == pytest.approx((y.exp() / y.exp().sum())[order[rank]].item())
            (own,) = torch.autograd.grad(y[order[rank]] - y.mean(), leaf, retain_graph=True)
            assert centred[i, r].item() == pytest.approx(own.square().sum().sqrt().item(), rel=1e-9)


def test_a_network_that_tells_no_std_has_the_norm_at_its_own_input(network, images):
    plain = gradient_norms(network, images, range(6))
    identity = networks.Network("tiny", network, {}, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).double()
    torch.testing.assert_close(plain, gradient_norms(identity, images, range(6)))


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
