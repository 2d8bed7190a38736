"""Class activation maps from activations a_k and their gradients g_k, all without ReLU (section 3.2, Eq. 3).

Every function takes activation (..., C, h, w) and gradient (..., C, h, w), which broadcast against each other,
and returns the map (..., h, w).
"""

from collections.abc import Callable

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
    """XGradCAM, Eq. 3: sum_k (sum_ij a_k g_k / |a_k|_1) a_k.

    Absolute values in the norm, because without ReLU activations have both signs.
    """
    norm = activation.abs().sum((-2, -1), keepdim=True) + TINY
    weight = (activation * gradient).sum((-2, -1), keepdim=True) / norm
    return (weight * activation).sum(-3)


MAPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": gradcam,
    "linear_approximation": linear_approximation,
    "xgradcam": xgradcam,
}
