"""Faulty pseudo masks are all counted before training, and odd ones are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data.masks import write_mask
from wsss.data.plain_folder import Photographs
from wsss.errors import WsssError
from wsss.segmentation.mask_check import check_masks

CLASSES = ("cat", "dog", "cow")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight photographs of 20 x 30 with masks of background and cat."""
    (tmp_path / "images").mkdir()
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[:10] = 1
    for n in range(8):
        Image.new("RGB", (30, 20)).save(tmp_path / "images" / f"i{n}.jpg")
        write_mask(tmp_path / "masks" / f"i{n}.png", mask)
    return tmp_path


def check(folder: Path, workers: int = 0):
    image_set = Photographs(folder / "images", CLASSES)
    return check_masks(image_set, image_set.names("all"), folder / "masks", "do so", workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_masks_are_counted(folder: Path, workers: int) -> None:
    mask = np.full((20, 30), 255, dtype=np.uint8)
    write_mask(folder / "masks" / "i3.png", mask)
    mask[:5] = 2
    write_mask(folder / "masks" / "i5.png", mask)
    counts = check(folder, workers)
    assert counts.total == 8 and counts.bare == 1
    assert counts.pixels[[0, 1, 2, 3, 255]].tolist() == [1800, 1800, 150, 0, 1050]
    assert counts.images[[0, 1, 2, 3, 255]].tolist() == [6, 6, 1, 0, 2]
    assert counts.background == pytest.approx(1800 / 3750)
    assert counts.ignored == pytest.approx(1050 / 4800)
    assert counts.as_dict(CLASSES)["images_with"] == {"background": 6, "cat": 6, "dog": 1, "cow": 0}
    lines = counts.warnings(CLASSES)
    assert lines == [
        "1 of 8 pseudo masks are 255 (ignored) everywhere",
        "1 of 3 classes are in no pseudo mask: cow",
    ]


def test_all_faults_are_counted_and_the_first_are_named(folder: Path) -> None:
    masks = folder / "masks"
    (masks / "i0.png").unlink()
    write_mask(masks / "i1.png", np.zeros((30, 20), dtype=np.uint8))
    write_mask(masks / "i2.png", np.full((20, 30), 4, dtype=np.uint8))
    (masks / "i4.png").write_bytes(b"no")
    Image.new("RGB", (30, 20)).save(masks / "i6.png")
    with pytest.raises(WsssError) as caught:
        check(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"5 of 8 pseudo masks in {masks} can't be used: i0.png is missing;")
    assert "i1.png is 30 x 20, its photograph 20 x 30" in text
    assert "i2.png holds id 4, but there are 3 classes" in text
    assert text.endswith("; and 2 more; do so")


@pytest.mark.parametrize(
    ("value", "message"), [(0, "100.0 % of the .* background"), (255, "are 255 .* everywhere")]
)
def test_masks_that_teach_nothing_are_told(folder: Path, value: int, message: str) -> None:
    for n in range(8):
        write_mask(folder / "masks" / f"i{n}.png", np.full((20, 30), value, dtype=np.uint8))
    if value == 255:
        with pytest.raises(WsssError, match=message):
            check(folder)
        return
    import re

    assert re.search(message, check(folder).warnings(CLASSES)[0])
