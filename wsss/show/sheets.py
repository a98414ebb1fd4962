"""Contact sheets of a stage: some photographs, each beside what the stage makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.loggers import Logger

from wsss.data.base import ImageSet
from wsss.data.datamodule import EpochSet
from wsss.data.masks import VOID, read_mask
from wsss.data.photographs import load_image
from wsss.evaluation.seeds import seed_labels
from wsss.maps.files import read_class_maps
from wsss.maps.fuse import enlarge
from wsss.show.colors import heat
from wsss.show.dashboard import show_pictures
from wsss.show.layout import Cell, Shown, contact_sheet
from wsss.show.overlays import class_overlay, label_overlay

# From an image's name and its photograph (H, W, 3) uint8 to what stands in a cell.
Drawing = Callable[[str, np.ndarray], Cell]


def draw_sheet(
    image_set: ImageSet,
    names: Sequence[str],
    count: int,
    columns: Mapping[str, Drawing],
    path: Path,
    loggers: Sequence[Logger] = (),
    classes_of: Callable[[str], Sequence[int]] | None = None,
) -> Path | None:
    """A contact sheet of some of the images, spread over `names`; the loggers show its rows, too.

    Args:
        image_set: gives the photographs.
        names: images to choose from.
        count: how many rows; 0 draws nothing.
        columns: for each heading, after the photograph, what draws it.
        path: PNG to write.
        loggers: the stage's loggers.
        classes_of: class ids (from 1) that an image's legend names besides those that its
            pictures show; default: its labels.
    """
    chosen = spread(names, count)
    if not chosen:
        return None
    if classes_of is None:
        ids = [np.flatnonzero(label) + 1 for label in image_set.labels(chosen)]
    else:
        ids = [np.asarray(classes_of(name), dtype=np.int64) for name in chosen]
    rows: list[list[Cell]] = []
    for name, known in zip(chosen, ids, strict=True):
        picture = load_image(image_set.image_path(name))
        drawn = [column(name, picture) for column in columns.values()]
        rows.append([[Shown(picture, tuple(known.tolist()))], *drawn])
    headings = ["photograph", *columns]
    show_pictures(loggers, rows, headings, chosen, image_set.classes)
    return contact_sheet(rows, headings, chosen, path, image_set.classes)


def spread(names: Sequence[str], count: int) -> list[str]:
    """At most `count` of the names, evenly spread over them."""
    places = np.linspace(0, len(names) - 1, min(count, len(names)))
    return [names[round(place)] for place in places]


def label_sheet(image_set: ImageSet, names: Sequence[str], count: int, path: Path) -> Path | None:
    """Photographs with their labels, and with their masks where there are some.

    Void is shown as it is: it says how much of a mask is left out of the scores.

    Args:
        image_set: the data set.
        names: images to choose from.
        count: how many rows.
        path: PNG to write.
    """
    masked = any(image_set.has_mask(name) for name in spread(names, count))
    columns = {"mask (white: void)": truth_column(image_set, void=True)} if masked else {}
    return draw_sheet(image_set, names, count, columns, path)


def crop_sheet(crops: EpochSet, count: int, path: Path) -> Path | None:
    """Crops as the network is shown them in the first epoch, with their label maps.

    Args:
        crops: training samples with label maps.
        count: how many rows; 0 draws nothing.
        path: PNG to write.
    """
    chosen = spread(crops.names, count)
    if not chosen:
        return None
    std, mean = (torch.tensor(v)[:, None, None] for v in (crops.crop.std, crops.crop.mean))
    rows: list[list[Cell]] = []
    for name in chosen:
        sample = crops[0, crops.names.index(name)]
        pixels = ((sample["image"] * std + mean) * 255).round().clamp(0, 255).byte()
        picture, target = pixels.permute(1, 2, 0).numpy(), sample["target"].numpy()
        rows.append([picture, [label_cell(picture, target)]])
    headings = ["crop", "pseudo mask (white: ignored)"]
    return contact_sheet(rows, headings, chosen, path, crops.image_set.classes)


def map_column(folder: Path, kind: str) -> Drawing:
    """Draws each foreground map of a kind in the color of its class, one below the other.

    Args:
        folder: folder of class-map files.
        kind: which of their kinds.
    """

    def maps(name: str, picture: np.ndarray) -> list[Shown]:
        stored = read_class_maps(folder / f"{name}.npz", kind)
        return map_cell(picture, stored.maps[kind], stored.classes.tolist())

    return maps


def map_cell(picture: np.ndarray, maps: np.ndarray, classes: Sequence[int]) -> list[Shown]:
    """The class maps of an image over its photograph, each in the color of its class.

    Args:
        picture: (H, W, 3) uint8.
        maps: float32 in [0, 1], (K, h, w), or (K+1, h, w) with a background first.
        classes: K class ids.
    """
    values = enlarge(maps[len(maps) - len(classes) :], picture.shape[:2])
    return [
        Shown(class_overlay(picture, one, c), (c,), named=True)
        for one, c in zip(values, classes, strict=True)
    ]


def seed_column(folder: Path, kind: str, background: float) -> Drawing:
    """Draws the seed, the arg max of maps.

    Args:
        folder: folder of class-map files.
        kind: which of their kinds.
        background: the background's constant for maps without a background of their own.
    """

    def seed(name: str, picture: np.ndarray) -> list[Shown]:
        stored = read_class_maps(folder / f"{name}.npz", kind)
        own = stored.has_background(kind)
        values = enlarge(stored.maps[kind], stored.size)
        label, _, _ = seed_labels(values, stored.classes, None if own else background)
        return [label_cell(picture, label)]

    return seed


def mask_column(folder: Path, num_classes: int) -> Drawing:
    """Draws label maps, the files `NAME.png` of a folder; 255 is white.

    Args:
        folder: folder of label maps.
        num_classes: foreground classes; higher ids, 255 apart, are an error.
    """

    def mask(name: str, picture: np.ndarray) -> list[Shown]:
        return [label_cell(picture, read_mask(folder / f"{name}.png", num_classes))]

    return mask


def truth_column(image_set: ImageSet, void: bool = False) -> Drawing:
    """Draws the ground truth of an image; an image without a mask has none.

    Args:
        image_set: gives the masks.
        void: whether void is shown, in white; else it stays clear as the background.
    """

    def truth(name: str, picture: np.ndarray) -> list[Shown]:
        mask = image_set.mask(name)
        if mask is None:
            return []
        return [label_cell(picture, mask if void else np.where(mask == VOID, 0, mask))]

    return truth


def edge_column(folder: Path, stride: int) -> Drawing:
    """Draws stored edges, the gray files `NAME.png` of a folder, as heat.

    Args:
        folder: folder of edge maps.
        stride: pixels of the photograph along a cell of the map, which is drawn as a square.
    """

    def edges(name: str, picture: np.ndarray) -> np.ndarray:
        with Image.open(folder / f"{name}.png") as file:
            shown = heat(np.asarray(file) / 255.0)
        shown = shown.repeat(stride, axis=0).repeat(stride, axis=1)
        return shown[: picture.shape[0], : picture.shape[1]]

    return edges


def label_cell(picture: np.ndarray, labels: np.ndarray) -> Shown:
    """A label map over its photograph, with the ids in it."""
    return Shown(label_overlay(picture, labels), tuple(np.unique(labels).tolist()))
