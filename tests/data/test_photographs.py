"""The one reader of photographs: EXIF as it comes, deep and float gray, what must not be opened."""

from __future__ import annotations

import os
import signal
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from wsss.data.photographs import (
    checked_size,
    load_image,
    photograph_head,
    photograph_size,
    upright,
)
from wsss.errors import WsssError

ORIENTATION = 0x0112


def some_image(height: int = 24, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def exif_bytes(kind: int, count: int, value: bytes, behind: bytes = b"") -> bytes:
    """EXIF data of one entry, the orientation, of any type; `behind` begins at byte 26."""
    entry = (1, ORIENTATION, kind, count, value, 0)
    return b"Exif\0\0" + struct.pack("<2sHIHHHI4sI", b"II", 42, 8, *entry) + behind


def png_head(width: int, height: int) -> bytes:
    """A PNG that says it is of a size and holds nothing of it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


# ---- turned upright


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_pillow_turns_them(
    tmp_path: Path, orientation: int, ending: str
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"a.{ending}"
    options = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(some_image()).save(path, exif=exif, **options)
    with Image.open(path) as file:
        file.load()
        expected = np.asarray(ImageOps.exif_transpose(file))
    assert expected.shape[:2] == ((40, 24) if orientation >= 5 else (24, 40))
    np.testing.assert_array_equal(load_image(path), expected)
    assert photograph_size(path) == checked_size(path) == expected.shape[:2]
    assert photograph_head(path) == ((24, 40), orientation)
    if ending == "png":
        np.testing.assert_array_equal(upright(some_image(), orientation), expected)


NO_ORIENTATION = {
    "nothing": exif_bytes(3, 1, b"\0\0\0\0"),
    "nine": exif_bytes(3, 1, b"\x09\0\0\0"),
    "65535": exif_bytes(3, 1, b"\xff\xff\0\0"),
    "a large number": exif_bytes(4, 1, b"\xff\xff\xff\xff"),
    "a negative number": exif_bytes(9, 1, b"\xfa\xff\xff\xff"),
    "text": exif_bytes(2, 2, b"6\0\0\0"),
    "letters": exif_bytes(2, 3, b"up\0\0"),
    "bytes": exif_bytes(7, 4, b"\x06\x06\x06\x06"),
    "a fraction": exif_bytes(5, 1, struct.pack("<I", 26), struct.pack("<II", 13, 2)),
    "a fraction of zero": exif_bytes(5, 1, struct.pack("<I", 26), struct.pack("<II", 6, 0)),
    "a float": exif_bytes(11, 1, struct.pack("<f", 6.5)),
    "a float that is none": exif_bytes(11, 1, struct.pack("<f", float("nan"))),
    "an unknown type": exif_bytes(99, 1, b"\x06\0\0\0"),
    "far away": exif_bytes(5, 1, struct.pack("<I", 10**6)),
    "no EXIF": b"Exif\0\0nothing of the kind",
    "EXIF cut off": exif_bytes(3, 1, b"\x06\0\0\0")[:18],
}


@pytest.mark.filterwarnings("ignore")  # Pillow tells of some of these
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("case", NO_ORIENTATION)
def test_an_orientation_that_makes_no_sense_turns_nothing(
    tmp_path: Path, case: str, ending: str
) -> None:
    path = tmp_path / f"a.{ending}"
    options = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(some_image()).save(path, exif=NO_ORIENTATION[case], **options)
    with Image.open(path) as file:
        stored = np.asarray(file.convert("RGB"))
    np.testing.assert_array_equal(load_image(path), stored)
    assert photograph_size(path) == checked_size(path) == (24, 40)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", [0, 9, 65535, (9, 9)])
def test_the_same_for_tiff(tmp_path: Path, value: object) -> None:
    entries = TiffImagePlugin.ImageFileDirectory_v2()
    entries.tagtype[ORIENTATION] = 3
    entries[ORIENTATION] = value
    Image.fromarray(some_image()).save(tmp_path / "a.tif", tiffinfo=entries)
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif"), some_image())
    assert photograph_size(tmp_path / "a.tif") == checked_size(tmp_path / "a.tif") == (24, 40)


@pytest.mark.filterwarnings("ignore")
def test_of_two_numbers_the_first_counts_for_size_and_pixels_alike(tmp_path: Path) -> None:
    exif = exif_bytes(3, 2, b"\x06\0\x08\0")
    Image.fromarray(some_image()).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.rot90(some_image(), k=-1))
    assert photograph_size(tmp_path / "a.png") == checked_size(tmp_path / "a.png") == (40, 24)


# ---- depth


def gray_of(path: Path) -> list[int]:
    image = load_image(path)
    assert (image == image[..., :1]).all() and checked_size(path) == image.shape[:2]
    return image[..., 0].ravel().tolist()


def test_floats_from_0_to_1_keep_their_brightness(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 0.25, 0.5], [0.75, 0.999, 1]], dtype=np.float32)).save(path)
    assert gray_of(path) == [0, 64, 128, 191, 255, 255]


def test_floats_of_other_ranges(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 100.4], [-3, 255]], dtype=np.float32)).save(path)
    assert gray_of(path) == [0, 100, 0, 255]
    Image.fromarray(np.array([[0, 257], [32768, 65535]], dtype=np.float32)).save(path)
    assert gray_of(path) == [0, 1, 128, 255]
    Image.fromarray(np.array([[np.nan, 0.5]], dtype=np.float32)).save(path)
    assert gray_of(path) == [0, 128]
    for wrong in (1e9, np.inf):
        Image.fromarray(np.array([[0, wrong]], dtype=np.float32)).save(path)
        with pytest.raises(WsssError, match="a.tif: it holds values up to .*; save it with 8 or"):
            load_image(path)


def test_gray_of_few_bits_and_of_32(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1").save(path)
    assert gray_of(path) == [0, 255, 255, 0]
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 70], [-9, 65535]], dtype=np.int32)).save(path)
    assert gray_of(path) == [0, 0, 0, 255]
    Image.fromarray(np.array([[0, 2**30]], dtype=np.int32)).save(path)
    with pytest.raises(WsssError, match="save it with 8 or 16 bits"):
        load_image(path)


# ---- what must not be opened, and what can't be read


@pytest.fixture
def alarm() -> Iterator[None]:
    """An endless wait ends in an error."""

    def ring(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("read", [load_image, photograph_size, checked_size])
def test_a_pipe_is_not_waited_for(tmp_path: Path, alarm: None, read) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").mkdir()
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(WsssError, match=f"image .*{name} is no regular file"):
            read(tmp_path / name)


@pytest.mark.parametrize("read", [load_image, photograph_size, checked_size])
@pytest.mark.parametrize("side", [13_000, 20_000, 60_000])
def test_a_picture_of_169_megapixels_is_named(
    tmp_path: Path, side: int, read, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "a.png").write_bytes(png_head(side, side))
    with pytest.raises(WsssError, match="a.png has more than 89,478,485 pixels: scale it down or"):
        read(tmp_path / "a.png")
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore")  # Pillow tells of some of these
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp", "gif", "bmp", "ppm"])
def test_damaged_files_are_one_line(tmp_path: Path, ending: str) -> None:
    """Cut anywhere, and bytes overwritten anywhere: read in some way, or one line with the name."""
    path, refused = tmp_path / f"a.{ending}", 0
    Image.fromarray(some_image()).save(path)
    whole = path.read_bytes()
    assert load_image(path).shape == (24, 40, 3)
    rng = np.random.default_rng(0)
    for attempt in range(60):
        damaged = bytearray(whole)
        if attempt % 2:
            damaged = damaged[: rng.integers(len(whole))]
        else:
            for place in rng.integers(0, min(len(whole), 200), 6):
                damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        for read in (load_image, photograph_size, checked_size):
            try:
                read(path)
            except WsssError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                refused += 1
    assert refused > 30


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_pixels_may_be_written(tmp_path, mode):
    """Libraries that work on them in place refuse arrays that are read-only."""
    Image.new(mode, (8, 6)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").flags.writeable
