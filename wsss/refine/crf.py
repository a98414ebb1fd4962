"""Fully connected CRF on label maps and class probabilities (Kraehenbuehl & Koltun, NIPS 2011)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsss.errors import WsssError


@dataclass(frozen=True)
class CrfSettings:
    """Pairwise terms of the dense CRF and the number of mean-field iterations.

    The defaults are those that IRN and SIPE use on seeds; DeepLab's for network outputs are
    gaussian_sxy 1, gaussian_compat 3, bilateral_sxy 67, bilateral_srgb 3, bilateral_compat 4.

    Attributes:
        gaussian_sxy: Standard deviation of the smoothness kernel, pixels.
        gaussian_compat: Its weight.
        bilateral_sxy: Standard deviation in space of the appearance kernel, pixels.
        bilateral_srgb: Its standard deviation in colour, in steps of 0..255.
        bilateral_compat: Its weight.
        iterations: Mean-field iterations.
    """

    gaussian_sxy: float = 3
    gaussian_compat: float = 3
    bilateral_sxy: float = 50
    bilateral_srgb: float = 5
    bilateral_compat: float = 10
    iterations: int = 10


def crf_from_labels(
    image: np.ndarray,
    labels: np.ndarray,
    num_labels: int,
    gt_prob: float = 0.7,
    settings: CrfSettings | None = None,
) -> np.ndarray:
    """Refine a hard label map that is right with probability `gt_prob`.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) gray.
        labels: (H, W) integers in 0 .. num_labels - 1. All are ordinary labels, 0 included.
        num_labels: Number L of labels: background and the classes of the image.
        gt_prob: Probability of the given label; the others share the rest evenly.
        settings: Pairwise terms.

    Returns:
        (H, W) int64 labels.

    Raises:
        WsssError: If a label is out of range, `gt_prob` is not inside (0, 1), shapes disagree, or
            pydensecrf can't be imported.
    """
    if not 0 < gt_prob < 1:
        raise WsssError(f"CRF: gt_prob={gt_prob} must lie between 0 and 1")
    labels = np.asarray(labels)
    if labels.size and not 0 <= labels.min() <= labels.max() < num_labels:
        raise WsssError(
            f"CRF: labels must lie in 0..{num_labels - 1}, found {labels.min()}..{labels.max()}"
        )
    if num_labels == 1:
        return np.zeros(labels.shape, dtype=np.int64)
    other = -math.log((1 - gt_prob) / (num_labels - 1))
    unary = np.full((num_labels, *labels.shape), other, dtype=np.float32)
    np.put_along_axis(unary, labels[None].astype(np.int64), -math.log(gt_prob), axis=0)
    return _mean_field(image, unary, settings or CrfSettings()).argmax(axis=0)


def crf_from_probabilities(
    image: np.ndarray, probabilities: np.ndarray, settings: CrfSettings | None = None
) -> np.ndarray:
    """Refine soft class maps.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) gray.
        probabilities: (L, H, W) in [0, 1]; clipped at 1e-5 from below.
        settings: Pairwise terms.

    Returns:
        (L, H, W) float32 marginals that sum to 1 at each pixel.

    Raises:
        WsssError: If shapes disagree, a value is not finite, or pydensecrf can't be imported.
    """
    probabilities = np.asarray(probabilities)
    if not np.isfinite(probabilities).all():
        raise WsssError("CRF: the class maps hold values that are no numbers")
    if len(probabilities) == 1:
        return np.ones(probabilities.shape, dtype=np.float32)
    unary = -np.log(np.clip(probabilities, 1e-5, 1)).astype(np.float32)
    return _mean_field(image, unary, settings or CrfSettings())


def require_pydensecrf() -> Any:
    """The module `pydensecrf.densecrf`.

    Raises:
        WsssError: If it can't be imported; the message says how to get it.
    """
    try:
        import pydensecrf.densecrf as module
    except ImportError as error:
        raise WsssError(
            f"the dense CRF needs pydensecrf, which can't be imported here ({error}): run "
            f"'pip install pydensecrf2' (it needs a C++ compiler; with Python 3.13 or later use "
            f"an environment with Python 3.12)"
        ) from error
    return module


def _mean_field(image: np.ndarray, unary: np.ndarray, settings: CrfSettings) -> np.ndarray:
    """Marginals (L, H, W) after mean-field iterations from unary energies (L, H, W)."""
    image = np.asarray(image)
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    count, height, width = unary.shape
    if image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise WsssError(
            f"CRF: image of shape {image.shape} and type {image.dtype} for maps of "
            f"{height} x {width}; it must be (H, W, 3) uint8 of the maps' size"
        )
    crf = require_pydensecrf().DenseCRF2D(width, height, count)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(count, -1)))
    crf.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=settings.bilateral_sxy,
        srgb=settings.bilateral_srgb,
        rgbim=np.ascontiguousarray(image),
        compat=settings.bilateral_compat,
    )
    marginals = crf.inference(settings.iterations)
    return np.array(marginals, dtype=np.float32).reshape(count, height, width)


def seed_probabilities(
    maps: np.ndarray, classes: np.ndarray, background: float, power: float
) -> np.ndarray:
    """Class maps as probabilities of background and present classes.

    Args:
        maps: (K, H, W) in [0, 1], or (K + 1, H, W) with their own background first.
        classes: (K,) ids of the foreground channels.
        background: Constant background of maps without their own.
        power: Exponent; above 1 it makes the probabilities surer.

    Returns:
        (K + 1, H, W) float32 that sum to 1; their arg max is the raw seed.
    """
    if len(maps) == len(classes):
        constant = np.full((1, *maps.shape[1:]), background, dtype=np.float32)
        maps = np.concatenate([constant, maps])
    raised = np.clip(maps, 1e-5, None) ** power
    return (raised / raised.sum(axis=0, keepdims=True)).astype(np.float32)
