"""Label maps over their photographs: with a legend, and in contact sheets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsss.data.masks import VOID, read_mask, voc_palette
from wsss.show.overlays import label_overlay

LINE = 20
SWATCH = 12


def overlay_with_legend(
    picture: np.ndarray, labels: np.ndarray, classes: Sequence[str], max_side: int = 1280
) -> np.ndarray:
    """The overlay, and below it a colour and a name for each class that is seen.

    Args:
        picture: (H, W, 3) uint8 RGB.
        labels: (H, W) class ids, 0 background.
        classes: Foreground class names.
        max_side: Larger pictures are shrunk to this longer side, pixels.

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
    entries = [
        (voc_palette()[c], f"{classes[c - 1]} {_percent(area[c] / labels.size)}") for c in seen
    ] or [(np.array([255, 255, 255]), "background only")]
    font = ImageFont.load_default(12)
    width = max(overlay.shape[1], 160)
    places, x, y = [], 4, 0
    for _, text in entries:
        length = SWATCH + 6 + int(font.getlength(text)) + 12
        if x > 4 and x + length > width:
            x, y = 4, y + LINE
        places.append((x, y))
        x += length
    legend = Image.new("RGB", (width, y + LINE + 4), "white")
    draw = ImageDraw.Draw(legend)
    for (x, y), (colour, text) in zip(places, entries, strict=True):
        box = (x, y + 5, x + SWATCH, y + 5 + SWATCH)
        draw.rectangle(box, fill=tuple(int(v) for v in colour), outline="gray")
        draw.text((x + SWATCH + 6, y + 4), text, fill="black", font=font)
    whole = Image.new("RGB", (width, overlay.shape[0] + legend.height), "white")
    whole.paste(Image.fromarray(overlay), (0, 0))
    whole.paste(legend, (0, overlay.shape[0]))
    return np.array(whole)


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
