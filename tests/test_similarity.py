"""How alike two maps are: every measure beside scipy's, scikit-image's or Quantus', single map by single map."""

import numpy as np
import pytest
import torch
from quantus import RandomLogit
from quantus.functions.similarity_func import correlation_spearman
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

from cxlib.explainers import explain
from cxlib.metrics import similarity, target_sensitivity
from cxlib.metrics.similarity import SIMILARITIES


def pairs(size=(9, 12)):
    """Maps of two axes ahead, (2, 3, H, W), related to one another; some pixels share a value."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    y = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3, 1, 1) * x + torch.randn(x.shape, generator=generator)
    return (3 * x).round(), (3 * y).round()


def picture(values):
    """In [0, 1], where 0 is grey."""
    return 0.5 + 0.5 * values / np.abs(values).max((-2, -1), keepdims=True)


LITERAL = {
    "correlation": lambda x, y: np.corrcoef(x.ravel(), y.ravel())[0, 1],
    "rank_correlation": lambda x, y: correlation_spearman(x.ravel(), y.ravel()),
    "absolute_rank_correlation": lambda x, y: spearmanr(np.abs(x).ravel(), np.abs(y).ravel()).statistic,
    "ssim": lambda x, y: structural_similarity(picture(x), picture(y), data_range=1),
}


def test_every_measure_has_a_literal_one():
    assert list(LITERAL) == list(SIMILARITIES)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_measure_is_that_of_another_library(name):
    x, y = pairs()
    found = SIMILARITIES[name](x, y)
    assert found.dtype == torch.float64
    for i in np.ndindex(*x.shape[:2]):
        assert found[i].item() == pytest.approx(LITERAL[name](x[i].numpy(), y[i].numpy()), abs=1e-12)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_map_is_its_own_likeness_whatever_its_scale_and_its_inverse_is_not(name):
    x, _ = pairs()
    ones = torch.ones(2, 3, dtype=torch.float64)
    torch.testing.assert_close(SIMILARITIES[name](x, 1e-9 * x), ones)
    torch.testing.assert_close(SIMILARITIES[name](x, x[:1]), SIMILARITIES[name](x, x[:1].expand_as(x)))
    inverse = SIMILARITIES[name](x, -x)
    if name == "absolute_rank_correlation":
        torch.testing.assert_close(inverse, ones)
    else:
        assert (inverse < 0).all()


@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_map_without_anything_in_it_gives_a_number(name):
    x, _ = pairs()
    assert SIMILARITIES[name](x, torch.zeros_like(x)).abs().amax() < (0.1 if name == "ssim" else 1e-12)


def test_ssim_of_a_map_smaller_than_its_window_is_refused():
    with pytest.raises(ValueError, match=r"7 x 7 pixels or more, got \(6, 9\)"):
        similarity.ssim(torch.zeros(6, 9), torch.zeros(6, 9))


def test_correlation_is_pearsons_and_zero_of_what_is_constant_up_to_rounding():
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 1, (2, 5, 7, 7, 7))
    x[0, 0] = 0.0
    x[1, 1] = 0.1 * (1 + 1e-15 * rng.normal(size=(7, 7)))
    y[2, 2] = -7.3
    found = similarity.correlation(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    for i in np.ndindex(5, 7):
        constant = i in ((0, 0), (1, 1), (2, 2))
        assert found[i] == (0 if constant else pytest.approx(np.corrcoef(x[i].ravel(), y[i].ravel())[0, 1]))
    # A map whose values differ by one in a thousand is not constant, whatever its scale.
    varied = torch.from_numpy(1e-20 * (1 + 1e-3 * rng.normal(size=(7, 7))))
    assert similarity.correlation(varied, -3 * varied).item() == pytest.approx(-1)


# --- target sensitivity ---


def test_what_a_multiple_explains_is_that_of_least_squares_with_its_sign():
    x, y = pairs()
    found = target_sensitivity(x, y)
    for i in np.ndindex(2, 3):
        a, b = x[i].flatten().numpy(), y[i].flatten().numpy()
        (multiple,), (left,), *_ = np.linalg.lstsq(a[:, None], b, rcond=None)
        assert found.explained[i].item() == pytest.approx(np.sign(multiple) * (1 - left / (b**2).sum()))
        assert found.correlation[i].item() == pytest.approx(np.corrcoef(a, b)[0, 1])
        assert found.rank_correlation[i].item() == pytest.approx(spearmanr(a, b).statistic)
    torch.testing.assert_close(target_sensitivity(y, x), found)


def test_under_max_the_maps_of_the_two_leading_classes_are_inverse(flat, images):
    leading = flat(images).topk(2).indices
    t1, t2 = explain(flat, images, leading, "gradcam", "max", "features.4").unbind(1)
    for values in target_sensitivity(t1, t2):
        torch.testing.assert_close(values, -torch.ones(4, dtype=torch.float64))
    original = explain(flat, images, leading, "gradcam", "original", "features.4")
    assert (target_sensitivity(*original.unbind(1)).explained > -0.9).all()


def test_the_likeness_to_a_random_classs_map_is_quantus_random_logit(flat, images, targets):
    """Theirs draws the other classes from numpy's global state; both get its draws."""

    def maps_of(classes):
        return explain(flat, images, torch.as_tensor(classes), "gradcam", "original", "features.4")

    drawn = []

    def explain_func(model, inputs, targets, **_):
        drawn.append(torch.from_numpy(np.asarray(targets)))
        return maps_of(targets)[:, None].numpy()

    ours = maps_of(targets)
    measure = RandomLogit(
        # Their own SSIM would be that of lines of pixels, for maps come flattened.
        similarity_func=lambda a, b, **_: [LITERAL["ssim"](*pair.reshape(2, 16, 16)) for pair in np.stack([a, b], 1)],
        num_classes=6,
        normalise=False,
        disable_warnings=True,
    )
    theirs = measure(flat, images.numpy(), targets.numpy(), ours[:, None].numpy(), explain_func=explain_func)
    assert len(drawn) == 1
    assert (drawn[0] != targets).all()
    np.testing.assert_allclose(similarity.ssim(ours, maps_of(drawn[0])).numpy(), theirs, atol=1e-12)


@pytest.mark.parametrize(
    ("maps", "others", "message"),
    [
        (torch.zeros(2, 4, 4), torch.zeros(2, 4, 5), "maps of one shape"),
        (torch.full((2, 4, 4), torch.nan), torch.zeros(2, 4, 4), "finite numbers"),
        (torch.zeros(4), torch.zeros(4), "finite numbers"),
        (torch.zeros(4, 4).long(), torch.zeros(4, 4), "finite numbers"),
    ],
)
def test_maps_that_cannot_be_compared_are_refused(maps, others, message):
    with pytest.raises(ValueError, match=message):
        target_sensitivity(maps, others)
