"""Input x gradient, integrated gradients and SmoothGrad agree with captum and their formulas, and add up."""

from functools import partial

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from conftest import N_CLASSES
from test_explainers import assert_same
from torch import nn

from cxlib import networks
from cxlib.contrasts import CONTRASTS, cotangent
from cxlib.explainers import explain
from cxlib.explainers.inputs import integrated_gradients, smoothgrad

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")


class Fixed(nn.Module):
    """<c, y(x)>, one fixed linear function of the logits for each image: what is explained, as captum takes it."""

    def __init__(self, network, vectors):
        super().__init__()
        self.network, self.vectors = network, vectors

    def forward(self, batch, index):
        return (self.network(batch) * self.vectors[index]).sum(-1)


def fixed(network, images, targets, contrast):
    return Fixed(network, cotangent(contrast, network(images), targets)), (torch.arange(len(images)),)


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_captum_has_the_same_input_x_gradient(network, images, targets, contrast):
    score, index = fixed(network, images, targets, contrast)
    expected = InputXGradient(score).attribute(images, additional_forward_args=index).sum(1).detach()
    torch.testing.assert_close(explain(network, images, targets, "input_x_gradient", contrast), expected)


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("baseline", [None, 0.25])
def test_captum_has_the_same_integrated_gradients(network, images, targets, contrast, baseline):
    score, index = fixed(network, images, targets, contrast)
    expected = IntegratedGradients(score).attribute(images, baseline or 0, None, index, n_steps=50).sum(1).detach()
    maps = explain(network, images, targets, partial(integrated_gradients, baseline=baseline), contrast)
    assert_same(maps, expected, 1e-6)  # captum rounds the steps' weights to float32


@pytest.mark.parametrize("explainer", ["input_x_gradient", "integrated_gradients"])
def test_a_network_that_normalises_inside_is_explained_as_its_inner_one(network, images, targets, explainer):
    """Nothing at the input is the colour that the first layer sees as zero, not black."""
    wrapped = networks.Network("tiny", network, {}).double()
    expected = explain(network, (images - wrapped.mean) / wrapped.std, targets, explainer)
    torch.testing.assert_close(explain(wrapped, images, targets, explainer), expected, rtol=1e-9, atol=1e-12)


