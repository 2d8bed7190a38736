"""A probe: a new linear head on frozen features, multinomial logistic regression solved to its optimum.

The problem is strictly convex in the weights, so that the head hardly depends on who solves it: in float64, to a small
gradient, processors that differ in the last digits of the features agree on the probabilities (to 2e-5 on SynthBirds).
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor, nn

#: Steps of L-BFGS after which a probe is given up.
LIMIT = 10_000


class Probe(NamedTuple):
    """A linear head: logits are features @ weight.T + bias.

    Attributes:
        weight: (K, D) float64; over the classes it sums to zero, as that of every head fitted from zero does.
        bias: (K,) float64, likewise.
        loss: mean cross-entropy of the images it was fitted to, in nats.
    """

    weight: np.ndarray
    bias: np.ndarray
    loss: float

    def layer(self) -> nn.Linear:
        """The head as a layer of a network, float32."""
        layer = nn.Linear(*self.weight.shape[::-1])
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(self.weight))
            layer.bias.copy_(torch.from_numpy(self.bias))
        return layer


def fit(features: Tensor, labels: np.ndarray, n_classes: int, penalty: float, gradient: float) -> Probe:
    """Minimise mean cross-entropy + penalty / 2 * |W|^2 by L-BFGS, in float64.

    Args:
        features: (N, D).
        labels: (N,) in [0, n_classes).
        n_classes: K.
        penalty: of the squared weights, not of the bias; above 0.
        gradient: the solver stops where no entry of the gradient is larger.

    Raises:
        ValueError: the features are no vectors, the penalty is not above 0, or the solver does not get that far.
    """
    if features.ndim != 2:
        raise ValueError(f"a probe takes features (N, D), got {tuple(features.shape)}: fine-tune this network")
    if not 0 < penalty < np.inf:
        raise ValueError(f"the penalty of a probe must be above 0, so that it has one optimum, not {penalty}")
    # Without their mean, which the bias makes up for, and in the coordinates of their span, where W lies, the features
    # ask for the same head in shorter steps; in units in which the curvature at zero, (I - 1/K) / K of x'x / n and the
    # penalty, is about one in every direction, in a tenth as many.
    mean = features.double().numpy().mean(0)
    u, singular, basis = np.linalg.svd(features.double().numpy() - mean, full_matrices=False)
    x, (n, d) = u * singular, u.shape
    truth = np.eye(n_classes)[labels]
    units = np.sqrt(np.append(singular**2 / n, 1) / n_classes + np.append(np.full(d, penalty), 0))  # (D + 1,)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        head = flat.reshape(n_classes, d + 1) / units
        weight, bias = head[:, :d], head[:, d]
        logits = x @ weight.T + bias
        log_p = logits - logsumexp(logits, axis=1, keepdims=True)
        residual = (np.exp(log_p) - truth) / n
        slope = np.column_stack([residual.T @ x + penalty * weight, residual.sum(0)])
        return -(truth * log_p).sum() / n + penalty / 2 * (weight**2).sum(), (slope / units).ravel()

    # `ftol` 0: nothing but the gradient ends it.
    limits = {"gtol": gradient / units.max(), "ftol": 0.0, "maxiter": LIMIT, "maxfun": 2 * LIMIT}
    solved = minimize(objective, np.zeros(n_classes * (d + 1)), jac=True, method="L-BFGS-B", options=limits)
    if (left := float(np.abs(solved.jac.reshape(n_classes, d + 1) * units).max())) > gradient:
        raise ValueError(f"the probe stopped at a gradient of {left:.1e}, above {gradient:.1e}: allow a larger one")
    head = solved.x.reshape(n_classes, d + 1) / units
    weight, bias = head[:, :d], head[:, d]
    loss = float(solved.fun - penalty / 2 * (weight**2).sum())
    weight = weight @ basis
    return Probe(weight, bias - weight @ mean, loss)
