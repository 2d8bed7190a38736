"""What the report's explorer shows: small maps in 8 bits, and the network's answers behind their best pixels."""

import numpy as np
import pytest
import torch

import cxlib
from cxlib.metrics.baselines import Blur, fills
from cxlib.review import exploration

SHARES, BLUR = (0.0, 0.2, 0.45, 1.0), Blur(5, 1.0)
EXPLAINERS, CONTRASTS = ("gradcam", "fullgrad"), ("original", "weighted")


@pytest.fixture
def classes():
    return torch.tensor([[2, 0, 4], [0, 1, 2], [5, 3, 1], [3, 2, 5]])


@pytest.fixture
def explored(flat, images, classes):
    return exploration.explore(flat, images, classes, EXPLAINERS, CONTRASTS, flat.features[4], SHARES, BLUR, chunk=7)


def test_maps_are_those_of_explain_at_the_layers_own_resolution_in_8_bits(explored, flat, images, classes):
    for name, maps in zip(EXPLAINERS, explored.maps):
        own = cxlib.explain(flat, images, classes, name, list(CONTRASTS), flat.features[4], upsample=False)
        own = own.transpose(0, 1)
        largest = own.abs().amax((-2, -1), keepdim=True)
        assert maps.dtype == torch.int8
        assert maps.shape == own.shape
        torch.testing.assert_close(maps * largest / 127, own, rtol=0, atol=largest.max().item() / 127)
        assert (maps.abs().amax((-2, -1)) == 127).all()


def test_fine_maps_are_averaged_and_a_map_of_zeros_stays_one():
    fine = torch.arange(64.0 * 64).view(1, 64, 64) - 2000
    means = fine.view(32, 2, 32, 2).mean((1, 3))
    assert exploration.compact(fine)[0].tolist() == (127 * means / means.abs().max()).round().tolist()
    assert exploration.compact(torch.zeros(2, 3, 4)).tolist() == torch.zeros(2, 3, 4).tolist()


def test_without_pixels_all_is_blurred_and_with_all_the_image_is_whole(explored, flat, images, classes):
    blurred = fills(flat, images, ["gaussian_blur"], BLUR)[0](torch.arange(4), torch.ones(4, 16, 16, dtype=torch.bool))
    for end, share, x in ((0, 0, blurred), (1, -1, images)):
        logits = flat(x).gather(1, classes).float()
        torch.testing.assert_close(explored.ends[:, end], logits)
        here = explored.behind[:, :, :, :, share]
        torch.testing.assert_close(here, logits[:, None, None, None].expand_as(here))
        shown = (255 * x).round().to(torch.uint8).movedim(1, -1)
        assert (explored.pictures[:, 1 - end] == shown).all()


def test_the_pixels_that_stay_are_the_highest_of_the_map_as_the_page_has_it(explored, flat, images, classes):
    """Once more by numpy, pixel by pixel, from the 8-bit map alone: as the page does it."""
    blurred = fills(flat, images, ["gaussian_blur"], BLUR)[0](torch.arange(4), torch.ones(4, 16, 16, dtype=torch.bool))
    where = np.arange(16) * (7 / 15)  # of the pixels on a map of 8 x 8, corners to corners
    low = np.minimum(where.astype(int), 6)
    line = np.zeros((16, 8))
    line[np.arange(16), low], line[np.arange(16), low + 1] = 1 - (where - low), where - low
    for image, contrast, target, share in ((0, 0, 0, 1), (1, 1, 2, 2), (3, 1, 1, 1)):
        fine = line @ explored.maps[0][image, contrast, target].double().numpy() @ line.T
        kept = np.zeros(256, bool)
        kept[np.argsort(fine.ravel(), kind="stable")[256 - round(SHARES[share] * 256) :]] = True
        seen = torch.where(torch.from_numpy(kept.reshape(16, 16)), images[image], blurred[image])
        expected = flat(seen[None])[0, classes[image]].float()
        torch.testing.assert_close(explored.behind[image, 0, contrast, target, share], expected)


def test_a_batch_gives_what_single_images_give(explored, flat, images, classes):
    for place in range(4):
        one = slice(place, place + 1)
        alone = exploration.explore(
            flat, images[one], classes[one], EXPLAINERS, CONTRASTS, flat.features[4], SHARES, BLUR, chunk=100
        )
        torch.testing.assert_close(alone.behind[0], explored.behind[place])
        assert (alone.pictures[0] == explored.pictures[place]).all()
