"""Figure 5 in numbers: the variants are explain()'s, the measures are numpy's, two classes are exact."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from test_vit import build, pictures
from torch import nn
from torch.testing import assert_close

from cxlib.explainers import explain, vit
from cxlib.metrics import masking
from cxlib.review import variants
from cxlib.review.ledger import tables

LEADING = torch.tensor([[4, 1], [0, 3], [2, 4]])
SHOWN = torch.tensor([0, 1, 0])
NAMES = list(variants.NAMES)
EXPLAINERS = list(vit.MAPS)


@pytest.fixture(scope="module")
def network():
    return build("registers")


@pytest.fixture(scope="module")
def images(network):
    return pictures(network)


@pytest.fixture
def regions():
    return torch.rand(3, 24, 16, generator=torch.Generator().manual_seed(1)) > 0.7


@pytest.mark.parametrize("explainer", EXPLAINERS)
def test_variants_are_the_explanations_of_their_names(network, images, explainer):
    maps = variants.maps(network, images, LEADING, explainer, None)
    for name, contrast, relu in (
        ("standard", "original", True), ("without_relu", "original", False), ("contrastive", "weighted", False)
    ):  # fmt: skip
        expected = explain(network, images, LEADING, explainer, contrast, relu=relu, upsample=False)
        assert_close(maps[:, :, NAMES.index(name)], expected)
    assert (maps[:, :, NAMES.index("without_relu")] < 0).any()


def test_published_is_what_the_reviews_code_draws_from_p_t(network, images):
    for explainer, theirs, relu in (
        ("attention_rollout", "published_rollout", True), ("vit_gradcam", "vit_gradcam", False)
    ):  # fmt: skip
        maps = variants.maps(network, images, LEADING, explainer, None)
        expected = explain(network, images, LEADING, theirs, "probability", relu=relu, upsample=False)
        assert_close(maps[:, :, NAMES.index("published")], expected)
    measured = variants.compare(maps, torch.zeros(3, 24, 16, dtype=torch.bool), SHOWN)
    # GradCAM from p_t is the contrastive map, scaled.
    np.testing.assert_allclose(measured.alike[..., variants.PAIRS.index(("contrastive", "published"))], 1, atol=1e-5)


def morans_i(values, neighbours):
    """By its definition: sums over all pairs, with weight 1 where they are neighbours."""
    z, n = values.ravel() - values.mean(), values.size
    return n / neighbours.sum() * (z @ neighbours @ z) / (z @ z)


def test_coherence_is_morans_i_beyond_the_mean_of_all_permutations():
    rng, height, width = np.random.default_rng(0), 3, 2
    places = np.array(list(np.ndindex(height, width)))
    neighbours = (np.abs(places[:, None] - places[None]).sum(-1) == 1).astype(float)
    values = rng.normal(size=(4, height, width))
    for one, found in zip(values, variants.coherence(values)):
        permuted = [morans_i(np.array(order), neighbours) for order in itertools.permutations(one.ravel())]
        assert found == pytest.approx(morans_i(one, neighbours) - np.mean(permuted))


def test_coherence_of_a_smooth_a_chequered_and_a_constant_map():
    rows, columns = np.mgrid[:14, :14]
    smooth, chequered, constant = variants.coherence(np.stack([rows + columns, (-1.0) ** (rows + columns), 0 * rows]))
    assert smooth > 0.9
    assert chequered == pytest.approx(-1 + 1 / 195)
    assert constant == 0


def test_relu_of_gradcam_is_the_positive_part_and_rollouts_is_not(network, images):
    gradcam, rollout = (variants.maps(network, images, LEADING, name, None).unbind(2) for name in EXPLAINERS)
    assert_close(gradcam[0], gradcam[1].clamp(min=0))
    assert (rollout[0] - rollout[1].clamp(min=0)).abs().max() > 1e-3


class Pair(nn.Module):
    """The first two classes of a network, so that the weighted contrast is a difference of two logits."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images)[:, :2]


def test_of_two_classes_the_contrasts_maps_are_each_others_negative(network, images, regions):
    leading = torch.tensor([[0, 1], [1, 0], [0, 1]])
    maps = variants.maps(Pair(network), images, leading, "vit_gradcam", None)
    between = variants.compare(maps, regions, SHOWN).between
    np.testing.assert_allclose(between[:, NAMES.index("contrastive")], -1)
    assert (between[:, NAMES.index("without_relu")] > -0.999).all()


