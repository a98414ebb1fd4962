"""Contact sheets of a stage: some photographs, each beside what the stage makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pytorch_lightning.loggers import Logger

from wsss.data.base import ImageSet
from wsss.data.masks import VOID, read_mask
from wsss.data.photographs import load_image
from wsss.evaluation.seeds import seed_labels
from wsss.maps.files import read_class_maps
from wsss.maps.fuse import enlarge
from wsss.show.dashboard import show_pictures
from wsss.show.overlays import contact_sheet, label_overlay, map_overlay

# From an image's name and its photograph (H, W, 3) uint8 to a picture of the same kind.
Drawing = Callable[[str, np.ndarray], np.ndarray]


def draw_sheet(
    image_set: ImageSet,
    names: Sequence[str],
    count: int,
    columns: Mapping[str, Drawing],
    path: Path,
    loggers: Sequence[Logger] = (),
    classes_of: Callable[[str], Sequence[int]] | None = None,
) -> Path | None:
    """A contact sheet of some of the images, spread over `names`; its rows go to W&B, too.

    Args:
        image_set: Gives the photographs.
        names: Images to choose from.
        count: How many rows; 0 draws nothing.
        columns: For each heading, after the photograph, what draws it.
        path: PNG to write.
        loggers: The stage's loggers.
        classes_of: Class ids (from 1) that the caption of an image names; default: its labels.
    """
    if not count or not names:
        return None
    spread = np.linspace(0, len(names) - 1, min(count, len(names)))
    chosen = [names[round(i)] for i in spread]
    if classes_of is None:
        ids = [np.flatnonzero(label) + 1 for label in image_set.labels(chosen)]
    else:
        ids = [np.asarray(classes_of(name), dtype=np.int64) for name in chosen]
    rows, captions = [], []
    for name, seen in zip(chosen, ids, strict=True):
        picture = load_image(image_set.image_path(name))
        rows.append([picture, *(column(name, picture) for column in columns.values())])
        shown = ", ".join(image_set.classes[c - 1] for c in seen)
        captions.append(f"{name}: {shown or 'background only'}")
    headings = ["photograph", *columns]
    show_pictures(loggers, rows, headings, captions)
    return contact_sheet(rows, headings, captions, path)


def map_column(folder: Path, kind: str) -> Drawing:
    """Draws the highest foreground map of a kind over the photograph.

    Args:
        folder: Folder of class-map files.
        kind: Which of their kinds.
    """

    def maps(name: str, picture: np.ndarray) -> np.ndarray:
        stored = read_class_maps(folder / f"{name}.npz")
        values = enlarge(stored.maps[kind], stored.size)
        return map_overlay(picture, values[1:] if stored.has_background(kind) else values)

    return maps


def seed_column(folder: Path, kind: str, background: float) -> Drawing:
    """Draws the seed, the arg max of maps.

    Args:
        folder: Folder of class-map files.
        kind: Which of their kinds.
        background: The background's constant for maps without a background of their own.
    """

    def seed(name: str, picture: np.ndarray) -> np.ndarray:
        stored = read_class_maps(folder / f"{name}.npz")
        own = stored.has_background(kind)
        values = enlarge(stored.maps[kind], stored.size)
        label, _, _ = seed_labels(values, stored.classes, None if own else background)
        return label_overlay(picture, label)

    return seed


def mask_column(folder: Path, num_classes: int) -> Drawing:
    """Draws label maps, the files `NAME.png` of a folder.

    Args:
        folder: Folder of label maps.
        num_classes: Foreground classes; higher ids, 255 apart, are an error.
    """

    def mask(name: str, picture: np.ndarray) -> np.ndarray:
        return label_overlay(picture, read_mask(folder / f"{name}.png", num_classes))

    return mask


def truth_column(image_set: ImageSet) -> Drawing:
    """Draws the ground truth of an image; void, and an image without a mask, stay clear."""

    def truth(name: str, picture: np.ndarray) -> np.ndarray:
        mask = image_set.mask(name)
        if mask is None:
            return picture
        return label_overlay(picture, np.where(mask == VOID, 0, mask))

    return truth
