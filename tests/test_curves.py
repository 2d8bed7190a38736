"""Contrastive insertion and deletion, against a loop over single pixels' ranks and against Quantus' pixel flipping."""

import numpy as np
import pytest
import torch
from quantus import PixelFlipping
from torch import nn
from torch.nn import functional as F

from cxlib import networks
from cxlib.explainers import explain
from cxlib.metrics import area, insertion_deletion
from cxlib.metrics.baselines import BASELINES, Blur

SMALL = Blur(5, 1.5)


def pairs_of(network, images):
    leading = network(images).topk(2).indices
    return leading, leading.flip(1)


def slow_curves(network, images, maps, targets, others, baseline, steps, blur):
    """One target an image; maps (B, H, W): a changed image at a time, pixel by pixel in Python's stable order."""
    curves = torch.zeros(2, len(images), steps + 1, dtype=torch.float64)
    for i, image in enumerate(images):
        order = sorted(range(maps[i].numel()), key=lambda pixel: -maps[i].flatten()[pixel].item())
        for step in range(steps + 1):
            moved = torch.zeros(maps[i].numel(), dtype=torch.bool)
            moved[order[: round(step / steps * len(order))]] = True
            for goes, shown in enumerate((moved, ~moved)):
                shown = shown.view(maps[i].shape)
                fill = BASELINES[baseline](image[None], torch.zeros(3, 1, 1), blur)
                changed = torch.where(shown, image, fill(torch.tensor([0]), ~shown[None])[0])
                y = network(changed[None])[0]
                curves[goes, i, step] = y[targets[i]] - y[others[i]]
    return curves


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("baseline", BASELINES)
def test_curves_are_those_of_a_loop(flat, images, baseline, chunk):
    targets, others = pairs_of(flat, images)
    maps = explain(flat, images, targets, "linear_approximation", ["original", "weighted"], "features.4")
    found = insertion_deletion(flat, images, maps, targets, others, baseline, 4, chunk, SMALL)
    assert found.insertion.shape == found.deletion.shape == (2, 4, 2, 5)
    torch.testing.assert_close(found.shares, torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64))
    for c in range(2):
        for t in range(2):
            expected = slow_curves(flat, images, maps[c, :, t], targets[:, t], others[:, t], baseline, 4, SMALL)
            torch.testing.assert_close(torch.stack(found[1:])[:, c, :, t], expected, rtol=0, atol=1e-9)


def test_one_target_and_one_contrast_need_no_axes_of_their_own(flat, images):
    targets, others = pairs_of(flat, images)
    maps = explain(flat, images, targets, "gradcam", ["original", "max"], "features.4")
    every = insertion_deletion(flat, images, maps, targets, others, "zeros", 3)
    for c in range(2):
        of_contrast = insertion_deletion(flat, images, maps[c], targets, others, "zeros", 3)
        of_target = insertion_deletion(flat, images, maps[c, :, 0], targets[:, 0], others[:, 0], "zeros", 3)
        of_list = insertion_deletion(flat, images, maps[:, :, 0], targets[:, 0], others[:, 0], "zeros", 3)
        for name in ("insertion", "deletion"):
            whole = getattr(every, name)
            torch.testing.assert_close(getattr(of_contrast, name), whole[c])
            torch.testing.assert_close(getattr(of_target, name), whole[c, :, 0])
            torch.testing.assert_close(getattr(of_list, name), whole[:, :, 0])


def test_maps_of_a_layers_size_are_upsampled_as_explain_does(flat, images):
    targets, others = pairs_of(flat, images)
    small, large = (
        explain(flat, images, targets, "gradcam", "max", "features.4", upsample=upsample) for upsample in (False, True)
    )
    assert small.shape[-2:] == (8, 8)
    for a, b in zip(*(insertion_deletion(flat, images, maps, targets, others, "zeros") for maps in (small, large))):
        torch.testing.assert_close(a, b)


def test_deletion_is_quantus_pixel_flipping_of_two_classes(pooled):
    """Theirs gives one class' logit, and not the step at which nothing is changed; the network tells no mean: black."""
    network, generator = pooled.float(), torch.Generator().manual_seed(0)
    images, maps = torch.rand(4, 3, 24, 24, generator=generator), torch.randn(4, 24, 24, generator=generator)
    targets, others = (classes[:, 0] for classes in pairs_of(network, images))
    # Their own "black" is the image's darkest value.
    flip = PixelFlipping(3 * 64, normalise=False, perturb_baseline=0.0, disable_warnings=True)
    in_channels = maps[:, None].expand(-1, 3, -1, -1).numpy()
    t, other = (
        torch.tensor(flip(network, images.numpy(), classes.numpy(), in_channels, channel_first=True, softmax=False))
        for classes in (targets, others)
    )
    found = insertion_deletion(network, images, maps, targets, others, "zeros", steps=9).deletion
    torch.testing.assert_close(found[:, 1:], (t - other).double(), rtol=0, atol=1e-4)


