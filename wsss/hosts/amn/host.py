"""AMN as a host: pixels are classified, so its maps are probabilities (Lee, Kim, Shim, CVPR 2022).

It is the second of two steps. The first one, any network with class maps, labels the training
images by stage=irn_labels; what is sure in those label maps is what AMN learns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from wsss.backbones.base import Backbone
from wsss.data.transforms import Crop, ScaleRange, Size, check_range
from wsss.hosts.amn.functional import balanced_loss, conditional_min_max, fuse_logits
from wsss.hosts.amn.network import LabelConditioning, PixelClassifier
from wsss.hosts.base import Host, Seen, add_mirror, groups
from wsss.maps.amn_npy import KIND
from wsss.run.compute import at_least_float32
from wsss.settings import Below1, Positive, settings


@settings
class AMNSettings:
    """What AMN learns from and how.

    Attributes:
        labels: folder of the first step's label maps NAME.png.
        smoothing: what a pixel's label leaves to the other classes together.
        dropout: share of the feature's values left out in training.
        scale: range of the factor that a training image is resized by.
    """

    labels: str | None = None
    smoothing: Below1 = 0.4
    dropout: Below1 = 0.1
    scale: tuple[Positive, Positive] = (0.5, 1.5)

    def __post_init__(self) -> None:
        check_range("host.scale", self.scale)


class AMN(Host):
    """A backbone, its last feature weighted by the image's label, a classifier of pixels.

    Of the backbone the stem keeps its weights, unless it starts from nothing (`norm=batch`).

    Args:
        options: see `AMNSettings`.
        classes: foreground class names.
        backbone: features of four stages; published with `frozen_stages=0`.
    """

    Settings: ClassVar[type] = AMNSettings
    kinds: ClassVar[dict[str, bool]] = {KIND: False}
    reads_labels: ClassVar[bool] = True

    def __init__(self, options: AMNSettings, classes: Sequence[str], backbone: Backbone) -> None:
        super().__init__(options, classes)
        self.backbone = backbone
        if not backbone.batch_statistics:
            backbone.freeze_stem()
        channels = backbone.channels[-1]
        self.conditioning = LabelConditioning(self.num_classes, channels)
        self.classifier = PixelClassifier(channels, self.num_classes + 1, options.dropout)
        self.channels = backbone.channels
        self.mean, self.std = backbone.mean, backbone.std

    def forward(self, images: Tensor, label: Tensor) -> Seen:
        """Stage features, the last one conditioned; the classes' logits as raw class maps.

        `extra` has `logits` (B, N+1, h, w), background first.
        """
        *features, last = self.backbone(images)
        last = self.conditioning(last, label)
        logits = self.classifier(last)
        return Seen((*features, last), logits[:, 1:], {"logits": logits})

    def losses(self, seen: Seen, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Cross-entropy with the smoothed label maps, foreground and background in balance."""
        logits, target = seen.extra["logits"], batch["target"]
        return {"pixel": balanced_loss(logits, target, self.options.smoothing)}

    def general(self, seen: Seen) -> Tensor:
        """The foreground's probabilities."""
        return at_least_float32(seen.extra["logits"]).softmax(1)[:, 1:]

    def general_pair(self, seen: Seen) -> Tensor:
        """The foreground's probabilities by the mean logits of image and mirror image."""
        return _mean_logits(seen)[None].softmax(1)[:, 1:]

    def maps(self, seen: Seen, label: Tensor) -> dict[str, Tensor]:
        """Mean logits of image and mirror image, of all N + 1 classes; `fuse` needs them all."""
        return {KIND: _mean_logits(seen)}

    def fuse(
        self, kind: str, scales: Sequence[Tensor], grid: Size, sample: Mapping[str, Any]
    ) -> Tensor:
        """Probabilities of the present classes, stretched where the label map is not background."""
        if kind != KIND:
            return super().fuse(kind, scales, grid, sample)
        present = fuse_logits(scales, grid)[1:][sample["label"].bool()]
        return conditional_min_max(present, sample["target"])

    def parameter_groups(self, lr: float, head_lr: float) -> list[dict[str, Any]]:
        """Backbone at `lr`; label layer and classifier at `head_lr`."""
        return groups(
            ("backbone", self.backbone.parameters(), lr),
            ("head", [*self.conditioning.parameters(), *self.classifier.parameters()], head_lr),
        )

    def crop(self, side: int, long_side: tuple[int, int]) -> Crop:
        """A square of the image resized by a random factor; `data.long_side` has no part in it."""
        return Crop(side, self.mean, self.std, ScaleRange(*self.options.scale))

    def folded(self) -> None:
        """Fold batch normalization into convolutions."""
        self.backbone = self.backbone.folded()


def _mean_logits(seen: Seen) -> Tensor:
    """Mean logits (N+1, h, w) of an image and its mirror image."""
    return add_mirror(at_least_float32(seen.extra["logits"]))[0] / 2
