"""Palette PNG masks."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data.masks import read_mask, voc_palette, write_mask
from wsss.errors import WsssError


def write_png(path: Path, rows: list[bytes], width: int, depth: int, kind: int) -> None:
    """A PNG byte by byte; `kind` 0 is gray, 3 a palette."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    head = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(3 * min(2**depth, 16)))) if kind == 3 else b""
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + data + chunk(b"IEND", b"")
    )


def test_ids_survive_as_palette_png(tmp_path: Path) -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    write_mask(tmp_path / "new" / "a.png", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "new" / "a.png", 254), mask)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]
    with Image.open(tmp_path / "new" / "a.png") as file:
        assert file.mode == "P"
        np.testing.assert_array_equal(np.array(file.convert("RGB")), voc_palette()[mask])


@pytest.mark.parametrize("kind", [0, 3])
@pytest.mark.parametrize(
    ("depth", "row", "expected"),
    [
        (1, b"\x50", [0, 1, 0, 1]),  # 0101
        (2, b"\x1b", [0, 1, 2, 3]),  # 00 01 10 11
        (4, b"\x01\x2f", [0, 1, 2, 15]),
        (8, b"\x00\x01\x0f\xff", [0, 1, 15, 255]),
    ],
)
def test_class_1_stays_1_at_any_depth(
    tmp_path: Path, kind: int, depth: int, row: bytes, expected: list[int]
) -> None:
    write_png(tmp_path / "a.png", [row, row], 4, depth, kind)
    mask = read_mask(tmp_path / "a.png", 15)
    assert mask.dtype == np.uint8 and mask.tolist() == [expected] * 2


def test_ids_that_no_mask_holds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for wrong in (300, -1, 256):
        with pytest.raises(WsssError, match=rf"mask {path} would hold ids .*{wrong}"):
            write_mask(path, np.array([[1, wrong]]))
    for mask in (np.array([[0.5]]), np.array([[np.nan]]), np.array([1]), np.array([[True]])):
        with pytest.raises(WsssError, match=f"mask {path} would be .*: no class ids"):
            write_mask(path, mask)
    assert not list(tmp_path.iterdir())
    write_mask(path, np.array([[0, 255]], dtype=np.int64))
    assert read_mask(path, 1).tolist() == [[0, 255]]


def test_a_mask_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cases = {
        "a.png does not exist": lambda: None,
        "a.png is a JPEG file; class ids": lambda: Image.new("L", (8, 8)).save(path, "JPEG"),
        "a.png is a picture of mode RGB;": lambda: Image.new("RGB", (8, 8)).save(path),
        "a.png is a picture of mode I;16": lambda: Image.new("I;16", (8, 8)).save(path),
        "can't read mask .*a.png": lambda: path.write_bytes(b"\x89PNG\r\n\x1a\n broken"),
        "holds id 17, but there are 3": lambda: Image.new("L", (8, 8), 17).save(path),
        "more than 89,478,485 pixels": lambda: write_png(path, [b""] * 20_000, 20_000, 1, 0),
    }
    for message, spoil in cases.items():
        spoil()
        with pytest.raises(WsssError, match=message) as caught:
            read_mask(path, 3)
        assert "\n" not in str(caught.value)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(WsssError, match="a.png is no regular file"):
        read_mask(path, 3)


def test_damaged_masks_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    mask, refused = np.random.default_rng(0).integers(0, 4, (30, 40)), 0
    write_mask(path, mask)
    whole = path.read_bytes()
    cut = [whole[:length] for length in range(0, len(whole), 7)]
    changed = [whole[:i] + bytes([whole[i] ^ 85]) + whole[i + 1 :] for i in range(0, len(whole), 7)]
    for content in cut + changed:
        path.write_bytes(content)
        try:  # the last bytes say nothing of the pixels
            np.testing.assert_array_equal(read_mask(path, 3), mask)
        except WsssError as error:
            assert f"mask {path}" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 0.95 * len(cut + changed)


def test_palette_has_vocs_published_colors() -> None:
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
