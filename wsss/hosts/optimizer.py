"""The optimizer of seed networks: two learning rates, and a schedule per step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, PolynomialLR

from wsss.errors import WsssError
from wsss.settings import Below1, NotNegative, Positive, settings


@settings
class OptimizerSettings:
    """Optimizer and schedule.

    Attributes:
        name: sgd, adam or adamw.
        lr: rate of pretrained layers.
        head_lr: rate of new layers.
        momentum: SGD's.
        nesterov: SGD's.
        weight_decay: on all that learns.
        schedule: poly, lr (1 - step / steps) ^ poly_power; cosine, see `cosine_factor`; constant.
        poly_power: see `schedule`.
        warmup_epochs: epochs over which the rate rises linearly from `warmup_lr` before a cosine.
        warmup_lr: see `warmup_epochs`.
        min_lr: what the cosine falls towards.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive
    head_lr: Positive
    momentum: Below1 = 0.0
    nesterov: bool = False
    weight_decay: NotNegative = 0.0
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    poly_power: Positive = 0.9
    warmup_epochs: NotNegative = 0.0
    warmup_lr: NotNegative = 0.0
    min_lr: NotNegative = 0.0


def build_optimizer(
    groups: Sequence[dict[str, Any]],
    options: OptimizerSettings,
    total_steps: int,
    steps_per_epoch: float = 1,
) -> dict[str, Any]:
    """Optimizer and schedule over groups of parameters.

    Args:
        groups: `params`, `lr` and `name` of each, and what else the optimizer knows.
        options: which optimizer.
        total_steps: optimizer steps of the whole training.
        steps_per_epoch: of one epoch, for the warm-up.

    Returns:
        What Lightning's `configure_optimizers` returns.

    Raises:
        WsssError: nothing is left to train.
    """
    if not groups:
        raise WsssError("optimizer: no parameter learns; lower backbone.frozen_stages")
    optimizer: torch.optim.Optimizer
    if options.name == "sgd":
        optimizer = torch.optim.SGD(
            groups,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            nesterov=options.nesterov,
        )
    else:
        kind = torch.optim.Adam if options.name == "adam" else torch.optim.AdamW
        optimizer = kind(groups, weight_decay=options.weight_decay)
    total = max(total_steps, 1)
    schedule: LRScheduler
    if options.schedule == "poly":
        schedule = PolynomialLR(optimizer, total_iters=total, power=options.poly_power)
    elif options.schedule == "cosine":
        epoch = max(steps_per_epoch, 1)
        schedule = LambdaLR(
            optimizer,
            [
                lambda step, rate=rate: cosine_factor(step // epoch, total / epoch, rate, options)  # type: ignore[misc]
                for rate in [float(group["lr"]) for group in groups]
            ],
        )
    else:
        schedule = LambdaLR(optimizer, lambda step: 1.0)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"},
    }


def cosine_factor(epoch: float, epochs: float, rate: float, options: OptimizerSettings) -> float:
    """Factor on a group's `rate` in one of `epochs` epochs, counted from 0.

    As MCTformer runs: the rate changes between epochs, the first two are alike, and the cosine is
    already under way while the rate rises, so that it never reaches `min_lr`.
    """
    passed = max(epoch - 1, 0)
    if passed < options.warmup_epochs:
        return (
            options.warmup_lr + (rate - options.warmup_lr) * passed / options.warmup_epochs
        ) / rate
    lowest = min(options.min_lr, rate)
    return (lowest + (rate - lowest) * (1 + math.cos(math.pi * passed / epochs)) / 2) / rate
