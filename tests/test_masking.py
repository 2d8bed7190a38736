"""Blur and mask (Table 1), against literal loops over images, settings and pixels."""

import math
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import gaussian_blur as torchvision_blur

from cxlib import networks
from cxlib.explainers import cam, explain
from cxlib.explainers.cautions import is_constant
from cxlib.metrics.baselines import BASELINES, Blur
from cxlib.metrics.masking import (
    FEATURES,
    RULES,
    blur_and_mask,
    kept_pixels,
    relative_probability,
)

SMALL = Blur(5, 1.5)
ZERO = torch.zeros(3, 1, 1)


def filled(baseline, images, zero, blur):
    """What takes the place of every second pixel of each image."""
    hidden = torch.arange(images[0, 0].numel()).view(images.shape[-2:]) % 2 == 0
    return BASELINES[baseline](images, zero, blur)(torch.arange(len(images)), hidden.expand(len(images), -1, -1))


# --- the value ---


def test_relative_probability_is_the_softmax_of_two_classes():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, other = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([3, 0, 1, 2, 2])
    p = logits.softmax(-1)
    expected = [p[i, t[i]] / (p[i, t[i]] + p[i, other[i]]) for i in range(5)]
    torch.testing.assert_close(relative_probability(logits, t, other), torch.stack(expected))
    torch.testing.assert_close(relative_probability(logits, other, t), 1 - torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relative_probability_does_not_overflow(dtype):
    logits = torch.tensor([[1e4, 1e4 - 1, -1e4]], dtype=dtype)
    zero, one, two = (torch.tensor([index]) for index in range(3))
    assert relative_probability(logits, zero, one).item() == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)
    assert relative_probability(logits, zero, two).item() == 1
    assert relative_probability(logits, two, zero).item() == 0


# --- baselines ---


@pytest.mark.parametrize(
    ("size", "blur"),
    [
        ((224, 224), Blur()),
        ((160, 112), Blur()),
        ((51, 60), Blur()),  # the kernel reaches just to the last pixel
        ((16, 20), SMALL),
        ((9, 7), Blur(3, 0.4)),
        ((5, 4), Blur(1, 2.0)),
    ],
)
def test_the_blur_is_torchvisions(size, blur):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    actual = filled("gaussian_blur", images, ZERO, blur)
    expected = torchvision_blur(images, [blur.kernel, blur.kernel], [blur.sigma, blur.sigma])
    assert actual.dtype == images.dtype
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "kernel"), [((50, 80), 101), ((80, 50), 101), ((16, 16), 4), ((16, 16), 33), ((224, 224), 100)]
)
def test_a_blur_that_reaches_further_than_the_image_or_has_no_centre_is_refused(size, kernel):
    with pytest.raises(ValueError, match=rf"must be odd and at most \d+ wide for \d+ pixels: {kernel}"):
        BASELINES["gaussian_blur"](torch.zeros(1, 3, *size), ZERO, Blur(kernel, 15.0))


@pytest.mark.parametrize("sigma", [0.0, -15.0, math.nan, math.inf])
def test_a_blur_without_a_width_is_refused(sigma):
    with pytest.raises(ValueError, match=f"sigma of a blur must be finite and above 0, got {sigma}"):
        BASELINES["gaussian_blur"](torch.zeros(1, 3, 16, 16), ZERO, Blur(5, sigma))


def test_an_even_kernel_is_refused_before_it_is_made_odd():
    with pytest.raises(ValueError, match="must be odd, got 100"):
        Blur(100, 15.0).at(160)


def test_a_blur_takes_as_much_of_an_image_of_any_size():
    published = Blur(101, 15.0)
    assert published.at(224) == published
    kernel, sigma = published.at(160)  # 50 pixels to either side: 35.7
    assert (kernel, sigma) == (73, pytest.approx(10.7142857))
    assert published.at(448) == (201, 30.0)
    for size in range(16, 500):
        kernel, sigma = published.at(size)
        assert kernel % 2 == 1
        assert (kernel - 1) / 2 == pytest.approx(50 * size / 224, abs=0.5)
        assert sigma / size == pytest.approx(15 / 224)
        assert kernel // 2 < size, "it fits into the image"


