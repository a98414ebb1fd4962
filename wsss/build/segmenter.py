"""The segmentation network: built anew, or as it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from wsss.backbones.base import Backbone
from wsss.build.blueprint import segmenter_blueprint
from wsss.build.identity import file_hash
from wsss.build.objects import (
    Parts,
    build_backbone,
    build_image_set,
    first_fault,
    load_network,
)
from wsss.build.settings import Settings
from wsss.build.sources import find_checkpoint, find_stage
from wsss.errors import WsssError
from wsss.files import read_json
from wsss.run.callbacks import CHECKPOINT
from wsss.run.compute import choose_memory_format
from wsss.run.folder import MANIFEST
from wsss.segmentation.base import SegmentationNetwork
from wsss.segmentation.deeplabv2 import build_network
from wsss.segmentation.module import Segmenter
from wsss.segmentation.settings import ON_BACKBONE, SegmentationSettings


def method_backbone(s: Settings, classes: tuple[str, ...], wanted_by: str) -> Backbone:
    """The backbone of the trained host, for networks that go on from it.

    Raises:
        WsssError: the host has none, or its training has not ended.
    """
    checkpoint, _ = find_checkpoint(s, wanted_by, classes)
    host = load_network(s, checkpoint, classes).host
    backbone = getattr(host, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise WsssError(
            f"stage={wanted_by}: features=method wants a host on a backbone, "
            f"{type(host).__name__} has none; take features=pretrained"
        )
    return backbone


def build_segmenter(
    s: Settings, classes: Sequence[str], fresh: bool = True, wanted_by: str = "seg_train"
) -> tuple[Segmenter, SegmentationNetwork]:
    """The network that `segmentation` describes, and its training.

    Args:
        s: the settings.
        classes: foreground class names.
        fresh: whether to load initial weights; a checkpoint that fills all needs none.
        wanted_by: the stage that asks, for messages.
    """
    backbone = None
    if fresh and s.segmentation.network.name == ON_BACKBONE:
        if s.segmentation.features == "method":
            backbone = method_backbone(s, build_image_set(s).classes, wanted_by)
        else:
            backbone = build_backbone(s)
    segmenter, network = assemble_segmenter(s, classes, backbone, fresh)
    begins_with = initial_weights(s, network) if fresh else network.initial_weights
    segmenter.blueprint = segmenter_blueprint(s, tuple(classes), begins_with)
    return segmenter, network


class SegmenterParts(Parts, Protocol):
    """What a segmentation network is built of."""

    @property
    def segmentation(self) -> SegmentationSettings:
        """The network and its use."""
        ...


def assemble_segmenter(
    s: SegmenterParts, classes: Sequence[str], backbone: Backbone | None, fresh: bool
) -> tuple[Segmenter, SegmentationNetwork]:
    """`build_segmenter` from its parts alone.

    Args:
        s: the parts.
        classes: foreground class names.
        backbone: what the network stands on; None where it has a body of its own, or, if it is to
            be filled from a checkpoint, for that of the settings.
        fresh: whether to load initial weights.
    """
    options = s.segmentation
    if backbone is None and options.network.name == ON_BACKBONE:
        backbone = build_backbone(s, pretrained=False)
    torch.manual_seed(s.seed)
    network = build_network(
        options.network.name,
        len(classes) + 1,
        weights=options.network.weights if fresh else None,
        backbone=backbone,
        rates=options.network.rates,
        trained_on=options.network.trained_on,
    )
    segmenter = Segmenter(
        network,
        optimizer=options.optimizer,
        loss=options.loss,
        train_scales=options.msc_scales,
        msc=options.msc,
        enlarge_logits=options.enlarge_logits,
        class_names=tuple(classes),
    )
    if choose_memory_format(s.trainer.memory_format) == "channels_last":
        segmenter.to(memory_format=torch.channels_last)
    return segmenter, network


def initial_weights(s: Settings, network: SegmentationNetwork) -> str:
    """What the network starts from, for manifests and messages: ImageNet, COCO, a file, none."""
    options = s.segmentation
    name = network.initial_weights
    if options.features == "method":
        name = f"the {s.method.name} classifier of this run"
    elif options.network.name == ON_BACKBONE and not options.network.weights:
        weights = s.backbone.options.get("weights")
        name = options.network.trained_on or (Path(weights).name if weights else "none")
    return in_words(name)


def in_words(name: str) -> str:
    """`imagenet` and `coco` as they are written; other names as they are."""
    first, *rest = name.split(" ")
    return " ".join([{"imagenet": "ImageNet", "coco": "COCO"}.get(first, first), *rest])


@dataclass(frozen=True)
class Trained:
    """A trained segmentation network.

    Attributes:
        path: its checkpoint.
        hash: of the file's content.
        classes: foreground class names.
        initial_weights: what it was trained from.
    """

    path: Path
    hash: str
    classes: tuple[str, ...]
    initial_weights: str


def find_trained(s: Settings, wanted_by: str) -> Trained:
    """The network that `segmentation.checkpoint` names, else that of this run's seg_train.

    Raises:
        WsssError: there is none.
    """
    if s.segmentation.checkpoint:
        path = Path(s.segmentation.checkpoint).expanduser()
        if not path.is_file():
            raise WsssError(f"segmentation.checkpoint={path}: no such file")
        beside = path.parent / MANIFEST
        if not beside.is_file():
            note = _read(path).get("segmentation", {})  # the checkpoint of an unfinished training
            classes = note.get("class_names") or build_image_set(s).classes
            made_from = in_words(note.get("initial_weights", "unknown"))
            return Trained(path, file_hash(s, path), tuple(classes), made_from)
        made = read_json(beside)
        if made.get("stage") != "seg_train":
            raise WsssError(
                f"segmentation.checkpoint={path}: made by stage={made.get('stage')}, not seg_train"
            )
    else:
        folder, made = find_stage(s, "seg_train", wanted_by)
        path = folder / CHECKPOINT
    if not path.is_file():
        raise WsssError(f"{path}: is not there any more; run stage=seg_train again")
    classes, begins_with = tuple(made["class_names"]), made["initial_weights"]
    return Trained(path, file_hash(s, path), classes, begins_with)


def load_trained(
    s: Settings, trained: Trained, wanted_by: str
) -> tuple[Segmenter, SegmentationNetwork]:
    """The trained network, ready for inference.

    Raises:
        WsssError: the checkpoint is broken, or of another network or number of classes.
    """
    segmenter, network = build_segmenter(s, trained.classes, False, wanted_by)
    weights = _read(trained.path)["state_dict"]
    try:
        segmenter.load_state_dict(weights)
    except RuntimeError as error:
        raise WsssError(
            f"{trained.path}: not a checkpoint of segmentation.network.name="
            f"{s.segmentation.network.name} with {len(trained.classes) + 1} labels "
            f"({first_fault(error)})"
        ) from error
    return segmenter.eval(), network


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if "state_dict" not in content:
            raise KeyError("state_dict")
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise WsssError(f"{path}: can't be read as a checkpoint ({first[:200]})") from error
    return content
