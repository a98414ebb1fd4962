"""Batch normalization with stored statistics and frozen weights, in half the memory.

Such a layer is a fixed scale and shift per channel, whose gradient needs the scale alone. PyTorch
keeps the layer's whole input for the backward pass all the same; with a ResNet-101 that is half of
all that a training step keeps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _FrozenNorm(torch.autograd.Function):
    """`F.batch_norm` in evaluation mode as a function of its input alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(weight * torch.rsqrt(var + eps))
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (scale,) = grads, ctx.saved_tensors
        return grad * scale[:, None, None].to(grad.dtype), None, None, None, None, None


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that keeps no input where it is frozen; same numbers, same state dict."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, H, W)."""
        weight, bias, mean, var = self.weight, self.bias, self.running_mean, self.running_var
        if (
            self.training
            or weight is None
            or mean is None
            or var is None
            or weight.requires_grad
            or not (torch.is_grad_enabled() and x.requires_grad)
            or torch.compiler.is_compiling()  # it sees to memory itself; exported files need none
        ):
            return super().forward(x)
        return _FrozenNorm.apply(x, mean, var, weight, bias, self.eps)


def freeze_norms(network: nn.Module) -> None:
    """Freeze the weights of all batch normalization in `network`, and let it keep less.

    Evaluation mode is the caller's to set.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.requires_grad_(False)
            if type(module) is nn.BatchNorm2d:
                module.__class__ = FrozenBatchNorm2d
