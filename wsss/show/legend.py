"""Legends, and label maps over their photographs with one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from wsss.data.masks import VOID, read_mask
from wsss.show.colors import class_color
from wsss.show.fonts import class_names, draw_text, readable, shortened, text_width
from wsss.show.overlays import label_overlay

LINE = 20
SWATCH = 12
TEXT = 12

Entry = tuple[tuple[int, int, int] | None, str]
"""A color, or None for a text alone, and what it stands for."""


def class_entries(ids: Iterable[int], classes: Sequence[str]) -> list[Entry]:
    """Entries of some class ids in ascending order, 0 left out; `classes` are foreground names."""
    names = class_names(classes)
    return [(class_color(c), "void" if c == VOID else names[c - 1]) for c in sorted(set(ids)) if c]


def legend(entries: Sequence[Entry], width: int) -> np.ndarray:
    """Entries side by side, in as many lines as they need, (H, `width`, 3) uint8."""
    places, x, y = [], 4, 0
    for color, text in entries:
        text = shortened(readable(text), TEXT, width - SWATCH - 12)
        length = round(text_width(text, TEXT)) + (SWATCH + 6) * (color is not None) + 12
        if x > 4 and x + length - 12 > width:
            x, y = 4, y + LINE
        places.append((x, y, color, text))
        x += length
    strip = Image.new("RGB", (width, y + LINE + 4), "white")
    draw = ImageDraw.Draw(strip)
    for x, y, color, text in places:
        if color is not None:
            box = (x, y + 5, x + SWATCH, y + 5 + SWATCH)
            draw.rectangle(box, fill=color, outline="gray")
            x += SWATCH + 6
        draw_text(draw, (x, y + 4), text, TEXT)
    return np.array(strip)


def overlay_with_legend(
    picture: np.ndarray, labels: np.ndarray, classes: Sequence[str], max_side: int = 1280
) -> np.ndarray:
    """The overlay, and below it a color and a name for each class that is seen.

    Args:
        picture: (H, W, 3) uint8 RGB.
        labels: (H, W) class ids, 0 background, 255 void.
        classes: foreground class names.
        max_side: larger pictures are shrunk to this longer side, pixels.

    Returns:
        (H', W', 3) uint8.
    """
    scale = min(1.0, max_side / max(labels.shape))
    size = (max(1, round(labels.shape[1] * scale)), max(1, round(labels.shape[0] * scale)))
    shown = np.array(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    ids = np.array(Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    overlay = label_overlay(shown, ids)
    area = np.bincount(labels.ravel(), minlength=256)
    seen = [int(c) for c in np.argsort(-area, kind="stable") if c and area[c]]
    entries: list[Entry] = [
        (color, f"{name} {_percent(area[c] / labels.size)}")
        for c in seen
        for color, name in class_entries([c], classes)
    ] or [(None, "background only")]
    below = legend(entries, max(overlay.shape[1], 160))
    whole = np.full((overlay.shape[0] + below.shape[0], below.shape[1], 3), 255, dtype=np.uint8)
    whole[: overlay.shape[0], : overlay.shape[1]] = overlay
    whole[overlay.shape[0] :] = below
    return whole


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"


def predicted_classes(folder: Path, num_classes: int) -> Callable[[str], list[int]]:
    """Which classes a stored label map shows, for captions: a test split has no labels.

    Args:
        folder: folder of label maps, NAME.png.
        num_classes: foreground classes.
    """

    def seen(name: str) -> list[int]:
        ids = np.unique(read_mask(folder / f"{name}.png", num_classes))
        return [int(c) for c in ids if 0 < c < VOID]

    return seen
