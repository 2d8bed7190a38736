"""The softmax gradient is the weighted contrast's, until float32 rounds its coefficient away (Eq. 4, section 4.3)."""

import math

import pytest
import torch
from test_perturbation import Sure

from cxlib.review.perturbation import sign_perturb
from cxlib.review.saturation import PATHS, follow, log_odds


@pytest.mark.parametrize("path", PATHS)
def test_a_trace_follows_the_images_that_sign_perturb_makes(network, images, targets, path):
    trace = follow(network, images, targets, path, 0.02, 3)
    x = sign_perturb(network, images, targets, path, 0.02, 3)
    p_t = network(x).softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(trace.p_t_after[:, -1], p_t, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(trace.p_t[:, 0], network(images).softmax(-1)[range(4), targets], rtol=1e-9, atol=1e-12)
    assert torch.equal(trace.p_t[:, 1:], trace.p_t_after[:, :-1])
    assert torch.equal(trace.y_t[:, 1:], trace.y_t_after[:, :-1])
    assert all(value.shape == (4, 3) and value.dtype == torch.float64 for value in trace)


def test_far_from_saturation_both_gradients_have_the_same_signs(network, images, targets):
    trace = follow(network, images, targets, "probability", 0.02, 3)
    assert not trace.saturated.any()
    assert (trace.agreement > 0.99).all()
    assert (trace.zero_literal < 0.2).all()


def test_where_p_t_rounds_to_one_the_coefficient_is_gone_and_the_signs_part(flat, images):
    sure, images = Sure(flat, 20), images.float()
    targets = sure(images).argmax(-1)
    odds = log_odds(sure(images), targets)
    trace = follow(sure, images, targets, "probability", 0.01, 2)
    gone = odds > 25 * math.log(2)
    assert gone.any(), "the case that the test is about"
    assert torch.equal(trace.saturated[:, 0].bool(), gone)
    assert (trace.agreement[gone, 0] < 0.95).all()
    exact = follow(sure.double(), images.double(), targets, "probability", 0.01, 2)
    # float64 has a limit of its own, at log-odds of 37.
    assert (exact.agreement[exact.log_odds < 30] > 0.99).all()


def test_where_p_t_rounds_to_zero_no_gradient_is_left(flat, images):
    sure, images = Sure(flat, 100), images.float()
    targets = sure(images).argmin(-1)
    assert not sure(images).softmax(-1)[range(4), targets].any(), "the case that the test is about"
    trace = follow(sure, images, targets, "probability", 0.01, 2)
    assert (trace.saturated == 1).all()
    assert (trace.zero_literal == 1).all()
    assert (trace.zero_weighted < 0.2).all()
    assert torch.equal(trace.p_t, trace.p_t_after)


def test_log_odds_tell_probabilities_apart_that_both_round_to_one():
    logits = torch.tensor([[40.0, 0.0, 0.0], [60.0, 0.0, 0.0], [0.3, -0.2, 1.0]])
    odds = log_odds(logits, torch.tensor([0, 0, 2]))
    p = logits[2].double().softmax(-1)[2]
    expected = [40 - math.log(2), 60 - math.log(2), math.log(p / (1 - p))]
    torch.testing.assert_close(odds, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be finite and > 0"),
        ({"n_iterations": 0}, "n_iterations must be a whole number >= 1"),
        ({"targets": torch.zeros(4, 2, dtype=torch.long)}, "targets must be"),
    ],
)
def test_what_is_no_perturbation_is_refused(flat, images, targets, wrong, message):
    arguments = {"targets": targets, "path": "weighted", "epsilon": 0.01, "n_iterations": 2} | wrong
    with pytest.raises(ValueError, match=message):
        follow(flat, images, **arguments)
