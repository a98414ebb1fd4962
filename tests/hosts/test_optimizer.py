"""The cosine schedule against the published one, epoch by epoch; groups of parameters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from wsss.hosts.optimizer import OptimizerSettings, build_optimizer

OPTIONS = OptimizerSettings(
    name="adamw",
    lr=6.25e-5,
    head_lr=6.25e-5,
    weight_decay=0.05,
    schedule="cosine",
    warmup_epochs=5,
    warmup_lr=1e-6,
    min_lr=1e-5,
)


def published(epoch: int, lr: float) -> float:
    """Of 60 epochs; the scheduler is told the number of the epoch that has ended."""
    t = max(epoch - 1, 0)
    if t < 5:
        return 1e-6 + t * (lr - 1e-6) / 5
    return 1e-5 + (lr - 1e-5) * (1 + math.cos(math.pi * t / 60)) / 2


def test_the_cosine_schedule_is_mctformers() -> None:
    body, head = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [
        {"params": list(body.parameters()), "lr": 6.25e-5, "name": "body"},
        {"params": list(head.parameters()), "lr": 2e-3, "name": "head", "weight_decay": 0.0},
    ]
    built = build_optimizer(groups, OPTIONS, total_steps=60 * 7, steps_per_epoch=7)
    optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    for step in range(60 * 7):
        for group, lr in zip(optimizer.param_groups, (6.25e-5, 2e-3), strict=True):
            assert group["lr"] == pytest.approx(published(step // 7, lr), rel=1e-9)
        optimizer.step()
        schedule.step()
