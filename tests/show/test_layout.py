"""Where pictures, captions and legends of a contact sheet stand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from wsss.show.colors import class_color
from wsss.show.layout import GAP, Shown, compose, contact_sheet, entries_of

CLASSES = ("cat", "dog", "cow", "hen")
RED, BLUE = (250, 10, 20), (20, 10, 250)


def plain(color: tuple[int, int, int], height: int = 40, width: int = 60) -> np.ndarray:
    return np.full((height, width, 3), color, dtype=np.uint8)


def where(sheet: np.ndarray, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Bounds (left, top, width, height) of the pixels of a color."""
    rows, columns = np.nonzero((sheet == color).all(axis=2))
    left, top = int(columns.min()), int(rows.min())
    return left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1


def test_pictures_stand_in_rows_and_columns_as_large_as_fits() -> None:
    rows = [[plain(RED), plain(BLUE)], [plain((1, 2, 3)), plain((4, 5, 6), 90, 30)]]
    sheet = compose(rows, ["one", "two"], ["a", "b"], height=100)
    left, top, width, height = where(sheet, RED)
    assert (width, height) == (150, 100)
    assert where(sheet, BLUE) == (left + 150 + GAP, top, 150, 100)
    x, below, wide, high = where(sheet, (4, 5, 6))
    assert (wide, high) == (33, 100) and below > top + 100
    assert abs((x + wide / 2) - (left + 150 + GAP + 75)) <= 1, "centered"
    assert sheet.shape[1] == 2 * (150 + GAP) + GAP


def test_two_pictures_of_a_cell_are_large_and_more_are_half_as_large() -> None:
    colors = [(200, 0, n) for n in range(5)]
    for count, size in ((1, (150, 100)), (2, (150, 100)), (3, (72, 48)), (5, (72, 48))):
        cell = [Shown(plain(color)) for color in colors[:count]]
        sheet = compose([[cell]], ["maps"], ["a"], height=100)
        found = [where(sheet, color) for color in colors[:count]]
        assert {place[2:] for place in found} == {size}
        assert len({place[:2] for place in found}) == count, "none over another"
        assert max(y + high for _, y, _, high in found) < sheet.shape[0] - 15


def test_the_legend_of_a_row_has_the_colors_that_its_pictures_show() -> None:
    cells = [[Shown(plain(RED), (0, 3))], [Shown(plain(BLUE), (0, 1, 255))], plain(RED)]
    sheet = compose([cells], ["a", "b", "c"], ["name"], CLASSES, height=100)
    for label in (1, 3):
        assert where(sheet, class_color(label))[2:] == (11, 11)
    assert not (sheet == class_color(2)).all(axis=2).any()
    assert [text for _, text in entries_of(cells, CLASSES)] == ["cat", "cow", "void"]
    assert entries_of([plain(RED)], CLASSES) == [(None, "background only")]
    bare = compose([cells], ["a", "b", "c"], ["name"], height=100)
    assert not (bare == class_color(3)).all(axis=2).any(), "no legend without names"


def test_a_long_legend_takes_more_lines() -> None:
    cells = [[Shown(plain(RED), (1, 2, 3, 4))]]
    names = ["a long name of a class"] * 4
    few, many = (compose([cells], ["a"], ["n"], c, height=100) for c in (CLASSES, names))
    assert many.shape[0] > few.shape[0] and many.shape[1] == few.shape[1]
    for label in (1, 2, 3, 4):
        assert where(many, class_color(label))[2:] == (11, 11)


def test_a_map_bears_the_name_of_its_class() -> None:
    named, other = ([Shown(plain(RED), (1,), named=flag)] for flag in (True, False))
    a, b = (compose([[cell]], ["maps"], ["n"], CLASSES, height=100) for cell in (named, other))
    left, top, _, _ = where(b, RED)
    assert (a[top + 1, left + 1] == 255).all() and (b[top + 1, left + 1] == RED).all()
    assert (a[top + 50 :] == b[top + 50 :]).all()


def test_what_is_missing_is_said_and_not_left_white() -> None:
    sheet = compose([[plain(RED), []]], ["a", "b"], ["n"], height=100)
    top = where(sheet, RED)[1]
    assert (sheet[top : top + 100, 162:] < 200).any()


def test_a_sheet_is_written_whole(tmp_path: Path) -> None:
    path = contact_sheet([[plain(RED)]], ["a"], ["n"], tmp_path / "new" / "sheet.png", CLASSES)
    expected = compose([[plain(RED)]], ["a"], ["n"], CLASSES)
    assert (np.asarray(Image.open(path)) == expected).all()
    assert [one.name for one in path.parent.iterdir()] == ["sheet.png"]
