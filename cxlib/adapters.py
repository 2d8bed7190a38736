"""Our contrasts for other explanation libraries: a target for pytorch-grad-cam, a forward function for captum.

Both return a number for each image whose gradient with respect to the logits is the contrast's cotangent, and whose
value is the cotangent's product with the logits: for `max` y_t - y_s*, for `weighted` y_t - sum_s alpha_s y_s. Neither
library is imported. Unlike `explain`, both want a network whose gradients are switched on (`requires_grad_()`).
"""

from torch import Tensor, nn

from cxlib.contrasts import Contrast, cotangent


class ContrastTarget:
    """A target for pytorch-grad-cam: ``GradCAM(network, layers)(images, targets=[ContrastTarget("weighted", 3)])``.

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


def _contrasted(contrast: str | Contrast | Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    return (cotangent(contrast, logits.detach(), targets) * logits).sum(-1)
