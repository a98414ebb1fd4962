"""Masks for evaluation, painted from the outlines of COCO's annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from wsss.data.json_stream import read_element
from wsss.data.masks import write_mask

_ORIENTATION = 0x0112  # EXIF


@dataclass(frozen=True)
class PaintTask:
    """What is needed to paint the mask of one image; a few hundred bytes.

    Attributes:
        name: The image's name.
        image: Its file.
        size: Height and width that the outlines are drawn for.
        spans: (K, 3) first byte and number of bytes in the annotation file, and class id.
        target: PNG to write.
    """

    name: str
    image: Path
    size: tuple[int, int]
    spans: np.ndarray
    target: Path


def paint_file(task: PaintTask, annotations: Path) -> str | None:
    """Write the mask of one image; its outlines are read from their places in the file.

    Returns:
        None, or a line that says what is wrong; then no mask is written.
    """
    outlines, ids = [], []
    with annotations.open("rb") as file:
        for offset, length, class_id in task.spans.tolist():
            element = read_element(file, offset, length)
            try:
                outlines.append(to_rle(element["segmentation"], task.size))
            except (ValueError, TypeError, KeyError, IndexError) as error:
                ident = element.get("id", "?")
                return f"{annotations}, annotations, id {ident}: no outline can be read ({error})"
            ids.append(class_id)
    mask = as_loaded(paint(outlines, ids, task.size), task.image)
    if isinstance(mask, str):
        return f"{annotations}: the outlines of '{task.name}' are {mask}"
    write_mask(task.target, mask)
    return None


def to_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Run lengths of one annotation's `segmentation`, in any of COCO's forms.

    Args:
        segmentation: Polygons [[x, y, x, y, ...], ...], or run lengths {"counts", "size"}, given
            as numbers or packed as text. Polygons of fewer than three points cover nothing.
        size: Height and width of the image.

    Returns:
        Packed run lengths of pycocotools.

    Raises:
        ValueError: If it is none of these forms, or run lengths are for another size.
        TypeError: If a coordinate is no number.
    """
    height, width = size
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"run lengths for {segmentation['size']}, image of {[height, width]}")
        if isinstance(counts, str):
            return {"size": [height, width], "counts": counts.encode()}
        if sum(counts) != height * width or min(counts) < 0:
            raise ValueError(f"run lengths make {sum(counts)} pixels of {height * width}")
        return coco_mask.frPyObjects(segmentation, height, width)
    if not isinstance(segmentation, list):
        raise ValueError(f"segmentation is a {type(segmentation).__name__}")
    polygons = [segmentation] if isinstance(segmentation[0], int | float) else segmentation
    if any(len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon has an odd number of coordinates")
    if not all(np.isfinite(polygon).all() for polygon in polygons):
        raise ValueError("a coordinate is not finite")
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    if not polygons:
        return coco_mask.encode(np.zeros((height, width), dtype=np.uint8, order="F"))
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def paint(
    outlines: Sequence[dict[str, Any]], ids: Sequence[int], size: tuple[int, int]
) -> np.ndarray:
    """Label mask of some instances: large ones first, so that small ones stay visible.

    Args:
        outlines: Packed run lengths of each instance.
        ids: Class id of each; 255 for a crowd region.
        size: Height and width.

    Returns:
        (H, W) uint8, 0 where there is no instance. Of two instances of the same area the later
        one is seen.
    """
    mask = np.zeros(size, dtype=np.uint8)
    if outlines:
        areas = np.asarray(coco_mask.area(list(outlines)), dtype=np.int64)
        for index in np.argsort(-areas, kind="stable"):
            mask[coco_mask.decode(outlines[index]).astype(bool)] = ids[index]
    return mask


def as_loaded(mask: np.ndarray, image: Path) -> np.ndarray | str:
    """The mask turned as its image is when it is loaded upright.

    Some programs draw outlines on the photograph as EXIF says it is to be seen, others on its
    pixels as they are stored: the size tells which. Where it can't (a square, or a photograph that
    is only mirrored or upside down) outlines count as drawn on what is seen.

    Returns:
        (H, W) uint8; or, if the size fits neither way, the end of a sentence that says so. The
        mask itself where the image can't be read: that is found when images are checked.
    """
    try:
        with Image.open(image) as file:
            stored = (file.height, file.width)
            orientation = file.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return mask
    upright = stored[::-1] if orientation in (5, 6, 7, 8) else stored
    if mask.shape == upright:
        return mask
    if mask.shape != stored:
        return (
            f"for {mask.shape[1]} x {mask.shape[0]} pixels, the image has "
            f"{upright[1]} x {upright[0]}"
        )
    lying = Image.fromarray(mask)
    lying.getexif()[_ORIENTATION] = orientation
    return np.array(ImageOps.exif_transpose(lying))
