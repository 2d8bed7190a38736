"""Gradient-sign perturbation is Eq. 5 and 6, for every setting; it survives saturation only if weighted."""

import pytest
import torch
from test_contrasts import OBJECTIVES
from test_folding import ready_to_train, state
from torch import nn

from cxlib.contrasts import CONTRASTS
from cxlib.review.perturbation import PASS, Changes, bounds, dose, measure, perturbation_grid, sign_perturb, step

EPSILONS, N_ITERATIONS = (3e-3, 3e-2), (1, 2, 10)


def slow_perturb(network, images, targets, contrast, epsilon, n_iterations):
    """Eq. 5 and 6, an image, a step and a backward pass at a time."""
    results = []
    for x0, t in zip(images, targets):
        x = x0.clone()
        for _ in range(n_iterations):
            leaf = x.clone().requires_grad_()
            loss = OBJECTIVES[contrast](network(leaf[None])[0], int(t))
            loss.backward()
            x = x + epsilon / n_iterations * leaf.grad.sign()
            x = torch.maximum(x, (x0 - epsilon).clamp(min=0))
            x = torch.minimum(x, (x0 + epsilon).clamp(max=1))
        results.append(x)
    return torch.stack(results)


def slow_measure(network, images, targets):
    """Accuracy, p_t and y_t, an image at a time."""
    rows = []
    for x, t in zip(images, targets):
        y = network(x[None])[0]
        rows.append((float(y.max() == y[t]), (y.exp() / y.exp().sum())[t].item(), y[t].item()))
    return torch.tensor(rows, dtype=torch.float64).T


@pytest.mark.parametrize("n_iterations", N_ITERATIONS)
@pytest.mark.parametrize("contrast", OBJECTIVES)
def test_perturbation_follows_equations_5_and_6_literally(network, images, targets, contrast, n_iterations):
    actual = sign_perturb(network, images, targets, contrast, 3e-2, n_iterations)
    expected = slow_perturb(network, images, targets, contrast, 3e-2, n_iterations)
    assert actual.shape == images.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [1e-3, 0.7])
@pytest.mark.parametrize("contrast", CONTRASTS)
def test_perturbed_images_stay_images_and_within_epsilon_of_the_first(
    network, images, targets, contrast, epsilon, dtype
):
    images = images.to(dtype)
    x = sign_perturb(network.to(dtype), images, targets, contrast, epsilon, 10)
    assert x.dtype == dtype
    assert (x >= (images - epsilon).clamp(min=0)).all()
    assert (x <= (images + epsilon).clamp(max=1)).all()
    assert (x != images).any()


def test_the_clamp_is_around_the_first_image_and_the_range_of_colours():
    first = torch.tensor([0.5, 0.5, 0.5, 0.02, 0.98])
    moved = torch.tensor([0.6, 0.58, 0.5, 0.0, 1.0])
    direction = torch.tensor([1.0, 1.0, -7.0, -1.0, 1.0])
    # Around the previous iterate, the first two pixels would end at 0.7 and 0.68.
    expected = torch.tensor([0.6, 0.6, 0.4, 0.0, 1.0])
    torch.testing.assert_close(step(moved, direction, 0.1, bounds(first, 0.1)), expected)


class Affine(nn.Module):
    """Two classes; the first one's logit is a fixed linear function of the image."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, images):
        y = (images * self.weight).sum((-3, -2, -1))
        return torch.stack([y, torch.zeros_like(y)], -1)


@pytest.mark.parametrize("n_iterations", N_ITERATIONS)
@pytest.mark.parametrize("contrast", CONTRASTS)
def test_n_steps_of_epsilon_over_n_go_all_the_way_where_the_gradient_is_constant(contrast, n_iterations):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    images = 0.2 + 0.6 * torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    for t, sign in ((0, 1), (1, -1)):
        if contrast == "original" and t == 1:  # class 1's logit is constant: nothing to follow
            continue
        x = sign_perturb(Affine(weight), images, torch.tensor([t, t]), contrast, 0.01, n_iterations)
        torch.testing.assert_close(x, images + sign * 0.01 * weight.sign(), rtol=0, atol=1e-15)


class Hill(nn.Module):
    """The first class's logit is highest where every pixel is `top`; the gradient points there."""

    def __init__(self, top):
        super().__init__()
        self.top = top

    def forward(self, images):
        y = -(images - self.top).square().sum((-3, -2, -1))
        return torch.stack([y, torch.zeros_like(y)], -1)


