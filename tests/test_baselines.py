"""Linear imputation against the authors' own direct solve, and as a baseline of masks."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, neighbors_weights
from quantus.functions.perturb_func import noisy_linear_imputation
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import spsolve
from torch.nn import functional as F

from cxlib.explainers import explain
from cxlib.metrics import linear_imputation
from cxlib.metrics.baselines import BASELINES, Blur
from cxlib.metrics.masking import kept_pixels, mask_maps

ZERO, SMALL = torch.zeros(3, 1, 1), Blur(5, 1.5)


def direct(image, hidden):
    """One image (C, H, W) and mask (H, W): ROAD's published equations, solved in float64."""
    equations, right = NoisyLinearImputer.setup_sparse_system(
        (~hidden).numpy().astype(float), image.double().numpy(), neighbors_weights
    )
    filled = image.double().clone()
    filled[:, hidden] = torch.from_numpy(spsolve(csc_matrix(equations), right).reshape(-1, len(image)).T.copy())
    return filled


def hidden_by(scale, size, shares):
    """Masks (len(shares), H, W) that hide the lowest pixels of a random map, the smoother the larger its scale."""
    coarse = torch.randn(1, 1, *(max(2, side // scale) for side in size), generator=torch.Generator().manual_seed(1))
    order = F.interpolate(coarse, size, mode="bilinear", align_corners=True).flatten().argsort()
    masks = torch.zeros(len(shares), order.numel(), dtype=torch.bool)
    for mask, share in zip(masks, shares):
        mask[order[: min(round(share * len(order)), len(order) - 1)]] = True
    return masks.view(-1, *size)


def textured(n, size, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    smooth = F.interpolate(torch.rand(n, 3, 4, 4, generator=generator), size, mode="bilinear", align_corners=True)
    return (0.7 * smooth + 0.3 * torch.rand(n, 3, *size, generator=generator)).to(dtype)


SHARES = [0.02, 0.3, 0.5, 0.8, 0.97]


@pytest.mark.parametrize("scale", [1, 8, 32])
@pytest.mark.parametrize("size", [(64, 64), (47, 96), (5, 33), (7, 2)])
def test_the_imputation_is_the_authors_direct_solve(size, scale):
    images, hidden = textured(len(SHARES), size), hidden_by(scale, size, SHARES)
    found = linear_imputation(images, hidden)
    assert found.dtype == torch.float32
    for image, mask, filled in zip(images, hidden, found):
        torch.testing.assert_close(filled.double(), direct(image, mask), rtol=0, atol=1e-3)  # a tenth of the noise
        assert torch.equal(filled[:, ~mask], image[:, ~mask])


def test_a_smaller_tolerance_is_kept_in_float64():
    images, hidden = textured(5, (40, 56), torch.float64), hidden_by(16, (40, 56), SHARES)
    found = linear_imputation(images, hidden, tolerance=1e-9)
    for image, mask, filled in zip(images, hidden, found):
        torch.testing.assert_close(filled, direct(image, mask), rtol=0, atol=1e-8)


def test_the_imputation_is_quantus():
    (image,), (mask,) = textured(1, (24, 24)), hidden_by(4, (24, 24), [0.6])
    theirs = noisy_linear_imputation(image.numpy(), np.flatnonzero(mask.numpy()), noise=0)
    torch.testing.assert_close(
        linear_imputation(image[None], mask[None])[0], torch.from_numpy(theirs), rtol=0, atol=1e-3
    )


def test_a_batch_is_imputed_as_single_images_are_bit_by_bit():
    images, hidden = textured(5, (48, 48)), hidden_by(8, (48, 48), SHARES)
    alone = [linear_imputation(image[None], mask[None]) for image, mask in zip(images, hidden)]
    assert torch.equal(linear_imputation(images, hidden), torch.cat(alone))


def test_where_nothing_is_seen_all_is_the_mean_colour_and_where_all_is_seen_nothing_changes():
    images = textured(2, (21, 30))
    hidden = torch.stack([torch.ones(21, 30), torch.zeros(21, 30)]).bool()
    nothing, everything = linear_imputation(images, hidden)
    torch.testing.assert_close(nothing, images[0].mean((-2, -1), keepdim=True).expand_as(nothing))
    assert torch.equal(everything, images[1])


def test_a_ramp_that_is_seen_at_its_ends_is_continued_between_them():
    ramp = torch.linspace(0, 1, 20, dtype=torch.float64).expand(1, 1, 12, 20)
    hidden = torch.zeros(1, 12, 20, dtype=torch.bool)
    hidden[..., 1:-1] = True
    torch.testing.assert_close(linear_imputation(ramp * ~hidden, hidden, tolerance=1e-10), ramp, rtol=0, atol=1e-9)


def test_the_noise_is_the_published_one_and_the_same_for_every_image_and_mask():
    images, hidden = textured(2, (64, 64)), hidden_by(8, (64, 64), [0.5, 0.8])
    places = torch.tensor([1, 0])
    fill = BASELINES["noisy_linear"](images, ZERO, SMALL)
    noise = fill(places, hidden) - linear_imputation(images[places], hidden)
    torch.testing.assert_close(noise[0], noise[1], rtol=0, atol=1e-6)
    assert noise[0].std().item() == pytest.approx(0.01, rel=0.03)
    assert torch.equal(fill(places, hidden), BASELINES["noisy_linear"](images, ZERO, SMALL)(places, hidden))
    other = BASELINES["noisy_linear"](images, ZERO, SMALL, seed=1)(places, hidden)
    assert not torch.allclose(other, fill(places, hidden), atol=1e-3)


@pytest.mark.parametrize("chunk", [5, 1000])
def test_masks_are_filled_each_on_its_own_beside_other_baselines(flat, images, chunk):
    leading = flat(images).topk(2).indices
    maps = explain(flat, images, leading, "gradcam", ["original", "weighted"], "features.4").movedim(0, 2)[:, None]
    baselines, rules = ["zeros", "noisy_linear"], ["equal_kept", "area_30"]
    found, _ = mask_maps(flat, images, maps, leading, (0, 1), baselines, rules, SMALL, chunk)
    noise = 0.01 * torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    n_compared = 0
    for i, image in enumerate(images):
        for t in range(2):
            kept = kept_pixels(maps[i, 0, t][None], (0, 1), rules)[0]  # (features, contrasts, rules, H, W)
            for place in np.ndindex(*kept.shape[:3]):
                if not kept[place].any():  # the authors' equations have no solution
                    continue
                masked = torch.where(kept[place], image, direct(image, ~kept[place]) + noise)
                y = flat(masked[None])[0][leading[i]]
                expected = (y[t] - y[1 - t]).sigmoid().item()
                assert found[(i, 0, t, 1, *place)].item() == pytest.approx(expected, abs=2e-3)
                n_compared += 1
    assert n_compared > 40
