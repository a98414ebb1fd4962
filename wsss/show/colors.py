"""Which color means what, in every picture and chart: heat, class ids, void."""

from __future__ import annotations

import matplotlib
import numpy as np

from wsss.data.masks import VOID, voc_palette

HEAT = "turbo"  # Matplotlib's name of the one color map, from blue (0) to red (1)
OPACITY = 0.6  # of colors over a photograph
ABSENT = "0.85"  # a gray: where a value is not defined

PALETTE = voc_palette()
PALETTE[VOID] = 255  # white: on a photograph VOC's beige looks like one more class


def heat(values: np.ndarray) -> np.ndarray:
    """Colors (H, W, 3) uint8 of a map (H, W) in [0, 1], from blue to red."""
    colors = matplotlib.colormaps[HEAT](np.clip(values, 0, 1))
    return (colors[..., :3] * 255).astype(np.uint8)


def label_colors(labels: np.ndarray) -> np.ndarray:
    """Colors (H, W, 3) uint8 of a label map (H, W): those of VOC's masks, void white."""
    return PALETTE[labels.astype(np.uint8)]


def class_color(label: int) -> tuple[int, int, int]:
    """Red, green and blue (0 to 255) of a class id."""
    red, green, blue = PALETTE[label].tolist()
    return red, green, blue