@pytest.mark.parametrize(("n_iterations", "end"), [(1, 0.6), (2, 0.5), (3, 0.5 + 0.1 / 3), (4, 0.55), (10, 0.54)])
def test_every_step_takes_its_gradient_anew(n_iterations, end):
    """The top lies at 0.35 epsilon: a step past it is followed by a step back (Eq. 5)."""
    images = torch.full((1, 3, 2, 2), 0.5, dtype=torch.float64)
    x = sign_perturb(Hill(0.535), images, torch.tensor([0]), "original", 0.1, n_iterations)
    torch.testing.assert_close(x, torch.full_like(x, end), rtol=0, atol=1e-12)


@pytest.mark.parametrize("contrast", OBJECTIVES)
def test_the_grid_is_every_setting_done_slowly(network, images, targets, contrast):
    targets = network(images).argmax(-1)
    targets[2:] = (targets[2:] + 1) % 6  # right twice, wrong twice
    grid = perturbation_grid(network, images, targets, [contrast], EPSILONS, N_ITERATIONS)
    assert set(grid) == {(contrast, epsilon, n) for epsilon in EPSILONS for n in N_ITERATIONS}
    before = slow_measure(network, images, targets)
    assert before[0].tolist() == [1, 1, 0, 0]
    for (_, epsilon, n), changes in grid.items():
        x = slow_perturb(network, images, targets, contrast, epsilon, n)
        accuracy, p_t, y_t = slow_measure(network, x, targets) - before
        assert torch.equal(changes.accuracy, accuracy)
        torch.testing.assert_close(changes.p_t, p_t, rtol=0, atol=1e-6)
        torch.testing.assert_close(changes.y_t, y_t, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_images", [1, 4, PASS])
def test_the_grid_shares_work_and_not_results(network, n_images):
    """Every cell is what `sign_perturb` and two evaluations give on their own, whether settings share passes or not."""
    generator = torch.Generator().manual_seed(8)
    images = torch.rand(n_images, 3, 16, 16, generator=generator, dtype=torch.float64)
    targets = torch.randint(6, (n_images,), generator=generator)
    grid = perturbation_grid(network, images, targets, list(CONTRASTS), EPSILONS, N_ITERATIONS)
    assert list(grid) == [(c, e, n) for c in CONTRASTS for e in EPSILONS for n in N_ITERATIONS]
    before = measure(network(images), targets)
    for (contrast, epsilon, n), changes in grid.items():
        after = measure(network(sign_perturb(network, images, targets, contrast, epsilon, n)), targets)
        for name in Changes._fields:
            expected = getattr(after, name) - getattr(before, name)
            torch.testing.assert_close(getattr(changes, name), expected, rtol=0, atol=1e-11)


def test_a_plain_network_in_training_gets_the_fast_path_and_is_what_it_was(network, images, targets):
    """Batch norms are folded and weights laid out anew in a copy; the literal result is that of the network itself."""
    literal = {
        (contrast, n): measure(network(sign_perturb(network, images, targets, contrast, 3e-2, n)), targets)
        for contrast in ("original", "weighted")
        for n in (1, 2)
    }
    before = measure(network(images), targets)
    ready_to_train(network)
    was = state(network)
    grid = perturbation_grid(network, images, targets, ["original", "weighted"], [3e-2], [1, 2])
    assert state(network) == was
    for (contrast, _, n), changes in grid.items():
        for value, after, start in zip(changes, literal[contrast, n], before):
            torch.testing.assert_close(value, after - start, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_changes_are_one_float64_number_an_image(network, images, targets, dtype):
    grid = perturbation_grid(network.to(dtype), images.to(dtype), targets, ["max"], [1e-3], [2])
    for values in grid["max", 1e-3, 2]:
        assert values.shape == (4,)
        assert values.dtype == torch.float64
        assert not values.requires_grad


def test_measure_is_accuracy_probability_and_logit():
    logits = torch.tensor([[1.0, 3.0, 1.0], [0.0, 0.0, 2.0]])
    accuracy, p_t, y_t = measure(logits, torch.tensor([1, 0]))
    assert accuracy.tolist() == [1, 0]
    assert y_t.tolist() == [3, 0]
    e = torch.tensor(2.0, dtype=torch.float64).exp().item()
    assert p_t.tolist() == pytest.approx([e / (e + 2), 1 / (e + 2)], abs=1e-14)


def test_a_head_of_one_logit_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"two logits or more: give a sigmoid's y the logits \(0, y\)"):
        measure(torch.zeros(3, 1), torch.tensor([0, 1, 0]))


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 1), (1, 3)])
def test_uneven_batches_give_the_numbers_of_the_images_whatever_batch_they_are_in(network, images, targets, sizes):
    """So a mean over images does not depend on how they are batched; a mean of the batches' means would."""
    contrasts = list(CONTRASTS)
    whole = perturbation_grid(network, images, targets, contrasts, EPSILONS, N_ITERATIONS)
    parts = [
        perturbation_grid(network, x, t, contrasts, EPSILONS, N_ITERATIONS)
        for x, t in zip(images.split(sizes), targets.split(sizes))
    ]
    for setting, changes in whole.items():
        for q, name in enumerate(Changes._fields):
            together = torch.cat([part[setting][q] for part in parts])
            torch.testing.assert_close(together, changes[q], rtol=0, atol=1e-10, msg=f"{setting} {name}")
    if len(set(sizes)) > 1:
        of_batches = torch.stack([part["weighted", 3e-2, 1].y_t.mean() for part in parts]).mean()
        assert (of_batches - whole["weighted", 3e-2, 1].y_t.mean()).abs() > 1e-3