class Smooth(nn.Module):
    """No kinks, so that the integral of a few steps is exact."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.into = torch.randn(768, 9, generator=generator, dtype=torch.float64) / 60
        self.out = torch.randn(9, N_CLASSES, generator=generator, dtype=torch.float64)

    def forward(self, images):
        return (images.flatten(1) @ self.into).tanh() @ self.out


def gap(network, images, targets, contrast, steps, baseline):
    """What the maps' sums lack of the scores' differences, as a share of the largest."""
    maps = explain(network, images, targets, partial(integrated_gradients, steps=steps, baseline=baseline), contrast)
    vectors = cotangent(contrast, network(images), targets)
    difference = ((network(images) - network(torch.full_like(images, baseline))) * vectors).sum(-1)
    return float((maps.sum((1, 2)) - difference).abs().max() / difference.abs().max())


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("baseline", [0.0, 0.6])
def test_integrated_gradients_are_complete(images, targets, flat, contrast, baseline):
    assert gap(Smooth(), images, targets, contrast, 30, baseline) < 1e-10
    few, many = (gap(flat, images, targets, contrast, steps, baseline) for steps in (4, 256))
    assert many < 0.005
    assert many < few / 3  # at the kinks of ReLU the steps miss something


@pytest.mark.parametrize("explainer", [integrated_gradients, smoothgrad])
def test_the_chunk_bounds_the_images_of_a_pass_and_changes_no_map(flat, images, targets, explainer):
    seen = []
    flat.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    expected = explain(flat, images, targets, partial(explainer, chunk=1000), ["max", "mean"])
    for chunk, largest in ((9, 8), (1, 4)):
        seen.clear()
        maps = explain(flat, images, targets, partial(explainer, chunk=chunk), ["max", "mean"])
        assert max(seen) == largest
        assert sum(seen) == 4 + 4 * 50  # one pass for the logits; targets and contrasts share all others
        torch.testing.assert_close(maps, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "explainer", [partial(integrated_gradients, steps=3, spanned=True), partial(smoothgrad, samples=3, spanned=True)]
)
@pytest.mark.parametrize("scale", [1, 40])
def test_contrasts_of_targets_may_share_the_backward_passes_of_what_they_span(flat, images, scale, explainer):
    """Ten cotangents of the most and the least probable class: e_t of both and of the rival, the softmax, the ones."""
    flat.head.weight *= scale  # probabilities down to 1e-70
    leading = flat(images).topk(6).indices[:, [0, 5]]
    n_passes = []
    flat.head.register_full_backward_hook(lambda *_: n_passes.append(1))
    names = ["original", "mean", "max", "weighted", "probability"]
    maps = explain(flat, images, leading, explainer, names)
    assert 4 <= len(n_passes) <= 5  # behind large logits the softmax is the rival
    for name, several in zip(names, maps):
        for rank in (0, 1):
            alone = explain(flat, images, leading[:, rank], partial(explainer, spanned=False), name)
            scales = alone.abs().amax((1, 2), keepdim=True)
            assert (scales > 0).all()
            assert ((several[:, rank] - alone).abs() / scales).max() < 1e-9


@pytest.mark.parametrize("contrast", ["original", "weighted", "probability"])
def test_smoothgrad_is_its_formula_a_copy_at_a_time_with_the_clean_images_contrast(network, images, targets, contrast):
    score, _ = fixed(network, images, targets, contrast)
    generator, expected = torch.Generator().manual_seed(4), torch.zeros(4, 16, 16, dtype=torch.float64)
    sigma = [0.1 * float(image.max() - image.min()) for image in images]
    for _ in range(7):
        drawn = torch.randn(3, 16, 16, generator=generator)
        for i, image in enumerate(images):
            noisy = (image + sigma[i] * drawn).requires_grad_()
            expected[i] += torch.autograd.grad(score(noisy[None], [i]).sum(), noisy)[0].sum(0) / 7
    maps = explain(network, images, targets, partial(smoothgrad, samples=7, noise=0.1, seed=4), contrast)
    torch.testing.assert_close(maps, expected, rtol=1e-6, atol=1e-9)  # the share is one of float64 there, here too


def test_captums_noise_tunnel_tends_to_the_same_map(flat, images, targets):
    score, index = fixed(flat, images, targets, "weighted")
    sigma = 0.15 * float(images[0].max() - images[0].min())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = NoiseTunnel(Saliency(score)).attribute(
            images[:1], nt_samples=1500, stdevs=sigma, abs=False, additional_forward_args=(index[0][:1],)
        )
    ours = explain(flat, images[:1], targets[:1], partial(smoothgrad, samples=1500), "weighted")
    plain = explain(flat, images[:1], targets[:1], "gradient", "weighted")

    def away(maps):
        return float((maps - theirs.sum(1)).norm() / theirs.sum(1).norm())

    assert away(ours) < 0.05 < 0.3 < away(plain)


def test_noise_depends_on_its_seed_alone(flat, images, targets):
    first = explain(flat, images, targets, "smoothgrad")
    torch.manual_seed(8)
    assert torch.equal(explain(flat, images, targets, "smoothgrad"), first)
    assert not torch.allclose(explain(flat, images, targets, partial(smoothgrad, seed=1)), first)
    quiet = explain(flat, images, targets, partial(smoothgrad, noise=0.0, samples=2))
    torch.testing.assert_close(quiet, explain(flat, images, targets, "gradient"))


def test_an_explainer_of_ones_own_is_taken_as_the_named_ones_are(flat, images, targets):
    def brightness(_network, pictures, cotangents, _layer, _relu):
        return pictures.mean(1)[:, None] * cotangents(flat(pictures))[..., :1, None]

    maps = explain(flat, images, targets, brightness, ["max", "original"])
    vectors = cotangent("max", flat(images), targets)
    torch.testing.assert_close(maps[0], images.mean(1) * vectors[:, :1, None])
    assert maps.shape == (2, 4, 16, 16)
    for wrong in (lambda *given: brightness(*given)[:, 0], lambda *_given: torch.zeros(4, 1, 2, 2)):
        with pytest.raises(ValueError, match=r"returns maps \(B, M, h, w\), not maps of shape \(4, "):
            explain(flat, images, targets, wrong)


@pytest.mark.parametrize(
    ("explainer", "message"),
    [
        (partial(integrated_gradients, steps=0), "at least one step is needed, got 0"),
        (partial(smoothgrad, samples=-1), "at least one sample is needed, got -1"),
        (partial(smoothgrad, noise=-0.1), "noise must be finite and >= 0, got -0.1"),
        (partial(smoothgrad, noise=np.nan), "noise must be finite and >= 0, got nan"),
    ],
)
def test_wrong_options_are_one_line(flat, images, targets, explainer, message):
    with pytest.raises(ValueError, match=message):
        explain(flat, images, targets, explainer)
