"""Inter-pixel structure and the seeds it locates (SIPE eq. 3-5), shared by SIPE and CPAL."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.maps.functional import EPS
from wsss.run.compute import at_least_float32


def unit_vectors(feature: Tensor, dim: int = 1, eps: float = EPS) -> Tensor:
    """Vectors along `dim` divided by their length + eps; a zero vector stays zero."""
    feature = at_least_float32(feature)
    return feature / (torch.linalg.vector_norm(feature, dim=dim, keepdim=True) + eps)


def hierarchical_feature(sides: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Side outputs of all stages as one feature map (SIPE Fig. 4).

    Args:
        sides: one (B, C_k, h_k, w_k) per stage.
        size: working grid (h, w), the third stage's.

    Returns:
        g (B, sum of C_k, h, w): every side is brought to unit length per pixel first, so that no
        stage outweighs another, then bilinearly to the grid.
    """
    resized = [
        F.interpolate(unit_vectors(side), size=size, mode="bilinear", align_corners=False)
        for side in sides
    ]
    return torch.cat(resized, dim=1)


@torch.no_grad()
def structure_map(feature: Tensor) -> Tensor:
    """Spatial structure of every pixel: its correlation with all others (SIPE eq. 3).

    Args:
        feature: (B, C, h, w).

    Returns:
        s_ij = ReLU(cos(u_i, u_j)), (B, hw, hw) in [0, 1], no gradient.
    """
    with torch.autocast(feature.device.type, enabled=False):
        unit = unit_vectors(feature).flatten(2)
        return torch.bmm(unit.transpose(1, 2), unit).relu_()


@torch.no_grad()
def structure_iou(feature: Tensor, maps: Tensor) -> Tensor:
    """Soft IoU between every pixel's structure map and every class map (SIPE eq. 4).

    Args:
        feature: u (B, C, h, w), whose correlations are the structure.
        maps: M (B, N+1, h, w) in [0, 1], background first.

    Returns:
        inter / (sum_j s_ij + sum_j M_n(j) - inter), (B, N+1, h, w), no gradient; 0 where both
        maps are empty.
    """
    with torch.autocast(feature.device.type, enabled=False):
        structure = structure_map(feature)
        flat = maps.to(structure.dtype).flatten(2)
        # One product gives the intersections and, from the row of ones, the structure's own mass.
        template = torch.cat([flat, torch.ones_like(flat[:, :1])], dim=1)
        products = torch.bmm(template, structure)
        inter, mass = products[:, :-1], products[:, -1:]
        union = mass + flat.sum(dim=2, keepdim=True) - inter
        return (inter / union.clamp_min(EPS)).view(maps.shape)


@torch.no_grad()
def locate_seeds(scores: Tensor, valid_mask: Tensor, attenuation: float = 0.5) -> Tensor:
    """Seeds: every pixel to its best class (SIPE eq. 5), where that class is valid.

    Args:
        scores: (B, N+1, h, w), background first: structure IoU, or the class maps themselves.
        valid_mask: mask broadcastable to `scores`. A pixel whose best class is not valid (absent
            from the image, or padding) is no seed of any class.
        attenuation: factor on the background's score. The released code applies it here; the
            paper's eq. 2 applies it to the background map.

    Returns:
        One-hot or zero, (B, N+1, h, w), no gradient.
    """
    scores = at_least_float32(scores)
    scores = torch.cat([scores[:, :1] * attenuation, scores[:, 1:]], dim=1)
    best = scores.argmax(dim=1, keepdim=True)
    return torch.zeros_like(scores).scatter_(1, best, 1.0) * valid_mask


@torch.no_grad()
def threshold_seeds(maps: Tensor, valid_mask: Tensor, threshold: float) -> Tensor:
    """Seeds by a constant threshold on the class maps (the paper's Fig. 8 baseline).

    Args:
        maps: M (B, N+1, h, w); the background map is replaced by the constant.
        valid_mask: as in `locate_seeds`.
        threshold: a pixel is foreground where its largest foreground map exceeds this.

    Returns:
        One-hot or zero, (B, N+1, h, w), no gradient.
    """
    constant = torch.full_like(maps[:, :1], threshold)
    return locate_seeds(torch.cat([constant, maps[:, 1:]], dim=1), valid_mask, attenuation=1.0)
