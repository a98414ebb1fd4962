"""What is kept of a COCO annotation file: image list, label vectors and outlines."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import ijson
import numpy as np

from wsss.data.base import class_problems
from wsss.data.masks import VOID
from wsss.data.photographs import MOST_PIXELS
from wsss.errors import WsssError
from wsss.files import atomic
from wsss.run.progress import track

INDEX, OUTLINES = "index.npz", "outlines.jsonl"
# Raised when the index or the masks made from it change their meaning.
_VERSION = 2
LONGEST = 200  # bytes of an image's name: files of every stage are called after it
_CHUNK, _DEEPEST = 1 << 13, 1 << 11  # bytes read at once; containers open at once


@dataclass(frozen=True)
class Index:
    """The labeled images of one split, in ascending order of their names.

    Attributes:
        classes: category names in ascending order of their ids; `classes[n]` is class id n + 1.
        names: image names, unique within the split.
        files: image files, relative to the split's image folder.
        labels: (images, N) uint8 in {0, 1}.
        facts: counts for the report.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray
    facts: dict[str, int]


@dataclass(frozen=True)
class Outlines:
    """Where the outlines of each image of an index stand in the file `OUTLINES` beside it.

    Attributes:
        sizes: (images, 2) height and width that the outlines are drawn for.
        spans: (outlines, 3) int64: first byte, number of bytes, class id (255: crowd).
        first: (images + 1,) int64; those of image i are `spans[first[i] : first[i + 1]]`.
        length: bytes of the file.
    """

    sizes: np.ndarray
    spans: np.ndarray
    first: np.ndarray
    length: int


def digest(annotations: Path) -> str:
    """Short name of the present content of an annotation file, told by its size and time."""
    status = annotations.stat()
    facts = f"{_VERSION} {status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def image_name(file: str) -> str:
    """Name of an image file: without its ending; folders become part of the name."""
    return re.sub(r"\.[A-Za-z]{3,4}$", "", file).replace("/", "__")


def build_index(annotations: Path, folder: Path) -> list[str]:
    """Read an annotation file and write `INDEX` and `OUTLINES` into `folder`.

    Category ids may be any numbers: they become 1..N in their order. Crowd regions count as
    labels. Images without a label are left out. Outlines go from one file to the other, one at a
    time: half a gigabyte of them is read with a few megabytes.

    Returns:
        What is wrong with the annotations, one line each; the index is written only if nothing is.

    Raises:
        WsssError: if the file can't be read as JSON or lacks one of its lists.
    """
    draft = _Draft(annotations)
    draft.read_images()
    draft.read_categories()
    with atomic(folder / OUTLINES) as temporary:
        with temporary.open("wb") as file:
            draft.read_annotations(file)
    content = draft.finish()
    if draft.problems:
        (folder / OUTLINES).unlink()
        return draft.problems
    with atomic(folder / INDEX) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **content)
    return []


def read_index(annotations: Path, folder: Path) -> Index:
    """The index that `build_index` wrote; it is read once by each process.

    One that is damaged is made anew.

    Raises:
        WsssError: if the annotations can't be read any more.
    """
    path = folder / INDEX
    index = _read_index(path, path.stat().st_mtime_ns)
    if index is None:
        for line in build_index(annotations, folder):
            raise WsssError(line)
        index = _read_index(path, path.stat().st_mtime_ns)
        assert index is not None  # it has just been written
    return index


@lru_cache(maxsize=8)
def _read_index(path: Path, stamp: int) -> Index | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            head = json.loads(file["head"].tobytes())
            labels = file["labels"]
        names, files, classes = (tuple(head[key]) for key in ("names", "files", "classes"))
        if labels.shape != (len(names), len(classes)) or len(files) != len(names):
            return None
        return Index(classes, names, files, labels, head["facts"])
    except Exception:  # whatever is wrong with it, it is made anew
        return None


def read_outlines(folder: Path) -> Outlines | None:
    """Places of the outlines; None if the index is damaged or the outlines are not all there."""
    try:
        with np.load(folder / INDEX, allow_pickle=False) as file:
            length = int(file["length"])
            found = Outlines(file["sizes"], file["spans"], file["first"], length)
        return found if (folder / OUTLINES).stat().st_size == length else None
    except Exception:  # as above
        return None


def read_outline(file: BinaryIO, offset: int, length: int) -> tuple[Any, Any]:
    """Id and `segmentation` of the annotation at a place of `OUTLINES`."""
    file.seek(offset)
    ident, segmentation = json.loads(file.read(length))
    return ident, segmentation


