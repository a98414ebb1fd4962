"""Confident labels: the rule, pixel by pixel, and both kinds of background."""

from __future__ import annotations

import numpy as np
import pytest

from wsss.refine.crf import CrfSettings, crf_from_labels
from wsss.refine.labels import LabelSettings, confident_labels

PLAIN = LabelSettings(crf=None)
IMAGE = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
CLASSES = np.array([4, 17])


def combine(foreground: int, background: int) -> int:
    if foreground != 0:
        return foreground
    return 0 if background == 0 else 255


def test_constant_backgrounds_pixel_by_pixel() -> None:
    maps = np.random.default_rng(1).random((2, 6, 9)).astype(np.float32) ** 4
    found = confident_labels(IMAGE, maps, CLASSES, PLAIN)
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == {0, 4, 17, 255}
    for y in range(6):
        for x in range(9):
            best = int(maps[:, y, x].argmax())
            reading = [int(CLASSES[best]) if maps[best, y, x] > t else 0 for t in (0.30, 0.05)]
            assert found[y, x] == combine(*reading)


def test_an_own_background_pixel_by_pixel() -> None:
    maps = np.random.default_rng(2).random((3, 6, 9)).astype(np.float32)
    found = confident_labels(IMAGE, maps, CLASSES, PLAIN)
    ids = [0, 4, 17]
    assert set(np.unique(found)) == {0, 4, 17, 255}
    for y in range(6):
        for x in range(9):
            one = ids[int(maps[:, y, x].argmax())]
            two = ids[int((maps[:, y, x] * [0.5, 1, 1]).argmax())]
            assert found[y, x] == combine(one, two)


def test_the_foreground_reading_wins_where_the_crf_makes_them_disagree() -> None:
    """Each reading goes through the CRF by itself; the cautious one has the last word."""
    settings = LabelSettings(crf=CrfSettings(bilateral_sxy=5, bilateral_srgb=80))
    maps = np.random.default_rng(3).random((2, 6, 9)).astype(np.float32) ** 3
    found = confident_labels(IMAGE, maps, CLASSES, settings)
    readings = []
    for threshold in (0.30, 0.05):
        stacked = np.concatenate([np.full((1, 6, 9), threshold), maps])
        labels = crf_from_labels(IMAGE, stacked.argmax(0), 3, 0.7, settings.crf)
        readings.append(np.array([0, 4, 17])[labels])
    expected = [combine(f, b) for f, b in zip(readings[0].flat, readings[1].flat, strict=True)]
    assert found.ravel().tolist() == expected


def test_inputs_are_left_alone() -> None:
    maps = np.random.default_rng(4).random((3, 6, 9)).astype(np.float32)
    before = maps.copy()
    confident_labels(IMAGE, maps, CLASSES, PLAIN)
    assert np.array_equal(maps, before)


@pytest.mark.parametrize("channels", [0, 1])
def test_an_image_without_classes_is_background(channels: int) -> None:
    maps = np.ones((channels, 6, 9), dtype=np.float32)
    assert not confident_labels(IMAGE, maps, np.zeros(0, dtype=int), LabelSettings()).any()


def test_a_wrong_number_of_channels_is_an_error() -> None:
    with pytest.raises(ValueError, match="4 channels for 2 classes"):
        confident_labels(IMAGE, np.zeros((4, 6, 9), np.float32), CLASSES, PLAIN)
