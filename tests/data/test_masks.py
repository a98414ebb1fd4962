"""Palette PNG masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data.masks import read_mask, voc_palette, write_mask


def test_ids_survive_as_palette_png(tmp_path: Path) -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    write_mask(tmp_path / "new" / "a.png", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "new" / "a.png", 254), mask)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]
    with Image.open(tmp_path / "new" / "a.png") as file:
        assert file.mode == "P"
        np.testing.assert_array_equal(np.array(file.convert("RGB")), voc_palette()[mask])


def test_palette_has_vocs_published_colours() -> None:
    palette = voc_palette()
    assert palette[0].tolist() == [0, 0, 0]
    assert palette[1].tolist() == [128, 0, 0]  # aeroplane
    assert palette[8].tolist() == [64, 0, 0]  # cat
    assert palette[15].tolist() == [192, 128, 128]  # person
    assert palette[20].tolist() == [0, 64, 128]  # tvmonitor
    assert palette[255].tolist() == [224, 224, 192]  # void
    assert len(np.unique(palette, axis=0)) == 256


@pytest.mark.realdata
def test_palette_is_the_one_of_the_official_masks(voc2007_mini: Path) -> None:
    path = sorted((voc2007_mini / "SegmentationClass").iterdir())[0]
    with Image.open(path) as file:
        stored = np.array(file.getpalette()).reshape(-1, 3)
        np.testing.assert_array_equal(stored, voc_palette()[: len(stored)])
        np.testing.assert_array_equal(np.array(file), read_mask(path, 20))
