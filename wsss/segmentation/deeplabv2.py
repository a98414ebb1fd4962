"""DeepLabV2: a body at output stride 8 and atrous spatial pyramid pooling; networks by name.

Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution,
and Fully Connected CRFs", TPAMI 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor, nn

from wsss.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Backbone, he_init
from wsss.errors import WsssError
from wsss.segmentation.base import KEY, SegmentationNetwork, fill, groups, read_weights
from wsss.segmentation.msra_resnet import CHANNELS, resnet101_stages
from wsss.segmentation.resnet38 import ResNet38d

RATES = (6, 12, 18, 24)  # DeepLabV2's "ASPP-L", in cells of stride 8


class ASPP(nn.Module):
    """The sum of 3x3 convolutions with different dilation, one for each rate.

    Args:
        inputs: channels of the features.
        num_classes: channels of the logits.
        rates: dilation of each convolution, in cells.
    """

    def __init__(self, inputs: int, num_classes: int, rates: Sequence[int] = RATES) -> None:
        super().__init__()
        for index, rate in enumerate(rates):
            layer = nn.Conv2d(inputs, num_classes, 3, padding=rate, dilation=rate)
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
            self.add_module(f"c{index}", layer)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, inputs, h, w) to logits (B, num_classes, h, w)."""
        first, *rest = self.children()
        total = first(x)
        for layer in rest:
            total = total + layer(x)
        return total


class DeepLabV2(SegmentationNetwork):
    """What DeepLabV2 has in common on any body: features, ASPP, groups of parameters."""

    head = ("aspp.",)
    aspp: ASPP

    def features(self, image: Tensor) -> Tensor:
        """What the ASPP reads, (B, channels, h, w), of normalized images (B, 3, H, W)."""
        raise RuntimeError(f"{type(self).__name__} must implement features")

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, C, h, w) of normalized images (B, 3, H, W)."""
        return self.aspp(self.features(image))

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Body at `lr`, ASPP weights at 10 times that, its biases at 20 times without decay."""
        body, head = self.body_and_head()
        weights = [p for n, p in head.items() if n.endswith("weight")]
        biases = [p for n, p in head.items() if n.endswith("bias")]
        return groups(
            ("body", body, lr, weight_decay),
            ("aspp_weight", weights, 10 * lr, weight_decay),
            ("aspp_bias", biases, 20 * lr, 0.0),
        )


class DeepLabV2MSRA(DeepLabV2):
    """DeepLabV2 on MSRA's ResNet-101, as most papers train it: 44,048,532 parameters at 21 classes.

    Its weights were made for BGR images in 0 to 255 less a mean color. Here `mean` and `std` say
    so of RGB images in 0 to 1, and the network swaps the channels itself.

    Args:
        num_classes: channels of the logits, background included.
        rates: dilations of the ASPP.
    """

    output_stride = 8
    mean = (122.675 / 255, 116.669 / 255, 104.008 / 255)
    std = (1 / 255, 1 / 255, 1 / 255)
    ignore = ("fc.",)

    def __init__(self, num_classes: int, rates: Sequence[int] = RATES) -> None:
        super().__init__()
        self.num_classes = num_classes
        for name, layer in resnet101_stages().items():
            self.add_module(name, layer)
        he_init(self)
        self.aspp = ASPP(CHANNELS, num_classes, rates)
        self.finish()

    def features(self, image: Tensor) -> Tensor:
        """(B, 2048, h, w) of images (B, 3, H, W), RGB."""
        x = image.flip(1)
        for index in range(1, 6):
            x = self.get_submodule(f"layer{index}")(x)
        return x


class DeepLabV2Torchvision(DeepLabV2):
    """DeepLabV2 on torchvision's ResNet-101, the last two stages with dilation instead of stride.

    The first block of such a stage keeps the dilation of the stage before, as here the stride sits
    in its 3x3 convolution: the features are those of the classifier, on a finer grid. Names of the
    body are torchvision's.

    Args:
        num_classes: channels of the logits, background included.
        rates: dilations of the ASPP.
    """

    output_stride = 8
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    ignore = ("fc.",)

    def __init__(self, num_classes: int, rates: Sequence[int] = RATES) -> None:
        super().__init__()
        self.num_classes = num_classes
        body = torchvision.models.resnet101(
            weights=None, replace_stride_with_dilation=[False, True, True]
        )
        for name, layer in body.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, layer)
        self.aspp = ASPP(CHANNELS, num_classes, rates)
        self.finish()

    def features(self, image: Tensor) -> Tensor:
        """(B, 2048, h, w) of normalized images (B, 3, H, W)."""
        x = image
        for name, layer in self.named_children():
            if name != "aspp":
                x = layer(x)
        return x


