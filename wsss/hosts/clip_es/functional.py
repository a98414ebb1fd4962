"""Softmax Grad-CAM and class-aware attention-based affinity (CLIP-ES), as functions of tensors.

"Released" is what the authors' code does where the paper says less.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from wsss.run.compute import at_least_float32

EPS = 1e-7  # of the min-max (released)
EIGHT_NEIGHBORS = np.ones((3, 3), dtype=bool)


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position vectors for another grid of patches.

    Args:
        table: (1 + g * g, C), the class token's first, then those of a square grid.
        grid: (h, w).

    Returns:
        (1 + h * w, C): the class token's as it is, the others bilinearly resized (align_corners
        off); rounded to half precision, whatever the network computes in (released).
    """
    side = math.isqrt(len(table) - 1)
    square = table[1:].float().T.reshape(1, -1, side, side)
    resized = F.interpolate(square, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([table[:1].float(), resized[0].flatten(1).T]).half().to(table.dtype)


def class_probabilities(
    embedding: Tensor, texts: Tensor, scale: float | Tensor, label: Tensor, background: int
) -> Tensor:
    """Softmax over the classes of each image and all words for the background (section 3.2).

    Args:
        embedding: of images (B, D).
        texts: unit vectors (N + background, D), the N classes first.
        scale: exp of CLIP's logit scale.
        label: image labels (B, N).
        background: number of background words.

    Returns:
        (B, N + background) float32; 0 for classes that are not in the image.
    """
    embedding = at_least_float32(embedding)
    logits = scale * F.normalize(embedding, dim=1) @ texts.to(embedding.dtype).T
    always = torch.ones(len(label), background, dtype=torch.bool, device=label.device)
    return logits.masked_fill(~torch.cat([label > 0, always], dim=1), -torch.inf).softmax(dim=1)


def gradient_maps(scores: Tensor, tokens: Tensor, label: Tensor) -> Tensor:
    """Grad-CAM of every class of every image from one forward pass (Selvaraju et al., ICCV 2017).

    All images and classes go backwards together: as images do not see each other, the k-th class
    of each image shares a backward pass, and the passes are one batch.

    Args:
        scores: (B, T), whose first N columns belong to the classes; a function of `tokens`.
        tokens: (B, 1 + P, C), the class token first.
        label: image labels (B, N).

    Returns:
        ReLU of the channels' sum, weighted by the mean of their gradient over the patches,
        (B, N, P); 0 for classes that are not in the image.
    """
    present = label > 0
    rank = present.cumsum(dim=1) - 1  # the how manieth class of its image
    most = int(present.sum(dim=1).max()) if present.numel() else 0
    if most == 0:
        return tokens.new_zeros(*label.shape, tokens.shape[1] - 1)
    passes = torch.arange(most, device=label.device)[:, None, None]
    chosen = ((rank == passes) & present).to(scores.dtype)  # (passes, B, N)
    seeds = F.pad(chosen, (0, scores.shape[1] - label.shape[1]))
    (gradient,) = torch.autograd.grad(scores, tokens, seeds, is_grads_batched=True)
    weights = gradient[:, :, 1:].mean(dim=2)
    maps = torch.einsum("kbc,bpc->kbp", weights, tokens.detach()[:, 1:]).relu()
    return torch.einsum("kbn,kbp->bnp", chosen.to(maps.dtype), maps)


def min_max(maps: Tensor) -> Tensor:
    """Each map (..., h, w) from its minimum to its maximum, in [0, 1); a flat one is 0."""
    if not maps.numel():
        return maps
    shifted = maps - maps.amin(dim=(-2, -1), keepdim=True)
    return shifted / (EPS + shifted.amax(dim=(-2, -1), keepdim=True))


def transition(attention: Tensor, rounds: int = 3) -> Tensor:
    """The attention between patches as a symmetric transition matrix, two steps (section 3.3).

    Args:
        attention: (P, P), averaged over heads and layers, without the class token.
        rounds: of dividing by the sums of columns, then of rows (Sinkhorn).

    Returns:
        T * T for T = (D + D') / 2, (P, P) float32.
    """
    matrix = at_least_float32(attention)
    for _ in range(rounds):
        matrix = matrix / matrix.sum(dim=0, keepdim=True)
        matrix = matrix / matrix.sum(dim=1, keepdim=True)
    matrix = (matrix + matrix.T) / 2
    return matrix @ matrix


def box_mask(cam: np.ndarray, threshold: float) -> np.ndarray:
    """The boxes around the parts of a class map that stand out.

    Args:
        cam: (h, w) in [0, 1].
        threshold: λ, share of the map's maximum.

    Returns:
        (h, w) bool: True inside the box of any 8-connected part above the threshold. As released,
        values count in whole steps of 1/255, and a box never takes in the last row and column.
    """
    height, width = cam.shape
    steps = (255 * cam).astype(np.uint8)
    parts, _ = ndimage.label(steps > int(threshold * steps.max(initial=0)), EIGHT_NEIGHBORS)
    mask = np.zeros(cam.shape, dtype=bool)
    for rows, columns in ndimage.find_objects(parts):
        bottom, right = min(rows.stop, height - 1), min(columns.stop, width - 1)
        mask[rows.start : bottom, columns.start : right] = True
    return mask


def refine_by_attention(maps: Tensor, attention: Tensor, threshold: float) -> Tensor:
    """Class maps carried along the attention, out of their own boxes (CAA, section 3.3, eq. 5).

    Args:
        maps: (K, h, w) in [0, 1].
        attention: (h * w, h * w), see `transition`.
        threshold: λ of the boxes.

    Returns:
        (K, h, w) in [0, 1). A box says where a class map gives from, not where it may go to; a
        class without a box gets a zero map.
    """
    if not len(maps):
        return maps
    masks = np.stack([box_mask(cam, threshold) for cam in maps.detach().cpu().float().numpy()])
    steps = transition(attention)
    kept = maps.to(steps.dtype) * torch.from_numpy(masks).to(maps.device)
    return min_max((kept.flatten(1) @ steps.T).view_as(kept))
