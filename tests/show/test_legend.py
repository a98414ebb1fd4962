"""Overlays with a legend and contact sheets of predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from wsss.data.masks import voc_palette, write_mask
from wsss.data.plain_folder import Photographs
from wsss.show.legend import overlay_with_legend, prediction_sheet

CLASSES = tuple(f"class {n}" for n in range(1, 21))


def colours(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(v) for v in c) for c in np.unique(picture.reshape(-1, 3), axis=0)}


def test_the_legend_has_the_colour_of_each_class_that_is_seen_and_no_other() -> None:
    labels = np.zeros((40, 300), dtype=np.uint8)
    labels[:10, :20], labels[20:, 100:] = 3, 15
    picture = np.zeros((40, 300, 3), dtype=np.uint8)
    shown = overlay_with_legend(picture, labels, CLASSES)
    assert shown.shape[1] == 300 and shown.shape[0] > 40
    legend = colours(shown[40:])
    for c in set(range(1, 21)) - {7}:  # 7 is gray, as smoothed letters are
        assert (tuple(int(v) for v in voc_palette()[c]) in legend) == (c in (3, 15)), c
    assert (shown[:40][labels == 0] == 0).all()
    assert (shown[:40][labels == 3] > 0).any()


def test_large_pictures_are_shrunk_and_small_ones_have_room_for_the_legend() -> None:
    large = overlay_with_legend(
        np.zeros((50, 100, 3), np.uint8), np.zeros((50, 100), np.uint8), CLASSES, max_side=60
    )
    assert large.shape[0] > 30 and large.shape[1] == 160
    dot = overlay_with_legend(np.zeros((1, 2, 3), np.uint8), np.ones((1, 2), np.uint8), CLASSES)
    assert dot.shape[1] == 160


def test_the_sheet_shows_spread_photographs_and_names_what_is_seen(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for n in range(5):
        Image.new("RGB", (30, 20), (n * 40, 0, 0)).save(tmp_path / "p" / f"i{n}.png")
        write_mask(tmp_path / "m" / f"i{n}.png", np.full((20, 30), n, dtype=np.uint8))
    folder = Photographs(tmp_path / "p", CLASSES)
    names = folder.names("all")
    path = tmp_path / "s.png"
    assert prediction_sheet(folder, names, 0, {"m": tmp_path / "m"}, False, path) is None
    prediction_sheet(folder, names, 2, {"m": tmp_path / "m"}, False, path)
    two = Image.open(path).size
    prediction_sheet(folder, names, 4, {"m": tmp_path / "m", "n": tmp_path / "m"}, False, path)
    four = Image.open(path).size
    assert four[0] > two[0] and four[1] > two[1]
