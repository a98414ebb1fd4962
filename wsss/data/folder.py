"""A data set of one's own: a folder of images, a class list and a label file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wsss.data.base import ImageSet, class_problems, fingerprint_of, list_files, read_lines
from wsss.data.label_files import Labels, match_rows, read_rows
from wsss.data.masks import read_mask
from wsss.data.photographs import IMAGE_ENDINGS
from wsss.errors import WsssError

MASK_ENDINGS = (".png",)
NO_MASK_ENDINGS = tuple(ending for ending in IMAGE_ENDINGS if ending not in MASK_ENDINGS)
WITH_MASKS = "_with_masks"


class Folder(ImageSet):
    """Images in one folder, with labels in a CSV or JSON file.

    `images/NAME.jpg` (or any of `IMAGE_ENDINGS`), `classes.txt` (a name a line), `labels.csv`
    (rows of `name,class;class`) or `labels.json` (`{"name": ["class", ...]}`), where an image may
    be of no class; for evaluation `masks/NAME.png`; optionally lists `splits/SPLIT.txt`. Without
    any list all images are split `train`. `SPLIT_with_masks` is made of the images of a split that
    have a mask, or of all where none has: then there are pictures, but no scores. Nothing is
    derived: what is read is small.
    """

    def __init__(
        self,
        root: str | Path,
        images: str = "images",
        classes: str | Sequence[str] = "classes.txt",
        labels: str | None = None,
        masks: str = "masks",
        splits: str = "splits",
    ) -> None:
        """Describe the data set; no file is needed before it is used.

        Args:
            root: folder that the other paths are relative to.
            images: folder of the images.
            classes: file with a class name a line, or the names themselves.
            labels: label file; None: `labels.csv` or `labels.json`, whichever there is.
            masks: folder of the masks; it need not exist.
            splits: folder of the lists; it need not exist.

        Raises:
            WsssError: if `root` is not given.
        """
        if not root:
            raise WsssError("the folder of the data set is not set: give data.root=/path/to/folder")
        self.root = Path(root).expanduser()
        self.images, self.masks, self.splits = (
            self.root / part for part in (images, masks, splits)
        )
        self.label_file = labels
        self.class_file = self.root / classes if isinstance(classes, str) else None
        self._class_names = () if isinstance(classes, str) else tuple(map(str, classes))
        self._labels: Labels | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r})"

    def __getstate__(self) -> dict[str, object]:
        # Workers read the label file again if they need it: it is not sent with every task.
        return {**self.__dict__, "_labels": None}

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the foreground classes.

        Raises:
            WsssError: all that is wrong with the class list.
        """
        if not self._class_names:
            self._class_names = self._read_classes()
            where = self.class_file or "data.image_set.classes"
            problems = class_problems(self._class_names, where)
            if problems:
                self._class_names = ()
                raise WsssError("\n".join(problems))
        return self._class_names

    def names(self, split: str) -> list[str]:
        """Names of a split: of its list, or all images as `train` where there are no lists.

        Raises:
            WsssError: if there is no such split, or its list can't be read.
        """
        if split.endswith(WITH_MASKS) and not self._list(split).is_file():
            names = self.names(split.removesuffix(WITH_MASKS))
            return [name for name in names if self.has_mask(name)] or names
        lists = self.split_names()
        if not lists and split == "train":
            files, _ = self._image_files()
            return sorted(files)
        if split not in lists:
            there = f"lists there: {', '.join(lists)}" if lists else "without lists all is 'train'"
            raise WsssError(f"no list {self._list(split)} for split '{split}': {there}")
        # What is no image is left to `check` and `review`, which name it with its line.
        files, _ = self._image_files()
        return list(dict.fromkeys(n for _, n in self._read_list(split) if n in files))

    def has_split(self, split: str) -> bool:
        """Whether it has a list, or all images are of it."""
        return split.removesuffix(WITH_MASKS) in (self.split_names() or ["train"])

    def split_names(self) -> list[str]:
        """Splits that have a list, in alphabetic order."""
        return sorted(path.stem for path in self.splits.glob("*.txt"))

    def image_path(self, name: str) -> Path:
        """The image's file, whatever its ending is."""
        files, _ = list_files(self.images, IMAGE_ENDINGS)
        return self.images / files.get(name, name)

    def labels(self, names: Sequence[str]) -> np.ndarray:
        """Label vectors, (len(names), N) uint8.

        Raises:
            WsssError: if an image has no label, or its row in the label file is wrong.
        """
        column = {name: i for i, name in enumerate(self.classes)}
        table = self._table()
        result = np.zeros((len(names), self.num_classes), dtype=np.uint8)
        for row, name in enumerate(names):
            if name in table.faults:
                raise WsssError(table.faults[name])
            if name not in table.of:
                raise WsssError(
                    f"image {self.image_path(name)} has no label: {self._label_path()} has no row "
                    f"'{name}'"
                )
            result[row, [column[label] for label in table.of[name]]] = 1
        return result

    def mask_path(self, name: str) -> Path | None:
        """`masks/name.png`, or None if there is none."""
        files, _ = list_files(self.masks, MASK_ENDINGS)
        return self.masks / files[name] if name in files else None

    def has_mask(self, name: str) -> bool:
        """Whether there is a mask file."""
        return self.mask_path(name) is not None

    def mask(self, name: str) -> np.ndarray | None:
        """Ground truth, (H, W) uint8 with 255 = void; None if the image has no mask."""
        path = self.mask_path(name)
        return None if path is None else read_mask(path, self.num_classes)

    def check(self, split: str, need_masks: bool = False) -> None:
        """Check the lists, the images and, if asked, the masks of a split.

        Raises:
            WsssError: the first thing that is wrong.
        """
        self._image_files()
        for line in self._list_problems(split.removesuffix(WITH_MASKS)):
            raise WsssError(f"{line} (stage=prepare lists all that is wrong)")
        super().check(split, need_masks)

    def review(self) -> tuple[list[str], list[str]]:
        """All that is wrong with the files as a whole, and what is odd but does no harm."""
        problems: list[str] = []
        warnings: list[str] = []
        files, twins = self._image_files()
        problems += [
            f"{self.images / twin} and {self.images / files[name]} have the same name '{name}': "
            "rename one of them"
            for name, twin in twins
        ]
        for split in self.split_names():
            problems += self._list_problems(split)
        try:
            problems += self._table().problems
        except WsssError as error:
            problems.append(str(error))
        masks, _ = list_files(self.masks, MASK_ENDINGS)
        problems += [
            f"mask {self.masks / file} belongs to no image in {self.images}"
            for name, file in masks.items()
            if name not in files
        ]
        others, _ = list_files(self.masks, NO_MASK_ENDINGS)
        problems += [
            f"mask {self.masks / file} is no PNG: save masks as PNG (a JPEG changes class ids)"
            for file in others.values()
        ]
        if self.label_file is None and all(path.is_file() for path in self._label_files()):
            warnings.append(f"{self.root} has labels.csv and labels.json: labels.csv is read")
        for what in (self.images, self.masks):
            ignored = _ignored(what)
            if ignored:
                warnings.append(f"{len(ignored)} entries of {what} are passed over: {ignored[0]}")
        return problems, warnings

    def fingerprint(self) -> str:
        """Changes when a list, a label or a class does, or an image or mask comes or goes."""
        texts = [self.class_file, *sorted(self.splits.glob("*.txt")), self._label_path()]
        return fingerprint_of(texts, [self.images, self.masks])

    def _image_files(self) -> tuple[Mapping[str, str], Sequence[tuple[str, str]]]:
        """File of each image, and the files whose name is taken.

        Raises:
            WsssError: if there is no image folder or no image in it.
        """
        if not self.root.is_dir():
            raise WsssError(
                f"the data folder {self.root} does not exist: give data.root=/path/to/folder (the "
                f"one that holds {self.images.name})"
            )
        if not self.images.is_dir():
            raise WsssError(
                f"{self.root} has no folder {self.images.name}: put the images there, or correct "
                "data.root or data.image_set.images"
            )
        files, twins = list_files(self.images, IMAGE_ENDINGS)
        if not files:
            seen = [*_ignored(self.images), "nothing at all"][:3]
            raise WsssError(
                f"{self.images} holds no image ({' '.join(IMAGE_ENDINGS)}), but {', '.join(seen)}"
            )
        return files, twins

    def _list(self, split: str) -> Path:
        return self.splits / f"{split}.txt"

    def _read_list(self, split: str) -> list[tuple[int, str]]:
        """Line numbers and image names of a list; lines may give file names.

        Raises:
            WsssError: if the list can't be read.
        """
        files, _ = self._image_files()
        name_of = {file: name for name, file in files.items()}
        lines = read_lines(self._list(split), "list")
        return [(number, name_of.get(line, line)) for number, line in lines]

    def _list_problems(self, split: str) -> list[str]:
        """What is wrong with the list of a split, if it has one."""
        if split not in self.split_names():
            return []
        try:
            entries = self._read_list(split)
        except WsssError as error:
            return [str(error)]
        files, _ = self._image_files()
        path = self._list(split)
        problems = [] if entries else [f"the list {path} is empty"]
        first: dict[str, int] = {}
        for number, name in entries:
            if name not in files:
                problems.append(f"{path}, line {number}: there is no image '{name}'")
            elif name in first:
                problems.append(f"{path}, line {number}: '{name}' is on line {first[name]} already")
            first.setdefault(name, number)
        return problems

    def _read_classes(self) -> tuple[str, ...]:
        assert self.class_file is not None  # names that are given are not read
        if not self.class_file.exists():
            self._image_files()  # the whole folder may be wanting
            raise WsssError(
                f"no class list {self.class_file}: write a class name a line, or give "
                "data.image_set.classes=[NAME,...]"
            )
        return tuple(line for _, line in read_lines(self.class_file, "class list"))

    def _label_path(self) -> Path | None:
        """The label file; None if there is none."""
        if self.label_file is not None:
            return self.root / self.label_file
        return next((path for path in self._label_files() if path.is_file()), None)

    def _label_files(self) -> list[Path]:
        return [self.root / "labels.csv", self.root / "labels.json"]

    def _table(self) -> Labels:
        """The label file, matched with images and classes; read once.

        Raises:
            WsssError: if there is none, or it can't be read.
        """
        if self._labels is None:
            path = self._label_path()
            if path is None:
                raise WsssError(
                    f"{self.root} has no labels.csv or labels.json: rows of name,class;class say "
                    "what is in each image"
                )
            files, _ = self._image_files()
            self._labels = match_rows(read_rows(path), files, self.classes, self.images)
        return self._labels


def _ignored(folder: Path) -> list[str]:
    """Entries of a folder that are no pictures, hidden ones apart."""
    if not folder.is_dir():
        return []
    return [
        entry.name
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
        if not entry.name.startswith(".")
        and (entry.is_dir() or os.path.splitext(entry.name)[1].lower() not in IMAGE_ENDINGS)
    ]
