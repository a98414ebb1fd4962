"""Photographs in any form that a user has them in, with what belongs to each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from wsss.data.base import ImageSet
from wsss.data.label_files import match_rows, read_rows
from wsss.data.photographs import load_image, pixels_of
from wsss.data.plain_folder import Photographs
from wsss.errors import WsssError

Photograph: TypeAlias = str | Path | Image.Image | np.ndarray
Labels: TypeAlias = Sequence[str]  # class names of one image


@dataclass(frozen=True)
class Photo:
    """A photograph that is read when it is wanted.

    Attributes:
        name: what its results are called.
        read: gives its pixels, (H, W, 3) uint8 RGB.
        path: its file, if it has one.
    """

    name: str
    read: Callable[[], np.ndarray]
    path: Path | None = None

    @property
    def file(self) -> str:
        """Name of its file; its own, where there is none."""
        return self.name if self.path is None else self.path.name


def is_single(images: object) -> bool:
    """Whether this is one photograph: a file, a Pillow picture, an array."""
    if isinstance(images, str | Path):
        return not Path(images).expanduser().is_dir()
    return isinstance(images, Image.Image | np.ndarray)


def photos_of(images: Photograph | Iterable[Photograph]) -> list[Photo]:
    """The photographs of a file, picture, array, folder or collection of them.

    Raises:
        WsssError: there are none, or something is no photograph.
    """
    if isinstance(images, str | Path) and not is_single(images):
        folder = Photographs(images, (), key="images")
        return [_file(folder.image_path(name), name) for name in folder.names("all")]
    given = [images] if is_single(images) else list(images)  # type: ignore[arg-type, list-item]
    if not given:
        raise WsssError("images: none are given")
    found = [_photo(one, number) for number, one in enumerate(given)]
    count = Counter(photo.name for photo in found)
    return [
        photo if count[photo.name] == 1 else replace(photo, name=f"{photo.name}_{n}")
        for n, photo in enumerate(found)
    ]


def _file(path: Path, name: str) -> Photo:
    return Photo(name, lambda: load_image(path), path)


def _photo(image: Any, number: int) -> Photo:
    if isinstance(image, str | Path):
        path = Path(image).expanduser()
        return _file(path, path.stem)
    if isinstance(image, Image.Image):
        file = str(getattr(image, "filename", "") or f"image{number}")
        return Photo(Path(file).stem, lambda: pixels_of(image))
    if isinstance(image, np.ndarray):
        return Photo(f"image{number}", lambda: _pixels_of_array(image))
    raise WsssError(
        f"images: {type(image).__name__} is no photograph; give a path, a Pillow picture, an array "
        "(H, W, 3) of uint8, a list of these, or a folder"
    )


def _pixels_of_array(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 or not (
        array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    ):
        raise WsssError(
            f"images: an array of {array.dtype} and shape {array.shape}; give (H, W, 3) uint8, RGB "
            "in 0..255"
        )
    array = array[..., None] if array.ndim == 2 else array
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array[..., :3])


def per_photo(given: Any, photos: Sequence[Photo], what: str) -> list[Any]:
    """What is given for each photograph: a mapping by name or file name, or a sequence in order.

    Raises:
        WsssError: something is missing.
    """
    if given is None:
        return [None] * len(photos)
    if isinstance(given, Mapping):
        lacking = [p.name for p in photos if p.name not in given and p.file not in given]
        if lacking:
            raise WsssError(f"{what}: nothing is given for {lacking[0]} ({len(lacking)} in all)")
        return [given[p.name] if p.name in given else given[p.file] for p in photos]
    values = list(given)
    if len(values) != len(photos):
        raise WsssError(f"{what}: {len(values)} are given for {len(photos)} photographs")
    return values


def vectors_of(
    labels: Any, photos: Sequence[Photo], classes: Sequence[str], single: bool
) -> list[np.ndarray | None]:
    """Image labels as vectors (N,) of zeros and ones; None where they are to be predicted.

    Args:
        labels: class names of one photograph; for several a mapping by name, a sequence in order,
            or a CSV or JSON file of labels (rows of `name,class;class`).
        photos: the photographs.
        classes: foreground class names.
        single: whether `labels` is that of one photograph.

    Raises:
        WsssError: an unknown class, or no labels for a photograph.
    """
    if labels is None:
        return [None] * len(photos)
    if isinstance(labels, str | Path) and not (single and str(labels) in classes):
        path = Path(labels).expanduser()
        files = {photo.name: photo.file for photo in photos}
        named = set(files) | set(files.values())
        rows = [row for row in read_rows(path) if row.key in named]  # a file may name more
        matched = match_rows(rows, files, classes, path.parent)
        if matched.problems:
            raise WsssError(matched.problems[0])
        labels = matched.of
    elif single:
        labels = [[labels] if isinstance(labels, str) else labels]
    found = per_photo(labels, photos, "labels")
    return [_vector(one, classes, photo.name) for one, photo in zip(found, photos, strict=True)]


def _vector(labels: Any, classes: Sequence[str], name: str) -> np.ndarray:
    if isinstance(labels, str) or not all(isinstance(one, str) for one in labels):
        raise WsssError(f"labels of {name}: {labels!r} must be a list of class names")
    vector = np.zeros(len(classes), dtype=np.float32)
    for one in labels:
        if one not in classes:
            close = get_close_matches(one, classes, n=1)
            hint = f"is '{close[0]}' meant?" if close else f"there are {', '.join(classes)}"
            raise WsssError(f"labels of {name}: '{one}' is no class of this model; {hint}")
        vector[classes.index(one)] = 1
    return vector


class PhotoSet(ImageSet):
    """Files of photographs with their labels as a data set.

    Args:
        photos: the photographs.
        labels: (len(photos), N) zeros and ones.
        classes: foreground class names.

    Raises:
        WsssError: one of them is no file.
    """

    def __init__(self, photos: Sequence[Photo], labels: np.ndarray, classes: Sequence[str]) -> None:
        self.classes, self.rows = tuple(classes), labels
        self.number = {photo.name: n for n, photo in enumerate(photos)}
        self.paths = [photo.path for photo in photos if photo.path is not None]
        if len(self.paths) < len(photos):
            raise WsssError("images: give files or a folder here, no pictures or arrays")

    def names(self, split: str) -> list[str]:
        """All of them, whatever the split."""
        return list(self.number)

    def image_path(self, name: str) -> Path:
        """File of a photograph."""
        return self.paths[self.number[name]]

    def labels(self, names: Sequence[str]) -> np.ndarray:
        """Their labels."""
        return self.rows[[self.number[name] for name in names]]

    def mask(self, name: str) -> np.ndarray | None:
        """There are none."""
        return None
