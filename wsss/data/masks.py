"""Label masks as palette PNG files: 0 background, 1..N classes, 255 void."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from wsss.data.photographs import opened
from wsss.errors import WsssError
from wsss.files import atomic

VOID = 255


def voc_palette() -> np.ndarray:
    """Colours of PASCAL VOC's masks, (256, 3) uint8 RGB.

    The bits of the class id, lowest first, are dealt to red, green and blue in turn and fill each
    color from its highest bit down, so that neighboring ids get distant colors.
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
        path: palette or gray PNG of up to 8 bits whose pixel values are class ids.
        num_classes: number N of foreground classes; ids 0..N and 255 are allowed.

    Raises:
        WsssError: if the file can't be read, is no such PNG, or holds another id.
    """
    with opened(path, "mask") as file:
        if file.format != "PNG" or file.mode not in ("P", "L", "1"):
            kind = f"picture of mode {file.mode}" if file.format == "PNG" else f"{file.format} file"
            raise WsssError(
                f"mask {path} is a {kind}; class ids are needed, as a palette or 8-bit gray PNG"
            )
        file.verify()  # the check sums, at which nobody looks when pixels are read; it ends there
    with opened(path, "mask") as file:
        mask = np.array(file).astype(np.uint8)
        if file.mode == "L":
            # Pillow spreads gray of 2 and 4 bits over 0..255: class 1 would be 85 or 17.
            with path.open("rb") as head:
                depth = head.read(25)[24]
            mask //= np.uint8(255 // (2**depth - 1))
    counts = np.bincount(mask.ravel(), minlength=256)
    wrong = [int(i) for i in np.flatnonzero(counts) if num_classes < i < VOID]
    if wrong:
        raise WsssError(
            f"mask {path} holds id {wrong[0]}, but there are {num_classes} classes "
            "(allowed: 0 for background, the class ids, 255 for void)"
        )
    return mask


def read_derived_mask(path: Path, num_classes: int) -> np.ndarray:
    """`read_mask` of a file that `stage=prepare` made: a damaged one can be made anew.

    Raises:
        WsssError: as `read_mask`, with this way out.
    """
    try:
        return read_mask(path, num_classes)
    except WsssError as error:
        raise WsssError(f"{error}; delete the file and run stage=prepare again") from error


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a label mask, (H, W) whole numbers in 0..255, as palette PNG; whole or not at all.

    Raises:
        WsssError: if it has another shape or holds anything else, which would be changed silently.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype.kind not in "iu":
        raise WsssError(f"mask {path} would be {mask.dtype} of shape {mask.shape}: no class ids")
    if not 0 <= mask.min(initial=0) <= mask.max(initial=0) <= 255:
        found = f"{mask.min()} to {mask.max()}"
        raise WsssError(f"mask {path} would hold ids {found}; a mask holds 0 to 255")
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))  # mode L: values are kept
    image.putpalette(voc_palette().tobytes())
    with atomic(path) as temporary:
        image.save(temporary, format="PNG")
