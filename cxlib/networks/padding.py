"""TensorFlow's SAME padding without a padded copy of the image: the same sums in fewer passes over memory."""

from torch import Tensor, nn
from torch.nn import functional as F


class SamePadded(nn.Conv2d):
    """A convolution with SAME padding, as timm's `Conv2dSame`, which copies the image to lay zeros around it.

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


def without_copies(network: nn.Module) -> None:
    """Have timm's `Conv2dSame`, undilated and on a CPU, where this was measured, pad as `SamePadded`, in place."""
    # By name: timm takes seconds to import.
    padded = [m for m in network.modules() if isinstance(m, nn.Conv2d) and type(m).__name__ == "Conv2dSame"]
    for convolution in padded:
        if convolution.dilation == (1, 1) and convolution.weight.device.type == "cpu":
            convolution.__class__ = SamePadded
