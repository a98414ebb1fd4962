"""The one reader of photographs."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.errors import WsssError

# Endings of what counts as a photograph in a folder; what is in the file is found out by Pillow.
IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm",
    ".pgm", ".pbm", ".jp2", ".avif",
)  # fmt: skip
MOST_PIXELS = 89_478_485  # where Pillow begins to warn of pictures made to exhaust the memory
_ORIENTATION = 0x0112  # EXIF


def load_image(path: str | Path) -> np.ndarray:
    """Read an image as RGB, (H, W, 3) uint8, turned upright as its EXIF data say.

    Gray, palette and CMYK files are converted. Gray of 16 bits is brought down to 8, floats in
    [0, 1] are brought up to 255; transparency is dropped.

    Raises:
        WsssError: if the file is missing, broken, no image or too large.
    """
    with opened(path) as file:
        return pixels_of(file)


def pixels_of(picture: Image.Image) -> np.ndarray:
    """Pixels of a Pillow picture as `load_image` gives those of a file, (H, W, 3) uint8 RGB."""
    pixels = _rgb(picture)
    return upright(pixels, _orientation(picture))  # asked now: of TIFF Pillow turns the pixels


def photograph_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of a photograph turned upright, from the head of its file.

    Raises:
        WsssError: if it is missing, no image or too large.
    """
    size, orientation = photograph_head(path)
    return size[::-1] if orientation >= 5 else size


def photograph_head(path: str | Path) -> tuple[tuple[int, int], int]:
    """(height, width) of a photograph as it is stored, and its EXIF orientation, 1 to 8.

    Raises:
        WsssError: if it is missing, no image or too large.
    """
    with opened(path) as file:
        return _stored_size(file), _orientation(file)


def checked_size(path: str | Path) -> tuple[int, int]:
    """`photograph_size` of a file that is read to its end: `load_image` can read it.

    Raises:
        WsssError: if it is missing, broken, no image or too large.
    """
    with opened(path) as file:
        size, orientation = _stored_size(file), _orientation(file)
        file.draft("RGB", (1, 1))  # a JPEG is read to its end, but its pixels are not made
        _rgb(file)
    return size[::-1] if orientation >= 5 else size


@contextmanager
def opened(path: str | Path, what: str = "image") -> Iterator[Image.Image]:
    """Open a picture; whatever goes wrong within the block is told as its fault.

    Args:
        path: the file.
        what: what it is called in messages.

    Raises:
        WsssError: if it is missing, no regular file (a pipe would be waited for without end),
            broken or larger than `MOST_PIXELS`.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise WsssError(f"{what} {path} is no regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            file = Image.open(path)
        with file:
            if file.width * file.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            yield file
    except WsssError:
        raise
    except FileNotFoundError as error:
        raise WsssError(f"{what} {path} does not exist") from error
    except Image.DecompressionBombError as error:
        raise WsssError(
            f"{what} {path} has more than {MOST_PIXELS:,} pixels: scale it down or cut it up"
        ) from error
    except Exception as error:  # a damaged file can fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WsssError(f"can't read {what} {path}: {reason}") from error


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels, (H, W, ...), as an EXIF orientation, 1 to 8, says that they are seen.

    From 5 on height and width change places.
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _orientation(file: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none or it makes no sense."""
    try:
        found = file.getexif().get(_ORIENTATION)
        return next(number for number in range(1, 9) if number == found)
    except Exception:  # no number of the eight, or EXIF data that can't be read
        return 1


def _stored_size(file: Image.Image) -> tuple[int, int]:
    """(height, width) of the pixels as they are stored."""
    if file.format == "TIFF":  # some versions of Pillow give the size as seen, others as stored
        return int(file.tag_v2[257]), int(file.tag_v2[256])  # type: ignore[attr-defined]
    return file.height, file.width


def _rgb(file: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8, not yet turned; Pillow's own conversion turns all above 255 white."""
    file.load()
    if file.mode != "F" and not file.mode.startswith("I"):
        return np.array(file.convert("RGB"))
    values = np.nan_to_num(np.asarray(file).astype(np.float64))
    largest = values.max(initial=0)
    if largest > 65535:
        raise ValueError(f"it holds values up to {largest:g}; save it with 8 or 16 bits")
    if largest > 255:
        values = np.floor(values / 256)
    elif file.mode == "F" and largest <= 1:
        values = values * 255
    return np.repeat(np.rint(values).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
