"""Class maps of several scales brought together, and enlarged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wsss.maps.functional import EPS, resize_maps


def enlarge(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear enlargement (align_corners=False) of (K, h, w) float32 maps to `size`."""
    return resize_maps(torch.from_numpy(maps)[None], size, align_corners=False)[0].numpy()


def fuse_scales(scales: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Class maps of several scales in one.

    Args:
        scales: un-normalized maps (K, h_s, w_s), one for each scale.
        size: grid of the result.

    Returns:
        Their bilinear enlargements (align_corners=False), summed and divided by the maximum of
        each channel, (K, *size), float32 in [0, 1].
    """
    total = torch.stack(
        [resize_maps(m[None].float(), size, align_corners=False)[0] for m in scales]
    ).sum(0)
    if not len(total):
        return total
    return total / (total.amax(dim=(1, 2), keepdim=True) + EPS)
