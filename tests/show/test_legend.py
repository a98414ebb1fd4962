"""Overlays with a legend."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsss.data.masks import voc_palette, write_mask
from wsss.show.legend import class_entries, legend, overlay_with_legend, predicted_classes

CLASSES = tuple(f"class {n}" for n in range(1, 21))


def colors(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(v) for v in c) for c in np.unique(picture.reshape(-1, 3), axis=0)}


def test_the_legend_has_the_color_of_each_class_that_is_seen_and_no_other() -> None:
    labels = np.zeros((40, 300), dtype=np.uint8)
    labels[:10, :20], labels[20:, 100:] = 3, 15
    picture = np.zeros((40, 300, 3), dtype=np.uint8)
    shown = overlay_with_legend(picture, labels, CLASSES)
    assert shown.shape[1] == 300 and shown.shape[0] > 40
    below = colors(shown[40:])
    for c in set(range(1, 21)) - {7}:  # 7 is gray, as smoothed letters are
        assert (tuple(int(v) for v in voc_palette()[c]) in below) == (c in (3, 15)), c
    assert (shown[:40][labels == 0] == 0).all()
    assert (shown[:40][labels == 3] > 0).any()


def test_large_pictures_are_shrunk_and_small_ones_have_room_for_the_legend() -> None:
    large = overlay_with_legend(
        np.zeros((50, 100, 3), np.uint8), np.zeros((50, 100), np.uint8), CLASSES, max_side=60
    )
    assert large.shape[0] > 30 and large.shape[1] == 160
    dot = overlay_with_legend(np.zeros((1, 2, 3), np.uint8), np.ones((1, 2), np.uint8), CLASSES)
    assert dot.shape[1] == 160


def test_entries_name_each_class_once_and_void(system_fonts) -> None:
    found = class_entries([255, 2, 0, 1, 2], ["cow", "牛"])
    assert found == [((128, 0, 0), "cow"), ((0, 128, 0), "class 2"), ((255, 255, 255), "void")]


def test_a_legend_as_wide_as_asked_for_holds_even_a_name_that_is_wider() -> None:
    strip = legend([((1, 2, 3), "x" * 200), ((4, 5, 6), "y")], 120)
    assert strip.shape[1] == 120
    assert {(1, 2, 3), (4, 5, 6)} <= colors(strip)


def test_predicted_classes_are_those_of_the_file(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", np.array([[0, 3, 255], [7, 3, 0]], dtype=np.uint8))
    assert predicted_classes(tmp_path, 20)("a") == [3, 7]
