"""Confusion matrices image by image, sparse, and the compact file in which a stage keeps them."""

from __future__ import annotations

import json
import zipfile
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsss.errors import WsssError
from wsss.files import atomic

CONFUSIONS = "confusions.npz"
LARGEST = 2**30  # bytes unpacked; all of COCO in four rows of scores are 70 million
REMADE = "run its stage again with overwrite=true"


class Sparse(NamedTuple):
    """Counts of pixels by cell of a flattened table, those that are not 0.

    Attributes:
        cells: int32 (E,), ascending.
        counts: int32 (E,).
    """

    cells: np.ndarray
    counts: np.ndarray


def sparse(cells: np.ndarray) -> Sparse:
    """How often each cell occurs in an integer array (P,) of cells ≥ 0."""
    counts = np.bincount(cells)
    occurring = np.flatnonzero(counts)
    return Sparse(occurring.astype(np.int32), counts[occurring].astype(np.int32))


@dataclass(frozen=True)
class Confusions:
    """Confusion matrices of some images against the same classes.

    Attributes:
        names: the images.
        classes: names of the foreground classes; label 0 is the background, N+1 = L in all.
        triplets: int32 (3, E), a column for each cell that is not 0: number of the image in
            `names`, cell `true * L + predicted`, pixels. Images ascend.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    triplets: np.ndarray

    @property
    def num_labels(self) -> int:
        """Number L of labels, background included."""
        return len(self.classes) + 1

    def total(self) -> np.ndarray:
        """Confusion matrix over all images, int64 (L, L), rows true."""
        matrix = np.zeros(self.num_labels**2, dtype=np.int64)
        np.add.at(matrix, self.triplets[1], self.triplets[2])
        return matrix.reshape(self.num_labels, self.num_labels)

    def in_order(self, names: tuple[str, ...]) -> Confusions:
        """The same with the images in another order.

        Raises:
            ValueError: `names` are not the same images.
        """
        if names == self.names:
            return self
        if set(names) != set(self.names):
            raise ValueError("scored on other images")
        place = {name: number for number, name in enumerate(names)}
        numbers = np.array([place[name] for name in self.names], dtype=np.int32)
        image, cell, count = self.triplets
        image = numbers[image]
        order = np.argsort(image, kind="stable")
        return Confusions(names, self.classes, np.stack([image, cell, count])[:, order])


class Collector:
    """Puts sparse confusion matrices together as they come, in a few bytes for each cell."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self._names: list[str] = []
        self._columns = [array("i") for _ in range(3)]

    def add(self, name: str, matrix: Sparse) -> None:
        """One more image."""
        number = np.full(len(matrix.cells), len(self._names), dtype=np.int32)
        self._names.append(name)
        for column, values in zip(self._columns, (number, *matrix), strict=True):
            column.frombytes(np.ascontiguousarray(values, dtype=np.int32).tobytes())

    def confusions(self) -> Confusions:
        """All that was added."""
        triplets = np.stack([np.array(column, dtype=np.int32) for column in self._columns])
        return Confusions(tuple(self._names), self.classes, triplets)


def write_confusions(path: Path, rows: Mapping[str, Confusions]) -> None:
    """Write the confusion matrices of a stage's rows of scores, whole or not at all.

    Args:
        path: compressed `.npz`, read without pickle.
        rows: by name of the row as in `metrics.json`; all of the same images and classes.

    Raises:
        ValueError: there is none, or they are of other images or classes.
    """
    if len({(one.names, one.classes) for one in rows.values()}) != 1:
        raise ValueError("rows of a file are scores of the same images and classes")
    first = next(iter(rows.values()))
    about = {"rows": list(rows), "classes": first.classes, "names": first.names}
    arrays = {f"row{number}": one.triplets for number, one in enumerate(rows.values())}
    text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, about=text, **arrays)  # type: ignore[arg-type]


def read_confusions(path: Path) -> dict[str, Confusions]:
    """The rows of scores in a file of `write_confusions`.

    Raises:
        WsssError: the file is missing, damaged, or holds what can't be.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                raise ValueError(f"would unpack to more than {LARGEST >> 20} MiB")
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(stored["about"].tobytes().decode())
            names, classes = tuple(about["names"]), tuple(about["classes"])
            found = {
                str(row): Confusions(names, classes, stored[f"row{number}"])
                for number, row in enumerate(about["rows"])
            }
        for row, one in found.items():
            _check(row, one)
    except FileNotFoundError as error:
        raise WsssError(f"{path}: no scores by image; {REMADE}") from error
    except Exception as error:  # zlib, zipfile and NumPy's header parser raise what they like
        what = str(error) or type(error).__name__
        raise WsssError(f"{path}: damaged scores by image ({what}); {REMADE}") from error
    return found


def _check(row: str, one: Confusions) -> None:
    """Raise ValueError where a row holds what no scoring writes."""
    if not all(isinstance(name, str) for name in (*one.names, *one.classes)):
        raise ValueError("a name is no text")
    if len(set(one.names)) != len(one.names):
        raise ValueError("an image stands in it twice")
    triplets = one.triplets
    if triplets.dtype != np.int32 or triplets.ndim != 2 or len(triplets) != 3:
        raise ValueError(f"{row}: {triplets.dtype} {triplets.shape} is no table of triplets")
    for what, values, end in (
        ("image", triplets[0], len(one.names)),
        ("cell", triplets[1], one.num_labels**2),
        ("count", triplets[2], 2**31),
    ):
        if values.size and not (0 <= values.min() and values.max() < end):
            raise ValueError(f"{row}: {what} outside 0..{end - 1}")
    if np.any(np.diff(triplets[0]) < 0):
        raise ValueError(f"{row}: images do not ascend")
