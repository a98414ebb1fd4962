"""PSA: affinities of near pixels from a network's features, as MCTformer's pipeline has it.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly
Supervised Semantic Segmentation" (PSA), CVPR 2018. Seeds are read twice, each reading refined by
the CRF; what both know labels the cells of the stride-8 grid; pairs of cells teach the network how
alike its features should be; and a random walk carries the seeds along these affinities.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from wsss.refine.affinity import VOID
from wsss.refine.crf import CrfSettings, crf_from_probabilities
from wsss.refine.paths import PathIndex, path_index
from wsss.refine.random_walk import NEGLIGIBLE, PairWeights, propagate
from wsss.run.compute import at_least_float32
from wsss.settings import Positive, Share, settings

STRIDE = 8
NOWHERE = 1e-5  # a cell whose largest probability is below this lies beside the image
READINGS = ("cautious", "generous")  # kinds of map in the files of the two readings


@settings
class PSALabelSettings:
    """Two readings of the seeds, each through the CRF.

    The background is 1 - the largest map, or the maps' own background, to a power.

    Attributes:
        cautious_power: power of the reading that names the foreground; small: much background.
        generous_power: power of the reading that names the background; large: little background.
        crf: pairwise terms.
    """

    cautious_power: Positive = 1.0
    generous_power: Positive = 12.0
    crf: CrfSettings = CrfSettings(
        gaussian_sxy=3, gaussian_compat=3, bilateral_sxy=80, bilateral_srgb=13, bilateral_compat=10
    )


@settings
class PSAWalkSettings:
    """The random walk.

    Attributes:
        radius: pairs are closer than this many cells of the stride-8 grid.
        beta: exponent of the affinities.
        log2_steps: t of the 2^t steps.
        background: constant background of maps without a background channel.
    """

    radius: Annotated[int, Ge(2)] = 5
    beta: Positive = 8.0
    log2_steps: Annotated[int, Ge(0), Le(16)] = 6
    background: Share = 0.39


def posteriors(
    image: np.ndarray, maps: np.ndarray, classes: np.ndarray, options: PSALabelSettings
) -> dict[str, np.ndarray]:
    """What the CRF makes of both readings.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: (K, H, W) in [0, 1] or, with their own background first, (K + 1, H, W).
        classes: (K,) ids of the foreground channels.
        options: powers and CRF.

    Returns:
        For each of `READINGS` the posteriors (K + 1, H, W), background first.

    Raises:
        WsssError: from the CRF.
    """
    own = len(maps) > len(classes)
    foreground = maps[1:] if own else maps
    if own:
        background = np.clip(maps[0], 0, 1)
    else:
        background = 1 - foreground.max(axis=0, initial=0)
    return {
        reading: crf_from_probabilities(
            image, np.concatenate([background[None] ** power, foreground]), options.crf
        )
        for reading, power in zip(
            READINGS, (options.cautious_power, options.generous_power), strict=True
        )
    }


def cell_labels(cautious: Tensor, generous: Tensor) -> Tensor:
    """What the readings know of each cell of the stride-8 grid.

    Args:
        cautious: (K + 1, S, S) posteriors of a crop, background first, zeros beside the image.
        generous: likewise.

    Returns:
        (S / 8, S / 8) int64: place of the class in the cautious reading where it is foreground,
        else 0 where the generous one is background, else 255; 255 beside the image. Equal places
        are equal classes within one image, and no more than that is asked of them.
    """
    both = F.avg_pool2d(torch.stack([cautious, generous]).float(), STRIDE)
    first, second = both.argmax(dim=1)
    labels = torch.where(first > 0, first, VOID)
    labels = torch.where(second == 0, 0, labels)
    return torch.where(both.amax(dim=(0, 1)) < NOWHERE, VOID, labels)


def pair_affinity(feature: Tensor, index: PathIndex) -> Tensor:
    """Affinity of all pairs: exp of minus the mean distance of their features over channels.

    Args:
        feature: (B, C, h, w).
        index: directions of the radius.

    Returns:
        (B, D, rows, columns) in (0, 1], of at least float32.
    """
    feature = at_least_float32(feature)
    source = index.window(feature, (0, 0))
    distances = [
        (source - index.window(feature, direction)).abs().mean(dim=1)
        for direction in index.directions
    ]
    return torch.exp(-torch.stack(distances, dim=1))


def walk_weights(feature: Tensor, radius: int, beta: float) -> PairWeights:
    """Affinities to the power beta, where the published pairs are.

    Cells of the last `radius - 1` rows and of as many columns at both sides are sources of no
    pair: the walk reaches them only as destinations.

    Args:
        feature: (C, h, w) of one image.
        radius: pairs are closer than this.
        beta: exponent.

    Returns:
        The weights, double precision; none on a grid that is too small for a source.
    """
    index, (height, width) = path_index(radius), feature.shape[-2:]
    if height <= index.margin or width <= 2 * index.margin:
        return {}
    affinity = pair_affinity(feature[None], index)[0].double() ** beta
    affinity = affinity.masked_fill(affinity < NEGLIGIBLE, 0)
    rows, columns = affinity.shape[-2:]
    weights = {}
    for (dy, dx), values in zip(index.directions, affinity, strict=True):
        weight = values.new_zeros(height - dy, width - abs(dx))
        left = index.margin - max(-dx, 0)
        weight[:rows, left : left + columns] = values
        weights[dy, dx] = weight
    return weights


def psa_mask(
    maps: Tensor,
    classes: Tensor,
    feature: Tensor,
    size: tuple[int, int],
    options: PSAWalkSettings,
) -> Tensor:
    """Carry class maps along the affinities and take the best class of each pixel.

    Args:
        maps: (K, H, W) class maps in [0, 1] at image size, or (K + 1, H, W) with their own
            background first.
        classes: (K,) ids of the foreground channels.
        feature: (C, ceil(H / 8), ceil(W / 8)) of the image padded to a multiple of 8, on the maps'
            device.
        size: (H, W) of the image.
        options: walk and background.

    Returns:
        (H, W) uint8 class ids, on the CPU. The background takes part in the walk.
    """
    ids = torch.cat([torch.zeros(1, dtype=torch.int64), classes.cpu().long()]).to(torch.uint8)
    maps = maps.float()
    if len(maps) == len(classes):
        maps = F.pad(maps, (0, 0, 0, 0, 1, 0), value=options.background)
    grid = (feature.shape[-2], feature.shape[-1])
    padded = (grid[0] * STRIDE, grid[1] * STRIDE)
    maps = F.pad(maps, (0, padded[1] - maps.shape[-1], 0, padded[0] - maps.shape[-2]))
    cells = F.avg_pool2d(maps[None], STRIDE)[0]
    weights = walk_weights(feature, options.radius, options.beta)
    walked = propagate(cells, weights, options.log2_steps)
    large = F.interpolate(walked[None], padded, mode="bilinear", align_corners=False)[0]
    return ids[large[:, : size[0], : size[1]].argmax(dim=0).cpu()]