class _Draft:
    """Collects what is kept of an annotation file; its lists may stand in any order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        # Row of each image by its id, which may be a number or text; file and size of each row.
        self.rows: dict[int | str, int] = {}
        self.files: list[str] = []
        self.sizes: list[tuple[Any, Any]] = []
        self.categories: dict[int | str, str] = {}
        # Per annotation: row, category, crowd, first byte and number of bytes of its outline.
        self.annotations = array("q")
        self.length = 0

    def read_images(self) -> None:
        """Take the list `images`."""
        for number, value in enumerate(self._elements("images")):
            entry: dict[str, Any] = value if isinstance(value, dict) else {}
            ident, file = entry.get("id"), entry.get("file_name")
            size = entry.get("height"), entry.get("width")
            fault = self._image_fault(ident, file, size) if entry else "is no object"
            if fault:
                self._wrong("images", number, ident, fault)
            if _is_id(ident):  # known, even if the rest is wrong
                self.rows.setdefault(ident, len(self.files))  # type: ignore[arg-type]
                self.files.append(str(file).replace("\\", "/"))
                self.sizes.append(size)

    def _image_fault(self, ident: Any, file: Any, size: tuple[Any, Any]) -> str:
        if not _is_id(ident):
            return "has no id"
        if ident in self.rows:
            return "the id is given to two images"
        if not isinstance(file, str) or not file:
            return "has no file_name"
        inner = file.replace("\\", "/")
        if inner.startswith("/") or ".." in inner.split("/"):
            return f"file_name '{file}' is no path inside the image folder"
        length = len(image_name(inner).encode(errors="replace"))
        if "\0" in file or not 1 <= length <= LONGEST:
            return f"file_name {file[:LONGEST]!r} can't be the name of a file"
        if not all(isinstance(side, int) and side > 0 for side in size):
            return f"height and width are {size[0]} and {size[1]}"
        if size[0] * size[1] > MOST_PIXELS:
            return (
                f"height and width, {size[0]} and {size[1]}, are more than {MOST_PIXELS:,} pixels"
            )
        return ""

    def read_categories(self) -> None:
        """Take the list `categories`."""
        for number, value in enumerate(self._elements("categories")):
            entry: dict[str, Any] = value if isinstance(value, dict) else {}
            ident, name, fault = entry.get("id"), entry.get("name"), ""
            if not entry:
                fault = "is no object"
            elif not _is_id(ident):
                fault = "has no id"
            elif ident in self.categories:
                fault = "the id is given to two categories"
            elif not isinstance(name, str) or not name.strip():
                fault = "has no name"
            elif "\0" in name:
                fault = f"the name {name[:LONGEST]!r} is no text"
            if fault:
                self._wrong("categories", number, ident, fault)
            if _is_id(ident):
                self.categories[ident] = str(name).strip()  # type: ignore[index]
        self.order = sorted(self.categories, key=_by_id)
        if not self.problems:
            names = [self.categories[ident] for ident in self.order]
            self.problems += class_problems(names, f"{self.path} (categories)")

    def read_annotations(self, outlines: BinaryIO) -> None:
        """Take the list `annotations`; outlines are written to a file, a line each."""
        class_id = {ident: number for number, ident in enumerate(self.order, start=1)}
        unknown: dict[tuple[str, str, Any], list[Any]] = {}
        elements = track(self._elements("annotations"), f"reading {self.path.name}")
        for number, value in enumerate(elements):
            if not isinstance(value, dict):
                self._wrong("annotations", number, None, "is no object")
                continue
            image: Any = value.get("image_id")
            category: Any = value.get("category_id")
            if not _is_id(image) or not _is_id(category):
                missing = "category_id" if _is_id(image) else "image_id"
                self._wrong("annotations", number, value.get("id"), f"has no {missing}")
                continue
            if image not in self.rows:
                unknown.setdefault(("image_id", "images", image), []).append(value.get("id"))
            if category not in class_id:
                named = ("category_id", "categories", category)
                unknown.setdefault(named, []).append(value.get("id"))
            line = b""
            if value.get("segmentation"):
                line = json.dumps([value.get("id"), value["segmentation"]]).encode() + b"\n"
                outlines.write(line)
            self.annotations.extend(
                (
                    self.rows.get(image, -1),
                    class_id.get(category, 0),
                    bool(value.get("iscrowd")),
                    self.length,
                    len(line),
                )
            )
            self.length += len(line)
        for (key, listed, ident), those in unknown.items():
            self.problems.append(
                f"{self.path}: {len(those)} annotations (the first: id {those[0]}) have {key} "
                f"{ident!r}, which is not among the {listed}"
            )

    def finish(self) -> dict[str, Any]:
        """The arrays of the index file; nothing if something is wrong."""
        if self.problems:
            return {}
        table = np.frombuffer(self.annotations, dtype=np.int64).reshape(-1, 5)
        image, class_id, crowd = table[:, 0], table[:, 1], table[:, 2]
        named = sorted((image_name(self.files[row]), row) for row in np.unique(image).tolist())
        for name, count in Counter(name for name, _ in named).items():
            if count > 1:
                self.problems.append(f"{self.path}: {count} images are called '{name}'")
        kept = [row for _, row in named]
        place = np.full(len(self.files), -1, dtype=np.int64)
        place[kept] = np.arange(len(kept))

        labels = np.zeros((len(kept), len(self.order)), dtype=np.uint8)
        labels[place[image], class_id - 1] = 1
        drawn = np.flatnonzero(table[:, 4])
        drawn = drawn[np.argsort(place[image[drawn]], kind="stable")]
        ids = np.where(crowd[drawn] == 1, VOID, class_id[drawn])
        head = {
            "classes": [self.categories[ident] for ident in self.order],
            "names": [name for name, _ in named],
            "files": [self.files[row] for row in kept],
            "facts": {
                "images_in_file": len(self.files),
                "images_without_label": len(self.files) - len(kept),
                "annotations": len(table),
                "crowd_regions": int(crowd.sum()),
                "annotations_without_outline": len(table) - len(drawn),
            },
        }
        return {
            "head": np.frombuffer(json.dumps(head).encode(), dtype=np.uint8),
            "labels": labels,
            "sizes": np.array([self.sizes[row] for row in kept], dtype=np.int64),
            "spans": np.stack([table[drawn, 3], table[drawn, 4], ids], axis=1),
            "first": np.searchsorted(place[image[drawn]], np.arange(len(kept) + 1)),
            "length": np.array(self.length),
        }

    def _wrong(self, key: str, number: int, ident: Any, what: str) -> None:
        place = f"number {number + 1}" if ident is None else f"id {ident}"
        self.problems.append(f"{self.path}, {key}, {place}: {what}")

    def _elements(self, key: str) -> Iterator[Any]:
        """Elements of one of the file's lists; only one of them is held at a time.

        Raises:
            WsssError: if the file can't be read as JSON, or the list is missing or empty.
        """
        empty = True
        try:
            with self.path.open("rb") as file:
                source = _Source(file)
                for value in ijson.items(source, f"{key}.item", use_float=True, buf_size=_CHUNK):
                    empty = False
                    yield value
        except OSError as error:
            raise WsssError(f"can't read {self.path}: {error.strerror}") from error
        except Exception as error:  # which of them depends on the parser that ijson found
            reason = " ".join(str(error).split())
            raise WsssError(f"can't read {self.path} as JSON: {reason}") from error
        if empty:
            raise WsssError(
                f"{self.path} has no list '{key}', which COCO's format asks for, or it is empty"
            )


class _Source:
    """The bytes of a file as ijson reads them: without a byte-order mark, and not nested too deep.

    ijson keeps the path to each open container, so that a file of nothing but brackets would take
    all memory.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.depth = file, 0
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)

    def read(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            ValueError: if more containers than `_DEEPEST` are open.
        """
        chunk = self.file.read(size)
        self.depth += chunk.count(b"[") + chunk.count(b"{")
        self.depth -= chunk.count(b"]") + chunk.count(b"}")
        if self.depth > _DEEPEST:
            raise ValueError("it is nested too deep")
        return chunk


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _by_id(ident: int | str) -> tuple[bool, int | str]:
    """Sort key: numbers by value, then texts."""
    return isinstance(ident, str), ident


def check_same_classes(indexes: Mapping[Path, Index]) -> None:
    """Check that annotation files have the same categories.

    Raises:
        WsssError: if they have not.
    """
    for (first, a), (second, b) in itertools.pairwise(indexes.items()):
        if a.classes != b.classes:
            differing = sorted(set(a.classes) ^ set(b.classes))
            what = f"for instance in '{differing[0]}'" if differing else "in their order"
            raise WsssError(f"the categories of {first} and {second} differ, {what}")
