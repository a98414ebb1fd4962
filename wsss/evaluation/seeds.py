"""Scores of class maps as seeds: arg max and threshold curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsss.data.base import ImageSet
from wsss.errors import WsssError
from wsss.evaluation.confusion import confusion
from wsss.evaluation.curves import ThresholdCurve
from wsss.maps.files import read_class_maps
from wsss.maps.fuse import enlarge


def seed_labels(
    maps: np.ndarray, classes: np.ndarray, background: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label map of class maps, and what a threshold curve needs.

    Args:
        maps: (K, H, W) foreground maps with `background` a constant, or (K+1, H, W) with their
            own background first and `background` None.
        classes: (K,) ids of the foreground channels.
        background: constant background, or None.

    Returns:
        The arg-max label map, the best foreground class and its value, each (H, W).
    """
    foreground = maps if background is not None else maps[1:]
    if not len(classes):
        shape = maps.shape[1:]
        zeros = np.zeros(shape, dtype=np.int64)
        return zeros, zeros, np.zeros(shape, dtype=np.float32)
    index = foreground.argmax(0)
    value = np.take_along_axis(foreground, index[None], 0)[0]
    best = classes[index]
    behind = background if background is not None else maps[0]
    return np.where(value > behind, best, 0), best, value


@dataclass(frozen=True)
class SeedTask:
    """What a worker needs to score images of one kind of map.

    Attributes:
        image_set: gives the masks.
        maps: folder of class-map files.
        kind: which maps.
        background: constant background of kinds without a background channel.
        thresholds: constants of the curve.
    """

    image_set: ImageSet
    maps: Path
    kind: str
    background: float
    thresholds: np.ndarray

    def __call__(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Confusion matrices of some images: by arg max (L, L), and by threshold (T, L, L)."""
        labels = self.image_set.num_classes + 1
        matrix = np.zeros((labels, labels), dtype=np.int64)
        curve = ThresholdCurve(labels, self.thresholds)
        for name in names:
            truth = self.image_set.mask(name)
            if truth is None:
                raise WsssError(f"image {name}: no mask to score against; choose data.eval_split")
            stored = read_class_maps(self.maps / f"{name}.npz", self.kind)
            if truth.shape != stored.size:
                raise WsssError(
                    f"image {name}: mask {truth.shape} and class maps {stored.size} differ in size"
                )
            maps = enlarge(stored.maps[self.kind], stored.size)
            own = stored.has_background(self.kind)
            label, best, value = seed_labels(maps, stored.classes, None if own else self.background)
            matrix += confusion(truth, label, labels)
            curve.update(truth, best, value)
        return matrix, curve.matrices()