class LeftHalf(nn.Module):
    """A network that does not look at the right half of the image."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(torch.cat([images[..., :8], torch.full_like(images[..., 8:], 0.5)], -1))


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_pixels_without_gradient_stay_and_the_observer_can_count_them(flat, images, targets, contrast):
    network, seen = LeftHalf(flat), []
    x = sign_perturb(network, images, targets, contrast, 0.01, 2)
    assert torch.equal(x[..., 8:], images[..., 8:])
    assert (x[..., :8] != images[..., :8]).any()

    def observe(*arguments):
        seen.append(arguments)

    perturbation_grid(network, images, targets, [contrast], EPSILONS, N_ITERATIONS, observe)
    expected = [(contrast, epsilon, n) for epsilon in EPSILONS for n in N_ITERATIONS for _ in range(n)]
    assert sorted(tuple(setting) for *setting, _ in seen) == sorted(expected)
    for *_, gradient in seen:
        assert gradient.shape == images.shape
        assert not gradient[..., 8:].any()
        assert (gradient[..., :8] == 0).double().mean() < 0.5


def test_the_observer_sees_the_gradient_at_each_iterate(flat, images, targets):
    seen = []
    perturbation_grid(flat, images, targets, ["weighted"], [0.02], [3], lambda *a: seen.append(a[-1]))
    x = images
    for gradient in seen:
        leaf = x.clone().requires_grad_()
        sum(OBJECTIVES["weighted"](y, int(t)) for y, t in zip(flat(leaf), targets)).backward()
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-9, atol=1e-12)
        x = step(x, leaf.grad, 0.02 / 3, bounds(images, 0.02))
    assert len(seen) == 3


class Sure(nn.Module):
    """A network made sure of itself: its logits, in float32, many times as large."""

    def __init__(self, inner, factor):
        super().__init__()
        self.inner, self.factor = inner.float(), factor

    def forward(self, images):
        return self.factor * self.inner(images)


def gain(network, images, targets, contrast, n_iterations=2):
    return perturbation_grid(network, images, targets, [contrast], [0.01], [n_iterations])[contrast, 0.01, n_iterations]


@pytest.mark.parametrize("n_iterations", N_ITERATIONS)
def test_the_literal_softmax_gradient_gains_less_logit_where_p_t_rounds_to_one(flat, images, n_iterations):
    """Dominating classes, section 4.3: float32 loses the target's own coefficient, and with it the direction."""
    images, sure = images[:2].float(), Sure(flat, 20)  # float64 has its own limit, a lead of 36: the others pass it
    targets = sure(images).argmax(-1)
    p = sure(images).softmax(-1)
    assert (p.amax(-1) == 1).all() and ((p > 0).sum(-1) > 1).all(), "the case that the test is about"
    literal, weighted = (gain(sure, images, targets, c, n_iterations).y_t for c in ("probability", "weighted"))
    assert (literal < 0.5 * weighted).all()
    # It is the arithmetic: in float64 both take the same steps.
    exact = gain(sure.double(), images.double(), targets, "probability", n_iterations).y_t
    torch.testing.assert_close(exact, weighted, rtol=1e-2, atol=0)


def test_the_literal_softmax_gradient_stands_still_where_p_t_rounds_to_zero(flat, images):
    images = images.float()
    sure = Sure(flat, 100)
    targets = sure(images).argmin(-1)
    assert not sure(images).softmax(-1).gather(-1, targets[:, None]).any(), "the case that the test is about"
    literal, weighted = (gain(sure, images, targets, c) for c in ("probability", "weighted"))
    assert not any(change.any() for change in literal)
    assert torch.equal(sign_perturb(sure, images, targets, "probability", 0.01, 2), images)
    assert (weighted.y_t > 0).all()


