"""What MCTformer does with class tokens and attention (Xu et al., CVPR 2022).

Tokens stand in one row: C class tokens, then P = h * w patch tokens, patches row by row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.maps.functional import resize_maps
from wsss.run.compute import at_least_float32

EPS = 1e-8


def resize_positions(table: Tensor, classes: int, grid: tuple[int, int]) -> Tensor:
    """Position vectors for images of another size than the one that they were learned at.

    Args:
        table: (1, C + s * s, D) position vectors of C class tokens and a square grid of patches.
        classes: C; the class part is left as it is.
        grid: (h, w) patches of the image.

    Returns:
        (1, C + h * w, D), by bicubic interpolation. A tenth of a patch is added to the new sizes,
        as released: it keeps the size from being rounded down, and moves the sampling places.
    """
    side = math.isqrt(table.shape[1] - classes)
    if grid == (side, side):
        return table
    patches = table[:, classes:].transpose(1, 2).unflatten(2, (side, side))
    factors = [(length + 0.1) / side for length in grid]
    resized = F.interpolate(patches, scale_factor=factors, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :classes], resized.flatten(2).transpose(1, 2)], dim=1)


def class_to_patch(query: Tensor, key: Tensor, classes: int) -> Tensor:
    """Attention of the class tokens to the patches, averaged over heads.

    Args:
        query: (B, heads, C + P, d).
        key: likewise.
        classes: C.

    Returns:
        (B, C, P) float32, with gradient. A row sums to less than 1: class tokens attend to each
        other, too.
    """
    weights = _softmax(query[:, :, :classes], key)
    return weights[..., classes:].mean(dim=1)


def attend_and_add(
    query: Tensor, key: Tensor, value: Tensor, classes: int, total: Tensor
) -> Tensor:
    """Attention that leaves behind what its patches attend to, one head at a time.

    Of all layers and heads only the sum is kept, so that the memory is that of one head.

    Args:
        query: (B, heads, C + P, d).
        key: likewise.
        value: likewise.
        classes: C.
        total: (B, P, P) float32; the patch-to-patch attention, averaged over heads, is added to it.

    Returns:
        (B, heads, C + P, d) in the value's dtype, without gradient into `total`.
    """
    heads = query.shape[1]
    answers = []
    for head in range(heads):
        weights = _softmax(query[:, head], key[:, head])
        total.add_(weights[:, classes:, classes:].detach(), alpha=1 / heads)
        answers.append(weights.to(value.dtype) @ value[:, head])
    return torch.stack(answers, dim=1)


def token_logits(tokens: Tensor) -> Tensor:
    """Class logits: the mean over the channels of each class token, (B, C, D) to (B, C)."""
    return at_least_float32(tokens).mean(dim=2)


def fuse_attention(attention: Tensor, patch_cam: Tensor) -> Tensor:
    """Class maps from both sides: attention of the class tokens times the patches' own CAM.

    Args:
        attention: K (B, C, h, w), class-to-patch attention.
        patch_cam: (B, C, h, w) class maps of the patch head before the ReLU, or any others.

    Returns:
        K * ReLU(patch_cam), (B, C, h, w) float32.
    """
    return at_least_float32(attention) * F.relu(at_least_float32(patch_cam))


def refine_by_affinity(affinity: Tensor, maps: Tensor) -> Tensor:
    """Each patch collects the class maps of the patches that it attends to.

    Args:
        affinity: s (B, P, P), patch-to-patch attention, a row for each patch that attends.
        maps: (B, N, h, w) with h * w = P.

    Returns:
        S map, (B, N, h, w) float32; rows are not normalized.
    """
    affinity = at_least_float32(affinity)
    refined = torch.einsum("bij,bnj->bni", affinity, maps.to(affinity.dtype).flatten(2))
    return refined.view(maps.shape)


def merge_scales(scales: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Class maps of several scales in one, stretched to [0, 1].

    Args:
        scales: un-normalized maps (K, h_s, w_s), one for each scale.
        size: grid of the result.

    Returns:
        Their bilinear enlargements (align_corners=False), summed; per channel the smallest value
        becomes 0 and the largest (nearly) 1. (K, *size) float32; a map of zeros stays one.
    """
    total = torch.stack(
        [resize_maps(m[None].float(), size, align_corners=False)[0] for m in scales]
    ).sum(0)
    if not len(total):
        return total
    low, high = total.amin(dim=(1, 2), keepdim=True), total.amax(dim=(1, 2), keepdim=True)
    return (total - low) / (high - low + EPS)


def _softmax(query: Tensor, key: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) over the last axis, of at least float32."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return at_least_float32(scores).softmax(dim=-1)