def test_measures_are_those_of_numpy(network, images, regions):
    maps = variants.maps(network, images, LEADING, "attention_rollout", None)
    measured = variants.compare(maps, regions, SHOWN)
    for b in range(3):
        for v in range(len(NAMES)):
            t1, t2 = maps[b, 0, v].numpy().ravel(), maps[b, 1, v].numpy().ravel()
            assert measured.between[b, v] == pytest.approx(np.corrcoef(t1, t2)[0, 1])
        for t in range(2):
            for i, (one, other) in enumerate(variants.PAIRS):
                pair = [maps[b, t, NAMES.index(name)].numpy().ravel() for name in (one, other)]
                assert measured.alike[b, t, i] == pytest.approx(np.corrcoef(*pair)[0, 1])


def test_mass_is_the_shown_classs_positive_one():
    maps = torch.full((2, 2, 4, 2, 2), -1.0)
    maps[0, 0, :, 0, 0] = 3  # t1's mass lies in the first corner, t2's in the last
    maps[0, 1, :, 1, 1] = maps[1, 1, :, 1, 1] = 3
    maps[1, 0, :, 0, 0] = 3
    regions = torch.zeros(2, 2, 2, dtype=torch.bool)
    regions[:, 0, 0] = True
    measured = variants.compare(maps, regions, torch.tensor([0, 1]))
    np.testing.assert_array_equal(measured.share, [[1] * 4, [0] * 4])
    np.testing.assert_array_equal(measured.hit, [[1] * 4, [0] * 4])


