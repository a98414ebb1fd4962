"""From class maps and edges to the pseudo mask of an image."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from wsss.maps.functional import resize_maps
from wsss.refine.irn import GRID_STRIDE
from wsss.refine.random_walk import random_walk
from wsss.settings import Positive, Share, settings


@settings
class WalkSettings:
    """The random walk and what goes around it.

    Attributes:
        radius: path radius, cells of the stride-4 grid.
        beta: exponent of the affinities.
        log2_steps: t of the 2^t steps.
        power: exponent of maps with a background channel of their own (SIPE, CPAL).
        power_constant: exponent of maps without one (plain CAM; AMN takes 1.3).
        background: constant background of maps without one, after division by the maximum.
    """

    radius: Annotated[int, Ge(2)] = 5
    beta: Positive = 10.0
    log2_steps: Annotated[int, Ge(0), Le(16)] = 8
    power: Positive = 1.5
    power_constant: Positive = 1.0
    background: Share = 0.25


def pseudo_mask(
    maps: Tensor, classes: Tensor, edge: Tensor, size: tuple[int, int], settings: WalkSettings
) -> Tensor:
    """Propagate class maps up to the edges and take the best class of each pixel.

    Args:
        maps: (K, h, w) class maps in [0, 1], or (K + 1, h, w) with their own background first.
        classes: (K,) ids of the foreground channels.
        edge: ((H - 1) // 4 + 1, (W - 1) // 4 + 1) edge probabilities, on the maps' device.
        size: (H, W) of the image.
        settings: random walk, exponents, background.

    Returns:
        (H, W) uint8 class ids, on the CPU.
    """
    own_background = len(maps) > len(classes)
    ids = torch.cat([torch.zeros(1, dtype=torch.int64), classes.cpu().long()]).to(torch.uint8)
    if len(ids) == 1:
        return torch.zeros(size, dtype=torch.uint8)
    grid = (edge.shape[0], edge.shape[1])
    power = settings.power if own_background else settings.power_constant
    start = resize_maps(maps[None].float(), grid, align_corners=False)[0].clamp(min=0) ** power
    walked = random_walk(start, edge, settings.radius, settings.beta, settings.log2_steps)
    large = F.interpolate(
        walked[None], scale_factor=GRID_STRIDE, mode="bilinear", align_corners=False
    )[0, :, : size[0], : size[1]]
    if not own_background:
        large = large / large.max().clamp(min=torch.finfo(large.dtype).tiny)
        large = F.pad(large, (0, 0, 0, 0, 1, 0), value=settings.background)
    return ids[large.argmax(dim=0).cpu()]