def test_a_linear_networks_best_map_is_its_own_gradient_times_the_input():
    """y_0 - y_1 is a sum over pixels: no order inserts faster, and none deletes faster, than that of its summands."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3 * 64, generator=generator, dtype=torch.float64)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2, bias=False)).double().requires_grad_(False)
    network[1].weight.copy_(weight)
    images = torch.rand(5, 3, 8, 8, generator=generator, dtype=torch.float64)
    best = ((weight[0] - weight[1]).view(3, 8, 8) * images).sum(1)
    targets, others = torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.long)
    curves = insertion_deletion(network, images, best, targets, others, "zeros", steps=64)
    ordered = best.flatten(1).sort(descending=True).values
    expected = F.pad(ordered.cumsum(1), (1, 0))
    torch.testing.assert_close(curves.insertion, expected)
    torch.testing.assert_close(curves.deletion, expected[:, -1:] - expected)
    for seed in range(5):
        maps = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(seed))
        other = insertion_deletion(network, images, maps, targets, others, "zeros", steps=64)
        assert (area(other.insertion) < area(curves.insertion)).all()
        assert (area(other.deletion) > area(curves.deletion)).all()


def test_the_inverse_map_inserts_what_the_map_deletes(flat, images):
    targets, others = (classes[:, 0] for classes in pairs_of(flat, images))
    maps = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))
    found = insertion_deletion(flat, images, maps, targets, others, "zeros", steps=4)
    inverse = insertion_deletion(flat, images, -maps, targets, others, "zeros", steps=4)
    torch.testing.assert_close(found.deletion, inverse.insertion.flip(-1))
    swapped = insertion_deletion(flat, images, maps, others, targets, "zeros", steps=4)
    torch.testing.assert_close(swapped.insertion.sigmoid(), 1 - found.insertion.sigmoid())


def test_the_ends_are_evaluated_once_an_image_and_no_more_at_once_than_asked(flat, images):
    targets, others = pairs_of(flat, images)
    maps = explain(flat, images, targets, "gradcam", ["original", "max", "mean"], "features.4")
    sizes = []
    evaluated = networks.fast(flat)
    handle = evaluated.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    insertion_deletion(evaluated, images, maps, targets, others, "zeros", steps=5, chunk=7)
    handle.remove()
    assert sum(sizes) == 4 * (2 + 2 * 4 * 6)
    assert max(sizes) == 7


def test_one_step_is_the_two_ends(flat, images):
    targets, others = (classes[:, 0] for classes in pairs_of(flat, images))
    maps = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))
    found = insertion_deletion(flat, images, maps, targets, others, "zeros", steps=1)
    y = flat(images)
    torch.testing.assert_close(
        found.insertion[:, 1], (y.gather(1, targets[:, None]) - y.gather(1, others[:, None]))[:, 0]
    )
    torch.testing.assert_close(found.deletion, found.insertion.flip(-1))


def test_ones_own_baseline_is_taken(flat, images):
    targets, others = (classes[:, 0] for classes in pairs_of(flat, images))
    maps = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))
    white = insertion_deletion(
        flat, images, maps, targets, others, lambda images, _zero, _blur: lambda places, _: 0 * images[places] + 1
    )
    y = flat(torch.ones_like(images))
    torch.testing.assert_close(
        white.deletion[:, -1], (y.gather(1, targets[:, None]) - y.gather(1, others[:, None]))[:, 0]
    )


def test_the_area_is_numpys():
    curves = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = np.trapezoid(curves.numpy(), np.linspace(0, 1, 11), axis=-1)
    np.testing.assert_allclose(area(curves).numpy(), expected)
    assert area(torch.ones(5)).item() == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"maps": torch.zeros(4, 2, 16, 16)}, r"maps \(B, h, w\) need targets and others \(B,\)"),
        ({"maps": torch.zeros(3, 16, 16)}, r"maps \(B, h, w\) need targets and others \(B,\)"),
        ({"maps": torch.zeros(2, 2, 4, 16, 16)}, r"maps \(B, h, w\) need targets and others \(B,\)"),
        ({"others": torch.zeros(4, 1).long()}, r"maps \(B, h, w\) need targets and others \(B,\)"),
        ({"targets": torch.tensor(0), "others": torch.tensor(1)}, r"maps \(B, h, w\) need targets and others \(B,\)"),
        ({"maps": torch.full((4, 16, 16), torch.inf)}, "maps must be finite"),
        ({"baseline": "noise"}, "unknown baseline 'noise'.*noisy_linear"),
        ({"steps": 0}, "one step and one image at once"),
        ({"chunk": 0}, "one step and one image at once"),
        ({"others": torch.full((4,), 6)}, "6"),
        ({"blur": Blur(4, 1.0), "baseline": "gaussian_blur"}, "blur kernel must be odd"),
    ],
)
def test_what_does_not_fit_is_named(flat, images, targets, wrong, message):
    asked = {"maps": torch.zeros(4, 16, 16), "targets": targets, "others": targets, "baseline": "zeros"} | wrong
    with pytest.raises(ValueError, match=message):
        insertion_deletion(flat, images, **asked)
