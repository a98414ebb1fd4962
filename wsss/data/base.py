"""What the program asks of a data set: the one interface that a new one implements."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from wsss.data.masks import VOID
from wsss.errors import WsssError


class ImageSet(ABC):
    """Images with image-level labels, in named splits, and masks for evaluation only.

    A subclass gives `classes` and the abstract methods. The number of classes is free: class id
    0 is background, `classes[n]` has id n + 1, and 255 is void.

    Attributes:
        classes: names of the foreground classes; `classes[n]` is class id n + 1.
        unlabeled_splits: splits whose images have neither labels nor masks (a test split).
    """

    classes: tuple[str, ...]
    unlabeled_splits: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number N of foreground classes."""
        return len(self.classes)

    @abstractmethod
    def names(self, split: str) -> list[str]:
        """Names of the images of a split, in the order of its list.

        Raises:
            WsssError: if there is no such split.
        """

    def has_split(self, split: str) -> bool:
        """Whether the data set's owner has made such a split, where that is left to them."""
        return True

    @abstractmethod
    def image_path(self, name: str) -> Path:
        """File of the image `name`; it need not exist."""

    @abstractmethod
    def labels(self, names: Sequence[str]) -> np.ndarray:
        """Image-level labels, (len(names), N) uint8 in {0, 1}; column n is class id n + 1.

        Raises:
            WsssError: if an image has no annotation or one that names an unknown class.
        """

    @abstractmethod
    def mask(self, name: str) -> np.ndarray | None:
        """Ground truth of an image, (H, W) uint8 class ids with 255 = void, or None.

        For evaluation only: nothing that trains seeds may call this.

        Raises:
            WsssError: if the file can't be read or holds an id that is no class.
        """

    def mask_path(self, name: str) -> Path | None:
        """The file of `mask(name)`, whose content a score depends on; None if there is none."""
        return None

    def has_mask(self, name: str) -> bool:
        """Whether `mask(name)` is there; a subclass may answer without reading the file."""
        return self.mask(name) is not None

    def derive(self, workers: int = 0) -> dict[str, object]:
        """Make what can be made once from the raw files (lists, masks); `stage=prepare`.

        It can be interrupted and run again: what is there is kept.

        Args:
            workers: number of processes, 0 for this one.

        Returns:
            What was made, as plain numbers and strings, for the report.
        """
        return {}

    def review(self) -> tuple[list[str], list[str]]:
        """What `stage=prepare` is to say of the data set as a whole, after `derive`.

        Returns:
            What must be put right, and what is only odd; a line each, which names file and place.
        """
        return [], []

    def fingerprint(self) -> str:
        """Text that changes when the raw files do, as far as that can be seen at a glance.

        `stage=prepare` is done anew when it changes; the empty default never does.
        """
        return ""

    def check(self, split: str, need_masks: bool = False) -> None:
        """Check that a split can be used: list, image files and, if asked, masks.

        Args:
            split: name of the split.
            need_masks: also ask for a mask of every image.

        Raises:
            WsssError: one line that names what is missing and the way out.
        """
        names = self.names(split)
        missing = missing_files([self.image_path(name) for name in names])
        if missing:
            raise WsssError(
                f"split '{split}': {len(missing)} of {len(names)} images are missing, "
                f"for instance {missing[0]}; complete the data set or correct data.root"
            )
        if need_masks:
            bare = [name for name in names if not self.has_mask(name)]
            if bare:
                raise WsssError(
                    f"split '{split}': {len(bare)} of {len(names)} images have no mask, for "
                    f"instance '{bare[0]}'; choose a split with masks (data.eval_split=...), "
                    f"or make them with stage=prepare"
                )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_classes} classes)"


def missing_files(paths: Iterable[Path]) -> list[Path]:
    """Those of `paths` that are no files, in their order.

    Each folder is listed once: far quicker than asking for every file on a network disk.
    """
    paths = list(paths)
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        by_folder[path.parent].append(path)
    missing: set[Path] = set()
    for folder, members in by_folder.items():
        try:
            present = set(os.listdir(folder))
        except OSError:
            present = set()
        missing.update(path for path in members if path.name not in present)
    return [path for path in paths if path in missing]


def list_files(
    folder: Path, endings: tuple[str, ...]
) -> tuple[Mapping[str, str], Sequence[tuple[str, str]]]:
    """Files of a folder by name without ending, and (name, file) of those whose name is taken.

    A folder is listed once and again when something in it came or went; a missing one is empty.
    """
    try:
        stamp = folder.stat().st_mtime_ns
    except OSError:
        return {}, []
    return _list_files(folder, endings, stamp)


@lru_cache(maxsize=16)
def _list_files(
    folder: Path, endings: tuple[str, ...], stamp: int
) -> tuple[Mapping[str, str], Sequence[tuple[str, str]]]:
    files: dict[str, str] = {}
    twins = []
    for file in sorted(os.listdir(folder)):
        stem, ending = os.path.splitext(file)
        if ending.lower() not in endings or file.startswith("."):
            continue
        if stem in files:
            twins.append((stem, file))
        else:
            files[stem] = file
    return files, twins


def fingerprint_of(texts: Iterable[Path | None], folders: Iterable[Path]) -> str:
    """Short text that changes when one of `texts` does, or a file of `folders` comes or goes."""
    stamps = [
        (path.name, path.stat().st_mtime_ns, path.stat().st_size)
        for path in texts
        if path is not None and path.is_file()
    ]
    listings = [sorted(os.listdir(path)) for path in folders if path.is_dir()]
    return hashlib.sha256(repr((stamps, listings)).encode()).hexdigest()[:12]


def read_lines(path: Path, what: str) -> list[tuple[int, str]]:
    """Number and text of each line that is not empty, without blanks at its ends.

    A byte-order mark and the line ends of Windows do no harm; a line may hold blanks.

    Args:
        path: text file in UTF-8.
        what: what it is called in messages.

    Raises:
        WsssError: if the file can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise WsssError(
            f"the {what} {path} is not UTF-8 (byte {error.start}): save it with that encoding"
        ) from error
    except OSError as error:
        raise WsssError(f"can't read the {what} {path}: {error.strerror}") from error
    lines = enumerate(text.splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_list(path: Path) -> list[str]:
    """Image names of a list file, one a line; empty lines are passed over.

    Raises:
        WsssError: if the file is missing or empty, a line is no plain name, or a name is repeated.
    """
    first: dict[str, int] = {}
    for number, name in read_lines(path, "image list"):
        if "/" in name or "\0" in name:
            raise WsssError(f"{path}, line {number}: '{name}' is not an image name")
        if name in first:
            raise WsssError(f"{path}, line {number}: '{name}' is on line {first[name]} already")
        first[name] = number
    if not first:
        raise WsssError(f"the image list {path} is empty")
    return list(first)


def class_problems(names: Sequence[str], where: object) -> list[str]:
    """What is wrong with a list of foreground classes, a line each; `where` it stands."""
    problems = [] if names else [f"{where} names no class"]
    if len(names) >= VOID:
        problems.append(f"{where} names {len(names)} classes; masks hold {VOID - 1} at most")
    for name, count in Counter(names).items():
        if count > 1:
            problems.append(f"{where} names class '{name}' more than once")
        if ";" in name:
            problems.append(f"{where}: class '{name}' has a ; in it, which parts labels")
        if name.lower() == "background":
            problems.append(f"{where}: '{name}' is no class, it always has id 0; remove it")
    return problems
