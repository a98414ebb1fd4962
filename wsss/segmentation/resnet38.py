"""ResNet38d with a head of large field of view, as MCTformer's segmentation trains it."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from wsss.backbones.resnet38 import ResNet38Body
from wsss.segmentation.base import SegmentationNetwork, groups


class ResNet38d(ResNet38Body, SegmentationNetwork):
    """ResNet38d at output stride 8 and two dilated 3x3 convolutions on it ("LargeFOV").

    The first convolution and all batch normalization are frozen. 124,042,581 parameters at 21
    classes, 105,070,912 of them in the body. Images are RGB with ImageNet's mean and deviation.

    Args:
        num_classes: channels of the logits, background included.
    """

    head = ("fc8_seg_",)
    # Heads of the classifier and of PSA's affinity network, which share this body.
    ignore = ("fc8.", "f8_", "f9.")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.fc8_seg_conv1 = nn.Conv2d(4096, 512, 3, padding=12, dilation=12)
        self.fc8_seg_conv2 = nn.Conv2d(512, num_classes, 3, padding=12, dilation=12)
        for layer in (self.fc8_seg_conv1, self.fc8_seg_conv2):
            nn.init.xavier_uniform_(layer.weight)
        self.conv1a.requires_grad_(False)
        self.finish()

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, C, h, w) of normalized images (B, 3, H, W)."""
        feature = self.taps(image)[-1]
        return self.fc8_seg_conv2(F.relu(self.fc8_seg_conv1(feature), inplace=True))

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Body at `lr`, head at ten times that, both with weight decay."""
        body, head = self.body_and_head()
        return groups(
            ("body", body, lr, weight_decay),
            ("head", list(head.values()), 10 * lr, weight_decay),
        )
