"""What the refining stages share: which class maps, which images, scores of label maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from wsss import experiment as ex
from wsss.artifacts import ClassMaps, read_class_maps, require
from wsss.data.base import ImageSet
from wsss.data.masks import VOID, read_mask
from wsss.data.pool import parallel
from wsss.errors import WsssError
from wsss.evaluation.confusion import confusion, scores
from wsss.evaluation.seeds import enlarge, seed_labels

MASKS = "masks"


@dataclass(frozen=True)
class MapSource:
    """Where a refining stage finds its class maps.

    Attributes:
        folder: Folder of class-map files.
        kind: Which of their kinds.
        hash: Stands for how they were made.
    """

    folder: Path
    kind: str
    hash: str

    def read(self, name: str) -> ClassMaps:
        """The class maps of one image, of this kind only."""
        return read_class_maps(self.folder / f"{name}.npz", self.kind)


def map_source(cfg: DictConfig, wanted_by: str) -> MapSource:
    """The class maps of this run that `refine.kind` names; null names the method's own.

    Raises:
        WsssError: If make_cam has not ended, or there are no maps of that kind.
    """
    folder = ex.stage_folder(cfg, "make_cam")
    made = require(folder, "make_cam", wanted_by)
    kinds = list(made["kinds"])
    kind = cfg.refine.kind or kinds[-1]
    if kind not in kinds:
        raise WsssError(f"refine.kind={kind}: there are maps of kind {', '.join(kinds)}")
    return MapSource(folder / "maps", kind, made["hash"])


def settings_of(cfg: DictConfig, source: MapSource, part: str) -> dict[str, object]:
    """What a refining stage depends on: its part of `refine`, the kind of map, the splits."""
    return {
        part: ex.plain(cfg.refine[part]),
        "kind": source.kind,
        "infer_split": cfg.data.infer_split,
        "eval_split": cfg.data.eval_split,
    }


def scored_names(cfg: DictConfig, image_set: ImageSet, names: Sequence[str]) -> list[str]:
    """Images of `data.eval_split` among `names`, if all of the split have masks; else none."""
    there = set(names)
    wanted = [name for name in image_set.names(cfg.data.eval_split) if name in there]
    return wanted if all(image_set.has_mask(name) for name in wanted) else []


@dataclass(frozen=True)
class MaskScore:
    """Counts confusion of stored label maps; 255 in them counts as background.

    Attributes:
        image_set: Gives the truth.
        folder: Label maps, NAME.png.
    """

    image_set: ImageSet
    folder: Path

    def __call__(self, name: str) -> np.ndarray:
        """Confusion matrix of one image, (N+1, N+1) int64, rows true."""
        labels = self.image_set.num_classes + 1
        predicted = read_mask(self.folder / f"{name}.png", labels - 1)
        truth = _truth(self.image_set, name, predicted.shape)
        return confusion(truth, np.where(predicted == VOID, 0, predicted), labels)


@dataclass(frozen=True)
class SeedScore:
    """Counts confusion of the raw seeds: arg max with the maps' background or a constant one.

    Attributes:
        image_set: Gives the truth.
        source: The class maps.
        background: Constant background of maps without a channel for it.
    """

    image_set: ImageSet
    source: MapSource
    background: float

    def __call__(self, name: str) -> np.ndarray:
        """Confusion matrix of one image, (N+1, N+1) int64, rows true."""
        stored = self.source.read(name)
        maps = enlarge(stored.maps[self.source.kind], stored.size)
        own = stored.has_background(self.source.kind)
        label, _, _ = seed_labels(maps, stored.classes, None if own else self.background)
        truth = _truth(self.image_set, name, label.shape)
        return confusion(truth, label, self.image_set.num_classes + 1)


def _truth(image_set: ImageSet, name: str, shape: tuple[int, ...]) -> np.ndarray:
    truth = image_set.mask(name)
    if truth is None or truth.shape != shape:
        have = "no mask" if truth is None else f"a mask of {truth.shape}"
        raise WsssError(f"image {name}: {have} for a label map of {shape}")
    return truth


def miou(
    score: Callable[[str], np.ndarray],
    names: Sequence[str],
    workers: int,
    classes: tuple[str, ...],
    description: str,
) -> dict[str, Any]:
    """Mean IoU in percent and its parts, over all pixels of `names`."""
    total = np.sum(parallel(score, names, description, workers), axis=0)
    return {**scores(total).as_dict(classes), "confusion": total.tolist()}


def missing_files_of(folder: Path, names: Sequence[str], suffix: str) -> list[str]:
    """Names whose file is not in the folder yet; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in folder.glob(f"*{suffix}")}
    return [name for name in names if name + suffix not in there]
