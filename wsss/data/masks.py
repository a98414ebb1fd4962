"""Label masks as palette PNG files: 0 background, 1..N classes, 255 void."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.errors import WsssError

VOID = 255


def voc_palette() -> np.ndarray:
    """Colours of PASCAL VOC's masks, (256, 3) uint8 RGB.

    The bits of the class id, lowest first, are dealt to red, green and blue in turn and fill each
    colour from its highest bit down, so that neighbouring ids get distant colours.
    """
    ids = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for position in range(8):
        for channel in range(3):
            bit = (ids >> (3 * position + channel)) & 1
            palette[:, channel] |= (bit << (7 - position)).astype(np.uint8)
    return palette


def read_mask(path: Path, num_classes: int) -> np.ndarray:
    """Read a label mask, (H, W) uint8.

    Args:
        path: Palette or gray PNG whose pixel values are class ids.
        num_classes: Number N of foreground classes; ids 0..N and 255 are allowed.

    Raises:
        WsssError: If the file can't be read, is a colour picture, or holds another id.
    """
    try:
        with Image.open(path) as file:
            if file.mode not in ("P", "L"):
                raise WsssError(
                    f"mask {path} is a picture of mode {file.mode}; class ids are needed, "
                    "as a palette or 8-bit gray PNG"
                )
            mask = np.array(file)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise WsssError(f"can't read mask {path}: {error}") from error
    counts = np.bincount(mask.ravel(), minlength=256)
    wrong = [int(i) for i in np.flatnonzero(counts) if num_classes < i < VOID]
    if wrong:
        raise WsssError(
            f"mask {path} holds id {wrong[0]}, but there are {num_classes} classes "
            "(allowed: 0 for background, the class ids, 255 for void)"
        )
    return mask


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a label mask, (H, W) uint8, as palette PNG; whole or not at all."""
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))  # mode L: values are kept
    image.putpalette(voc_palette().tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes may write the same file at once: each under a name of its own, then renamed.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        image.save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
