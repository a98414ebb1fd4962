"""Affinities between near pixels: what IRN and PSA learn them from, and the losses.

Ahn et al., "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations" (IRN),
CVPR 2019. Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision"
(PSA), CVPR 2018.

A pair is written (source, direction); `paths.PathIndex` lists the directions and says which cells
are sources. Tensors over pairs are (B, D, rows, columns), D directions in the index's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wsss.refine.paths import PathIndex
from wsss.run.compute import at_least_float32
from wsss.run.reduce import global_ratio

VOID = 255
EPS = 1e-5


class AffinityLabels(NamedTuple):
    """What is known of each pair; three (B, D, rows, columns) boolean masks, at most one true.

    Attributes:
        background: both pixels are background.
        foreground: both pixels are of the same foreground class.
        negative: the pixels are of different classes.
    """

    background: Tensor
    foreground: Tensor
    negative: Tensor


def affinity_labels(labels: Tensor, index: PathIndex) -> AffinityLabels:
    """Which pairs belong together, as far as confident labels tell.

    A pair with an unsure pixel (255) is in none of the masks. Free of the number of classes.

    Args:
        labels: (B, h, w) class ids on the grid of the affinities, 0 background, 255 unsure.
        index: paths of the training radius.
    """
    shape = (labels.shape[0], len(index.directions), *index.sources(*labels.shape[-2:]))
    background, foreground, negative = (
        torch.empty(shape, dtype=torch.bool, device=labels.device) for _ in range(3)
    )
    source = index.window(labels, (0, 0))
    source_known, source_background = source != VOID, source == 0
    for d, direction in enumerate(index.directions):
        destination = index.window(labels, direction)
        equal = source == destination
        background[:, d] = equal & source_background
        foreground[:, d] = equal & source_known & ~source_background
        negative[:, d] = ~equal & source_known & (destination != VOID)
    return AffinityLabels(background, foreground, negative)


class _PathMaximum(torch.autograd.Function):
    """Maximum over each path; keeps one byte per pair for the backward pass.

    Autograd alone would keep every cell of every path, 13 floats per pair at radius 10.
    """

    @staticmethod
    def forward(ctx: Any, edge: Tensor, index: PathIndex) -> Tensor:  # type: ignore[override]
        shape = (edge.shape[0], len(index.directions), *index.sources(*edge.shape[-2:]))
        maximum = edge.new_empty(shape)
        winner = torch.empty(shape, dtype=torch.uint8, device=edge.device)
        for d, path in enumerate(index.paths):
            cells = torch.stack([index.window(edge, offset) for offset in path])
            maximum[:, d], where = cells.max(dim=0)
            winner[:, d] = where
        ctx.save_for_backward(winner)
        ctx.index, ctx.size = index, tuple(edge.shape[-2:])
        return maximum

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (winner,) = ctx.saved_tensors
        index, (height, width) = ctx.index, ctx.size
        cells = torch.arange(height * width, device=grad.device).view(height, width)
        source = index.window(cells, (0, 0))
        result = grad.new_zeros(grad.shape[0], height * width)
        for d, path in enumerate(index.paths):
            steps = torch.tensor([y * width + x for y, x in path], device=grad.device)
            target = source + steps[winner[:, d].long()]
            result.scatter_add_(1, target.flatten(1), grad[:, d].flatten(1))
        return result.view(-1, height, width), None


def path_maximum(edge: Tensor, index: PathIndex) -> Tensor:
    """Strongest edge on the path of every pair, differentiable.

    Args:
        edge: (B, h, w) edge probabilities, or logits: the maximum goes through the sigmoid.
        index: the paths.

    Returns:
        (B, D, rows, columns) of the input's dtype.

    Raises:
        WsssError: if the grid is too small for the radius.
    """
    return _PathMaximum.apply(edge, index)  # type: ignore[no-any-return]


def affinity_loss(
    edge_logit: Tensor, labels: AffinityLabels, index: PathIndex
) -> dict[str, Tensor]:
    """Cross-entropy of the affinities a = 1 - max over the path of the edge.

    Args:
        edge_logit: (B, h, w) edge before the sigmoid.
        labels: of the same grid and index.
        index: paths of the training radius.

    Returns:
        `positive`: mean of -log(a + 1e-5), background and foreground pairs weighing half each;
        `negative`: mean of -log(1 + 1e-5 - a) over pairs of different classes. Means are over
        the whole global batch; an empty mask gives 0.
    """
    strongest = path_maximum(at_least_float32(edge_logit), index)
    # 1 - sigmoid(x), without its loss of digits near 1
    return pair_loss(torch.sigmoid(-strongest), labels)


def pair_loss(affinity: Tensor, labels: AffinityLabels) -> dict[str, Tensor]:
    """Cross-entropy of affinities in [0, 1]; see `affinity_loss` for what is returned.

    Args:
        affinity: (B, D, rows, columns) of at least float32.
        labels: of the same pairs.
    """
    attract = -torch.log(affinity + EPS)
    repel = -torch.log(1 + EPS - affinity)
    sums = [
        (value * mask).sum() for value, mask in zip((attract, attract, repel), labels, strict=True)
    ]
    background, foreground, negative = _means(sums, labels)
    return {"positive": (background + foreground) / 2, "negative": negative}


def displacement_loss(
    displacement: Tensor, labels: AffinityLabels, index: PathIndex
) -> dict[str, Tensor]:
    """L1 loss of the displacement field on pairs of one class.

    The difference D(source) - D(destination) should be the direction for foreground (both then
    point at one centroid) and zero for background.

    Args:
        displacement: (B, 2, h, w) in cells; channel 0 is y, channel 1 is x.
        labels: of the same grid and index.
        index: paths of the training radius.

    Returns:
        `foreground` and `background`: means over pairs of the global batch and both components.
    """
    displacement = at_least_float32(displacement)
    source = index.window(displacement, (0, 0))
    background, foreground = displacement.new_zeros(2)
    for d, direction in enumerate(index.directions):
        difference = source - index.window(displacement, direction)
        target = torch.tensor(direction, device=displacement.device).view(1, 2, 1, 1)
        near, same = labels.background[:, d, None], labels.foreground[:, d, None]
        background = background + (difference.abs() * near).sum()
        foreground = foreground + ((difference - target).abs() * same).sum()
    means = _means([foreground / 2, background / 2], [labels.foreground, labels.background])
    return dict(zip(("foreground", "background"), means, strict=True))


def _means(sums: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Sums divided by the pairs that masks count in the global batch; 0 for empty masks."""
    counts = torch.stack([mask.sum() for mask in masks])
    return global_ratio(torch.stack(list(sums)), counts).unbind()
