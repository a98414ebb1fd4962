"""Pictures for folder and dashboard alike: overlays, label colours, contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsss.data.masks import voc_palette
from wsss.files import atomic

GAP = 6
CAPTION = 18


def heat(values: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) uint8 of a map (H, W) in [0, 1], from blue to red."""
    colors = matplotlib.colormaps["turbo"](np.clip(values, 0, 1))
    return (colors[..., :3] * 255).astype(np.uint8)


def over(picture: np.ndarray, colors: np.ndarray, opacity: float | np.ndarray = 0.5) -> np.ndarray:
    """`colors` laid over `picture`, both (H, W, 3) uint8; opacity a number or (H, W)."""
    weight = np.asarray(opacity, dtype=np.float32)
    weight = weight[..., None] if weight.ndim else weight
    mixed = picture * (1 - weight) + colors * weight
    return np.clip(mixed, 0, 255).astype(np.uint8)


def label_colors(labels: np.ndarray) -> np.ndarray:
    """VOC's colours (H, W, 3) uint8 of a label map (H, W)."""
    return voc_palette()[labels.astype(np.uint8)]


def label_overlay(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A label map over its photograph; background stays clear."""
    return over(picture, label_colors(labels), np.where(labels > 0, 0.6, 0.0))


def map_overlay(picture: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """The highest of several foreground maps (K, H, W) over the photograph."""
    if not len(maps):
        return picture
    return over(picture, heat(maps.max(0)), 0.55)


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    headings: Sequence[str],
    captions: Sequence[str],
    path: Path,
    height: int = 140,
) -> Path:
    """Write pictures in rows and columns as one PNG.

    Args:
        rows: for each row its pictures (H, W, 3) uint8, one for each heading.
        headings: column titles.
        captions: one line below each row.
        path: PNG to write.
        height: height of a picture in the sheet, pixels; wide ones are fitted into 1.5 times it.

    Returns:
        `path`.
    """
    width = round(1.5 * height)
    font = ImageFont.load_default(13)
    columns = len(headings)
    sheet = Image.new(
        "RGB",
        (GAP + columns * (width + GAP), CAPTION + 2 * GAP + len(rows) * (height + CAPTION + GAP)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for column, heading in enumerate(headings):
        draw.text((GAP + column * (width + GAP), GAP), heading, fill="black", font=font)
    for row, (pictures, caption) in enumerate(zip(rows, captions, strict=True)):
        top = CAPTION + 2 * GAP + row * (height + CAPTION + GAP)
        for column, picture in enumerate(pictures):
            image = Image.fromarray(picture)
            scale = min(width / image.width, height / image.height)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image = image.resize(size, Image.Resampling.BILINEAR)
            left = GAP + column * (width + GAP) + (width - image.width) // 2
            sheet.paste(image, (left, top + (height - image.height) // 2))
        draw.text((GAP, top + height + 1), caption, fill="black", font=font)
    with atomic(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path
