"""DeepLabV2's multi-scale inputs ("MSC"): one network at several scales, merged by the maximum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.errors import WsssError
from wsss.run.compute import at_least_float32

SCALES = (1.0, 0.75, 0.5)


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """The scales with 1 first, whose logits have the size that the others are brought to.

    Raises:
        WsssError: 1 is not among them, one of them is not positive, or one is there twice.
    """
    values = tuple(float(scale) for scale in scales)
    if 1.0 not in values or min(values) <= 0 or len(set(values)) < len(values):
        raise WsssError(
            f"segmentation.msc_scales={list(scales)}: give different positive numbers, 1 among them"
        )
    return (1.0, *(scale for scale in values if scale != 1.0))


def scaled(images: Tensor, scale: float, by_size: bool = False) -> Tensor:
    """Images (B, 3, H, W) bilinearly resized to floor(scale * size), align_corners off.

    As published the factor, not the size, says where pixels are sampled: 321 pixels at 0.5 are
    sampled with step 2, not 321 / 160.

    Args:
        images: the images.
        scale: factor of their size.
        by_size: let the size say where: for a program that is exported for any height and width,
            which knows no other way.
    """
    if scale == 1.0:
        return images
    if not by_size:
        return F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
    # Whole numbers keep the size exact, and traceable where height and width are unknown.
    ratio = Fraction(scale).limit_denominator(1000)
    height, width = (n * ratio.numerator // ratio.denominator for n in images.shape[-2:])
    return F.interpolate(images, (height, width), mode="bilinear", align_corners=False)


def multi_scale_logits(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    scales: Sequence[float] = SCALES,
    by_size: bool = False,
) -> list[Tensor]:
    """Logits of the images at each scale, of at least float32, each at its own size.

    Args:
        network: images (B, 3, H, W) to logits (B, C, h, w).
        images: normalized.
        scales: factors of the image size.
        by_size: see `scaled`.
    """
    return [at_least_float32(network(scaled(images, scale, by_size))) for scale in scales]


def maximum(logits: Sequence[Tensor]) -> Tensor:
    """Element-wise maximum of all logits, bilinearly brought to the size of the first.

    Args:
        logits: (B, C, h, w) each, sizes may differ.
    """
    first, *rest = logits
    size = (first.shape[-2], first.shape[-1])
    result = first
    for other in rest:
        enlarged = F.interpolate(other, size, mode="bilinear", align_corners=False)
        result = torch.maximum(result, enlarged)
    return result
