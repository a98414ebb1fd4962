"""Colors of single pixels, computed by hand."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from wsss.data.masks import voc_palette
from wsss.show.colors import class_color, heat, label_colors
from wsss.show.overlays import class_overlay, label_overlay, over


def test_heat_goes_from_blue_over_green_to_red() -> None:
    cold, middle, hot = heat(np.array([[0.1, 0.5, 0.95]]))[0] / 255
    hues = [360 * colorsys.rgb_to_hsv(*color)[0] for color in (cold, middle, hot)]
    assert 200 < hues[0] < 280 and 80 < hues[1] < 160 and (hues[2] < 30 or hues[2] > 330)
    assert (heat(np.array([[-1.0, 2.0]])) == heat(np.array([[0.0, 1.0]]))).all()


def test_labels_have_the_colors_of_voc_and_void_is_white() -> None:
    ids = np.arange(255)
    assert (label_colors(ids[None])[0] == voc_palette()[:255]).all()
    assert class_color(255) == (255, 255, 255) and class_color(15) == (192, 128, 128)


@pytest.mark.parametrize("opacity", [0.25, np.full((2, 2), 0.25)])
def test_colors_over_a_picture_are_mixed(opacity) -> None:
    picture, colors = np.full((2, 2, 3), 100, np.uint8), np.full((2, 2, 3), 200, np.uint8)
    assert (over(picture, colors, opacity) == 125).all()


def test_background_stays_clear_under_labels() -> None:
    picture = np.full((1, 3, 3), 100, np.uint8)
    background, person, void = label_overlay(picture, np.array([[0, 15, 255]]))[0].tolist()
    assert background == [100, 100, 100]
    assert person == [int(40 + 0.6 * 192), int(40 + 0.6 * 128), int(40 + 0.6 * 128)]
    assert void == [193, 193, 193]


def test_a_class_map_goes_from_pale_gray_to_its_class() -> None:
    picture = np.array([[[30, 60, 90], [30, 60, 90], [0, 0, 0], [255, 255, 255]]], np.uint8)
    low, high, black, white = class_overlay(picture, np.array([[0, 1.0, 0, 0]]), 2)[0].tolist()
    assert low == [157, 157, 157]  # 60 / 2 + 127
    assert black == [127, 127, 127] and white == [254, 254, 254]
    assert high == [int(15.7), int(15.7 + 0.9 * 128), int(15.7)]