def test_the_literal_softmax_gradient_stands_still_where_every_other_p_rounds_to_zero(flat, images):
    images = images.float()
    sure = Sure(flat, 1000)
    targets = sure(images).argmax(-1)
    assert ((sure(images).softmax(-1) > 0).sum(-1) == 1).all(), "the case that the test is about"
    assert torch.equal(sign_perturb(sure, images, targets, "probability", 0.01, 2), images)
    assert (gain(sure, images, targets, "weighted").y_t > 0).all()


def both(network, images, targets, contrast="weighted", epsilon=1e-3, n_iterations=1):
    return (
        lambda: sign_perturb(network, images, targets, contrast, epsilon, n_iterations),
        lambda: perturbation_grid(network, images, targets, [contrast], [epsilon], [n_iterations]),
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be finite and > 0"),
        ({"epsilon": -1e-3}, "epsilon must be finite and > 0"),
        *(({"n_iterations": n}, f"a whole number >= 1, got {n}") for n in (0, 2.5, True)),
        ({"contrast": "wieghted"}, "unknown contrast 'wieghted': choose from original"),
        ({"targets": torch.tensor([0, 1, 2, 6])}, r"in \[0, 6\)"),
        ({"targets": torch.tensor([0, 1, 2])}, "targets must"),
        ({"targets": torch.zeros(4)}, "targets must be class indices"),
        ({"targets": torch.zeros(4, 1, dtype=torch.long)}, "targets must"),
        ({"targets": torch.zeros(4, 4, dtype=torch.long)}, "targets must"),
    ],
)
def test_wrong_arguments_are_refused(flat, images, targets, wrong, message):
    for call in both(flat, images, **{"targets": targets} | wrong):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_targets_of_any_integer_type_mean_the_same(flat, images, targets, dtype):
    for actual, expected in zip(both(flat, images, targets.to(dtype)), both(flat, images, targets)):
        torch.testing.assert_close(actual(), expected(), rtol=0, atol=0)


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_images_and_network_are_left_alone(network, images, targets, contrast):
    before = images.clone()
    with torch.no_grad():
        for call in both(network, images, targets, contrast, n_iterations=2):
            call()
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_of_half_precision_are_refused(network, images, targets, dtype):
    with pytest.raises(ValueError, match="must be float32 or float64"):
        sign_perturb(network.to(dtype), images.to(dtype), targets, "weighted", 1e-3, 1)


@pytest.mark.parametrize("epsilon", [0.0, -1e-3, float("nan"), float("inf")])
def test_an_epsilon_that_is_no_step_is_refused(network, images, targets, epsilon):
    with pytest.raises(ValueError, match="epsilon must be finite"):
        perturbation_grid(network, images, targets, ["weighted"], [epsilon], [1])


def test_the_dose_gains_half_of_what_is_missing():
    """On average p_t is 0.4, so that 0.6 is missing: 0.3 is the best gain, and of mean gains alone."""
    p_t, epsilons = torch.tensor([0.2, 0.6]), [1e-3, 2e-3, 4e-3]
    gains = {0.1: [0.0, 0.2], 0.28: [0.56, 0.0], 0.35: [0.3, 0.4], 0.6: [0.8, 0.4], -0.3: [-0.3, -0.3]}
    for means, best in (((0.1, 0.28, 0.6), 2e-3), ((0.1, 0.35, 0.28), 4e-3), ((0.35, 0.1, 0.6), 1e-3)):
        assert dose(p_t, [torch.tensor(gains[mean]) for mean in means], epsilons) == best
    # A quarter is as far from a half as three quarters: the first is taken. A loss is no gain.
    for pair in ((0.25, 0.75), (0.75, 0.25)):
        assert dose(torch.zeros(2), [torch.full((2,), gain) for gain in pair], epsilons[:2]) == 1e-3
    assert dose(p_t, [torch.tensor(gains[-0.3]), torch.tensor(gains[0.1])], epsilons[:2]) == 2e-3


def test_training_mode_changes_nothing(network, images, targets):
    settings = (["original", "weighted"], [3e-2], [2])
    expected = perturbation_grid(network, images, targets, *settings)
    actual = perturbation_grid(network.train(), images, targets, *settings)
    assert all(torch.equal(a, b) for key in expected for a, b in zip(actual[key], expected[key]))
