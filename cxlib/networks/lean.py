"""Layers that compute what timm's and PyTorch's do, with fewer copies of their images."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SamePadded(nn.Conv2d):
    """An undilated convolution with SAME padding, as timm's `Conv2dSame`, which copies images to lay zeros around them.

    Where their number is odd, 2 p + 1, they are p before the image and p + 1 behind it. A kernel that begins with one
    more zero meets the same pixels with p + 1 on either side, which any convolution pads by itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        sizes = zip(x.shape[-2:], self.kernel_size, self.stride)
        zeros = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n, kernel, stride in sizes]
        (top, left), sides = ([n % 2 for n in zeros], [(n + 1) // 2 for n in zeros])
        weight = F.pad(self.weight, (left, 0, top, 0)) if top or left else self.weight
        return F.conv2d(x, weight, self.bias, self.stride, sides, 1, self.groups)


class ClippedInPlace(nn.ReLU6):
    """ReLU6 that in place keeps its output for the backward pass. PyTorch's keeps a copy of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; x is overwritten, unless the module is no longer told to work in place."""
        if not self.inplace:
            return super().forward(x)
        clipped: Tensor = _ClippedInPlace.apply(x)  # type: ignore[no-untyped-call]
        return clipped


class _ClippedInPlace(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.mark_dirty(x.clamp_(0, 6))
        context.save_for_backward(x)
        return x

    @staticmethod
    def backward(context: Any, cotangent: Tensor) -> Tensor:
        # Nothing passes where the output is 0 or 6, which is where the input is no more, or no less, than that.
        pulled_back: Tensor = torch.ops.aten.hardtanh_backward(cotangent, *context.saved_tensors, 0, 6)
        return pulled_back
