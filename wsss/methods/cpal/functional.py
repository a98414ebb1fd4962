"""The mathematics of CPAL (CVPR 2024), section 3, as functions of tensors.

Most functions work on *pairs*: one row for each (image, class) where the class is present in the
image and has something to say. P is the number of pairs, L = h·w the positions of the grid, d the
length of a prototype, k the context prototypes of a class. Absent classes never enter, so that 80
classes cost what the few present ones cost.

The paper's equations are lost in the text that this was written from; README.md of this folder
says what is stated there and what is our reading.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.run.reduce import global_ratio

SIMILARITIES = ("dot", "cosine", "l1", "l2")
REDUCTIONS = ("all", "present")


def anchor_mask(cam: Tensor, valid: Tensor, tau: float) -> Tensor:
    """Positions that stand for a class: the indicator of eq. 4.

    Args:
        cam: normalized class maps (B, C, h, w) in [0, 1]; taken as constants.
        valid: (B, C, h, w), 1 inside the un-padded window for classes of the image, else 0.
        tau: threshold of the reliability score.

    Returns:
        (B, C, h, w) of ones, and zeros where the map is at most `tau` or not valid.
    """
    cam = cam.detach()
    return (cam > tau).to(cam.dtype) * valid


def background_mask(cam: Tensor, window: Tensor) -> Tensor:
    """Positions where the background map beats every class map: the background's anchor (chosen).

    Args:
        cam: normalized maps (B, N+1, h, w), channel 0 the background; taken as constants.
        window: (B, 1, h, w), 1 inside the un-padded window.

    Returns:
        (B, 1, h, w) of zeros and ones.
    """
    cam = cam.detach()
    return (cam[:, :1] > cam[:, 1:].amax(1, keepdim=True)).to(cam.dtype) * window


def masked_average(features: Tensor, weights: Tensor) -> Tensor:
    """Masked average pooling: the anchor p_n of each pair (eq. 4).

    Args:
        features: projected features z (P, d, L).
        weights: non-negative weights (P, L).

    Returns:
        (P, d); 0 for a pair without weight.
    """
    total = torch.bmm(features, weights[..., None]).squeeze(2)
    return total / weights.sum(1, keepdim=True).clamp(min=1e-12)


def distribution_shift(bank_mean: Tensor, batch_mean: Tensor, known: Tensor) -> Tensor:
    """Shift ξ_n that carries the mini-batch's anchors to the support bank's mean (eq. 12).

    The shift that maximizes the mean cosine (eq. 8 to 11), with unit-free prototypes: the
    difference of the two means.

    Args:
        bank_mean: mean entry of each class (N, d).
        batch_mean: mean anchor of each class in the global mini-batch (N, d).
        known: (N,) bool, classes with entries in the bank and anchors in the mini-batch.

    Returns:
        (N, d); 0 for the other classes.
    """
    return (bank_mean - batch_mean) * known[:, None]


def soft_neighbors(
    anchors: Tensor, prototypes: Tensor, available: Tensor, neighbors: int | None
) -> Tensor:
    """The K context prototypes with the highest cosine to the anchor (eq. 6).

    Args:
        anchors: (P, d).
        prototypes: context prototypes of each pair's class (P, k, d).
        available: (P, k) bool, prototypes in use.
        neighbors: K; None takes all.

    Returns:
        (P, k) bool: min(K, available) prototypes of each pair.
    """
    if neighbors is None or neighbors >= prototypes.shape[1]:
        return available
    cosine = F.cosine_similarity(anchors[:, None], prototypes, dim=2)
    cosine = cosine.masked_fill(~available, -math.inf)
    best = cosine.topk(neighbors, dim=1).indices
    return torch.zeros_like(available).scatter(1, best, True) & available


def similarity(anchors: Tensor, prototypes: Tensor, kind: str) -> Tensor:
    """Similarity of an anchor to its candidate neighbors: the four rows of Table 3.

    Args:
        anchors: (P, d).
        prototypes: (P, k, d).
        kind: `dot` ⟨a, b⟩, `cosine`, `l1` −‖a − b‖₁ or `l2` −‖a − b‖₂.

    Returns:
        (P, k), larger is more similar.
    """
    if kind == "dot":
        return torch.bmm(prototypes, anchors[..., None]).squeeze(2)
    if kind == "cosine":
        return F.cosine_similarity(anchors[:, None], prototypes, dim=2)
    return -torch.linalg.vector_norm(
        anchors[:, None] - prototypes, ord=1 if kind == "l1" else 2, dim=2
    )


def positiveness(
    anchors: Tensor,
    prototypes: Tensor,
    selected: Tensor,
    kind: str = "dot",
    temperature: float | None = None,
) -> Tensor:
    """Positiveness score w_{n,j} of each soft neighbor (eq. 7).

    Args:
        anchors: (P, d).
        prototypes: (P, k, d).
        selected: (P, k) bool, the soft neighbors of eq. 6.
        kind: see `similarity`.
        temperature: divisor of the similarity; None is √d.

    Returns:
        (P, k): softmax over the selected ones; 0 elsewhere and for a pair without any. The paper's
        factor 1/γ cancels in eq. 13 and is left out.
    """
    divisor = math.sqrt(anchors.shape[1]) if temperature is None else temperature
    score = similarity(anchors, prototypes, kind) / divisor
    # A finite floor keeps a pair without neighbors free of NaN.
    score = score.masked_fill(~selected, torch.finfo(score.dtype).min)
    return torch.softmax(score, dim=1) * selected


def prototype_aware_cam(features: Tensor, prototypes: Tensor, weights: Tensor) -> Tensor:
    """PACAM of each pair: weighted cosines of every position to the soft neighbors (eq. 13).

    ReLU(Σ w cos / Σ w). With the ReLU outside, the sum over prototypes is done before the positions
    are looked at: Σ_j w_j cos(z, p_j) = ⟨z/‖z‖, Σ_j w_j p_j/‖p_j‖⟩. A pair costs one product with
    one vector, whatever k is.

    Args:
        features: z(i) + ξ_n (P, d, L).
        prototypes: (P, k, d).
        weights: positiveness (P, k).

    Returns:
        (P, L) non-negative; 0 for a pair whose weights are all 0.
    """
    unit = F.normalize(features, dim=1)
    directions = F.normalize(prototypes, dim=2)
    total = weights.sum(1, keepdim=True).clamp(min=1e-12)
    query = torch.bmm((weights / total)[:, None], directions)
    return F.relu(torch.bmm(query, unit).squeeze(1))


def self_supervision_loss(
    cam: Tensor, pacam: Tensor, valid: Tensor, has_prototypes: Tensor, reduction: str = "all"
) -> Tensor:
    """L1 distance between CAM and PACAM (eq. 14).

    Args:
        cam: normalized maps (B, N+1, h, w), channel 0 the background.
        pacam: the same of the prototypes.
        valid: (B, N+1, h, w), window times image label, 1 for the background (see
            `class_valid_mask`).
        has_prototypes: (B, N+1) bool, channels that have a PACAM; the others contribute nothing.
        reduction: `all` divides by all (N+1)·B channels, absent ones included; `present` by the
            background and present-class channels of the global batch that has_prototypes (see
            `global_ratio`).

    Returns:
        Scalar; 0 (with a gradient of 0) when nothing has_prototypes.
    """
    counted = valid * has_prototypes[:, :, None, None].to(valid.dtype)
    total = ((cam - pacam).abs() * counted).sum()
    total = total / (cam.shape[2] * cam.shape[3])
    if reduction == "present":
        return global_ratio(total, ((valid.amax(dim=(2, 3)) > 0) & has_prototypes).sum())
    return total / has_prototypes.numel()
