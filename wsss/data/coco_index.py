"""What is kept of a COCO annotation file: image list, label vectors, and where outlines stand."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from array import array
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from wsss.data.json_stream import Element, read_element, stream_lists
from wsss.data.masks import VOID
from wsss.errors import WsssError
from wsss.files import atomic
from wsss.run.progress import track

# Raised when the index or the masks made from it change their meaning.
_VERSION = 1
_KEYS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Index:
    """The labelled images of one split, in ascending order of their names.

    Attributes:
        classes: Category names in ascending order of their ids; `classes[n]` is class id n + 1.
        names: Image names, unique.
        files: Image files, relative to the split's image folder.
        labels: (images, N) uint8 in {0, 1}.
        rows: Row of each name.
        facts: Counts for the report.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray
    rows: dict[str, int]
    facts: dict[str, int]


@dataclass(frozen=True)
class Outlines:
    """Where the outlines of each image of an index stand in the annotation file.

    Attributes:
        sizes: (images, 2) height and width that the outlines are drawn for.
        spans: (outlines, 3) int64: first byte, number of bytes, class id (255: crowd).
        first: (images + 1,) int64; those of image i are `spans[first[i] : first[i + 1]]`.
    """

    sizes: np.ndarray
    spans: np.ndarray
    first: np.ndarray


def digest(annotations: Path) -> str:
    """Short name of the present content of an annotation file, told by its size and time."""
    status = annotations.stat()
    facts = f"{_VERSION} {status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def image_name(file: str) -> str:
    """Name of an image file: without its ending; folders become part of the name."""
    return re.sub(r"\.[A-Za-z]{3,4}$", "", file).replace("/", "__")


def build_index(annotations: Path, target: Path) -> list[str]:
    """Read an annotation file once and write `target`, an `.npz` with `Index` and `Outlines`.

    Category ids may be any numbers: they become 1..N in their order. Crowd regions count as
    labels. Images without a label are left out.

    Returns:
        What is wrong with the file, one line each; `target` is written only if nothing is.

    Raises:
        WsssError: If the file can't be read as JSON or lacks one of its lists.
    """
    draft = _Draft(annotations)
    for element in track(stream_lists(annotations, _KEYS), f"reading {annotations.name}"):
        draft.add(element)
    content = draft.finish()
    if not draft.problems:
        with atomic(target) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **content)  # type: ignore[arg-type]
    return draft.problems