def test_zeros_is_the_colour_that_the_network_sees_as_zero(network, images):
    wrapped = networks.Network("tiny", network, {})
    replaced = filled("zeros", images.float(), wrapped.mean, SMALL)
    assert replaced.shape == images.shape
    assert not ((replaced - wrapped.mean) / wrapped.std).any()
    assert (replaced > 0.4).all(), "the mean of ImageNet, not black"


def test_channel_mean_is_each_images_own_mean_colour(images):
    replaced = filled("channel_mean", images, ZERO, SMALL)
    assert replaced.shape == images.shape
    for i, c in product(range(4), range(3)):
        torch.testing.assert_close(replaced[i, c], images[i, c].mean().expand(16, 16))


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_of_a_batch_is_that_of_single_images_and_leaves_them_alone(images, baseline):
    before = images.clone()
    together = filled(baseline, images, ZERO, SMALL)
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], filled(baseline, images[i : i + 1], ZERO, SMALL))
    assert torch.equal(images, before)


# --- rules, written once more with numpy for one image: maps (M, H, W) -> kept (M, H, W) ---


def literal_ranks(maps):
    return maps.reshape(len(maps), -1).argsort(-1, kind="stable").argsort(-1, kind="stable").reshape(maps.shape)


def literal_published(maps, features):
    ranks, n_pixels = literal_ranks(maps), maps[0].size
    if features == "positive":
        k = min((m > 0).sum() for m in maps)
        return ~(ranks < k)
    k = max((m < 0).sum() for m in maps)
    return ~(ranks > n_pixels - k)


def literal_equal_kept(maps, features):
    kept = np.zeros(maps.shape, dtype=bool)
    k = min((m > 0).sum() if features == "positive" else (m < 0).sum() for m in maps)
    for m, keep in zip(maps, kept):
        order = sorted(range(m.size), key=lambda i: m.flat[i])  # Python's sort is stable
        keep.flat[order[m.size - k :] if features == "positive" else order[:k]] = True
    return kept


def literal_unequal(maps, features):
    kept = np.zeros(maps.shape, dtype=bool)
    for place in np.ndindex(maps.shape):
        kept[place] = maps[place] > 0 if features == "positive" else maps[place] < 0
    return kept


def literal_shifted(maps, features):
    height, width = maps.shape[-2:]
    kept = literal_equal_kept(maps, features)
    moved = np.empty_like(kept)
    for m, y, x in np.ndindex(kept.shape):
        moved[m, (y + height // 2) % height, (x + width // 2) % width] = kept[m, y, x]
    return moved


def literal_area(share):
    def rule(maps, features):
        n_pixels = maps[0].size
        kept, ranks = round(share * n_pixels), literal_ranks(maps)
        return ranks >= n_pixels - kept if features == "positive" else ranks < kept

    return rule


LITERAL = {
    "published": literal_published,
    "equal_kept": literal_equal_kept,
    "unequal": literal_unequal,
    "shifted": literal_shifted,
    **{f"area_{percent}": literal_area(percent / 100) for percent in (10, 30, 50)},
}
EQUAL = [rule for rule in LITERAL if rule != "unequal"]


def test_every_rule_has_a_literal_one():
    assert list(LITERAL) == list(RULES)


def kept_by(rule, maps, features):
    """(B, M, H, W) maps, all of which set the number of hidden pixels -> (B, M, H, W)."""
    return kept_pixels(maps, range(maps.shape[1]), [rule])[:, FEATURES.index(features), :, 0]


def some_maps(size=(9, 11)):
    """Maps of differing balance: (5 images, 2 maps, H, W); rounded, so that values and zeros are tied."""
    shift = torch.tensor([[0.0, 0.3], [1.0, -1.0], [-0.7, 0.0], [3.0, 2.0], [-3.0, 0.4]])[..., None, None]
    return (torch.randn(5, 2, *size, generator=torch.Generator().manual_seed(0)) + shift).mul(4).round().div(4)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("rule", LITERAL)
def test_a_rule_is_what_its_words_say(rule, features):
    maps = some_maps()
    expected = np.stack([LITERAL[rule](m, features) for m in maps.numpy()])
    assert torch.equal(kept_by(rule, maps, features), torch.from_numpy(expected))


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("rule", EQUAL)
def test_both_maps_of_an_image_keep_the_same_number_of_pixels(rule, features):
    counts = kept_by(rule, some_maps(), features).sum((-2, -1))
    assert torch.equal(counts[:, 0], counts[:, 1])
    assert (counts > 0).any()


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "shifted"])
def test_what_is_kept_lies_above_or_below_what_is_hidden(rule, features):
    maps = some_maps()
    kept = kept_by(rule, maps, features)
    above, below = (kept, ~kept) if features == "positive" else (~kept, kept)
    lowest_above = maps.masked_fill(~above, torch.inf).amin((-2, -1))
    highest_below = maps.masked_fill(~below, -torch.inf).amax((-2, -1))
    assert (lowest_above >= highest_below).all()


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("rule", RULES)
def test_a_batch_of_maps_is_masked_as_single_images_are(rule, features):
    maps = some_maps()
    alone = [kept_by(rule, m[None], features) for m in maps]
    assert torch.equal(kept_by(rule, maps, features), torch.cat(alone))


