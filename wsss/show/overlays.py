"""Colors over a photograph."""

from __future__ import annotations

import numpy as np

from wsss.show.colors import OPACITY, class_color, label_colors


def over(picture: np.ndarray, colors: np.ndarray, opacity: float | np.ndarray = 0.5) -> np.ndarray:
    """`colors` laid over `picture`, both (H, W, 3) uint8; opacity a number or (H, W)."""
    weight = np.asarray(opacity, dtype=np.float32)
    weight = weight[..., None] if weight.ndim else weight
    mixed = picture * (1 - weight) + colors * weight
    return np.clip(mixed, 0, 255).astype(np.uint8)


def label_overlay(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A label map over its photograph; background stays clear, void is whitened."""
    return over(picture, label_colors(labels), np.where(labels > 0, OPACITY, 0.0))


def class_overlay(picture: np.ndarray, values: np.ndarray, label: int) -> np.ndarray:
    """The map (H, W) in [0, 1] of one class over the photograph, the more opaque the higher.

    The photograph is pale and gray, so that the color can only be that of the class.
    """
    pale = np.repeat(picture.mean(axis=2, keepdims=True) / 2 + 127, 3, axis=2)
    return over(pale, np.array(class_color(label)), 0.9 * np.clip(values, 0, 1))
