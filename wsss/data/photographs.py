"""The one reader of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from wsss.errors import WsssError


def load_image(path: str | Path) -> np.ndarray:
    """Read an image as RGB, (H, W, 3) uint8, turned upright as its EXIF data say.

    Gray, palette and CMYK files are converted, 16 bits per pixel brought down to 8; transparency is
    dropped.

    Raises:
        WsssError: If the file is missing, broken or no image.
    """
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            if upright.mode == "I" or upright.mode.startswith("I;16"):
                # 16-bit gray; Pillow's own conversion turns all above 255 white
                values = np.asarray(upright).astype(np.int64)
                gray = (values >> 8 if values.max(initial=0) > 255 else values).clip(0, 255)
                return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
            return np.array(upright.convert("RGB"))
    except FileNotFoundError as error:
        raise WsssError(f"image {path} does not exist") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise WsssError(f"can't read image {path}: {error}") from error
