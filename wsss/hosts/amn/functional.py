"""AMN's loss and activation maps as functions of tensors (Lee, Kim, Shim, CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.data.masks import VOID
from wsss.data.transforms import Size, resize_labels
from wsss.maps.functional import EPS, balanced_mean, resize_maps
from wsss.run.compute import at_least_float32


def smoothed_cross_entropy(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of each pixel with its label's smoothed distribution.

    The label has probability 1 - smoothing, every other class smoothing / (C - 1).

    Args:
        logits: (B, C, h, w), background first.
        target: (B, h, w) int64 class ids; unsure pixels (255) are answered as if they were 0.
        smoothing: what the label leaves to the other classes together.

    Returns:
        (B, h, w) of at least float32.
    """
    log = F.log_softmax(at_least_float32(logits), dim=1)
    label = torch.where(target == VOID, 0, target)
    own = log.gather(1, label[:, None])[:, 0]
    others = log.sum(dim=1) - own
    return -(1 - smoothing) * own - smoothing / (logits.shape[1] - 1) * others


def balanced_loss(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Half the mean over the batch's background pixels plus half that over its foreground pixels.

    Args:
        logits: (B, C, h, w), background first.
        target: (B, H, W) int64 class ids, 255 where unsure; brought to the logits' grid by nearest
            neighbor.
        smoothing: see `smoothed_cross_entropy`.

    Returns:
        See `balanced_mean`; the published code divides by the number of pixels unguarded.
    """
    target = resize_labels(target, (logits.shape[2], logits.shape[3]))
    return balanced_mean(smoothed_cross_entropy(logits, target, smoothing), target)


def fuse_logits(scales: Sequence[Tensor], size: Size) -> Tensor:
    """Probabilities from the logits of several scales.

    Args:
        scales: logits (C, h_s, w_s) of all classes, one for each scale.
        size: grid of the result.

    Returns:
        Softmax over C of the mean of their bilinear enlargements, (C, *size) float32.
    """
    enlarged = [resize_maps(x[None].float(), size, align_corners=False)[0] for x in scales]
    return torch.stack(enlarged).mean(0).softmax(0)


def conditional_min_max(maps: Tensor, target: Tensor) -> Tensor:
    """Stretch class maps from 0 to 1, except where the first label map says background.

    So a weak object reaches the scale of a strong one, and sure background stays as low as the
    network puts it.

    Args:
        maps: probabilities (K, h, w).
        target: the first label map, (H, W) class ids, 255 where unsure; brought to the maps' grid
            by nearest neighbor.

    Returns:
        (p - min p) / (max p - min p + 1e-5), minimum and maximum of each channel over the whole
        image, where the label is not 0 (unsure pixels too), p where it is, (K, h, w).
    """
    if not len(maps):
        return maps
    grid = (maps.shape[1], maps.shape[2])
    low, high = (f(maps, dim=(1, 2), keepdim=True) for f in (torch.amin, torch.amax))
    stretched = (maps - low) / (high - low + EPS)
    return torch.where(resize_labels(target, grid) == 0, maps, stretched)
