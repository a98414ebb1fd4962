"""Label maps of class maps: the arg max with a background, and what a threshold curve needs."""

from __future__ import annotations

import numpy as np


def seed_labels(
    maps: np.ndarray, classes: np.ndarray, background: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label map of class maps, and what a threshold curve needs.

    Args:
        maps: (K, H, W) foreground maps with `background` a constant, or (K+1, H, W) with their
            own background first and `background` None.
        classes: (K,) ids of the foreground channels.
        background: constant background, or None.

    Returns:
        The arg-max label map, the best foreground class and its value, each (H, W).
    """
    foreground = maps if background is not None else maps[1:]
    if not len(classes):
        shape = maps.shape[1:]
        zeros = np.zeros(shape, dtype=np.int64)
        return zeros, zeros, np.zeros(shape, dtype=np.float32)
    index = foreground.argmax(0)
    value = np.take_along_axis(foreground, index[None], 0)[0]
    best = classes[index]
    behind = background if background is not None else maps[0]
    return np.where(value > behind, best, 0), best, value
