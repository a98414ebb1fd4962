"""ResNet-101 as its authors (MSRA) released it for Caffe, with DeepLabV2's dilated stages.

Unlike torchvision's, the stride sits in the first 1x1 convolution of a block, and max-pooling
rounds sizes up. Names are those of deeplab-pytorch, so that its files of weights load as they are.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 2048
MOMENTUM = 0.001  # of batch normalization; matters only where its statistics are not frozen


class ConvBN(nn.Module):
    """Convolution without bias, batch normalization, and ReLU if wanted.

    Args:
        inputs: input channels.
        outputs: output channels.
        kernel: side of the kernel.
        stride: stride.
        dilation: dilation; the padding keeps the size.
        relu: whether a ReLU follows.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-5, momentum=MOMENTUM)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, h, w)."""
        x = self.bn(self.conv(x))
        return F.relu(x, inplace=True) if self.relu else x


class Stem(nn.Sequential):
    """7x7/2 convolution and 3x3/2 max-pooling in ceil mode: (B, 3, H, W) to (B, 64, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvBN(3, 64, 7, stride=2)
        self.pool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)


class Bottleneck(nn.Module):
    """1x1 with the stride, 3x3 with the dilation, 1x1; the sum with the shortcut; ReLU.

    Args:
        inputs: input channels.
        outputs: output channels; a quarter of them inside.
        stride: stride of the first convolution.
        dilation: dilation of the 3x3 convolution.
        project: whether the shortcut is a 1x1 convolution and not the input itself.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, dilation: int, project: bool
    ) -> None:
        super().__init__()
        width = outputs // 4
        self.reduce = ConvBN(inputs, width, 1, stride)
        self.conv3x3 = ConvBN(width, width, 3, dilation=dilation)
        self.increase = ConvBN(width, outputs, 1, relu=False)
        self.shortcut = ConvBN(inputs, outputs, 1, stride, relu=False) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, h, w)."""
        branch = self.increase(self.conv3x3(self.reduce(x)))
        return F.relu(branch + (x if self.shortcut is None else self.shortcut(x)), inplace=True)


def stage(blocks: int, inputs: int, outputs: int, stride: int, dilation: int) -> nn.Sequential:
    """`block1`, `block2`, ...: the first one has the stride and a projected shortcut.

    All have the dilation, the first one too: its 3x3 convolution comes after the (removed) stride,
    so the features are those of the classification network, on a finer grid.
    """
    rest = range(2, blocks + 1)
    return nn.Sequential(
        OrderedDict(
            [("block1", Bottleneck(inputs, outputs, stride, dilation, True))]
            + [(f"block{n}", Bottleneck(outputs, outputs, 1, dilation, False)) for n in rest]
        )
    )


def resnet101_stages() -> OrderedDict[str, nn.Module]:
    """Stem and four stages, output stride 8: 321 pixels become 41 cells, 513 become 65."""
    return OrderedDict(
        layer1=Stem(),
        layer2=stage(3, 64, 256, stride=1, dilation=1),
        layer3=stage(4, 256, 512, stride=2, dilation=1),
        layer4=stage(23, 512, 1024, stride=1, dilation=2),
        layer5=stage(3, 1024, CHANNELS, stride=1, dilation=4),
    )
