"""Class activation maps from activations a_k and their gradients g_k, all without ReLU (section 3.2, Eq. 3).

All but `gradcam++` and `layercam` are linear in the gradient, so that the map of a contrast is the contrast of the
classes' maps.

Every function takes activation (..., C, h, w) and gradient (..., C, h, w), which broadcast against each other,
and returns the map (..., h, w).
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Keeps XGradCAM finite where a channel is silent; the published code's value.
TINY = 1e-7


def gradcam(activation: Tensor, gradient: Tensor) -> Tensor:
    """GradCAM without ReLU: sum_k mean_ij(g_k) a_k."""
    return (gradient.mean((-2, -1), keepdim=True) * activation).sum(-3)


def linear_approximation(activation: Tensor, gradient: Tensor) -> Tensor:
    """Linear approximation (HiResCAM): sum_k g_k * a_k."""
    return (gradient * activation).sum(-3)


def xgradcam(activation: Tensor, gradient: Tensor) -> Tensor:
    """XGradCAM, Eq. 3: ``sum_k (sum_ij a_k g_k / |a_k|_1) a_k``.

    Absolute values in the norm, because without ReLU activations have both signs.
    """
    norm = activation.abs().sum((-2, -1), keepdim=True) + TINY
    weight = (activation * gradient).sum((-2, -1), keepdim=True) / norm
    return (weight * activation).sum(-3)


def gradcam_plus_plus(activation: Tensor, gradient: Tensor) -> Tensor:
    """GradCAM++ without the last ReLU: sum_k (sum_ij alpha_k relu(g_k)) a_k, alpha_k = g_k^2 / (2 g_k^2 + A_k g_k^3).

    Eq. 19 of Chattopadhyay et al. (arXiv:1710.11063), whose score exp(y_t) has the gradient exp(y_t) g; this factor
    scales the whole map only and is left out. A_k = sum_ij a_k. g^2 is cancelled, for g^3 would vanish in float32:
    alpha = 1 / (2 + A g), and 1 / 1 where that denominator is 0.

    The weights are those of the contrast's own score: no combination of the classes' maps. Nor is its scale free, for
    alpha changes with A g, down from 1/2 at a cotangent that vanishes; `probability`, p_t (1 - p_t) times `weighted`,
    has a map of another shape. Where A is negative, before a ReLU, alpha has a pole at A g = -2.
    """
    denominator = 2 + activation.sum((-2, -1), keepdim=True) * gradient
    alpha = 1 / torch.where(denominator == 0, 1, denominator)
    weight = (alpha * gradient.clamp(min=0)).sum((-2, -1), keepdim=True)
    return (weight * activation).sum(-3)


def layercam(activation: Tensor, gradient: Tensor) -> Tensor:
    """LayerCAM without the last ReLU: sum_k relu(g_k) * a_k (Jiang et al. 2021, Eq. 6 and 7).

    A contrast's map: activations where more of them would raise the contrast's own score. It scales with the gradient,
    so that `probability` and `weighted` have one map up to p_t (1 - p_t), but is no combination of the classes' maps.
    """
    return (gradient.clamp(min=0) * activation).sum(-3)


MAPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "layercam": layercam,
    "linear_approximation": linear_approximation,
    "xgradcam": xgradcam,
}
