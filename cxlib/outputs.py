"""Logits (B, K) where a network answers with something else: what `explain` takes as `output`, or as the network.

- `region`: the classes of a region of a semantic segmentation;
- `box`: the classes of one box of a detector that answers with queries (DETR and its kin);
- `ImageText`: prompts as the classes of a model of images and texts (CLIP, SigLIP), "a photo of a cat" rather than
  "a photo of a dog".
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou

from cxlib import taps


def region(mask: Tensor) -> Callable[[Any], Tensor]:
    """The mean logit of each class over a region: (B, K) of a segmentation's logits (B, K, h, w).

    The logits are laid bilinearly over the mask, as segmenters lay them over the image (``align_corners=False``), then
    averaged with the mask as weights; where the mask is the coarser one, with antialiasing. Computed are the weights of
    the logits' own places, so that the large logits are never made.

    Args:
        mask: (H, W) for all images, or (B, H, W); true inside, or weights >= 0.

    Returns:
        a function of the network's answer: the logits themselves, an object that has them as `logits`, or a dictionary
        that has them as "out".

    Raises:
        ValueError: a mask of another shape, negative or empty; later an answer that is no segmentation of its images.
    """
    if mask.ndim not in (2, 3) or not mask.numel() or mask.is_complex():
        raise ValueError(f"a region's mask is (H, W) or (B, H, W), got {mask.dtype} {tuple(mask.shape)}")
    weights = mask.detach().double()
    if not (weights.isfinite().all() and (weights >= 0).all() and (weights.sum((-2, -1)) > 0).all()):
        raise ValueError("a region's mask must be finite, without negative weights, and not empty for any image")
    weights = weights / weights.sum((-2, -1), keepdim=True)

    def of_region(answer: Any) -> Tensor:
        answer = answer["out"] if isinstance(answer, Mapping) and "out" in answer else answer
        logits = getattr(answer, "logits", answer)
        if not isinstance(logits, Tensor) or logits.ndim != 4 or weights.shape[:-2] not in ((), logits.shape[:1]):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"a region {tuple(mask.shape)} needs logits (B, K, h, w) of its images, got {got}")
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        rows, columns = (_bilinear(n, N) for n, N in zip(logits.shape[-2:], weights.shape[-2:]))
        of_places = rows.T @ weights.cpu() @ columns  # (h, w) or (B, h, w)
        return torch.einsum("bkhw,bhw->bk", logits, of_places.to(logits).expand(len(logits), -1, -1))

    return of_region


def box(corners: Tensor) -> Callable[[Any], Tensor]:
    """The classes of the predicted box that overlaps most with a given one: (B, K) of a detector's queries.

    Detectors of Hugging Face's `transformers` that answer with `logits` (B, Q, K) and `pred_boxes` (B, Q, 4), centre
    and size (DETR, YOLOS, with "no object" as the last of their K classes).

    Args:
        corners: (4,) for all images, or (B, 4): left, top, right, bottom in shares of the image's width and height.

    Raises:
        ValueError: corners of another shape or order; later an answer without boxes, or none that overlaps.
    """
    if corners.ndim not in (1, 2) or corners.shape[-1] != 4 or not (corners[..., :2] < corners[..., 2:]).all():
        raise ValueError(f"a box is (left, top, right, bottom), (4,) or (B, 4), got {corners.tolist()}")

    def of_box(answer: Any) -> Tensor:
        if not (hasattr(answer, "pred_boxes") and hasattr(answer, "logits")):
            raise ValueError(f"a box needs an answer with `logits` and `pred_boxes`, got {type(answer).__name__}")
        predicted = box_convert(answer.pred_boxes.detach(), "cxcywh", "xyxy")  # (B, Q, 4)
        given = corners.to(predicted).expand(len(predicted), 4)
        overlaps = torch.stack([box_iou(one[None], queries)[0] for one, queries in zip(given, predicted)])  # (B, Q)
        best = overlaps.max(-1)
        if not (best.values > 0).all():
            raise ValueError("no predicted box overlaps with the given one: corners are shares of width and height")
        logits: Tensor = answer.logits[torch.arange(len(predicted)), best.indices]
        return logits

    return of_box


class ImageText(nn.Module):
    """A network whose classes are prompts, of a model that scores images against texts: images -> logits (B, P).

    ``explain(ImageText(clip, tokens["input_ids"]), images, targets, "vit_gradcam", "max")`` says why an image is rather
    what prompt t says than what any other does. Texts are encoded once, without graph. The logits are the model's own
    `logits_per_image`: cosines times its temperature (and SigLIP's bias).

    Args:
        network: as `CLIPModel` of Hugging Face's `transformers` has it: `get_image_features`, `get_text_features`,
            `logit_scale`.
        prompts: input_ids (P, L), or what the texts were encoded as, (P, D), of floating point.
        attention_mask: (P, L), of the input_ids.

    Raises:
        ValueError: prompts of another shape, or fewer than two.
    """

    prompts: Tensor

    def __init__(self, network: nn.Module, prompts: Tensor, attention_mask: Tensor | None = None):
        super().__init__()
        if prompts.ndim != 2 or len(prompts) < 2:
            raise ValueError(f"prompts are input_ids (P, L) or embeddings (P, D), P >= 2, got {tuple(prompts.shape)}")
        self.network = network
        if not prompts.is_floating_point():
            with torch.no_grad(), taps.steady(network):
                encode: Any = network.get_text_features
                prompts = _pooled(encode(input_ids=prompts, attention_mask=attention_mask))
        self.register_buffer("prompts", F.normalize(prompts.detach(), dim=-1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, P) of images (B, 3, H, W) against the prompts."""
        network: Any = self.network
        features = F.normalize(_pooled(network.get_image_features(pixel_values=images)), dim=-1)
        logits = features @ self.prompts.to(features).mT * network.logit_scale.exp()
        bias = getattr(network, "logit_bias", None)
        scores: Tensor = logits if bias is None else logits + bias
        return scores


def _pooled(features: Any) -> Tensor:
    """Features (N, D): themselves, or those of an object that has them as `pooler_output`."""
    pooled: Tensor = getattr(features, "pooler_output", features)
    return pooled


def _bilinear(n: int, n_pixels: int) -> Tensor:
    """(N, n): the weights with which n places in a row make N, float64."""
    eye = torch.eye(n, dtype=torch.float64)[None, None]
    return F.interpolate(eye, (n_pixels, n), mode="bilinear", align_corners=False, antialias=True)[0, 0]