def test_a_constant_map_is_like_no_other(regions):
    maps = torch.rand(3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    maps[:, :, 0] = 0
    measured = variants.compare(maps, regions, SHOWN)
    assert (measured.alike[..., :2] == 0).all()
    assert (measured.between[:, 0] == 0).all()
    assert (measured.between[:, 1:] != 0).all()


@pytest.mark.parametrize("explainer", EXPLAINERS)
def test_every_block_is_measured(network, images, regions, explainer):
    layers = variants.layers(network, explainer)
    maps = [variants.maps(network, images, LEADING, explainer, layer) for layer in layers]
    swept = variants.compare_each(maps, regions, SHOWN)
    assert swept.alike.shape == (3, len(layers), 2, len(variants.PAIRS))
    for place, layer in enumerate(layers):
        one = variants.compare(variants.maps(network, images, LEADING, explainer, layer), regions, SHOWN)
        for field, values in one._asdict().items():
            np.testing.assert_array_equal(getattr(swept, field)[:, place], values)
    assert not np.array_equal(swept.alike[:, 0], swept.alike[:, -1])


def test_block_is_chosen_by_number_from_either_end(network):
    names = variants.layers(network, "attention_rollout")
    assert [variants.layer(network, "attention_rollout", block) for block in (0, -1)] == [names[0], names[-1]]
    for block in (len(names), -len(names) - 1):
        with pytest.raises(ValueError, match=rf"cannot begin at block {block}: there are 3, from 0 to 2"):
            variants.layer(network, "attention_rollout", block)


def test_masks_of_maps_are_those_of_the_images_behind_them(network, images):
    """Each setting on its own: hide pixels by hand and evaluate."""
    maps = torch.stack([variants.maps(network, images, LEADING, name, None) for name in EXPLAINERS], 1)
    blur = masking.Blur(5, 1.0)
    result, _ = masking.mask_maps(
        network, images, maps, LEADING, variants.SIGNED, ["zeros"], ["equal_kept"], blur, chunk=5
    )
    assert result.shape == (3, 2, 2, 1, 2, len(NAMES), 1)
    signed = [NAMES.index(name) for name in ("without_relu", "contrastive")]
    for b, e, t in np.ndindex(3, 2, 2):
        own = nn.functional.interpolate(maps[b, e, t][None], (24, 16), mode="bilinear", align_corners=True)[0]
        n_kept = min(int((own[v] > 0).sum()) for v in signed)
        for v in range(len(NAMES)):
            lowest = own[v].flatten().argsort(stable=True)[: 24 * 16 - n_kept]
            image = images[b].flatten(1).clone()
            image[:, lowest] = 0
            logits = network(image.view(1, 3, 24, 16))
            expected = masking.relative_probability(logits, LEADING[b, t : t + 1], LEADING[b, 1 - t : 2 - t])
            assert result[b, e, t, 0, 0, v, 0].item() == pytest.approx(expected.item(), abs=1e-6)


# --- tables -----------------------------------------------------------------------------------------------------


def compared_cell():
    """A transformer as its stage saves it: two images above the threshold show a telling part, two below."""
    rng = np.random.default_rng(0)
    n, blocks = 6, 2
    return {
        "alike": rng.random((n, 2, blocks, 2, 4)),
        "between": rng.random((n, 2, blocks, 4)),
        "coherence": rng.random((n, 2, blocks, 4)),
        "share": rng.random((n, 2, blocks, 4)),
        "hit": rng.random((n, 2, blocks, 4)),
        "masked": rng.random((n, 2, 2, 3, 2, 4, 2)),
        "unmasked": rng.random((n, 2)),
        "area": np.array([0.1, 0.2, 0, 0.1, 0.3, 0]),
        "threshold": np.array(0.1),
        "p_2": np.array([0.4, 0.2, 0.3, 0.05, 0.05, 0.0001]),
        "explainers": np.array(EXPLAINERS),
        "chosen_blocks": np.array([1, 0]),
        "variants": np.array(NAMES),
        "pairs": np.array([" and ".join(pair) for pair in variants.PAIRS]),
        "targets": np.array(["t1", "t2"]),
        "features": np.array(["positive", "negative"]),
        "rules": np.array(["published", "equal_kept"]),
    }


@pytest.fixture
def cell():
    return compared_cell()


def value(table, **setting):
    chosen = np.logical_and.reduce([table[name] == wanted for name, wanted in setting.items()])
    assert chosen.sum() == 1, setting
    return table[chosen].iloc[0]


def test_table_holds_the_means_of_the_chosen_blocks_by_p_2(cell):
    table = tables.transformers({"net": cell}, np.random.default_rng(0))
    assert set(table["p_2"]) == {"all", "> 0.1", "0.01–0.1", "< 0.001"}
    row = value(table, explainer="vit_gradcam", p_2="> 0.1", quantity="between", variant="contrastive")
    assert (row["value"], row["block"], row["n_images"]) == (pytest.approx(cell["between"][:3, 0, 1, 2].mean()), 1, 3)
    assert row["low"] <= row["value"] <= row["high"]
    row = value(table, explainer="attention_rollout", p_2="all", quantity="alike", variant="standard and contrastive")
    assert row["value"] == pytest.approx(cell["alike"][:, 1, 0, :, 1].mean())
    row = value(
        table, explainer="attention_rollout", p_2="0.01–0.1", quantity="negative_kept", variant="standard", target="t2",
        rule="published",
    )  # fmt: skip
    assert row["value"] == pytest.approx(cell["masked"][3:5, 1, 1, :, 1, 0, 0].mean())
    row = value(table, explainer="vit_gradcam", p_2="all", quantity="margin", target="t2", rule="published")
    difference = cell["masked"][:, 0, 1, :, 0, 2, 0] - cell["masked"][:, 0, 1, :, 0, 1, 0]
    assert row["value"] == pytest.approx(difference.mean())
    row = value(table, explainer="attention_rollout", p_2="all", quantity="gain_margin")
    assert row["value"] == pytest.approx(
        (cell["share"][:, 1, 0, 2] - cell["share"][:, 1, 0, 1])[cell["area"] > 0].mean()
    )
    row = value(table, explainer="vit_gradcam", p_2="all", quantity="unmasked", target="t1")
    assert row["value"] == pytest.approx(cell["unmasked"][:, 0].mean())


def test_images_without_a_telling_part_count_in_no_localisation(cell):
    table = tables.transformers({"net": cell}, np.random.default_rng(0))
    row = value(table, explainer="vit_gradcam", p_2="> 0.1", quantity="gain", variant="standard")
    assert row["value"] == pytest.approx((cell["share"][:2, 0, 1, 0] - cell["area"][:2]).mean())
    assert row["n_images"] == 2
    assert value(table, explainer="vit_gradcam", p_2="all", quantity="hit", variant="standard")["n_images"] == 4
    assert not ((table["p_2"] == "< 0.001") & (table["quantity"] == "gain")).any()


def test_table_of_blocks_has_every_block_and_all_images(cell):
    table = tables.transformer_blocks({"net": cell}, np.random.default_rng(0))
    assert set(zip(table["explainer"], table["block"])) == {(name, block) for name in EXPLAINERS for block in (0, 1)}
    row = value(table, explainer="vit_gradcam", block=0, quantity="between", variant="standard")
    assert (row["value"], row["n_images"]) == (pytest.approx(cell["between"][:, 0, 0, 0].mean()), 6)
    assert isinstance(table, pd.DataFrame) and not table.isna().any(axis=None)
