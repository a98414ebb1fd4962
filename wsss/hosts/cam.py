"""Plain class activation maps: a classifier on a backbone, as IRN trains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from wsss.backbones.base import Backbone
from wsss.hosts.base import Host, Seen, groups, relu_pair
from wsss.maps.functional import classification_loss


class CAM(Host):
    """A 1x1 convolution on the last stage; its maps are the seeds (Zhou et al., CVPR 2016; IRN).

    Args:
        options: there are none.
        classes: foreground class names.
        backbone: features of four stages.
    """

    def __init__(self, options: Any, classes: Sequence[str], backbone: Backbone) -> None:
        super().__init__(options, classes)
        self.backbone = backbone
        self.classifier = nn.Conv2d(backbone.channels[-1], len(self.classes), 1, bias=False)
        self.channels = backbone.channels
        self.mean, self.std = backbone.mean, backbone.std

    def forward(self, images: Tensor, label: Tensor) -> Seen:
        """Stage features and raw class maps (B, N, h, w) of normalized images (B, 3, H, W)."""
        features = self.backbone(images)
        return Seen(tuple(features), self.classifier(features[-1]))

    def losses(self, seen: Seen, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The classification loss (SIPE eq. 9, CPAL eq. 2)."""
        return {"cls": classification_loss(seen.activation, batch["label"])}

    def image_scores(self, seen: Seen) -> Tensor:
        """Sigmoid of the averaged class maps, which the classification loss is taken of."""
        return seen.activation.float().mean(dim=(2, 3)).sigmoid()

    def maps(self, seen: Seen, label: Tensor) -> dict[str, Tensor]:
        """ReLU of the class maps of image and mirror image, added, (K, h, w)."""
        return {"cam": relu_pair(seen)[label.bool()]}

    def parameter_groups(self, lr: float, head_lr: float) -> list[dict[str, Any]]:
        """Backbone at `lr`, classifier at `head_lr`."""
        return groups(
            ("backbone", self.backbone.parameters(), lr),
            ("head", self.classifier.parameters(), head_lr),
        )

    def folded(self) -> None:
        """Fold batch normalization into convolutions."""
        self.backbone = self.backbone.folded()
