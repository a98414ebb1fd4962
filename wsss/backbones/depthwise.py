"""Depthwise convolutions whose backward pass is quick on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight


class _DepthwiseConv(torch.autograd.Function):
    """Stride-1 depthwise convolution; its input gradient is a forward depthwise convolution.

    PyTorch's own backward on the CPU falls back to a slow path for grouped convolutions; the
    forward one is well optimized. The numbers are the same: the gradient with respect to the
    input is the correlation of the output's gradient with the flipped kernel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.dilation = padding, dilation
        return F.conv2d(x, weight, None, 1, padding, dilation, x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        padding, dilation, size = ctx.padding, ctx.dilation, weight.shape[-1]
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            around = dilation * (size - 1) - padding
            grad_x = F.conv2d(grad, weight.flip(2, 3), None, 1, around, dilation, x.shape[1])
        if ctx.needs_input_grad[1]:
            grad_weight = conv2d_weight(x, weight.shape, grad, 1, padding, dilation, x.shape[1])
        return grad_x, grad_weight, None, None


def accelerate_depthwise(network: nn.Module) -> None:
    """Give every stride-1 depthwise convolution of `network` the quick backward, on the CPU.

    On other devices and in inference the layers run as they were.
    """
    for module in network.modules():
        if type(module) is not nn.Conv2d or module.bias is not None:
            continue
        square = (
            module.kernel_size[0] == module.kernel_size[1]
            and module.stride == (1, 1)
            and not isinstance(module.padding, str)
            and module.padding[0] == module.padding[1]
            and module.dilation[0] == module.dilation[1]
            and module.padding_mode == "zeros"
        )
        if (
            square
            and module.groups > 1
            and module.groups == module.in_channels == module.out_channels
        ):
            module.__class__ = _QuickDepthwise


class _QuickDepthwise(nn.Conv2d):
    """`nn.Conv2d` with the quick backward; same parameters, same state dict."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W)."""
        if self.bias is not None or not (x.device.type == "cpu" and torch.is_grad_enabled()):
            return super().forward(x)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        return _DepthwiseConv.apply(x, weight, int(self.padding[0]), self.dilation[0])
