"""What several processes sum up, so that together they learn what one would.

DDP takes the mean of the processes' gradients, and each has as many images of the global batch. So
a mean over images is right as it is; what is divided by a count, or normalized by statistics of the
batch, needs those of the global batch.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed.nn.functional as distributed
from pytorch_lightning.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics.utilities.distributed import gather_all_tensors

from wsss.run.compute import at_least_float32


def world_and_rank() -> tuple[int, int]:
    """Number of processes and which one this is."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1, 0
    return torch.distributed.get_world_size(), torch.distributed.get_rank()


def global_sum(values: Tensor) -> Tensor:
    """Sum over all processes, which must all call it; differentiable."""
    return values if world_and_rank()[0] == 1 else distributed.all_reduce(values)


def global_ratio(total: Tensor, count: Tensor) -> Tensor:
    """What is summed up over the global batch, divided by what is counted there, as a loss.

    Args:
        total: of this process, with gradient; any shape.
        count: of this process, a constant of the same shape.

    Returns:
        Of the processes' ratios the mean is sum of `total` / sum of `count`; 0 where there is
        nothing to count. In a single process it is that itself.
    """
    with torch.no_grad():
        counted = global_sum(count).clamp(min=1)
    return world_and_rank()[0] * total / counted


def gather_rows(*columns: Tensor) -> tuple[Tensor, ...]:
    """Rows of all processes, which must all call it, also with no rows, in the order of their keys.

    Args:
        columns: (P, d) floating point of at least 32 bits, and (P,) whole numbers below 2^24, of
            which the last one is the key: rows come in the order of the keys, those of one key in
            the order in which a process gave them. P may differ between processes.

    Returns:
        The columns without the key.
    """
    values, *numbers = columns
    table = torch.cat([values, *(n[:, None].to(values.dtype) for n in numbers)], dim=1)
    if world_and_rank()[0] > 1:
        table = torch.cat(gather_all_tensors(table))
    table = table[table[:, -1].argsort(stable=True)]
    width = values.shape[1]
    return table[:, :width], *table[:, width:-1].long().unbind(1)


class GlobalBatchNorm(LayerSync):
    """Has batch normalization take the statistics of the global batch, on any device.

    PyTorch's own `SyncBatchNorm` runs on GPUs alone. Layers with stored statistics stay as they
    are.
    """

    def __init__(self) -> None:
        self.changed: list[_BatchNorm] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Before a training of several processes."""
        self.changed = [
            module
            for module in model.modules()
            # Folded into a convolution, a layer has a `forward` of its own already.
            if isinstance(module, _BatchNorm) and "forward" not in vars(module)
        ]
        for module in self.changed:
            module.forward = partial(_normalize, module)  # type: ignore[method-assign]
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """After it."""
        for module in self.changed:
            del module.forward
        self.changed = []
        return model


def _normalize(norm: _BatchNorm, x: Tensor) -> Tensor:
    """`nn.BatchNorm2d` (and timm's, with its activation) with the statistics of all processes."""
    if not norm.training or world_and_rank()[0] == 1:
        answer: Tensor = type(norm).forward(norm, x)
        return answer
    values = at_least_float32(x)
    channels = (1, -1, *(1 for _ in x.shape[2:]))
    dims = [dim for dim in range(x.ndim) if dim != 1]
    own = values.new_tensor([values.numel() / values.shape[1]])
    *sums, count = global_sum(torch.cat([values.sum(dims), own])).split([values.shape[1], 1])
    centered = values - (sums[0] / count).view(channels)
    variance = global_sum(centered.square().sum(dims)) / count
    scale = torch.rsqrt(variance + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
    result = centered * scale.view(channels)
    if norm.affine:
        result = result + norm.bias.view(channels)
    if norm.track_running_stats:
        _remember(norm, sums[0] / count, variance * count / (count - 1))
    result = result.to(x.dtype)
    for name in ("drop", "act"):
        if hasattr(norm, name):
            result = getattr(norm, name)(result)
    return result


@torch.no_grad()
def _remember(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the stored statistics towards those of a batch."""
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)
