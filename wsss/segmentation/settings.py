"""What can be set about the segmentation network, its training and its use."""

from __future__ import annotations

from typing import Literal

from wsss.data.transforms import check_range
from wsss.errors import WsssError
from wsss.refine.crf import CrfSettings
from wsss.segmentation.multi_scale import SCALES, check_scales
from wsss.settings import Below1, Count, NotNegative, Positive, Whole, Workers, settings

ON_BACKBONE = "backbone"  # the network that stands on one of the project's backbones


@settings
class NetworkSettings:
    """Which network.

    Attributes:
        name: see `wsss.segmentation.deeplabv2.build_network`.
        weights: file of initial weights; None: none.
        trained_on: what the file was trained for (imagenet, coco); told in results.
        rates: dilations of the ASPP; None: 6, 12, 18, 24 at stride 8.
    """

    name: Literal["resnet101_msra", "resnet101_torchvision", "resnet38d", "backbone"] = (
        "resnet101_msra"
    )
    weights: str | None = None
    trained_on: str | None = "imagenet"
    rates: tuple[Count, ...] | None = None


@settings
class OptimizerSettings:
    """SGD.

    Attributes:
        lr: rate of the body; the head's is a multiple of it.
        momentum: SGD's.
        nesterov: SGD's.
        weight_decay: SGD's.
        poly_power: of lr (1 - step / steps) ^ power.
        poly_every: the rate is brought up to date every so many steps.
    """

    lr: Positive = 2.5e-4
    momentum: Below1 = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 5e-4
    poly_power: Positive = 0.9
    poly_every: Count = 10


@settings
class TrainSettings:
    """Training crops and length.

    Attributes:
        max_steps: optimizer steps; None: `max_epochs`.
        max_epochs: epochs; None: `max_steps`.
        batch_size: images of one forward pass, over all processes together.
        accumulate: forward passes of one step.
        crop_size: side of the crop, pixels.
        scales: random scale, one of these; None: `scale_range`.
        scale_range: or from a range, [smallest, largest].
        mirror: whether half of the crops are mirrored.
        pad_label: label right of and below a small image: 255, ignored; 0 as MCTformer has it.
        gradient_clip_val: norm; None: not clipped.
    """

    max_steps: Count | None = 20000
    max_epochs: Count | None = None
    batch_size: Count = 5
    accumulate: Count = 2
    crop_size: Count = 321
    scales: tuple[Positive, ...] | None = (0.5, 0.75, 1.0, 1.25, 1.5)
    scale_range: tuple[Positive, Positive] | None = None
    mirror: bool = True
    pad_label: Literal[0, 255] = 255
    gradient_clip_val: Positive | None = None

    def __post_init__(self) -> None:
        key = "segmentation.train"
        if (self.max_steps is None) == (self.max_epochs is None):
            raise WsssError(
                f"{key}: max_steps={self.max_steps} and max_epochs={self.max_epochs}; give one of "
                "the two, and null for the other"
            )
        if (self.scales is None) == (self.scale_range is None) or self.scales == ():
            raise WsssError(f"{key}: give scales or scale_range, and null for the other")
        if self.scale_range is not None:
            check_range(f"{key}.scale_range", self.scale_range)


@settings
class EvalCrf(CrfSettings):
    """The CRF on predictions, and whether it is used."""

    use: bool = True


@settings
class ArchiveSettings:
    """Label maps packed for VOC's evaluation server.

    Attributes:
        write: auto: for split test.
        competition: comp5: trained on VOC's data only; comp6: other data (ImageNet, SBD) too.
        format: tar.gz or zip.
    """

    write: bool | Literal["auto"] = "auto"
    competition: Literal["comp5", "comp6"] = "comp6"
    format: Literal["tar.gz", "zip"] = "tar.gz"


@settings
class EvalSettings:
    """How photographs are looked at.

    Attributes:
        split: the split; None: data.val_split.
        scales: factors, each on top of the network's own scales.
        mirror: whether the mirror image is looked at, too.
        fuse: of softmax over scales and mirror: mean, or max (MCTformer; need not sum to 1).
        align_corners: of the resized photographs (MCTformer: true); logits come back without.
        crf: dense CRF on the probabilities.
        archive: for VOC's server.
    """

    split: str | None = None
    scales: tuple[Positive, ...] = (1.0,)
    mirror: bool = False
    fuse: Literal["mean", "max"] = "mean"
    align_corners: bool = False
    crf: EvalCrf = EvalCrf()
    archive: ArchiveSettings = ArchiveSettings()

    def __post_init__(self) -> None:
        if not self.scales:
            raise WsssError("segmentation.eval.scales=[]: give at least one")


@settings
class PredictSettings:
    """stage=seg_predict: larger photographs are predicted at the longer side `max_side`."""

    max_side: Count | None = 1280


@settings
class ExportSettings:
    """stage=seg_export: a program of torch.export, or onnx."""

    format: Literal["torch", "onnx"] = "torch"


@settings
class SegmentationSettings:
    """The segmentation network and all that is done with it.

    Attributes:
        masks: folder of pseudo masks; None: those of the stage refine.masks.
        split: trained on; None: data.infer_split.
        long_side: longer side that counts as scale 1, pixels; None: the image's own.
        checkpoint: weights instead of this run's own (seg_eval and later).
        features: what network=backbone starts from: `pretrained`, or the trained `method`'s.
        workers: processes for checks, CRFs, scores.
        pictures: rows of the contact sheets.
        network: which network.
        msc: look at several scales and take the maximum, in use too.
        msc_scales: with a loss for each and for the maximum in training.
        loss: ce (deeplab-pytorch), balanced (AMN), balanced_dsrg.
        enlarge_logits: whether the loss is taken at the labels' size (MCTformer), the logits
            enlarged bilinearly; else at the logits' size, the labels shrunk by nearest neighbor.
        optimizer: SGD.
        train: crops and length.
        eval: how photographs are looked at.
        predict: stage=seg_predict.
        export: stage=seg_export.
    """

    masks: str | None = None
    split: str | None = None
    long_side: Count | None = None
    checkpoint: str | None = None
    features: Literal["pretrained", "method"] = "pretrained"
    workers: Workers = -1
    pictures: Whole = 8
    network: NetworkSettings = NetworkSettings()
    msc: bool = True
    msc_scales: tuple[Positive, ...] = SCALES
    loss: Literal["ce", "balanced", "balanced_dsrg"] = "ce"
    enlarge_logits: bool = False
    optimizer: OptimizerSettings = OptimizerSettings()
    train: TrainSettings = TrainSettings()
    eval: EvalSettings = EvalSettings()
    predict: PredictSettings = PredictSettings()
    export: ExportSettings = ExportSettings()

    def __post_init__(self) -> None:
        check_scales(self.msc_scales)
        if self.features == "method" and self.network.name != ON_BACKBONE:
            raise WsssError(
                "segmentation.features=method needs segmentation.network.name=backbone: "
                f"{self.network.name} has a body of its own"
            )
