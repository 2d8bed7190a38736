"""Maps held against effects: closed forms, slow loops, scipy, and a network whose effects its maps must equal."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from cxlib.explainers import resized
from cxlib.metrics.interventions import agreement, effects, mass, measure, outcomes, perfect, seen, share


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


class Behind(nn.Module):
    """Linear behind its layer: what a region of the layer's activation contributes is what taking it away costs."""

    def __init__(self, size, n_classes, rng):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1, bias=False)
        self.weights = nn.Parameter(torch.randn(n_classes, 4, size, size, generator=rng), requires_grad=False)

    def forward(self, images):
        return torch.einsum("bchw,kchw->bk", self.layer(images), self.weights) / 10


def test_behind_a_linear_network_the_masses_are_the_effects(rng):
    network, x = Behind(6, 5, rng), torch.rand(3, 3, 6, 6, generator=rng)
    regions = torch.rand(3, 2, 6, 6, generator=rng) < 0.4
    pair = network(x).topk(2).indices  # the rival that `max` takes for t1 is t2, and the other way round
    before = outcomes(network, x, pair, 2)
    after = torch.stack([outcomes(network, x * ~regions[:, p : p + 1], pair, 2) for p in range(2)], 1)
    lost = effects(before[:, None], after)
    found = measure(network, x, pair, regions, lost, ["linear_approximation"], ["max", "original"], network.layer)
    inside = (found.mass[..., 0] - found.mass[..., 1])[:, :, 0]  # (B, P, contrasts, targets)
    torch.testing.assert_close(inside[:, :, 0, 0], lost, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inside[:, :, 0, 1], -lost, rtol=1e-4, atol=1e-5)
    own = inside[:, :, 1, 0] - inside[:, :, 1, 1]  # what each logit loses
    torch.testing.assert_close(own, lost, rtol=1e-4, atol=1e-5)
    flat = found.mass[:, :, 0, 0, 0].flatten(0, 1), found.total[:, 0, 0, 0].repeat_interleave(2, 0)
    best = share(found.perfect[:, :, 0].flatten(0, 1), found.perfect_total[:, 0].repeat_interleave(2, 0),
                 lost.flatten(), regions.double().mean((2, 3)).flatten())  # fmt: skip
    agreed = agreement(*flat, lost.flatten(), regions.double().mean((2, 3)).flatten(), [0, 1] * 3, best)
    assert (agreed.rank, agreed.sign) == (pytest.approx(1), 1)


def test_outcomes_are_logits_probabilities_and_the_decision(rng):
    network, x = Behind(4, 3, rng).double(), torch.rand(5, 3, 4, 4, generator=rng).double()
    pair = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0]])
    found = outcomes(network, x, pair, 2)
    for row, image, (a, b) in zip(found, x, pair.tolist()):
        y = network(image[None])[0].detach()
        p = y.exp() / y.exp().sum()
        torch.testing.assert_close(row, torch.stack([y[a], y[b], p[a], p[b], y.argmax().double()]))
    assert effects(found, found.flip(0))[2] == 0
    assert effects(found[0], found[1]) == (found[0, 0] - found[0, 1]) - (found[1, 0] - found[1, 1])


def test_mass_is_that_of_a_loop_over_pixels(rng):
    maps, regions = torch.randn(2, 3, 5, 4, generator=rng), torch.rand(2, 2, 5, 4, generator=rng) < 0.5
    found = mass(maps, regions)
    assert found.shape == (2, 2, 3, 2)
    for b, p, m in product(range(2), range(2), range(3)):
        values = [maps[b, m, i, j].item() for i, j in product(range(5), range(4)) if regions[b, p, i, j]]
        expected = sum(v for v in values if v > 0), -sum(v for v in values if v < 0)
        assert found[b, p, m].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("maps", "regions", "told"),
    [
        (torch.full((1, 1, 2, 2), torch.nan), torch.ones(1, 1, 2, 2).bool(), "maps must be finite"),
        (torch.ones(1, 2, 2), torch.ones(1, 1, 2, 2).bool(), "maps must be finite numbers"),
        (torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), "regions must be bool"),
        (torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 3).bool(), "of the maps' size"),
    ],
)
def test_wrong_maps_and_regions_are_refused(maps, regions, told):
    with pytest.raises(ValueError, match=told):
        mass(maps, regions)


