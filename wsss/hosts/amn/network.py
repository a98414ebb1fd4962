"""The two layers that AMN puts on a backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DILATIONS = (6, 12, 18, 24)


class LabelConditioning(nn.Linear):
    """Weighs the channels of a feature map by the image's label.

    The weights are a linear map of the multi-hot label, without activation or normalization, in
    training and at test alike: channels that speak for absent classes can be turned down.
    """

    def forward(self, feature: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
        """Feature (B, C, h, w), weighted by labels (B, N)."""
        return feature * super().forward(label.to(self.weight.dtype))[:, :, None, None]


class PixelClassifier(nn.ModuleList):
    """Dropout, then the sum of four dilated 3x3 convolutions: DeepLab's ASPP.

    Args:
        channels: of the feature map.
        outputs: number C of classes, with the background.
        dropout: share of the feature's values left out in training.
    """

    def __init__(self, channels: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        for dilation in DILATIONS:
            layer = nn.Conv2d(channels, outputs, 3, padding=dilation, dilation=dilation)
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, 0)  # type: ignore[arg-type]
            self.append(layer)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (B, C, h, w) of a feature map of the same grid."""
        feature = nn.functional.dropout(feature, self.dropout, self.training)
        return torch.stack([layer(feature) for layer in self]).sum(0)
