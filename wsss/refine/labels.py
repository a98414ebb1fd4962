"""Confident labels that IRN learns affinities from: where two readings of the seeds agree."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Gt, Lt

from wsss.refine.affinity import VOID
from wsss.refine.crf import CrfSettings, DenseCrf, label_energies
from wsss.settings import NotNegative, Share, settings


@settings
class LabelSettings:
    """How class maps become confident labels.

    The first two are for maps without a background channel of their own (plain CAM, as IRN), the
    third is for maps with one (SIPE, CPAL).

    Attributes:
        foreground_threshold: constant background of the reading that names the foreground.
        background_threshold: constant background of the reading that names the background.
        background_factor: factor on the background channel in the second reading.
        gt_prob: trust in the readings when the CRF refines them.
        crf: pairwise terms; None leaves the CRF out.
    """

    foreground_threshold: Share = 0.30
    background_threshold: Share = 0.05
    background_factor: NotNegative = 0.5
    gt_prob: Annotated[float, Gt(0), Lt(1)] = 0.7
    crf: CrfSettings | None = CrfSettings()


def confident_labels(
    image: np.ndarray,
    maps: np.ndarray,
    classes: np.ndarray,
    settings: LabelSettings,
) -> np.ndarray:
    """Class ids where the seeds are sure, 0 where they are surely background, else 255.

    Two readings of the maps, one cautious and one generous with the foreground, are each refined by
    the CRF. Where the cautious one is foreground its class is taken; where both are background, 0.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: (K, H, W) or, with their own background first, (K + 1, H, W), at image size.
        classes: (K,) ids of the foreground channels.
        settings: thresholds and CRF.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: if the number of channels fits neither form.
        WsssError: from the CRF.
    """
    extra = len(maps) - len(classes)
    if extra not in (0, 1):
        raise ValueError(f"{len(maps)} channels for {len(classes)} classes")
    ids = np.concatenate([[0], classes]).astype(np.uint8)

    if extra:
        backgrounds = maps[0], maps[0] * settings.background_factor
    else:
        thresholds = settings.foreground_threshold, settings.background_threshold
        backgrounds = tuple(np.full(maps.shape[1:], t, dtype=np.float32) for t in thresholds)  # type: ignore[assignment]
    readings = [np.concatenate([b[None], maps[extra:]]).argmax(axis=0) for b in backgrounds]
    if settings.crf is not None and len(classes):
        energies = [label_energies(r, len(ids), settings.gt_prob) for r in readings]
        marginals = DenseCrf(image, settings.crf).marginals(energies)
        readings = [m.argmax(axis=0) for m in marginals]
    foreground, background = (ids[reading] for reading in readings)
    return np.where(foreground > 0, foreground, np.where(background > 0, VOID, 0)).astype(np.uint8)
