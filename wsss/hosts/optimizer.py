"""The optimizer of the CAM networks: SGD, two learning rates, poly schedule per step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import PolynomialLR

from wsss.errors import WsssError

KEYS = ("lr", "head_lr", "momentum", "weight_decay", "poly_power", "nesterov")


def build_optimizer(
    body: Iterable[nn.Parameter],
    head: Iterable[nn.Parameter],
    settings: Mapping[str, Any],
    total_steps: int,
) -> dict[str, Any]:
    """SGD over backbone and new layers, and the schedule lr · (1 − step / total)^power.

    Args:
        body: parameters that learn at `settings["lr"]`; frozen ones are left out.
        head: newly added parameters, which learn at `settings["head_lr"]`.
        settings: lr, head_lr, momentum, weight_decay, poly_power (and nesterov); see
            `conf/optimizer/`.
        total_steps: optimizer steps of the whole training.

    Returns:
        What Lightning's `configure_optimizers` returns.

    Raises:
        WsssError: an unknown key, or nothing left to train.
    """
    unknown = sorted(set(settings) - set(KEYS))
    if unknown:
        raise WsssError(f"optimizer.{unknown[0]}: unknown key; there are {', '.join(KEYS)}")
    groups = [
        {"params": [p for p in body if p.requires_grad], "lr": settings["lr"], "name": "backbone"},
        {"params": [p for p in head if p.requires_grad], "lr": settings["head_lr"], "name": "head"},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise WsssError("optimizer: no parameter learns; lower backbone.frozen_stages")
    optimizer = torch.optim.SGD(
        groups,
        momentum=settings.get("momentum", 0.0),
        weight_decay=settings.get("weight_decay", 0.0),
        nesterov=settings.get("nesterov", False),
    )
    schedule = PolynomialLR(
        optimizer, total_iters=max(total_steps, 1), power=settings.get("poly_power", 0.9)
    )
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"},
    }
