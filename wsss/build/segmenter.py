"""From a composed configuration to the segmentation network: built anew, or as it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from wsss.build import objects as ex
from wsss.run.folder import MANIFEST, require
from wsss.files import read_json
from wsss.backbones.base import Backbone
from wsss.run.compute import choose_memory_format
from wsss.errors import WsssError
from wsss.segmentation.base import SegmentationNetwork
from wsss.segmentation.deeplabv2 import build_network
from wsss.segmentation.module import Segmenter
from wsss.run.callbacks import CHECKPOINT

FEATURES = ("pretrained", "method")
ON_BACKBONE = "backbone"  # the network that stands on one of the project's backbones


def _backbone(cfg: DictConfig, fresh: bool, wanted_by: str) -> Backbone | None:
    """The backbone of a network that has one, else None."""
    options = cfg.segmentation
    if options.features not in FEATURES:
        raise WsssError(f"segmentation.features={options.features}: pretrained or method")
    if options.network.name != ON_BACKBONE:
        if options.features == "method":
            raise WsssError(
                "segmentation.features=method needs segmentation.network.name=backbone: "
                f"{options.network.name} has a body of its own"
            )
        return None
    if fresh and options.features == "method":
        checkpoint, _ = ex.find_checkpoint(cfg, wanted_by)
        return ex.load_method(cfg, checkpoint, ex.build_image_set(cfg).num_classes).backbone
    return ex.build_backbone(cfg, pretrained=fresh)


def build_segmenter(
    cfg: DictConfig, classes: Sequence[str], fresh: bool = True, wanted_by: str = "seg_train"
) -> tuple[Segmenter, SegmentationNetwork]:
    """The network that `segmentation` describes, and its training.

    Args:
        cfg: The program's settings.
        classes: Foreground class names.
        fresh: Whether to load initial weights; a checkpoint that fills all needs none.
        wanted_by: The stage that asks, for messages.
    """
    options = ex.plain(cfg.segmentation)
    network_options = dict(options["network"])
    name, weights = network_options.pop("name"), network_options.pop("weights", None)
    backbone = _backbone(cfg, fresh, wanted_by)
    torch.manual_seed(cfg.seed)
    network = build_network(
        name,
        len(classes) + 1,
        weights=weights if fresh else None,
        backbone=backbone,
        **network_options,
    )
    segmenter = Segmenter(
        network,
        optimizer=options["optimizer"],
        loss=options["loss"],
        train_scales=tuple(options["msc_scales"]),
        msc=options["msc"],
        class_names=tuple(classes),
    )
    if choose_memory_format(cfg.trainer.memory_format) == "channels_last":
        segmenter.to(memory_format=torch.channels_last)
    return segmenter, network


def initial_weights(cfg: DictConfig, network: SegmentationNetwork) -> str:
    """What the network starts from, for manifests and messages: ImageNet, COCO, a file, none."""
    name = network.initial_weights
    if cfg.segmentation.features == "method":
        name = f"the {cfg.method.name} classifier of this run"
    elif cfg.segmentation.network.name == ON_BACKBONE and not cfg.segmentation.network.weights:
        weights = cfg.backbone.get("weights")
        name = cfg.segmentation.network.trained_on or (Path(weights).name if weights else "none")
    return in_words(name)


def in_words(name: str) -> str:
    """`imagenet` and `coco` as they are written; other names as they are."""
    first, *rest = name.split(" ")
    return " ".join([{"imagenet": "ImageNet", "coco": "COCO"}.get(first, first), *rest])


@dataclass(frozen=True)
class Trained:
    """A trained segmentation network.

    Attributes:
        path: Its checkpoint.
        hash: Stands for how it was trained.
        classes: Foreground class names.
        initial_weights: What it was trained from.
    """

    path: Path
    hash: str
    classes: tuple[str, ...]
    initial_weights: str


def find_trained(cfg: DictConfig, wanted_by: str) -> Trained:
    """The network that `segmentation.checkpoint` names, else that of this run's seg_train.

    Raises:
        WsssError: If there is none.
    """
    if cfg.segmentation.checkpoint:
        path = Path(cfg.segmentation.checkpoint)
        if not path.is_file():
            raise WsssError(f"segmentation.checkpoint={path}: no such file")
        beside = path.parent / MANIFEST
        if not beside.is_file():
            note = _read(path).get("segmentation", {})  # the checkpoint of an unfinished training
            classes = note.get("class_names") or ex.build_image_set(cfg).classes
            made_from = in_words(note.get("initial_weights", "unknown"))
            return Trained(path, str(path.resolve()), tuple(classes), made_from)
        made = read_json(beside)
        if made.get("stage") != "seg_train":
            raise WsssError(
                f"segmentation.checkpoint={path}: made by stage={made.get('stage')}, not seg_train"
            )
    else:
        path = ex.stage_folder(cfg, "seg_train") / CHECKPOINT
        made = require(path.parent, "seg_train", wanted_by)
    return Trained(path, made["hash"], tuple(made["class_names"]), made["initial_weights"])


def load_trained(
    cfg: DictConfig, trained: Trained, wanted_by: str
) -> tuple[Segmenter, SegmentationNetwork]:
    """The trained network, ready for inference.

    Raises:
        WsssError: If the checkpoint is broken, or of another network or number of classes.
    """
    segmenter, network = build_segmenter(cfg, trained.classes, False, wanted_by)
    weights = _read(trained.path)["state_dict"]
    try:
        segmenter.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise WsssError(
            f"{trained.path}: not a checkpoint of segmentation.network.name="
            f"{cfg.segmentation.network.name} with {len(trained.classes) + 1} labels "
            f"({reason[:200]})"
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