class DeepLabV2Backbone(DeepLabV2):
    """DeepLabV2 on the last stage of any backbone of the project, at that backbone's stride.

    What the backbone has frozen stays frozen. Its batch normalization is frozen too, unless it
    takes the statistics of the batch.

    Args:
        num_classes: channels of the logits, background included.
        backbone: gives the features.
        rates: dilations of the ASPP, in cells; None: as many pixels as in the original.
    """

    def __init__(
        self, num_classes: int, backbone: Backbone, rates: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.output_stride = backbone.strides[-1]
        self.mean, self.std = backbone.mean, backbone.std
        self.fixed_norms = not backbone.batch_statistics
        self.backbone = backbone
        if rates is None:
            rates = [max(1, rate * 8 // self.output_stride) for rate in RATES]
        self.aspp = ASPP(backbone.channels[-1], num_classes, rates)
        self.finish()

    def features(self, image: Tensor) -> Tensor:
        """Features of the last stage, of normalized images (B, 3, H, W)."""
        return self.backbone(image)[-1]


NAMES = ("resnet101_msra", "resnet101_torchvision", "resnet38d", "backbone")
OPTIONS = ("rates", "trained_on")


def build_network(
    name: str,
    num_classes: int,
    *,
    weights: str | Path | None = None,
    backbone: Backbone | None = None,
    **options: Any,
) -> SegmentationNetwork:
    """A segmentation network by name, with its initial weights.

    Args:
        name: one of
            `resnet101_msra`: DeepLabV2 on MSRA's ResNet-101, names as in deeplab-pytorch;
            `resnet101_torchvision`: DeepLabV2 on torchvision's;
            `resnet38d`: ResNet38d with a head of large field of view, names as in PSA;
            `backbone`: DeepLabV2's head on the given `backbone`.
        num_classes: background included (21 for VOC).
        weights: a file; None: start from nothing, or for `backbone` from the backbone's own; or,
            for `resnet101_torchvision`, `imagenet`: torchvision's V1 weights, downloaded. A head
            in the file is taken where it has these classes, else passed over.
        backbone: for `backbone` only.
        **options: `rates`, the dilations of the ASPP; `trained_on`, what the weights were trained
            for before ("imagenet", "coco"), which nothing in a file tells and a report must.

    Raises:
        WsssError: unknown name or option, or weights that can't be read or don't fit.
    """
    if name not in NAMES:
        raise WsssError(f"{KEY}.name={name}: choose {', '.join(NAMES)}")
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise WsssError(f"{KEY}.{unknown[0]}: unknown key; there are {', '.join(OPTIONS)}")
    if (name == "backbone") != (backbone is not None):
        raise WsssError(
            f"{KEY}.name={name}: "
            + ("needs a backbone" if backbone is None else "has a body of its own, no backbone")
        )
    rates, trained_on = options.get("rates"), options.get("trained_on")
    if rates is not None and (not rates or any(int(r) != r or r < 1 for r in rates)):
        raise WsssError(f"{KEY}.rates={list(rates)}: give dilations, whole numbers from 1 on")
    network: SegmentationNetwork
    if name == "resnet38d":
        if rates is not None:
            raise WsssError(f"{KEY}.rates: resnet38d has no ASPP; leave it null")
        network = ResNet38d(num_classes)
    elif backbone is not None:
        network = DeepLabV2Backbone(num_classes, backbone, rates)
        network.initial_weights = trained_on or "those of the backbone"
    else:
        body = DeepLabV2MSRA if name == "resnet101_msra" else DeepLabV2Torchvision
        network = body(num_classes, rates or RATES)
    if weights is not None:
        network.initial_weights = _load(network, weights, trained_on)
    return network


def _load(network: SegmentationNetwork, weights: str | Path, trained_on: str | None) -> str:
    """Fill the network; returns what to call the weights."""
    if str(weights) == "imagenet":
        if not isinstance(network, DeepLabV2Torchvision):
            raise WsssError(
                f"{KEY}.weights=imagenet: only resnet101_torchvision has weights to download; give "
                "the path of a file"
            )
        try:
            enum = torchvision.models.ResNet101_Weights.IMAGENET1K_V1
            state = dict(enum.get_state_dict(progress=True))
        except Exception as error:
            raise WsssError(
                f"{KEY}.weights=imagenet: the weights of ResNet-101 can't be downloaded "
                f"({type(error).__name__}); give the path of torchvision's file"
            ) from error
        fill(network, state, "imagenet")
        return "imagenet"
    with_head = fill(network, read_weights(weights), str(weights))
    return (trained_on or Path(weights).name) + (" (head included)" if with_head else "")
