"""Losses of logits against pseudo masks; 255 counts nowhere.

A batch in which everything is ignored has loss 0 with a graph, and gradients of 0. The batch is the
global one: of several processes' losses the mean is that of all images together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from wsss.data.masks import VOID
from wsss.data.transforms import resize_labels
from wsss.maps.functional import balanced_mean, resize_maps
from wsss.run.compute import at_least_float32
from wsss.run.reduce import global_ratio

Loss = Callable[[Tensor, Tensor], Tensor]
DSRG_FLOOR = 1e-4  # added to DSRG's probabilities, and least count of its pixels


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over all pixels that are not ignored.

    Args:
        logits: (B, C, h, w).
        target: (B, h, w) int64, 255 ignored.
    """
    logits = at_least_float32(logits)
    total = F.cross_entropy(logits, target, ignore_index=VOID, reduction="sum")
    return global_ratio(total, (target != VOID).sum())


def balanced_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Half the mean over the batch's background pixels plus half that over its foreground pixels.

    So background, most of every image, does not outweigh the objects.
    AdvCAM's ("similar to DSRG") exact form is not published; AMN's code takes both means over the
    batch, as here.

    Args:
        logits: (B, C, h, w).
        target: (B, h, w) int64, 0 background, 255 ignored.
    """
    logits = at_least_float32(logits)
    losses = F.cross_entropy(logits, target, ignore_index=VOID, reduction="none")
    return balanced_mean(losses, target)


def dsrg_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """DSRG's balanced loss: for each image background mean plus foreground mean; mean over images.

    Huang et al., "Weakly-Supervised Semantic Segmentation Network with Deep Seeded Region Growing"
    (DSRG), CVPR 2018. Probabilities are softmax + 1e-4, made to sum to 1 again, so that the loss of
    a pixel stays below 9.3.

    Args:
        logits: (B, C, h, w).
        target: (B, h, w) int64, 0 background, 255 ignored.
    """
    probabilities = at_least_float32(logits).softmax(dim=1) + DSRG_FLOOR
    log = (probabilities / probabilities.sum(dim=1, keepdim=True)).log()
    losses = F.nll_loss(log, target, ignore_index=VOID, reduction="none")
    background = target == 0
    foreground = (target != 0) & (target != VOID)
    per_image = [
        (losses * part).sum(dim=(1, 2)) / part.sum(dim=(1, 2)).clamp(min=DSRG_FLOOR)
        for part in (background, foreground)
    ]
    return (per_image[0] + per_image[1]).mean()


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "balanced": balanced_cross_entropy,
    "balanced_dsrg": dsrg_cross_entropy,
}


def losses_of(
    outputs: Sequence[Tensor], target: Tensor, loss: Loss, enlarge: bool = False
) -> list[Tensor]:
    """The loss of each output, at its own size or at that of the labels.

    Args:
        outputs: logits (B, C, h, w) each, sizes may differ.
        target: (B, H, W) int64, 255 ignored.
        loss: one of `LOSSES`.
        enlarge: whether logits are bilinearly enlarged to (H, W); else the labels are shrunk to
            (h, w) by nearest neighbor.
    """
    if enlarge:
        size = (target.shape[-2], target.shape[-1])
        return [
            loss(resize_maps(at_least_float32(one), size, align_corners=False), target)
            for one in outputs
        ]
    return [
        loss(logits, resize_labels(target, (logits.shape[-2], logits.shape[-1])))
        for logits in outputs
    ]