def test_equal_kept_keeps_the_smaller_count_and_only_features_of_the_kind_asked_for():
    maps = some_maps()
    for features, sign in (("positive", 1), ("negative", -1)):
        of_kind = (sign * maps > 0).sum((-2, -1))
        kept = kept_by("equal_kept", maps, features)
        assert torch.equal(kept.sum((-2, -1)), of_kind.amin(-1, keepdim=True).expand_as(of_kind))
        assert (sign * maps[kept] > 0).all()


def test_published_hides_as_many_as_are_positive_and_one_fewer_than_are_negative():
    """Four pixels, 3 and 2 of them positive, 1 and 2 negative: 2 are hidden for positive, 2 - 1 for negative."""
    maps = torch.tensor([[[[-1.0, 1.0], [2.0, 3.0]], [[-2.0, -1.0], [5.0, 4.0]]]])
    assert kept_by("published", maps, "positive")[0].tolist() == [[[False, False], [True, True]]] * 2
    assert kept_by("published", maps, "negative")[0].tolist() == [
        [[True, True], [True, False]],
        [[True, True], [False, True]],
    ]


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("rule", LITERAL)
def test_ties_keep_the_pixels_order(rule, features):
    sign = 1.0 if features == "positive" else -1.0
    constant = torch.full((1, 1, 40, 40), sign)
    half = constant.clone()
    half[..., :20, :] *= -1
    maps = torch.cat([constant, half], 1)
    expected = LITERAL[rule](maps[0].numpy(), features)
    assert torch.equal(kept_by(rule, maps, features)[0], torch.from_numpy(expected))


def test_a_map_without_features_of_the_kind_keeps_none_of_them_under_equal_kept():
    maps = torch.stack([torch.ones(3, 3), -torch.ones(3, 3)])[None]
    for features in FEATURES:
        assert not kept_by("equal_kept", maps, features).any()


# --- the experiment ---


