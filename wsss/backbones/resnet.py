"""torchvision's ResNets at output stride 16, as the CAM networks of IRN, SIPE and CPAL use them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

import torchvision
from torch import Tensor

from wsss.backbones.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    downloading,
    load_weights,
    read_state_dict,
    rgb,
)
from wsss.errors import WsssError


class ResNet(Backbone):
    """ResNet-18, 34, 50 or 101 whose last stage keeps stride 1 with dilation 1.

    The stride is moved, not replaced by dilation: `replace_stride_with_dilation` would give
    another network (it dilates layer4).

    Args:
        depth: 18, 34, 50 or 101.
        weights: path of a torchvision state dict, `imagenet` for torchvision's own V1 weights
            (downloaded), or None for random weights.
        frozen_stages: stages without gradient, counted from the input; 2 as published
            (stem, layer1 and layer2).
        freeze_depthwise: has no effect here (no depthwise layers); one signature for all.
        norm: `fixed` keeps the stored batch statistics, as published; `batch` takes those of the
            batch, for training from nothing.
        mean: channel means that input images were normalized with.
        std: their standard deviations.

    Raises:
        WsssError: unknown depth, or weights that don't fit.
    """

    def __init__(
        self,
        depth: int = 50,
        weights: str | None = None,
        frozen_stages: int = 2,
        freeze_depthwise: bool = False,
        norm: Literal["fixed", "batch"] = "fixed",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if depth not in (18, 34, 50, 101):
            raise WsssError(f"backbone.depth={depth}: choose 18, 34, 50 or 101")
        self.mean, self.std = rgb(mean, "mean"), rgb(std, "std")
        name = f"resnet{depth}"
        network = torchvision.models.get_model(name, weights=None)
        network.fc = None
        first = network.layer4[0]
        (first.conv1 if depth < 50 else first.conv2).stride = (1, 1)
        first.downsample[0].stride = (1, 1)
        if weights == "imagenet":
            enum = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
            with downloading(name):
                state = enum.get_state_dict(progress=sys.stderr.isatty())
            load_weights(network, state, weights, ignore=("fc.",))
        elif weights is not None:
            load_weights(network, read_state_dict(weights), str(weights), ignore=("fc.",))
        self.network = network
        width = 1 if depth < 50 else 4
        self.channels = (64 * width, 128 * width, 256 * width, 512 * width)
        self.strides = (4, 8, 16, 16)
        self.stem_channels, self.stem_stride = 64, 4
        self.finish(norm, frozen_stages, freeze_depthwise)

    def forward_with_stem(self, image: Tensor) -> list[Tensor]:
        """Stem (after max pooling) and layer1 to layer4 for normalized images (B, 3, H, W)."""
        n = self.network
        features = [n.maxpool(n.relu(n.bn1(n.conv1(image))))]
        for layer in (n.layer1, n.layer2, n.layer3, n.layer4):
            features.append(layer(features[-1]))
        return features
