"""Masks for evaluation, painted from the outlines of COCO's annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from wsss.data.coco_index import read_outline
from wsss.data.masks import write_mask
from wsss.data.photographs import photograph_head, upright
from wsss.errors import WsssError

FARTHEST = 1e12  # pixels; coordinates from there on are no outline but a fault


@dataclass(frozen=True)
class PaintTask:
    """What is needed to paint the mask of one image; a few hundred bytes.

    Attributes:
        name: the image's name.
        image: its file.
        size: height and width that the outlines are drawn for.
        spans: (K, 3) first byte and number of bytes in the file of outlines, and class id.
        target: PNG to write.
    """

    name: str
    image: Path
    size: tuple[int, int]
    spans: np.ndarray
    target: Path


def paint_file(task: PaintTask, outlines: Path, annotations: Path) -> str | None:
    """Write the mask of one image.

    Args:
        task: what to paint.
        outlines: file that its spans are places of.
        annotations: where they came from, for messages.

    Returns:
        None, or a line that says what is wrong; then no mask is written.
    """
    runs, ids = [], []
    with outlines.open("rb") as file:
        for offset, length, class_id in task.spans.tolist():
            ident, segmentation = read_outline(file, offset, length)
            try:
                runs.append(to_rle(segmentation, task.size))
            except Exception as error:  # of the many ways to be wrong not each has a check
                reason = " ".join(str(error).split())
                return f"{annotations}, annotations, id {ident}: no outline can be read ({reason})"
            ids.append(class_id)
    mask = as_loaded(paint(runs, ids, task.size), task.image)
    if isinstance(mask, str):
        return f"{annotations}: the outlines of '{task.name}' are {mask}"
    write_mask(task.target, mask)
    return None


def to_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Run lengths of one annotation's `segmentation`, in any of COCO's forms.

    Nothing gets to pycocotools that makes it read or write where it must not, or fill the memory.

    Args:
        segmentation: polygons [[x, y, x, y, ...], ...], or run lengths {"counts", "size"}, given
            as numbers or packed as text. Polygons of fewer than three points cover nothing.
        size: height and width of the image.

    Returns:
        Packed run lengths of pycocotools.

    Raises:
        ValueError: if it is none of these forms, or run lengths are for another size.
    """
    height, width = size
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"run lengths for {segmentation['size']}, image of {[height, width]}")
        if isinstance(counts, str):
            counts = unpack(counts)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("a run length is no whole number from 0 on")
        if sum(counts) != height * width:
            raise ValueError(f"run lengths make {sum(counts)} pixels of {height * width}")
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    if not isinstance(segmentation, list):
        raise ValueError(f"segmentation is a {type(segmentation).__name__}")
    listed = [segmentation] if isinstance(segmentation[0], int | float) else segmentation
    whole = [_points(polygon) for polygon in listed]
    polygons = [within(points, size) for points in whole if len(points) > 2]
    polygons = [points for points in polygons if len(points)]
    if not polygons:
        return coco_mask.encode(np.zeros((height, width), dtype=np.uint8, order="F"))
    return coco_mask.merge(
        coco_mask.frPyObjects([points.ravel().tolist() for points in polygons], height, width)
    )


def _points(polygon: Any) -> np.ndarray:
    """A polygon's points, (P, 2) float64."""
    values = np.asarray(polygon)
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        raise ValueError("a coordinate is no number")
    if len(values) % 2:
        raise ValueError("a polygon has an odd number of coordinates")
    if not (np.abs(values) < FARTHEST).all():
        raise ValueError("a coordinate is not finite or far beyond any image")
    return values.astype(np.float64).reshape(-1, 2)


def within(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What of a polygon can be seen, and a margin of the image's size around it.

    pycocotools walks along each edge in steps of a fifth of a pixel, however long it is. Nearly all
    polygons lie within the margin and are left as they are. Of others what lies beyond is cut off
    side by side (Sutherland and Hodgman, "Reentrant polygon clipping", 1974); what joins the
    pieces along the cut lies outside the image.

    Args:
        points: (P, 2) x and y.
        size: height and width of the image.

    Returns:
        (Q, 2) x and y; Q is 0 if nothing is left.
    """
    for axis, side in ((0, size[1]), (1, size[0])):
        for bound, sign in ((-side, 1), (2 * side, -1)):
            ahead = sign * (points[:, axis] - bound)  # above 0: to be kept
            if not (ahead < 0).any():
                continue
            cut = []
            for here, there, a, b in zip(
                points, np.roll(points, -1, axis=0), ahead, np.roll(ahead, -1), strict=True
            ):
                if a >= 0:
                    cut.append(here)
                if (a >= 0) != (b >= 0):
                    crossing = here + (there - here) * (a / (a - b))
                    crossing[axis] = bound
                    cut.append(crossing)
            points = np.array(cut).reshape(-1, 2)
    return points


def unpack(text: str) -> list[int]:
    """Run lengths from COCO's packed text.

    Each is written with 5 bits a character, lowest first, from "0" on; the sixth bit says that more
    follow, the highest of the last five is the sign. From the fourth on they are differences to the
    one before last.

    Raises:
        ValueError: if it is no such text.
    """
    counts: list[int] = []
    value = shift = 0
    for sign in text:
        code = ord(sign) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError("the packed run lengths are damaged")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the packed run lengths are cut off")
    return counts


def paint(
    outlines: Sequence[dict[str, Any]], ids: Sequence[int], size: tuple[int, int]
) -> np.ndarray:
    """Label mask of some instances: large ones first, so that small ones stay visible.

    Args:
        outlines: packed run lengths of each instance.
        ids: class id of each; 255 for a crowd region.
        size: height and width.

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
        stored, orientation = photograph_head(image)
    except WsssError:
        return mask
    seen = stored[::-1] if orientation >= 5 else stored
    if mask.shape == seen:
        return mask
    if mask.shape != stored:
        return f"for {mask.shape[1]} x {mask.shape[0]} pixels, the image has {seen[1]} x {seen[0]}"
    return upright(mask, orientation)
