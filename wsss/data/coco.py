"""COCO 2014, and any data set in COCO's format."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from wsss.data.base import ImageSet, fingerprint_of
from wsss.data.coco_index import (
    INDEX,
    OUTLINES,
    Index,
    build_index,
    check_same_classes,
    digest,
    read_index,
    read_outlines,
)
from wsss.data.coco_masks import PaintTask, paint_file
from wsss.data.masks import read_derived_mask
from wsss.data.prepare import complaint
from wsss.errors import WsssError
from wsss.run.pool import parallel

MASKS = "masks"
_WAY_OUT = "run the same command with stage=prepare first"


class COCO(ImageSet):
    """A data set of instance annotations in COCO's format: `stage=prepare` reads them once.

    The index that it makes and the masks that it paints lie in `cache_dir/SPLIT-DIGEST`, where the
    digest changes with the annotation file: of a changed one nothing old is used. A split is made
    of the images with at least one label. Class ids are 1..N in the order of the category ids,
    whatever numbers those are.

    An image's name is that of its file; where files of two splits have the same one (`0001.jpg` in
    `train/` and in `val/`), both have their split before it (`train__0001`, `val__0001`).
    """

    def __init__(
        self,
        root: str | Path,
        annotations: Mapping[str, str | None],
        images: Mapping[str, str],
        cache_dir: str | Path,
    ) -> None:
        """Describe the data set; no file is needed before it is used.

        Args:
            root: folder that the other paths are relative to.
            annotations: annotation file of each split; None: the split is not used.
            images: image folder of each split.
            cache_dir: folder for what is derived; it belongs to this data set alone.

        Raises:
            WsssError: if `root` or the image folder of a split is not given.
        """
        if not root:
            raise WsssError("the folder of the data set is not set: give data.root=/path/to/COCO")
        self.root = Path(root).expanduser()
        self.cache_dir = Path(cache_dir).expanduser()
        self.annotations = {s: self.root / str(file) for s, file in annotations.items() if file}
        for split in self.annotations:
            if not images.get(split):
                raise WsssError(
                    f"split '{split}' has annotations but no image folder: give "
                    f"data.image_set.images.{split}="
                )
        self.images = {split: self.root / str(images[split]) for split in self.annotations}
        self._problems: list[str] = []
        self._ready: dict[str, Path] = {}
        self._found: tuple[dict[str, tuple[str, int]], set[str]] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r})"

    def __getstate__(self) -> dict[str, object]:
        # Workers read the index if they need it: names are not sent with every task.
        return {**self.__dict__, "_found": None}

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Category names in ascending order of their ids.

        Raises:
            WsssError: if no split is prepared.
        """
        for index in self._indexes():
            return index.classes
        self.check_root()
        raise WsssError(f"{self.root} is not prepared: {_WAY_OUT}")

    def folder(self, split: str) -> Path:
        """Folder of what is derived from a split's annotation file as it is now.

        Raises:
            WsssError: if there is no such split or file.
        """
        if split not in self.annotations:
            raise WsssError(
                f"there is no split '{split}'; there are {', '.join(self.annotations) or 'none'} "
                "(data.image_set.annotations)"
            )
        try:
            return self.cache_dir / f"{split}-{digest(self.annotations[split])}"
        except OSError as error:
            self.check_root()
            raise WsssError(
                f"no annotations {self.annotations[split]} for split '{split}': complete the data "
                f"set, or correct data.root or data.image_set.annotations.{split}"
            ) from error

    def index(self, split: str) -> Index:
        """The index of a split.

        Raises:
            WsssError: if the split is not prepared, or its annotations have changed since.
        """
        if split not in self._prepared():
            folder = self.folder(split)
            older = any(path != folder for path in self._derived_folders(split))
            since = "annotations have changed since stage=prepare" if older else "is not prepared"
            raise WsssError(f"split '{split}' of {self.root}: {since}; {_WAY_OUT}")
        return read_index(self.annotations[split], self._prepared()[split])

    def names(self, split: str) -> list[str]:
        """Names of the split's images with at least one label, in ascending order.

        Raises:
            WsssError: if the split is not prepared, or two images can't be told apart.
        """
        inner = self.index(split).names
        _, shared = self._identities()
        return [f"{split}__{name}" if name in shared else name for name in inner]

    def labels(self, names: Sequence[str]) -> np.ndarray:
        """Label vectors, (len(names), N) uint8; crowd regions count.

        Raises:
            WsssError: if an image is in no split that is prepared.
        """
        places, _ = self._identities()
        indexes = {split: self.index(split) for split in self._prepared()}
        result = np.zeros((len(names), self.num_classes), dtype=np.uint8)
        for number, name in enumerate(names):
            if name not in places:
                raise WsssError(f"image '{name}' has no annotation in {self.root}")
            split, row = places[name]
            result[number] = indexes[split].labels[row]
        return result

    def image_path(self, name: str) -> Path:
        """The image's file, as the annotations name it."""
        if name not in self._identities()[0]:
            return self.root / name
        split, row = self._identities()[0][name]
        return self.images[split] / self.index(split).files[row]

    def mask_path(self, name: str) -> Path | None:
        """The painted mask, or None if there is none."""
        if name not in self._identities()[0]:
            return None
        split, row = self._identities()[0][name]
        path = self._prepared()[split] / MASKS / f"{self.index(split).names[row]}.png"
        return path if path.is_file() else None

    def has_mask(self, name: str) -> bool:
        """Whether the mask is painted."""
        return self.mask_path(name) is not None

    def mask(self, name: str) -> np.ndarray | None:
        """Ground truth, (H, W) uint8 with 255 = crowd; None if it is not painted."""
        path = self.mask_path(name)
        return None if path is None else read_derived_mask(path, self.num_classes)

    def check_root(self) -> None:
        """Check that the root holds annotations.

        Raises:
            WsssError: one line that says what is missing.
        """
        if not self.root.is_dir():
            raise WsssError(
                f"the data folder {self.root} does not exist: give data.root=/path/to/COCO (the "
                "folder that holds the annotations)"
            )
        if not any(path.is_file() for path in self.annotations.values()):
            listed = ", ".join(str(path) for path in self.annotations.values())
            raise WsssError(
                f"{self.root} has no annotations ({listed or 'none are configured'}): correct "
                "data.root or data.image_set.annotations"
            )

    def derive(self, workers: int = 0) -> dict[str, object]:
        """Read the annotations and paint the masks that are not there yet.

        Returns:
            Counts of each split.

        Raises:
            WsssError: what is wrong with the annotation files.
        """
        self.check_root()
        problems: list[str] = []
        splits = [split for split, path in self.annotations.items() if path.is_file()]
        for split in splits:
            folder = self.folder(split)
            try:
                if not (folder / INDEX).is_file():
                    problems += build_index(self.annotations[split], folder)
            except WsssError as error:
                problems.append(str(error))
        if problems:
            raise complaint(f"{self!r}", problems)
        self._ready, self._found, self._problems = {}, None, []
        derived: dict[str, object] = {}
        for split in splits:
            for old in self._derived_folders(split):
                if old != self.folder(split):
                    shutil.rmtree(old, ignore_errors=True)
            painted, found = self._paint(split, workers)
            facts = {"masks_painted": painted, "masks_found": found}
            derived[split] = {**self.index(split).facts, **facts}
        return derived

    def review(self) -> tuple[list[str], list[str]]:
        """Outlines that could not be painted, and what is odd but does no harm."""
        warnings = []
        for split in self._prepared():
            facts = self.index(split).facts
            if facts["images_without_label"]:
                warnings.append(
                    f"split '{split}': {facts['images_without_label']} of "
                    f"{facts['images_in_file']} images have no annotation and are left out"
                )
            if facts["annotations_without_outline"]:
                warnings.append(
                    f"split '{split}': {facts['annotations_without_outline']} annotations have no "
                    "outline: they are labels, but no mask shows them"
                )
        return self._problems, warnings

    def fingerprint(self) -> str:
        """Changes when an annotation file does, or something that was derived from one is gone."""
        folders = [self.folder(s) for s, path in self.annotations.items() if path.is_file()]
        derived = fingerprint_of(
            [folder / INDEX for folder in folders], [folder / MASKS for folder in folders]
        )
        return " ".join([*(folder.name for folder in folders), derived])

    def _paint(self, split: str, workers: int) -> tuple[int, int]:
        """Paint what is missing; how many masks were painted and how many were there."""
        folder, index = self.folder(split), self.index(split)
        masks = folder / MASKS
        masks.mkdir(exist_ok=True)
        there = set(os.listdir(masks))
        if all(f"{name}.png" in there for name in index.names):
            (folder / OUTLINES).unlink(missing_ok=True)
            return 0, len(index.names)
        outlines = read_outlines(folder)
        if outlines is None:  # they went when all masks were painted, or are damaged
            build_index(self.annotations[split], folder)
            outlines = read_outlines(folder)
            assert outlines is not None  # they have just been written
        tasks = [
            PaintTask(
                name,
                self.images[split] / index.files[row],
                (int(outlines.sizes[row, 0]), int(outlines.sizes[row, 1])),
                outlines.spans[outlines.first[row] : outlines.first[row + 1]],
                masks / f"{name}.png",
            )
            for row, name in enumerate(index.names)
            if f"{name}.png" not in there
        ]
        paint = partial(paint_file, outlines=folder / OUTLINES, annotations=self.annotations[split])
        lines = [line for line in parallel(paint, tasks, f"masks of {split}", workers) if line]
        self._problems += lines
        if not lines:
            (folder / OUTLINES).unlink(missing_ok=True)
        return len(tasks) - len(lines), len(index.names) - len(tasks)

    def _prepared(self) -> dict[str, Path]:
        """Folders of the splits that are prepared from the present annotations.

        Raises:
            WsssError: if their categories are not the same.
        """
        if not self._ready:
            found = {s: self.folder(s) for s, path in self.annotations.items() if path.is_file()}
            ready = {s: folder for s, folder in found.items() if (folder / INDEX).is_file()}
            check_same_classes(
                {self.annotations[s]: read_index(self.annotations[s], ready[s]) for s in ready}
            )
            self._ready = ready
        return self._ready

    def _indexes(self) -> list[Index]:
        return [self.index(split) for split in self._prepared()]

    def _identities(self) -> tuple[dict[str, tuple[str, int]], set[str]]:
        """Split and row of each image by its name, and the names of files that several images have.

        Raises:
            WsssError: if two images can't be told apart even with their splits before their names.
        """
        if self._found is None:
            indexes = {split: self.index(split) for split in self._prepared()}
            path_of: dict[str, Path] = {}
            shared = {
                name
                for split, index in indexes.items()
                for name, file in zip(index.names, index.files, strict=True)
                if path_of.setdefault(name, path := self.images[split] / file) != path
            }
            places: dict[str, tuple[str, int]] = {}
            for split, index in indexes.items():
                for row, inner in enumerate(index.names):
                    name = f"{split}__{inner}" if inner in shared else inner
                    there, first = places.setdefault(name, (split, row))
                    if self.images[there] / indexes[there].files[first] != (
                        self.images[split] / index.files[row]
                    ):
                        raise WsssError(
                            f"{self.root}: two images are called '{name}'; rename a file of split "
                            f"'{split}' and correct its file_name in {self.annotations[split]}"
                        )
            self._found = places, shared
        return self._found

    def _derived_folders(self, split: str) -> list[Path]:
        """Folders of this split, of the present annotations and of former ones."""
        if not self.cache_dir.is_dir():
            return []
        named = re.compile(re.escape(split) + "-[0-9a-f]{12}")
        return [path for path in self.cache_dir.iterdir() if named.fullmatch(path.name)]
