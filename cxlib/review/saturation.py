"""Section 4.3, dominating classes: what float32 leaves of the softmax gradient as p_t approaches 1, or 0.

The gradient of p_t is p_t (1 - p_t) times that of the weighted contrast (Eq. 4): the same direction, until the factor,
or the target's own coefficient, rounds to zero.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cxlib import taps
from cxlib.contrasts import cotangent, without
from cxlib.networks import fast
from cxlib.review.perturbation import bounds, check, measure, step

#: The two ways to the same direction: back-propagation from the softmax neuron, and the closed form of Eq. 1 and 2.
PATHS = ("probability", "weighted")


class Trace(NamedTuple):
    """An image at every step of a perturbation: (B, n), float64.

    Attributes:
        log_odds: log(p_t / (1 - p_t)) before the step, which tells a p_t of 1 - 1e-9 from one of 1 - 1e-20.
        p_t, y_t: softmax probability and logit of the target before the step.
        p_t_after, y_t_after: and after it.
        saturated: 1 where the target's own coefficient p_t (1 - p_t) is zero in the images' precision, or else 0.
        agreement: share of pixel values at which softmax gradient and closed form have the same sign.
        zero_literal: share of pixel values at which the softmax gradient is exactly zero.
        zero_weighted: likewise of the closed form.
    """

    log_odds: Tensor
    p_t: Tensor
    y_t: Tensor
    p_t_after: Tensor
    y_t_after: Tensor
    saturated: Tensor
    agreement: Tensor
    zero_literal: Tensor
    zero_weighted: Tensor


def follow(network: nn.Module, images: Tensor, targets: Tensor, path: str, epsilon: float, n_iterations: int) -> Trace:
    """Perturb images along one of `PATHS`, comparing both gradients at every iterate.

    Args:
        network: maps images in [0, 1] (B, 3, H, W) to logits (B, K).
        images: (B, 3, H, W) in [0, 1]; their precision is the one that saturates.
        targets: (B,) class indices.
        path: the contrast whose sign is followed.
        epsilon: largest change of a pixel.
        n_iterations: number of steps.

    Raises:
        ValueError: epsilon or n_iterations out of range, wrong targets, images of half precision.
    """
    check(images, targets, epsilon, n_iterations)
    network, images = fast(network), images.contiguous(memory_format=torch.channels_last)
    targets = targets.to(images.device)
    x, within, steps = images, bounds(images, epsilon), []
    for _ in range(n_iterations):
        recorded = taps.record(network, x)
        _, p_t, y_t = measure(recorded.logits, targets)
        cotangents = torch.stack([cotangent(name, recorded.logits, targets) for name in PATHS], 1)
        gradients = recorded.pull_back(cotangents)  # (B, 2, 3, H, W)
        own = cotangents[:, 0].gather(-1, targets[:, None]).squeeze(-1)
        literal, weighted = gradients.unbind(1)
        steps.append(
            (
                log_odds(recorded.logits, targets),
                p_t,
                y_t,
                (own == 0).double(),
                _share(literal.sign() == weighted.sign()),
                _share(literal == 0),
                _share(weighted == 0),
            )
        )
        x = step(x, gradients[:, PATHS.index(path)], epsilon / n_iterations, within)
    odds, p_t, y_t, saturated, agreement, zero_literal, zero_weighted = (torch.stack(v, 1) for v in zip(*steps))
    _, last_p_t, last_y_t = measure(taps.logits(network, x), targets)
    p_t_after = torch.cat([p_t[:, 1:], last_p_t[:, None]], 1)
    y_t_after = torch.cat([y_t[:, 1:], last_y_t[:, None]], 1)
    return Trace(odds, p_t, y_t, p_t_after, y_t_after, saturated, agreement, zero_literal, zero_weighted)


def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """log(p_t / (1 - p_t)) = y_t - log sum_{s != t} exp(y_s): (B,) float64, exact where p_t rounds to 1."""
    logits = logits.double()
    return logits.gather(-1, targets[:, None]).squeeze(-1) - without(logits, targets).logsumexp(-1)


def _share(where: Tensor) -> Tensor:
    return where.double().mean((-3, -2, -1))
