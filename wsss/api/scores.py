"""Scores of predictions against masks, and class-map files read back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from wsss.api.prediction import Prediction
from wsss.data.masks import VOID, read_mask
from wsss.errors import WsssError
from wsss.evaluation.confusion import confusion, scores
from wsss.evaluation.seeds import seed_labels
from wsss.files import read_json
from wsss.maps.files import MAPS, ClassMaps, read_class_maps
from wsss.maps.fuse import enlarge
from wsss.run.folder import MANIFEST

LabelMap: TypeAlias = np.ndarray | str | Path | Prediction | ClassMaps
MOST = VOID - 1  # the highest class id that a label map can hold


@dataclass(frozen=True)
class Evaluation:
    """Scores over all pixels of some images, percent; void is left out.

    Attributes:
        images: how many were scored.
        miou: mean IoU over the classes in truth or prediction.
        miou_truth: mean IoU over the classes in the truth.
        iou: ioU by class, background first; nan where a class is in neither.
        precision: mean over occurring classes.
        recall: mean over occurring classes.
        confusion: pixels, (C, C) int64, rows true, columns predicted.
    """

    images: int
    miou: float
    miou_truth: float
    iou: dict[str, float]
    precision: float
    recall: float
    confusion: np.ndarray

    def __str__(self) -> str:
        width = max(map(len, self.iou))
        rows = [f"{name:<{width}}  {value:6.2f}" for name, value in self.iou.items()]
        return "\n".join([f"mIoU {self.miou:.2f} over {self.images} images", *rows])


def evaluate(
    predictions: str | Path | Mapping[str, LabelMap] | Iterable[LabelMap],
    masks: str | Path | Mapping[str, LabelMap] | Sequence[LabelMap],
    *,
    classes: Sequence[str] | None = None,
    kind: str | None = None,
    background: float = 0.15,
) -> Evaluation:
    """Score label maps, or class maps as seeds, against masks.

    Args:
        predictions: a folder of label maps NAME.png or class maps NAME.npz; what `predict` or
            `stream` of a model gives; or label maps by name, or in the order of `masks`. 255 in
            them counts as background.
        masks: a folder of masks NAME.png (0 background, 1.. classes, 255 void), or masks by name or
            in order. Of folders and mappings the names that both have are scored: `images` says
            how many these are.
        classes: foreground class names; None: those of the predictions, else `class 1` and so on.
        kind: of class maps: which kind; None: the last one.
        background: of class maps without a background channel: the constant one.

    Raises:
        WsssError: no image has both, sizes differ, or ids are no classes.
    """
    total = np.zeros((MOST + 1, MOST + 1), dtype=np.int64)
    truths = _by_name(masks, (".png",))
    count = highest = 0
    for name, prediction in _named(predictions, truths):
        if name not in truths:
            continue
        if isinstance(prediction, Prediction):
            classes = classes or prediction.classes
        found, truth = _label_map(prediction, kind, background), _label_map(truths[name], None, 0)
        if found.shape != truth.shape:
            sizes = [" x ".join(map(str, one.shape)) for one in (found, truth)]
            raise WsssError(f"{name}: the label map is {sizes[0]}, its mask {sizes[1]}")
        found = np.where(found == VOID, 0, found)
        matrix = confusion(truth, found, MOST + 1)
        total += matrix
        highest = max(highest, *(int(i.max(initial=0)) for i in matrix.nonzero()))
        count += 1
    if not count:
        raise WsssError("evaluate: no image has both a prediction and a mask of the same name")
    if classes is None:
        classes = _recorded_classes(predictions) or [f"class {n + 1}" for n in range(highest)]
    if highest > len(classes):
        raise WsssError(f"evaluate: class id {highest} is there, but {len(classes)} classes")
    total = total[: len(classes) + 1, : len(classes) + 1]
    result = scores(total)
    names = ["background", *classes]
    iou = dict(zip(names, (float(value) for value in result.iou), strict=True))
    return Evaluation(
        count, result.miou, result.miou_truth, iou, result.precision, result.recall, total
    )


class MapFolder(Mapping[str, ClassMaps]):
    """Class maps by name, each read when it is asked for.

    Attributes:
        folder: where the files lie.
        classes: foreground class names, where a manifest of `stage=make_cam` lies beside.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names = sorted(path.stem for path in folder.glob("*.npz"))
        self.classes: tuple[str, ...] | None = None
        if (folder.parent / MANIFEST).is_file():
            self.classes = (
                tuple(read_json(folder.parent / MANIFEST).get("class_names") or ()) or None
            )

    def __getitem__(self, name: str) -> ClassMaps:
        if name not in set(self._names):
            raise KeyError(name)
        return read_class_maps(self.folder / f"{name}.npz")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"MapFolder({len(self)} images in {self.folder})"


def read_maps(path: str | Path) -> Any:
    """Class maps of `stage=make_cam` or of `Prediction.save`.

    Args:
        path: a file NAME.npz; the folder of the files, or of the stage.

    Returns:
        `ClassMaps` of a file; of a folder a mapping from names to them, which reads each when it is
        asked for and knows the class names (`classes`) where the stage has ended.

    Raises:
        WsssError: nothing is there, or a file is damaged.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return read_class_maps(path)
    folder = path / MAPS if (path / MAPS).is_dir() else path
    found = MapFolder(folder)
    if not found:
        raise WsssError(f"{path}: no class maps (NAME.npz) in this folder")
    return found


def _by_name(given: Any, endings: tuple[str, ...]) -> Mapping[str, LabelMap]:
    if isinstance(given, str | Path):
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise WsssError(f"{folder}: no such folder")
        return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in endings}
    if isinstance(given, Mapping):
        return given
    return {str(number): one for number, one in enumerate(given)}


def _named(given: Any, truths: Mapping[str, LabelMap]) -> Iterator[tuple[str, LabelMap]]:
    """Predictions with the names of their masks; a stream is gone through once."""
    if isinstance(given, str | Path | Mapping):
        yield from _by_name(given, (".png", ".npz")).items()
        return
    for number, one in enumerate(given):
        own = isinstance(one, Prediction) and one.name in truths
        yield (one.name if own else str(number)), one  # type: ignore[union-attr]


def _label_map(one: LabelMap, kind: str | None, background: float) -> np.ndarray:
    if isinstance(one, str | Path):
        one = (
            read_class_maps(Path(one)) if Path(one).suffix == ".npz" else read_mask(Path(one), MOST)
        )
    if isinstance(one, Prediction):
        return one.labels
    if isinstance(one, ClassMaps):
        kind = kind or list(one.maps)[-1]
        if kind not in one.maps:
            raise WsssError(f"kind={kind}: there are {', '.join(one.maps)}")
        maps = enlarge(one.maps[kind], one.size)
        own = one.has_background(kind)
        return seed_labels(maps, one.classes, None if own else background)[0]
    array = np.asarray(one)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise WsssError(
            f"a label map must be (H, W) whole numbers, not {array.dtype} {array.shape}"
        )
    return array


def _recorded_classes(predictions: Any) -> Sequence[str] | None:
    """Class names in the manifest of the stage that made a folder, or of a `MapFolder`."""
    if isinstance(predictions, MapFolder):
        return predictions.classes
    if not isinstance(predictions, str | Path):
        return None
    manifest = Path(predictions).expanduser().parent / MANIFEST
    return read_json(manifest).get("class_names") if manifest.is_file() else None