def read_index(path: Path) -> Index:
    """The index that `build_index` wrote; it is read once by each process.

    Raises:
        WsssError: If it can't be read.
    """
    return _read_index(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read_index(path: Path, stamp: int) -> Index:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = tuple(file["names"].tolist())
            return Index(
                classes=tuple(file["classes"].tolist()),
                names=names,
                files=tuple(file["files"].tolist()),
                labels=file["labels"],
                rows={name: row for row, name in enumerate(names)},
                facts=json.loads(str(file["facts"])),
            )
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise WsssError(
            f"can't read {path} ({error}): delete it and run stage=prepare again"
        ) from error


def read_outlines(path: Path) -> Outlines:
    """The outlines' places of an index file."""
    with np.load(path, allow_pickle=False) as file:
        return Outlines(file["sizes"], file["spans"], file["first"])


class _Draft:
    """Collects the elements of an annotation file, in whatever order its lists stand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        # Ids may be numbers or text, and annotations may come before their images: ids are
        # numbered as they are met.
        self.image_numbers: dict[Hashable, int] = {}
        self.category_numbers: dict[Hashable, int] = {}
        self.images: dict[int, tuple[str, int, int]] = {}
        self.categories: dict[int, tuple[Any, str]] = {}
        # Per annotation: image, category, crowd, has an outline, first byte, number of bytes.
        self.annotations = array("q")

    def wrong(self, element: Element, what: str) -> None:
        value = element.value
        ident = value.get("id") if isinstance(value, dict) else None
        place = f"byte {element.offset}" if ident is None else f"id {ident}"
        self.problems.append(f"{self.path}, {element.key}, {place}: {what}")

    def add(self, element: Element) -> None:
        """Take one element of one of the three lists."""
        if not isinstance(element.value, dict):
            self.wrong(element, "is no object")
        else:
            getattr(self, f"_add_{element.key}")(element, element.value)

    def _add_images(self, element: Element, value: dict[str, Any]) -> None:
        height, width, file = value.get("height"), value.get("width"), value.get("file_name")
        if not _is_id(value.get("id")):
            self.wrong(element, "has no id")
            return
        number = self.image_numbers.setdefault(value["id"], len(self.image_numbers))
        if number in self.images:
            self.wrong(element, "the id is given to two images")
        self.images[number] = ("", 0, 0)  # known, even if the rest is wrong
        if not isinstance(file, str) or not file:
            self.wrong(element, "has no file_name")
        elif file.replace("\\", "/").startswith("/") or ".." in re.split(r"[/\\]", file):
            self.wrong(element, f"file_name '{file}' is no path inside the image folder")
        elif not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
            self.wrong(element, f"height and width are {height} and {width}")
        else:
            self.images[number] = (file.replace("\\", "/"), height, width)

    def _add_categories(self, element: Element, value: dict[str, Any]) -> None:
        name = value.get("name")
        if not _is_id(value.get("id")):
            self.wrong(element, "has no id")
            return
        number = self.category_numbers.setdefault(value["id"], len(self.category_numbers))
        if number in self.categories:
            self.wrong(element, "the id is given to two categories")
        if not isinstance(name, str) or not name.strip():
            self.wrong(element, "has no name")
        elif name.strip() in (other for _, other in self.categories.values()):
            self.wrong(element, f"the name '{name.strip()}' is given to two categories")
        self.categories[number] = (value["id"], str(name).strip())

    def _add_annotations(self, element: Element, value: dict[str, Any]) -> None:
        image, category = value.get("image_id"), value.get("category_id")
        if not _is_id(image) or not _is_id(category):
            self.wrong(element, f"has no {'category_id' if _is_id(image) else 'image_id'}")
            return
        self.annotations.extend(
            (
                self.image_numbers.setdefault(image, len(self.image_numbers)),
                self.category_numbers.setdefault(category, len(self.category_numbers)),
                bool(value.get("iscrowd")),
                bool(value.get("segmentation")),
                element.offset,
                element.length,
            )
        )

    def finish(self) -> dict[str, np.ndarray]:
        """The arrays of the index file; may be called once all elements are added."""
        table = np.array(self.annotations, dtype=np.int64).reshape(-1, 6)
        self._check_references(table)
        if self.problems:
            return {}
        order = sorted(self.categories, key=lambda n: _by_id(self.categories[n][0]))
        class_ids = np.zeros(len(order) + 1, dtype=np.int64)
        class_ids[order] = np.arange(1, len(order) + 1)
        image, class_id = table[:, 0], class_ids[table[:, 1]]

        labelled = [int(number) for number in np.unique(image)]
        by_name = sorted((image_name(self.images[n][0]), n) for n in labelled)
        names = [name for name, _ in by_name]
        numbers = [number for _, number in by_name]
        for name, count in Counter(names).items():
            if count > 1:
                self.problems.append(f"{self.path}: {count} images are called '{name}'")
        row_of = np.full(len(self.image_numbers), -1, dtype=np.int64)
        row_of[numbers] = np.arange(len(numbers))

        labels = np.zeros((len(names), len(order)), dtype=np.uint8)
        labels[row_of[image], class_id - 1] = 1
        drawn = table[:, 3] == 1
        rows = row_of[image[drawn]]
        spans = np.stack(
            [table[drawn, 4], table[drawn, 5], np.where(table[drawn, 2], VOID, class_id[drawn])],
            axis=1,
        )
        by_row = np.argsort(rows, kind="stable")
        facts = {
            "images_in_file": len(self.images),
            "images_without_label": len(self.images) - len(names),
            "annotations": len(table),
            "crowd_regions": int(table[:, 2].sum()),
            "annotations_without_outline": int((~drawn).sum()),
        }
        return {
            "classes": np.array([self.categories[n][1] for n in order]),
            "names": np.array(names),
            "files": np.array([self.images[n][0] for n in numbers]),
            "sizes": np.array([self.images[n][1:] for n in numbers], dtype=np.int64),
            "labels": labels,
            "spans": spans[by_row],
            "first": np.searchsorted(rows[by_row], np.arange(len(names) + 1)),
            "facts": np.array(json.dumps(facts)),
        }

    def _check_references(self, table: np.ndarray) -> None:
        """Every annotation must point at an image and a category, and there must be some."""
        for column, key, numbers, known in (
            (0, "image_id", self.image_numbers, self.images),
            (1, "category_id", self.category_numbers, self.categories),
        ):
            for ident in (ident for ident, number in numbers.items() if number not in known):
                those = table[table[:, column] == numbers[ident]]
                with self.path.open("rb") as file:
                    first = read_element(file, *those[0, 4:].tolist()).get("id", "?")
                listed = "images" if column == 0 else "categories"
                self.problems.append(
                    f"{self.path}: {len(those)} annotations (the first: id {first}) have {key} "
                    f"{ident}, which is not among the {listed}"
                )
        if not self.categories:
            self.problems.append(f"{self.path} has no categories")
        elif len(self.categories) >= VOID:
            self.problems.append(
                f"{self.path} has {len(self.categories)} categories; masks hold {VOID - 1} at most"
            )
        if not self.annotations:
            self.problems.append(f"{self.path} has no annotations: no image has a label")


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _by_id(ident: int | str) -> tuple[bool, int | str]:
    """Sort key: numbers by value, then texts."""
    return isinstance(ident, str), ident


def check_same_classes(indexes: Mapping[Path, Index]) -> None:
    """Check that annotation files have the same categories.

    Raises:
        WsssError: If they have not.
    """
    for (first, a), (second, b) in itertools.pairwise(indexes.items()):
        if a.classes != b.classes:
            differing = sorted(set(a.classes) ^ set(b.classes))
            what = f"for instance in '{differing[0]}'" if differing else "in their order"
            raise WsssError(f"the categories of {first} and {second} differ, {what}")
