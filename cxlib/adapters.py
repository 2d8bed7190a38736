"""Our contrasts in other libraries: pytorch-grad-cam, torch-cam, captum, zennit, and our maps in Quantus.

`ContrastTarget` and `Contrasted` give a number for each image whose gradient with respect to the logits is the
contrast's cotangent, and whose value is the cotangent's product with the logits: for `max` y_t - y_s*, for `weighted`
y_t - sum_s alpha_s y_s. `attr_output` gives the cotangent itself. None of the libraries is imported. Unlike `explain`,
all but `explain_func` want a network whose gradients are switched on (`requires_grad_()`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cxlib.contrasts import Contrast, cotangent
from cxlib.explainers import explain


class ContrastTarget:
    """A target for pytorch-grad-cam and torch-cam (0.5 or later).

    ``GradCAM(network, layers)(images, targets=[ContrastTarget("weighted", 3)])`` in pytorch-grad-cam, and in torch-cam
    ``GradCAM(network, layer)(scores=network(images), targets=ContrastTarget("weighted", 3))``.

    Both keep the positive part of their maps and stretch it, torch-cam's unless ``normalized=False``.

    Args:
        contrast: as `contrasts.cotangent` takes it.
        target: class index.
    """

    def __init__(self, contrast: str | Contrast | Tensor, target: int):
        self.contrast, self.target = contrast, target

    def __call__(self, logits: Tensor) -> Tensor:
        """The number to explain, () for one image's logits (K,), (B,) for (B, K)."""
        batch = logits if logits.ndim == 2 else logits[None]
        contrasted = _contrasted(self.contrast, batch, batch.new_full((len(batch),), self.target).long())
        return contrasted if logits.ndim == 2 else contrasted[0]


class Contrasted(nn.Module):
    """A forward function for captum, to which targets are an additional argument that it expands as it does images.

    ``LayerGradCam(Contrasted(network, "weighted"), layer).attribute(images, additional_forward_args=(targets,))``

    Args:
        network: maps images (B, 3, H, W) to logits (B, K).
        contrast: as `contrasts.cotangent` takes it.
    """

    def __init__(self, network: nn.Module, contrast: str | Contrast | Tensor):
        super().__init__()
        self.network, self.contrast = network, contrast

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """The number to explain, (B,), for images (B, 3, H, W) and targets (B,)."""
        return _contrasted(self.contrast, self.network(images), targets)


def attr_output(contrast: str | Contrast | Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """What zennit's attributors start from, a contrast's cotangent; under the rules of a composite, its relevance.

    ``Gradient(network, composite)(images, attr_output("weighted", targets))``

    Args:
        contrast: as `contrasts.cotangent` takes it.
        targets: (B,) class indices.

    Returns:
        a function from logits (B, K) to the cotangent (B, K).
    """
    return lambda logits: cotangent(contrast, logits.detach(), targets)


def explain_func(model: nn.Module, inputs: Any, targets: Any, device: Any = None, **options: Any) -> np.ndarray:
    """Quantus' `explain_func`: maps (B, 1, H, W) of arrays of images (B, 3, H, W) and of targets (B,).

    ``metric(model, x_batch, y_batch, explain_func=explain_func, explain_func_kwargs={"contrast": "max"})``

    Choose ``abs=False`` and ``normalise=False`` in the metric. Absolute values, the default of a third of its metrics,
    make what speaks against the class speak for it: a contrast's negative half is lost, and e_t - e_s cannot be told
    from e_s - e_t. Its usual normalisation, by the largest absolute value of the *whole batch*, keeps signs but makes a
    map depend on the images beside it; `normalise_by_negative` stretches both halves to 1, whatever their balance.

    Args:
        model: the network.
        inputs: (B, 3, H, W).
        targets: (B,).
        device: where to compute; None computes where the network is.
        options: those of `explain`, but `upsample`.
    """
    parameter = next(model.parameters(), None)
    where = device or (None if parameter is None else parameter.device)
    images, classes = (torch.as_tensor(array, device=where) for array in (inputs, targets))
    return explain(model, images, classes.long(), **options)[:, None].cpu().numpy()


def _contrasted(contrast: str | Contrast | Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    return (cotangent(contrast, logits.detach(), targets) * logits).sum(-1)