def slow_blur_and_mask(wrapped, image, layer, explainers, contrasts, baselines, rules, blur):
    """One image, a setting at a time, masking the normalised image as the published code does.

    The count of hidden pixels is that of original and weighted under the rules of equal area; a third contrast hides
    as many.
    """
    x = image[None]
    normalised = (x - wrapped.mean) / wrapped.std
    leading = wrapped(x)[0].sort(descending=True).indices[:2].tolist()

    def value(images, t):
        e = wrapped.inner(images)[0].exp()
        return (e[leading[t]] / (e[leading[0]] + e[leading[1]])).item()

    replacements = {
        "gaussian_blur": torchvision_blur(normalised, [blur.kernel] * 2, [blur.sigma] * 2),
        "zeros": torch.zeros_like(normalised),
        "channel_mean": normalised.mean((2, 3), keepdim=True).expand_as(normalised),
    }

    @cache
    def the_map(explainer, t, contrast):
        return explain(wrapped, x, torch.tensor([leading[t]]), explainer, contrast, layer).numpy()  # (1, H, W)

    masked = []
    for explainer, t, baseline, features in product(explainers, range(2), baselines, FEATURES):
        for contrast, rule in product(contrasts, rules):
            own, area = the_map(explainer, t, contrast), ["original", "weighted"]
            pair = np.concatenate([the_map(explainer, t, name) for name in area])
            if contrast in area:
                kept = LITERAL[rule](pair, features)[area.index(contrast)]
            elif rule == "unequal":
                kept = LITERAL[rule](own, features)[0]
            else:
                n_kept, ranks = LITERAL[rule](pair, features)[0].sum(), literal_ranks(own)[0]
                kept = ranks >= ranks.size - n_kept if features == "positive" else ranks < n_kept
                if rule == "shifted":
                    kept = np.roll(kept, np.array(kept.shape) // 2, (0, 1))
            masked.append(value(torch.where(torch.from_numpy(kept), normalised, replacements[baseline]), t))
    shape = (len(explainers), 2, len(baselines), len(FEATURES), len(contrasts), len(rules))
    return torch.tensor([value(normalised, t) for t in range(2)]), torch.tensor(masked).view(shape)


def wrap(network):
    return networks.freeze(networks.Network("tiny", network, {})).double()


# The CAMs' maps are 8 x 8, the others' 16 x 16.
OF_ANY_NETWORK = ["gradient", *cam.MAPS, "fullgrad"]
# Baselines that do not ask what is hidden; `noisy_linear` has its own tests.
FIXED = ["gaussian_blur", "zeros", "channel_mean"]
EXPERIMENT = (OF_ANY_NETWORK, ["original", "normalised", "weighted"], FIXED, list(LITERAL), SMALL)
# One map behind the last convolution of a network that pools.
COINCIDE = ["gradcam", "linear_approximation", "xgradcam"]


def experiment(network, images, layer, chunk=50):
    return blur_and_mask(network, images, layer, *EXPERIMENT, chunk)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_the_experiment_is_every_setting_done_slowly(network, images, chunk):
    wrapped = wrap(network)
    layer = network.features[4]
    unmasked, masked, _, _ = experiment(wrapped, images, layer, chunk)
    assert unmasked.dtype == masked.dtype == torch.float64
    assert masked.shape == (4, len(OF_ANY_NETWORK), 2, 3, 2, 3, len(RULES))
    for i, image in enumerate(images):
        expected_unmasked, expected = slow_blur_and_mask(wrapped, image, layer, *EXPERIMENT)
        torch.testing.assert_close(unmasked[i].float(), expected_unmasked.float(), rtol=0, atol=1e-6)
        torch.testing.assert_close(masked[i].float(), expected.float(), rtol=0, atol=1e-6)
    assert torch.unique(masked[0, :, :, :, :, :, 0]).numel() > 30, "settings differ"


def test_a_batch_gives_what_single_images_give(network, images):
    wrapped = wrap(network)
    together = experiment(wrapped, images, network.features[4])
    alone = [experiment(wrapped, images[i : i + 1], network.features[4]) for i in range(4)]
    for i in range(4):
        torch.testing.assert_close(together.unmasked[i : i + 1], alone[i].unmasked, rtol=0, atol=1e-9)
        torch.testing.assert_close(together.masked[i : i + 1], alone[i].masked, rtol=0, atol=1e-9)
    assert together.n_evaluated == sum(one.n_evaluated for one in alone)


def test_a_further_contrast_changes_nothing_of_original_and_weighted(network, images):
    explainers, _, *rest = EXPERIMENT
    layer, wrapped = network.features[4], wrap(network)
    two, five = (
        blur_and_mask(wrapped, images, layer, explainers, contrasts, *rest, 50)
        for contrasts in (["original", "weighted"], ["max", "weighted", "normalised", "mean", "original"])
    )
    torch.testing.assert_close(two.masked, five.masked[..., [4, 1], :], rtol=0, atol=1e-12)


def test_contrasts_without_the_pair_that_sets_the_area_are_refused(network, images):
    explainers, _, *rest = EXPERIMENT
    with pytest.raises(ValueError, match="original with weighted: the contrasts original, normalised lack one"):
        blur_and_mask(wrap(network), images, network.features[4], explainers, ["original", "normalised"], *rest, 50)


def test_all_the_cams_share_one_forward_pass_and_explainers_of_the_whole_network_change_none_of_theirs(network, images):
    passes = []
    network.register_forward_hook(lambda *_: passes.append(1))
    layer, wrapped, (_, *rest) = network.features[4], wrap(network), EXPERIMENT
    alone = blur_and_mask(wrapped, images, layer, list(cam.MAPS), *rest, 10**6)
    assert len(passes) == 1 + 4, "one for the maps, one for each image's masks"
    mixed = blur_and_mask(wrapped, images, layer, ["gradient", *cam.MAPS], *rest, 10**6)
    assert torch.equal(mixed.masked[:, 1:], alone.masked)


def test_masks_that_hide_the_same_pixels_are_evaluated_once(pooled, images, monkeypatch):
    """Behind the last convolution the explainers are one map up to rounding, so that many masks are the same.

    The hook that looks at its input also keeps torch.fx from following the network, and so from folding it.
    """
    wrapped, seen = wrap(pooled), []
    pooled.register_forward_hook(lambda _module, inputs, _output: seen.extend(inputs[0].unbind()))
    result = blur_and_mask(wrapped, images, pooled.features[6], COINCIDE, *EXPERIMENT[1:], 13)
    masked = torch.stack(seen[4:])  # behind the forward pass of the four images
    assert result.n_evaluated == len(masked) < 0.5 * result.masked.numel()
    values, counts = torch.unique(masked.flatten(1), dim=0, return_counts=True)
    images_themselves = ((images - wrapped.mean) / wrapped.std).flatten(1)
    for value in values[counts > 1]:  # a mask that hides all, or nothing, is the same over some baselines
        alike = (value == images_themselves).all(1).any() or len(value.view(3, -1).unique(dim=1).T) == 1
        assert alike


def test_no_more_masked_images_than_a_chunk_are_evaluated_at_once(network, images):
    sizes = []
    network.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    experiment(wrap(network), images, network.features[4], chunk=11)
    assert max(sizes[1:]) == 11


def test_any_module_is_masked_with_black_where_it_tells_no_mean(network, images):
    explainers, contrasts, _, rules, blur = EXPERIMENT
    identity = networks.Network("tiny", network, {}, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).double()
    plain, wrapped = (
        blur_and_mask(n, images, network.features[4], explainers, contrasts, ["zeros"], rules, blur, 50).masked
        for n in (network, identity)
    )
    torch.testing.assert_close(plain, wrapped, rtol=0, atol=1e-12)


def test_relative_probabilities_of_the_unmasked_leaders_sum_to_one_and_the_first_leads(network, images):
    unmasked = experiment(wrap(network), images, network.features[4]).unmasked
    torch.testing.assert_close(unmasked.sum(-1), torch.ones(4, dtype=torch.float64))
    assert (unmasked[:, 0] >= 0.5).all()


@pytest.mark.parametrize(
    ("kind", "layer", "constant"),
    [("pooled", 6, True), ("pooled", 4, False), ("pooled", 0, False), ("flat", 6, False), ("flat", 0, False)],
)
def test_the_flag_tells_a_layer_where_the_cams_coincide(request, images, kind, layer, constant):
    network = request.getfixturevalue(kind)
    result = blur_and_mask(wrap(network), images, network.features[layer], COINCIDE, *EXPERIMENT[1:], 50)
    assert result.constant_gradient is constant
    coincide = torch.allclose(result.masked, result.masked[:, :1].expand_as(result.masked), atol=1e-6)
    assert coincide is constant


def test_one_pixel_in_one_image_makes_a_gradient_not_constant():
    gradients = torch.randn(3, 2, 4, 1, 1, generator=torch.Generator().manual_seed(0)).expand(3, 2, 4, 7, 7).clone()
    assert is_constant(gradients)
    gradients[1, 0, 2, 3, 3] += 0.01
    assert not is_constant(gradients)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"explainers": ["gradcamp"]}, "gradcamp.*gradcam"),
        ({"explainers": ["gradcam", "attention_rollout"]}, "Tiny is no plain Vision Transformer"),
        ({"baselines": ["noise"]}, "noise.*gaussian_blur"),
        ({"rules": ["fair"]}, "fair.*equal_kept"),
        ({"contrasts": ["original", "weighted", "best"]}, "unknown contrast 'best'.*normalised"),
        ({"layer": "head"}, r"needs a layer with output \(B, C, h, w\)"),
    ],
)
def test_unknown_names_are_answered_with_the_list_and_so_is_a_layer_without_a_map(flat, images, wrong, message):
    asked = {"explainers": ["gradcam"], "contrasts": ["original", "weighted"], "baselines": ["zeros"]}
    asked = asked | {"rules": ["published"], "layer": "features"} | wrong
    layer = networks.explanation_layer(flat, asked.pop("layer"))
    with pytest.raises(ValueError, match=message):
        blur_and_mask(flat, images, layer, **asked, blur=SMALL, chunk=8)
