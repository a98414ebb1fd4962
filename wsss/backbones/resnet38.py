"""The body of ResNet38d, at output stride 8.

Wu et al., "Wider or Deeper: Revisiting the ResNet Model for Visual Recognition", 2019; the dilated
form and the names of weights are those of PSA (Ahn and Kwak, CVPR 2018).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from wsss.backbones.base import IMAGENET_MEAN, IMAGENET_STD, he_init


class Block(nn.Module):
    """Pre-activation block of two 3x3 convolutions.

    Args:
        inputs: input channels.
        middle: channels inside.
        outputs: output channels.
        stride: stride of the first convolution.
        dilation: dilation of the second convolution.
        first_dilation: dilation of the first; None: the same.
    """

    def __init__(
        self,
        inputs: int,
        middle: int,
        outputs: int,
        stride: int = 1,
        dilation: int = 1,
        first_dilation: int | None = None,
    ) -> None:
        super().__init__()
        first = dilation if first_dilation is None else first_dilation
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, middle, 3, stride, first, first, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = nn.Conv2d(middle, outputs, 3, 1, dilation, dilation, bias=False)
        self.conv_branch1 = None
        if inputs != outputs or stride != 1:
            self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, h, w)."""
        return self.after(x, self.activate(x))

    def activate(self, x: Tensor) -> Tensor:
        """What the block's convolutions read of its input: normalized, ReLU."""
        return F.relu(self.bn_branch2a(x), inplace=True)

    def after(self, x: Tensor, activated: Tensor) -> Tensor:
        """The rest of the block, of its input and what `activate` makes of it."""
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(activated)
        branch = F.relu(self.bn_branch2b1(self.conv_branch2a(activated)), inplace=True)
        return self.conv_branch2b1(branch) + shortcut


class BottleneckBlock(nn.Module):
    """Pre-activation block of 1x1, 3x3 and 1x1 convolutions with dropout of whole channels.

    Args:
        inputs: input channels.
        outputs: output channels; a quarter and a half of them inside.
        dilation: dilation of the 3x3 convolution.
        dropout: probability that a channel is dropped.
    """

    def __init__(self, inputs: int, outputs: int, dilation: int, dropout: float) -> None:
        super().__init__()
        quarter, half = outputs // 4, outputs // 2
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, quarter, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(quarter)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = nn.Conv2d(quarter, half, 3, 1, dilation, dilation, bias=False)
        self.bn_branch2b2 = nn.BatchNorm2d(half)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = nn.Conv2d(half, outputs, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        return self.after(x, self.activate(x))

    def activate(self, x: Tensor) -> Tensor:
        """What the block's convolutions read of its input: normalized, ReLU."""
        return F.relu(self.bn_branch2a(x), inplace=True)

    def after(self, x: Tensor, activated: Tensor) -> Tensor:
        """The rest of the block, of what `activate` makes of its input x."""
        branch = F.relu(self.bn_branch2b1(self.conv_branch2a(activated)), inplace=True)
        branch = self.conv_branch2b1(self.dropout_2b1(branch))
        branch = F.relu(self.bn_branch2b2(branch), inplace=True)
        branch = self.conv_branch2b2(self.dropout_2b2(branch))
        return branch + self.conv_branch1(activated)


class ResNet38Body(nn.Module):
    """What segmentation and PSA's affinities have in common; 105,070,912 parameters.

    A part of other networks, whose own layers stand beside these: names in files of weights have
    no prefix. Images are RGB with ImageNet's mean and deviation.

    Attributes:
        tap_channels: channels of `taps`.
    """

    output_stride = 8
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    tap_channels = (512, 1024, 4096)

    def __init__(self) -> None:
        super().__init__()
        self.conv1a = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.b2 = Block(64, 128, 128, stride=2)
        self.b2_1 = Block(128, 128, 128)
        self.b2_2 = Block(128, 128, 128)
        self.b3 = Block(128, 256, 256, stride=2)
        self.b3_1 = Block(256, 256, 256)
        self.b3_2 = Block(256, 256, 256)
        self.b4 = Block(256, 512, 512, stride=2)
        self.b4_1 = Block(512, 512, 512)
        self.b4_2 = Block(512, 512, 512)
        self.b4_3 = Block(512, 512, 512)
        self.b4_4 = Block(512, 512, 512)
        self.b4_5 = Block(512, 512, 512)
        self.b5 = Block(512, 512, 1024, dilation=2, first_dilation=1)
        self.b5_1 = Block(1024, 512, 1024, dilation=2)
        self.b5_2 = Block(1024, 512, 1024, dilation=2)
        self.b6 = BottleneckBlock(1024, 2048, dilation=4, dropout=0.3)
        self.b7 = BottleneckBlock(2048, 4096, dilation=4, dropout=0.5)
        self.bn7 = nn.BatchNorm2d(4096)
        he_init(self)

    def taps(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of three depths of normalized images (B, 3, H, W), all at stride 8.

        Returns:
            What enters the fifth and the sixth group of blocks after normalization and ReLU, and
            the last feature: (B, 512 / 1024 / 4096, h, w).
        """
        x = self.b2_2(self.b2_1(self.b2(self.conv1a(image))))
        x = self.b3_2(self.b3_1(self.b3(x)))
        x = self.b4(x)
        for block in (self.b4_1, self.b4_2, self.b4_3, self.b4_4, self.b4_5):
            x = block(x)
        conv4 = self.b5.activate(x)
        x = self.b5_2(self.b5_1(self.b5.after(x, conv4)))
        conv5 = self.b6.activate(x)
        x = self.b7(self.b6.after(x, conv5))
        return conv4, conv5, F.relu(self.bn7(x), inplace=True)
