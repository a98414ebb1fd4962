"""A host small enough for a test: four convolutions and a classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsss.backbones.base import Backbone
from wsss.hosts.base import HostSettings
from wsss.hosts.cam import CAM
from wsss.hosts.optimizer import OptimizerSettings
from wsss.methods.base import Branch
from wsss.methods.network import SeedNetwork
from wsss.settings import resolve

CLASSES = ("cat", "dog", "cow")


class FourConvolutions(Backbone):
    """Stages at strides 4, 8, 16, 16, each one convolution of the previous stage."""

    channels = (4, 5, 6, 8)
    strides = (4, 8, 16, 16)
    stem_channels, stem_stride = 3, 1
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *self.channels[:-1])
        self.stages = nn.ModuleList(
            nn.Conv2d(i, o, max(s, 1), s)
            for i, o, s in zip(inputs, self.channels, (4, 2, 2, 1), strict=True)
        )

    def forward_with_stem(self, image: Tensor) -> list[Tensor]:
        features = [image]
        for stage in self.stages:
            features.append(torch.tanh(stage(features[-1])))
        return features


@pytest.fixture
def make_network() -> Callable[..., SeedNetwork]:
    """`make_network(SIPE, key=value, ...)`: a plain CAM host, with a branch if one is given."""

    def make(branch: type[Branch] | None = None, **options: Any) -> SeedNetwork:
        torch.manual_seed(0)
        host = CAM(HostSettings(), CLASSES, FourConvolutions())
        method = None
        if branch is not None:
            settings = resolve(branch.Settings, options, "method")
            method = branch(settings, host.channels, len(CLASSES))
        return SeedNetwork(host, method, OptimizerSettings(lr=0.1, head_lr=1.0))

    return make


@pytest.fixture
def batch() -> dict[str, Any]:
    """Two images of 80 × 112 pixels, the second padded below."""
    generator = torch.Generator().manual_seed(1)
    valid = torch.ones(2, 80, 112)
    valid[1, 48:] = 0
    return {
        "image": torch.randn(2, 3, 80, 112, generator=generator) * valid[:, None],
        "label": torch.tensor([[1.0, 0, 1], [0, 1, 0]]),
        "valid": valid,
    }


@pytest.fixture
def image() -> Tensor:
    """A normalized image (3, 80, 112)."""
    return torch.randn(3, 80, 112, generator=torch.Generator().manual_seed(5))