def test_a_grid_sees_the_mean_of_each_cells_footprint(rng):
    region = (torch.rand(12, 10, generator=rng) < 0.3).double()
    cells = torch.eye(3 * 2).reshape(1, 6, 3, 2).double()
    footprints = resized(cells, (12, 10))[0]  # what each cell alone gives, upsampled as maps are
    means = (footprints * region).sum((1, 2)) / footprints.sum((1, 2))
    torch.testing.assert_close(seen(region, (3, 2)), (means[:, None, None] * footprints).sum(0))
    torch.testing.assert_close(seen(region, (12, 10)), region)
    torch.testing.assert_close(seen(torch.ones(2, 12, 10), (3, 2)), torch.ones(2, 12, 10))


def test_a_perfect_map_of_full_resolution_has_each_effect_in_its_region_and_finds_all(rng):
    regions = torch.zeros(4, 2, 8, 8, dtype=torch.bool)
    regions[:, 0, :3, :3], regions[:, 1, 5:, 2:7] = True, True
    lost = torch.tensor([[3.0, -1.0], [0.5, 2.0], [-4.0, 0.1], [1.0, 1.0]])
    best = perfect(regions, lost, (8, 8))
    inside = mass(best[:, None], regions)[:, :, 0]
    torch.testing.assert_close(inside[..., 0] - inside[..., 1], lost.double())
    assert best[~regions.any(1)].abs().max() == 0
    agreed = held(best, regions, lost, best)
    assert agreed == (pytest.approx(1), 1, pytest.approx(1))
    assert held(-best, regions, lost, best)[:2] == (pytest.approx(-1), 0)


def held(maps, regions, lost, best):
    """Agreement of one map an image, over all images and parts."""
    whole = torch.ones_like(regions[:, :1])
    area = regions.double().mean((2, 3)).flatten()
    masses = [mass(m[:, None].double(), regions)[:, :, 0].flatten(0, 1) for m in (maps, best)]
    totals = [mass(m[:, None].double(), whole)[:, 0, 0].repeat_interleave(2, 0) for m in (maps, best)]
    most = share(masses[1], totals[1], lost.flatten(), area)
    return agreement(masses[0], totals[0], lost.flatten(), area, [0, 1] * len(lost), most)


def test_a_uniform_map_finds_nothing(rng):
    regions = torch.zeros(2, 2, 8, 8, dtype=torch.bool)
    regions[:, 0, :3, :3], regions[:, 1, 5:, 2:7] = True, True
    lost = torch.tensor([[3.0, 1.0], [0.5, 2.0]])
    best = perfect(regions, lost, (3, 3))
    assert held(torch.ones(2, 8, 8), regions, lost, best).found == pytest.approx(0)
    silent = held(torch.zeros(2, 8, 8), regions, lost, best)
    assert (silent.found, silent.sign) == (pytest.approx(0), 0)
    assert held(best, regions, lost, best).found == pytest.approx(1)


def test_rank_is_spearmans_within_a_part_and_knows_nothing_of_the_others_level(rng):
    masses, lost = torch.rand(2, 30, generator=rng).double()
    lost[::3] = 0  # ties
    one = agree(masses, lost, [7] * 30).rank
    assert one == pytest.approx(spearmanr(masses, lost).statistic, rel=1e-12)
    shifted = masses + 5 * (torch.arange(30) % 2)
    by_part = [spearmanr(masses[k::2], lost[k::2]).statistic for k in range(2)]
    spread = [np.var(lost[k::2].numpy().argsort().argsort()) for k in range(2)]
    found = agree(shifted, lost, [i % 2 for i in range(30)]).rank
    assert min(by_part) - 0.02 <= found <= max(by_part) + 0.02 and len(set(spread)) == 1
    assert found == pytest.approx(agree(masses, lost, [i % 2 for i in range(30)]).rank)


def agree(masses, lost, parts):
    n = len(lost)
    pairs = torch.stack([masses, torch.zeros(n)], 1)
    return agreement(pairs, pairs + 1, lost, torch.full((n,), 0.1), parts, torch.ones(n))


def test_without_an_effect_there_is_nothing_to_agree_with():
    with pytest.raises(ValueError, match="no part has an effect"):
        agree(torch.ones(3), torch.zeros(3), [0, 0, 0])
