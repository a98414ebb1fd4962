"""Class activation maps: the ground that every method stands on (Zhou et al., CVPR 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.data.masks import VOID
from wsss.run.compute import at_least_float32
from wsss.run.reduce import global_ratio

EPS = 1e-5


def classification_loss(activation: Tensor, label: Tensor) -> Tensor:
    """Multi-label soft margin loss on globally averaged class maps (SIPE eq. 9, CPAL eq. 2).

    Args:
        activation: raw class maps (B, N, h, w); padding takes part in the average, as published.
        label: image labels (B, N), 1 where the class is present.

    Returns:
        Scalar: mean over images and classes of the binary cross-entropy with logits.
    """
    logits = at_least_float32(activation).mean(dim=(2, 3))
    return F.binary_cross_entropy_with_logits(logits, label.to(logits.dtype))


def balanced_mean(losses: Tensor, target: Tensor) -> Tensor:
    """Half the mean over the batch's background pixels plus half that over its foreground pixels.

    Args:
        losses: (B, h, w).
        target: (B, h, w) class ids, 0 background, 255 where unsure.

    Returns:
        Scalar, of the global batch (see `global_ratio`); a half without pixels is 0.
    """
    background = target == 0
    parts = torch.stack([background, ~background & (target != VOID)])
    sums = torch.stack([(losses * part).sum() for part in parts])
    return global_ratio(sums, parts.sum(dim=(1, 2, 3))).mean()


def normalize_cam(activation: Tensor, eps: float = EPS) -> Tensor:
    """Class activation maps scaled to [0, 1) per image and class (SIPE eq. 1, CPAL eq. 3).

    Args:
        activation: raw class maps (B, N, h, w).
        eps: added to the maximum, so that a class without activation gives a zero map.

    Returns:
        ReLU(a) / (max ReLU(a) + eps), (B, N, h, w), in the input's dtype.
    """
    cam = F.relu(activation)
    return cam / (cam.amax(dim=(2, 3), keepdim=True) + eps)


def add_background(cam: Tensor) -> Tensor:
    """Prepend the background map 1 − max over all foreground channels.

    Args:
        cam: normalized foreground maps (B, N, h, w) in [0, 1].

    Returns:
        (B, N+1, h, w), channel 0 the background.
    """
    return torch.cat([1 - cam.amax(dim=1, keepdim=True), cam], dim=1)


def class_valid_mask(valid: Tensor, label: Tensor, size: tuple[int, int]) -> Tensor:
    """Where a class may count: inside the un-padded window, and only classes of the image.

    Args:
        valid: (B, H, W), 1 inside the un-padded window of the crop, 0 in its padding.
        label: image labels (B, N).
        size: grid (h, w) to which the window is brought by nearest neighbor.

    Returns:
        (B, N+1, h, w) of zeros and ones; channel 0 (background) is the window alone.
    """
    window = F.interpolate(valid[:, None].to(label.dtype), size=size, mode="nearest")
    return torch.cat([window, window * label[:, :, None, None]], dim=1)


def resize_maps(maps: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bilinear resize of (B, C, h, w) maps to `size`; unchanged when it is their size already."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if maps.shape[1] == 0:  # an image without classes; not every PyTorch resizes nothing
        return maps.new_zeros(*maps.shape[:2], *size)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)
