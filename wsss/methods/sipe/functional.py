"""SIPE's equations as pure functions of tensors (Chen et al., CVPR 2022).

In the order of the paper: hierarchical feature (Fig. 4), structure-aware seeds (eq. 3-5),
image-specific prototypes (eq. 6), IS-CAM (eq. 7), General-Specific Consistency (eq. 10).
`explore` runs eq. 3-7 in one call.

Shapes: B images, N foreground classes, h x w grid, C channels; channel 0 of every (B, N+1, h, w)
tensor is the background. Everything is a matrix product: the largest tensor is the structure map
(B, hw, hw), and it carries no gradient. All functions compute and answer in float32 or more, under
autocast too: sums over hundreds of channels or a thousand pixels overflow or round in half.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.maps.functional import normalize_cam
from wsss.maps.structure import locate_seeds, structure_iou, threshold_seeds
from wsss.run.compute import at_least_float32
from wsss.run.reduce import global_ratio

COSINE_EPS = 1e-8  # least length of a vector in a cosine, as `F.cosine_similarity` has it
SEED_CHOICES = ("structure", "argmax", "threshold")


class Exploration(NamedTuple):
    """What image-specific prototype exploration finds in a batch."""

    seeds: Tensor
    """(B, N+1, h, w) one-hot or zero, no gradient."""
    prototypes: Tensor
    """(B, N+1, C) unit vectors, zero for a class without seeds."""
    is_cam: Tensor
    """(B, N+1, h, w) in [0, 1]."""


def image_prototypes(seeds: Tensor, feature: Tensor) -> Tensor:
    """Centroid of each class's seeds, as a direction (SIPE eq. 6).

    Args:
        seeds: (B, N+1, h, w), one-hot or zero; a constant.
        feature: g (B, C, h, w).

    Returns:
        (B, N+1, C) of unit length, zero for a class without seeds. Gradient flows into `feature`.
    """
    with torch.autocast(feature.device.type, enabled=False):
        feature = at_least_float32(feature)
        flat = seeds.to(feature.dtype).flatten(2)
        # Dividing by the count keeps the scale of `feature`, beside which eps is small.
        count = flat.sum(dim=2, keepdim=True).clamp_min(1.0)
        centroid = torch.bmm(flat / count, feature.flatten(2).transpose(1, 2))
        return F.normalize(centroid, dim=2, eps=COSINE_EPS)


def reactivate(feature: Tensor, prototypes: Tensor) -> Tensor:
    """Image-specific CAM: correlation of every pixel with every prototype (SIPE eq. 7).

    Args:
        feature: g (B, C, h, w).
        prototypes: (B, N+1, C) unit vectors or zero.

    Returns:
        ReLU(cos(g(i), p_n)), (B, N+1, h, w) in [0, 1]; zero for a zero prototype.
    """
    with torch.autocast(feature.device.type, enabled=False):
        flat = at_least_float32(feature).flatten(2)
        # Dividing the products by the lengths spares a normalized copy of the feature.
        length = torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp_min(COSINE_EPS)
        cosine = torch.bmm(prototypes.to(flat.dtype), flat) / length
        return F.relu(cosine).unflatten(2, feature.shape[-2:])


def explore(
    maps: Tensor,
    structure: Tensor,
    feature: Tensor,
    valid_mask: Tensor,
    attenuation: float = 0.5,
    seeds: str = "structure",
    seed_threshold: float = 0.3,
) -> Exploration:
    """Image-specific prototype exploration: seeds, prototypes, IS-CAM (SIPE eq. 3-7).

    Args:
        maps: normalized class maps with background (B, N+1, h, w).
        structure: u (B, C', h, w), the feature that defines the structure.
        feature: g (B, C, h, w), the feature of prototypes and IS-CAM; the only input that
            receives gradient.
        valid_mask: where a class may be seed, broadcastable to (B, N+1, h, w).
        attenuation: factor on the background's score, see `locate_seeds`.
        seeds: "structure" (the method), "argmax" or "threshold" of the maps (ablations).
        seed_threshold: for seeds="threshold".

    Returns:
        Seeds, prototypes and the un-normalized IS-CAM.

    Raises:
        ValueError: `seeds` is none of SEED_CHOICES.
    """
    if seeds == "structure":
        located = locate_seeds(structure_iou(structure, maps), valid_mask, attenuation)
    elif seeds == "argmax":
        located = locate_seeds(maps, valid_mask, attenuation)
    elif seeds == "threshold":
        located = threshold_seeds(maps, valid_mask, seed_threshold)
    else:
        raise ValueError(f"seeds={seeds!r}: expected one of {', '.join(SEED_CHOICES)}")
    prototypes = image_prototypes(located, feature)
    return Exploration(located, prototypes, reactivate(feature, prototypes))


def estimate_background(is_cam: Tensor) -> Tensor:
    """IS-CAM whose background is 1 - max of the normalized foreground (Table 5, without BPM).

    Args:
        is_cam: (B, N+1, h, w); its background map is discarded.

    Returns:
        (B, N+1, h, w), foreground normalized by its maximum per image and class.
    """
    foreground = normalize_cam(is_cam[:, 1:])
    return torch.cat([1 - foreground.amax(dim=1, keepdim=True), foreground], dim=1)


def gsc_loss(general: Tensor, specific: Tensor, counted: Tensor | None = None) -> Tensor:
    """General-Specific Consistency: mean absolute difference of CAM and IS-CAM (SIPE eq. 10).

    Args:
        general: M (B, K, h, w), the CAM side, valid mask already multiplied in.
        specific: (B, K, h, w), the IS side, normalized by its maximum per image and class; no
            mask.
        counted: (B, K) ones where a channel enters the mean; None counts all, as released: the
            absent classes, whose two maps are zero, then dilute the loss.

    Returns:
        Scalar; of `counted` channels those of the global batch (see `global_ratio`). Neither side
        is detached here.
    """
    general, specific = at_least_float32(general), at_least_float32(specific)
    difference = (general - specific).abs().mean(dim=(2, 3))
    if counted is None:
        return difference.mean()
    counted = counted.to(difference.dtype)
    return global_ratio((difference * counted).sum(), counted.sum())
