"""What the refining stages share: which class maps, which images, scores of label maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsss.data.base import ImageSet
from wsss.data.masks import VOID, read_mask
from wsss.errors import WsssError
from wsss.evaluation.confusion import confusion, scores
from wsss.evaluation.seeds import seed_labels
from wsss.maps.files import MapSource
from wsss.maps.fuse import enlarge
from wsss.run.pool import parallel

MASKS = "masks"


def scored_names(image_set: ImageSet, split: str, names: Sequence[str]) -> list[str]:
    """Images of a split among `names`, if all of those have masks; else none."""
    there = set(names)
    wanted = [name for name in image_set.names(split) if name in there]
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
