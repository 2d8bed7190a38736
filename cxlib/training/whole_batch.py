"""One training step on several ranks as one process would do it, each rank holding every so many-th image of a batch.

Only two kinds of layers look beyond a single image: batch norm, whose statistics are the whole batch's, and dropout,
whose masks are drawn for the whole batch.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cxlib.runs import Ranks


class WholeBatch(TorchFunctionMode):
    """Inside, batch norm and dropout in training do what they do to a batch of `n_images` in one process.

    That is torch's SyncBatchNorm on any device, and for timm's fused layers too. Rank r of W holds the images
    r, r + W, … of the batch, perhaps none. All ranks must draw from the same random state.
    """

    def __init__(self, n_images: int, ranks: Ranks):
        super().__init__()
        self.n_images, self.ranks = n_images, ranks

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.ranks.size > 1 and function is F.batch_norm and kwargs.get("training"):
            return self._batch_norm(*args, **kwargs)
        if self.ranks.size > 1 and function is F.dropout and kwargs.get("training"):
            return self._dropout(*args, **kwargs)
        return function(*args, **kwargs)

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Tensor:
        over, channels = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
        count = self.n_images * math.prod(x.shape[2:])
        # At least float32, and two passes: a difference of squares would cancel.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = self._sum(wide.sum(over)) / count
        centred = wide - mean.view(channels)
        variance = self._sum(centred.square().sum(over)) / count
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_var.lerp_(variance * (count / (count - 1)), momentum)
        normalised = centred * (variance + eps).rsqrt().view(channels)
        if weight is not None:
            normalised = normalised * weight.view(channels) + bias.view(channels)
        return normalised.to(x.dtype)

    def _sum(self, local: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(local, self.ranks)  # type: ignore[no-untyped-call]  # torch does not type it
        return total

    def _dropout(self, x: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
        # The mask is drawn in the order of the memory.
        last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        kept = x.new_ones(self.n_images, *x.shape[1:])
        kept = F.dropout(kept.contiguous(memory_format=torch.channels_last) if last else kept, p)
        return x * kept[self.ranks.rank :: self.ranks.size]


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the ranks; each rank's loss is a part of one sum, and so is its gradient."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return _summed(local, ranks)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.ranks), None


def _summed(local: Tensor, ranks: Ranks) -> Tensor:
    total = local.clone()
    ranks.add([total])
    return total
