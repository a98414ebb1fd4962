"""Contact sheets: pictures in rows and columns, each row with its caption and legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from wsss.files import atomic
from wsss.show.fonts import draw_text, readable, shortened, text_width, wrapped
from wsss.show.legend import TEXT, Entry, class_entries, legend

GAP = 6
LINE = 16


class Shown(NamedTuple):
    """A picture and what its colors stand for."""

    picture: np.ndarray
    """(H, W, 3) uint8."""
    classes: tuple[int, ...] = ()
    """Class ids, 0 and 255 included, for the legend of its row."""
    named: bool = False
    """Whether the name of its class stands in its upper left corner."""


Cell = np.ndarray | Sequence[Shown]
"""One picture, or several one below the other; none: a gray word says so."""


def entries_of(row: Sequence[Cell], classes: Sequence[str]) -> list[Entry]:
    """What the colors of a row's pictures stand for; `classes` are foreground names."""
    ids = {c for cell in row for shown in _stack(cell) for c in shown.classes if c}
    return class_entries(ids, classes) or [(None, "background only")]


def compose(
    rows: Sequence[Sequence[Cell]],
    headings: Sequence[str],
    captions: Sequence[str],
    classes: Sequence[str] = (),
    height: int = 140,
) -> np.ndarray:
    """Pictures in rows and columns.

    Args:
        rows: for each row its cells, one for each heading.
        headings: column titles.
        captions: stands below each row.
        classes: foreground class names, for legends behind the captions; without them no legends.
        height: of a picture in the sheet, pixels; wide ones are fitted into 1.5 times it.

    Returns:
        (H, W, 3) uint8.
    """
    width = round(1.5 * height)
    total = GAP + len(headings) * (width + GAP)
    bands = [_head([readable(heading) for heading in headings], width, total)]
    for row, caption in zip(rows, captions, strict=True):
        entries = entries_of(row, classes) if classes else []
        bands.append(_row(row, width, height, total, classes))
        bands.append(legend([(None, caption), *entries], total))
    return np.concatenate(bands)


def contact_sheet(
    rows: Sequence[Sequence[Cell]],
    headings: Sequence[str],
    captions: Sequence[str],
    path: Path,
    classes: Sequence[str] = (),
) -> Path:
    """Write a sheet as PNG.

    Args:
        rows: for each row its cells, one for each heading.
        headings: column titles.
        captions: stands below each row.
        path: PNG to write.
        classes: foreground class names, for legends.

    Returns:
        `path`.
    """
    sheet = Image.fromarray(compose(rows, headings, captions, classes))
    with atomic(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def _head(headings: Sequence[str], width: int, total: int) -> np.ndarray:
    lines = [wrapped(heading, TEXT, width) for heading in headings]
    band = Image.new("RGB", (total, 2 * GAP + LINE * max(map(len, lines))), "white")
    draw = ImageDraw.Draw(band)
    for column, texts in enumerate(lines):
        for line, text in enumerate(texts):
            draw_text(draw, (GAP + column * (width + GAP), GAP + line * LINE), text, TEXT)
    return np.array(band)


def _stack(cell: Cell) -> Sequence[Shown]:
    return [Shown(cell)] if isinstance(cell, np.ndarray) else cell


def _row(
    cells: Sequence[Cell], width: int, height: int, total: int, classes: Sequence[str]
) -> np.ndarray:
    stacks = [(_stack(cell), *_boxes(len(_stack(cell)), width, height)) for cell in cells]
    tallest = max(bottom for _, _, bottom in stacks)
    band = Image.new("RGB", (total, tallest), "white")
    draw = ImageDraw.Draw(band)
    for column, (stack, boxes, _) in enumerate(stacks):
        left = GAP + column * (width + GAP)
        if not stack:
            draw_text(draw, (left, height // 2 - TEXT), "none", TEXT, "gray")
        for shown, (x, y, wide, high) in zip(stack, boxes, strict=True):
            image = Image.fromarray(shown.picture)
            scale = min(wide / image.width, high / image.height)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            x, y = left + x + (wide - size[0]) // 2, y + (high - size[1]) // 2
            band.paste(image.resize(size, Image.Resampling.BILINEAR), (x, y))
            if shown.named and classes:
                (_, name), *_ = class_entries(shown.classes, classes)
                title = shortened(name, TEXT, size[0] - 6)
                draw.rectangle((x, y, x + text_width(title, TEXT) + 6, y + LINE), fill="white")
                draw_text(draw, (x + 3, y + 1), title, TEXT)
    return np.array(band)


def _boxes(count: int, width: int, height: int) -> tuple[list[tuple[int, int, int, int]], int]:
    """Places (x, y, width, height) of a cell's pictures and where they end below.

    Up to two stand in their full size one below the other, more in half of it, two in a line.
    """
    in_line = 2 if count > 2 else 1
    width, height = (width - GAP * (in_line - 1)) // in_line, height // in_line
    boxes = [
        (n % in_line * (width + GAP), n // in_line * (height + GAP), width, height)
        for n in range(count)
    ]
    return boxes, max([height, *(y + height for _, y, _, _ in boxes)])
