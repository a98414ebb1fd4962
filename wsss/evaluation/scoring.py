"""Scores of class maps and of label maps: images are counted one by one and summed as they come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsss.data.base import ImageSet
from wsss.data.masks import VOID, read_mask
from wsss.errors import WsssError
from wsss.evaluation.confusion import confusion, scores
from wsss.evaluation.curves import ThresholdCurve
from wsss.evaluation.per_image import Collector, Confusions, Sparse
from wsss.evaluation.seeds import seed_labels
from wsss.maps.files import MapSource
from wsss.maps.fuse import enlarge

MASKS = "masks"
LABELS = "labels"  # beside masks in which unsure pixels are 255: the same with their best label


def label_folder(stage: Path) -> Path:
    """The label maps of a stage that are scored: those in which every pixel has a label."""
    labels = stage / LABELS
    return labels if labels.is_dir() else stage / MASKS


REMAKE = "make it again, under another run_name= or with overwrite=true"


def scored_names(image_set: ImageSet, split: str, names: Sequence[str]) -> list[str]:
    """Images of a split among `names`, if all of those have masks; else none."""
    there = set(names)
    wanted = [name for name in image_set.names(split) if name in there]
    return wanted if all(image_set.has_mask(name) for name in wanted) else []


@dataclass(frozen=True)
class Counted:
    """What one image adds to the scores.

    Attributes:
        name: of the image.
        matrix: its confusion matrix, cells `true * L + predicted`.
        curve: its part of the threshold curve, where there is one.
    """

    name: str
    matrix: Sparse
    curve: Sparse | None = None


@dataclass(frozen=True)
class Score(ABC):
    """Counts the confusion of one image after the other; can be sent to worker processes.

    Attributes:
        image_set: gives the truth.
    """

    image_set: ImageSet

    @abstractmethod
    def __call__(self, name: str) -> Counted:
        """Count one image.

        Raises:
            WsssError: there is no truth, or the file does not fit it in size or class ids.
        """

    def curve(self) -> ThresholdCurve | None:
        """An empty threshold curve, where this has one."""
        return None

    def _truth(self, name: str, file: Path, size: tuple[int, ...]) -> np.ndarray:
        """Mask of an image, (H, W), of the size that the file claims."""
        truth = self.image_set.mask(name)
        if truth is None:
            raise WsssError(f"image {name}: no mask to score {file} against")
        if truth.shape != size:
            sizes = " and ".join("x".join(map(str, shape)) for shape in (size, truth.shape))
            raise WsssError(
                f"{file} and the mask of image {name} differ in size, {sizes}; {REMAKE}"
            )
        return truth

    def _matrix(self, name: str, truth: np.ndarray, label: np.ndarray) -> Sparse:
        labels = self.image_set.num_classes + 1
        try:
            matrix = confusion(truth, label, labels).ravel()
        except ValueError as error:  # the label map was checked before
            raise WsssError(f"mask of image {name}: {error}") from error
        cells = np.flatnonzero(matrix)
        return Sparse(cells.astype(np.int32), matrix[cells].astype(np.int32))


@dataclass(frozen=True)
class MaskScore(Score):
    """Of stored label maps; 255 in them counts as background.

    Attributes:
        folder: label maps, NAME.png.
    """

    folder: Path

    def __call__(self, name: str) -> Counted:
        file = self.folder / f"{name}.png"
        label = read_mask(file, self.image_set.num_classes)
        truth = self._truth(name, file, label.shape)
        return Counted(name, self._matrix(name, truth, np.where(label == VOID, 0, label)))


@dataclass(frozen=True)
class SeedScore(Score):
    """Of class maps as seeds: arg max with the maps' own background or a constant one.

    Attributes:
        source: the class maps.
        background: constant background of maps without a channel for it.
        thresholds: ascending constants of a threshold curve; empty: no curve.
    """

    source: MapSource
    background: float
    thresholds: tuple[float, ...] = ()

    def __call__(self, name: str) -> Counted:
        file = self.source.folder / f"{name}.npz"
        stored = self.source.read(name)
        truth = self._truth(name, file, stored.size)  # before anything is enlarged to that size
        classes = self.image_set.num_classes
        wrong = [int(i) for i in stored.classes if not 1 <= i <= classes]
        if wrong:
            raise WsssError(
                f"{file}: class id {wrong[0]}, but the data set has {classes} classes; {REMAKE}"
            )
        maps = enlarge(stored.maps[self.source.kind], stored.size)
        own = stored.has_background(self.source.kind)
        label, best, value = seed_labels(maps, stored.classes, None if own else self.background)
        curve = self.curve()
        part = curve.count(truth, best, value) if curve else None
        return Counted(name, self._matrix(name, truth, label), part)

    def curve(self) -> ThresholdCurve | None:
        """An empty curve over `thresholds`, if there are any."""
        labels = self.image_set.num_classes + 1
        return ThresholdCurve(labels, np.array(self.thresholds)) if self.thresholds else None


class Tally:
    """Sums of what a `Score` counts; memory does not grow but by the sparse matrices.

    Args:
        score: whose results are to come.
    """

    def __init__(self, score: Score) -> None:
        self.classes = tuple(score.image_set.classes)
        self.curve = score.curve()
        self.matrix = np.zeros((len(self.classes) + 1,) * 2, dtype=np.int64)
        self._images = Collector(self.classes)

    def add(self, image: Counted) -> None:
        """One more image."""
        self.matrix.reshape(-1)[image.matrix.cells] += image.matrix.counts
        self._images.add(image.name, image.matrix)
        if self.curve is not None and image.curve is not None:
            self.curve.add(image.curve)

    def confusions(self) -> Confusions:
        """The confusion matrix of every image."""
        return self._images.confusions()

    def figures(self) -> dict[str, Any]:
        """All figures over all pixels, in percent, as they stand in `metrics.json`."""
        seen = zip(("background", *self.classes), self.matrix.sum(axis=1) > 0, strict=True)
        found = {
            **scores(self.matrix).as_dict(self.classes),
            "absent": [name for name, there in seen if not there],  # in all masks
            "confusion": self.matrix.tolist(),
        }
        if self.curve is None:
            return found
        points = [scores(matrix) for matrix in self.curve.matrices()]
        best = int(np.argmax([point.miou for point in points]))
        return found | {
            "miou_best_threshold": points[best].miou,
            "best_threshold": float(self.curve.thresholds[best]),
            "best": points[best].as_dict(self.classes),
            "curve": {
                "threshold": self.curve.thresholds.tolist(),
                "miou": [point.miou for point in points],
                "false_positive": [point.false_positive for point in points],
                "false_negative": [point.false_negative for point in points],
            },
        }


def absent_classes(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line on classes that no mask shows, whose IoU of 0 tells of wrong predictions alone.

    Args:
        rows: figures by row of scores, of the same masks.
    """
    absent: list[str] = next(iter(rows.values())).get("absent", [])
    if not absent:
        return []
    more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
    others = ", ".join(f"{row} {figures['miou_truth']:.2f}" for row, figures in rows.items())
    return [
        f"no mask shows {', '.join(absent[:5])}{more}; where it is predicted it counts as 0; mIoU "
        f"of the classes that are there: {others}"
    ]


def tally(score: Score, results: Iterable[Counted]) -> Tally:
    """Sums of results as they come.

    Args:
        score: what has counted them.
        results: one for each image, for instance of `wsss.run.pool.each(score, names, ...)`.
    """
    total = Tally(score)
    for one in results:
        total.add(one)
    return total
