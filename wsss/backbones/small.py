"""A small residual network, pretrained on generated scenes, for the demo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from wsss.backbones.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    he_init,
    load_weights,
    read_state_dict,
    rgb,
)

WIDTHS = (32, 64, 128, 160)


class SmallResNet(Backbone):
    """A stem and four residual blocks at output stride 8, 0.7 million weights.

    Stages 3 and 4 keep the stride of stage 2, as small pictures ask for.

    Args:
        weights: `scenes` (pretrained on generated scenes by `tools/demo_backbone.py`; comes with
            the package), the path of a state dict, or None for random weights.
        frozen_stages: stages without gradient, counted from the input.
        freeze_depthwise: has no effect here (no depthwise layers); one signature for all.
        norm: `fixed` keeps the stored batch statistics; `batch` takes those of the batch, for
            training from nothing.
        mean: channel means that input images were normalized with.
        std: their standard deviations.

    Raises:
        WsssError: the weights don't fit.
    """

    def __init__(
        self,
        weights: str | None = "scenes",
        frozen_stages: int = 2,
        freeze_depthwise: bool = False,
        norm: Literal["fixed", "batch"] = "fixed",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.mean, self.std = rgb(mean, "mean"), rgb(std, "std")
        first, second, third, last = WIDTHS
        stem = nn.Sequential(
            nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        blocks = [block(first, first), block(first, second, stride=2)]
        blocks += [block(second, third), block(third, last)]
        self.network = nn.Sequential(stem, *blocks)
        he_init(self.network)
        if weights is not None:
            load_weights(self.network, read_state_dict(weights), str(weights))
        self.channels, self.strides = WIDTHS, (4, 8, 8, 8)
        self.stem_channels, self.stem_stride = first, 4
        self.finish(norm, frozen_stages, freeze_depthwise)

    def forward_with_stem(self, image: Tensor) -> list[Tensor]:
        """Stem (after max pooling) and the four blocks for normalized images (B, 3, H, W)."""
        features = []
        for part in self.network:
            image = part(image)
            features.append(image)
        return features


def block(inputs: int, outputs: int, stride: int = 1) -> BasicBlock:
    """Two 3x3 convolutions around a shortcut, projected where the shape changes."""
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )
    return BasicBlock(inputs, outputs, stride, shortcut)
