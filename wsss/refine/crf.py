"""Fully connected CRF on label maps and class probabilities (Kraehenbuehl & Koltun, NIPS 2011)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from wsss.errors import WsssError
from wsss.settings import Count, NotNegative, Positive, settings

# What leaving labels out may change in a pixel's shares, in an iteration.
LEFT_OUT = 1e-4

Complement = Literal["complement"]


@settings
class CrfSettings:
    """Pairwise terms of the dense CRF and the number of mean-field iterations.

    The defaults are those that IRN and SIPE use on seeds; DeepLab's for network outputs are
    gaussian_sxy 1, gaussian_compat 3, bilateral_sxy 67, bilateral_srgb 3, bilateral_compat 4.

    Attributes:
        gaussian_sxy: standard deviation of the smoothness kernel, pixels.
        gaussian_compat: its weight.
        bilateral_sxy: standard deviation in space of the appearance kernel, pixels.
        bilateral_srgb: its standard deviation in color, in steps of 0..255.
        bilateral_compat: its weight.
        iterations: mean-field iterations.
        backend: whose code: our own, or pydensecrf's, which computes the same but slower.
    """

    gaussian_sxy: Positive = 3
    gaussian_compat: NotNegative = 3
    bilateral_sxy: Positive = 50
    bilateral_srgb: Positive = 5
    bilateral_compat: NotNegative = 10
    iterations: Count = 10
    backend: Literal["own", "pydensecrf"] = "own"


class DenseCrf:
    """The dense CRF of one photograph.

    The filters depend on the photograph alone, so they are made once for everything that is asked
    about it. Objects are not changed by use: several threads may share one. A call works in one
    thread; the result is the same each time, and those of other threads don't change it.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) gray.
        settings: pairwise terms.

    Raises:
        WsssError: if the image is none, or the backend can't be imported.
    """

    def __init__(self, image: np.ndarray, settings: CrfSettings | None = None) -> None:
        image = np.asarray(image)
        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise WsssError(
                f"CRF: image of shape {image.shape} and type {image.dtype}; it must be "
                f"(H, W, 3) uint8"
            )
        self.image, self.settings = image, settings or CrfSettings()
        self.size = image.shape[:2]
        if self.settings.backend == "pydensecrf":
            require_pydensecrf()
            return
        from wsss.refine import lattice  # here, as its compiler takes a second to import

        s = self.settings
        places = np.mgrid[: self.size[0], : self.size[1]].astype(np.float32)[::-1]
        colors = image.transpose(2, 0, 1) / np.float32(s.bilateral_srgb)
        look = np.concatenate([places / np.float32(s.bilateral_sxy), colors])
        self.filters = (
            lattice.build_filter(places / np.float32(s.gaussian_sxy), s.gaussian_compat),
            lattice.build_filter(look, s.bilateral_compat),
        )

    def marginals(self, unaries: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Marginals of several readings of the photograph, each with labels of its own.

        Our own backend takes all readings in one pass and leaves out labels that no pixel can take.
        Let W be the largest answer of the weighted filters to ones, and g what a label's energy is
        above the pixel's lowest one at least, wherever it is. If W exp(1 - g) <= 1, the label's
        share is at most s = exp(-g + W exp(1 - g)) at every pixel in every iteration: its message
        is at most W s while its shares are at most s, messages of other labels are not negative,
        and exp(-g + W s) <= s. The pixel's lowest label stays ahead of it throughout. Such labels
        keep their part of the softmax and get no messages, which takes W s of their share at a
        pixel or less. They are left out, those of the smallest s first, while the sum of this is at
        most 1e-4 at every pixel. The time is that of the labels that are left.

        Args:
            unaries: (L, H, W) float32 energies for each reading, -log of probabilities.

        Returns:
            (L, H, W) float32 for each reading; they sum to 1 at each pixel.

        Raises:
            WsssError: if a size is not the image's or a value is not finite.
        """
        for unary in unaries:
            if unary.ndim != 3 or unary.shape[1:] != self.size or not len(unary):
                raise WsssError(
                    f"CRF: image of {self.size[0]} x {self.size[1]} pixels for maps of shape "
                    f"{unary.shape}; it must have the maps' size"
                )
            if not np.isfinite(unary).all():
                raise WsssError("CRF: the class maps hold values that are no numbers")
        if self.settings.backend == "pydensecrf":
            return [_by_pydensecrf(self.image, unary, self.settings) for unary in unaries]
        from wsss.refine import lattice

        weight = float(sum(f.ones for f in self.filters).max())  # type: ignore[union-attr]
        readings = [_Reading(np.asarray(u, dtype=np.float32), weight) for u in unaries]
        scores = [r.scores for r in readings]
        quiet = [bool(r.out) for r in readings]
        shares = lattice.mean_field(self.filters, scores, quiet, self.settings.iterations)
        return [r.marginals(s) for r, s in zip(readings, shares, strict=True)]


class _Reading:
    """Unary energies without the labels that no pixel can take.

    Attributes:
        kept: labels that stay.
        out: labels that are left out.
        scores: (C, H, W) energy of the last label kept, less that of each other one and, in the
            end, less that of those left out together.
    """

    def __init__(self, unary: np.ndarray, weight: float) -> None:
        self.unary, self.lowest = unary, unary.min(axis=0)
        self.out, self.together = self._without_pixel(weight)
        self.kept = [label for label in range(len(unary)) if label not in self.out]
        last = unary[self.kept[-1]]
        scores = [last - unary[label] for label in self.kept[:-1]]
        if self.out:
            scores.append(last - self.lowest + np.log(self.together))
        self.scores = np.stack(scores) if scores else np.empty((0, *last.shape), np.float32)

    def _relative(self, label: int) -> np.ndarray:
        """A label's probability, as a part of the most probable one's."""
        return np.exp(self.lowest - self.unary[label])

    def _without_pixel(self, weight: float) -> tuple[list[int], np.ndarray]:
        """Labels that may be left out (`DenseCrf.marginals` has the bound), and their sum."""
        gaps = [float((energy - self.lowest).min()) for energy in self.unary]
        out: list[int] = []
        together, change = np.full_like(self.lowest, 1e-30), np.zeros_like(self.lowest)
        for label in sorted(range(len(gaps)), key=gaps.__getitem__, reverse=True)[:-1]:
            growth = weight * math.exp(1 - gaps[label])
            if growth > 1:
                break
            part = self._relative(label)
            change += weight * math.exp(growth - gaps[label]) * math.exp(growth) * part
            if change.max() > LEFT_OUT:
                break
            out.append(label)
            together += part
        return out, together

    def marginals(self, shares: np.ndarray) -> np.ndarray:
        """(L, H, W) of shares (C, H, W)."""
        result = np.empty_like(self.unary)
        for label, share in zip(self.kept, shares, strict=False):
            result[label] = share
        result[self.kept[-1]] = np.maximum(1 - shares.sum(axis=0), 0)
        if self.out:
            scale = shares[-1] / self.together
            for label in self.out:
                result[label] = self._relative(label) * scale
        return result


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
        num_labels: number L of labels: background and the classes of the image.
        gt_prob: probability of the given label; the others share the rest evenly.
        settings: pairwise terms.

    Returns:
        (H, W) int64 labels.

    Raises:
        WsssError: if a label is out of range, `gt_prob` is not inside (0, 1), shapes disagree, or
            the backend can't be imported.
    """
    unary = label_energies(labels, num_labels, gt_prob)
    if num_labels == 1:
        return np.zeros(unary.shape[1:], dtype=np.int64)
    return DenseCrf(image, settings).marginals([unary])[0].argmax(axis=0)


def label_energies(labels: np.ndarray, num_labels: int, gt_prob: float) -> np.ndarray:
    """Unary energies of a hard label map that is right with probability `gt_prob`.

    Args:
        labels: (H, W) integers in 0 .. num_labels - 1.
        num_labels: number L of labels.
        gt_prob: probability of the given label; the others share the rest evenly.

    Returns:
        (L, H, W) float32.

    Raises:
        WsssError: if a label is out of range or `gt_prob` is not inside (0, 1).
    """
    if not 0 < gt_prob < 1:
        raise WsssError(f"CRF: gt_prob={gt_prob} must lie between 0 and 1")
    labels = np.asarray(labels)
    if labels.size and not 0 <= labels.min() <= labels.max() < num_labels:
        raise WsssError(
            f"CRF: labels must lie in 0..{num_labels - 1}, found {labels.min()}..{labels.max()}"
        )
    other = -math.log((1 - gt_prob) / max(1, num_labels - 1))
    unary = np.full((num_labels, *labels.shape), other, dtype=np.float32)
    np.put_along_axis(unary, labels[None].astype(np.int64), -math.log(gt_prob), axis=0)
    return unary


def crf_from_probabilities(
    image: np.ndarray, probabilities: np.ndarray, settings: CrfSettings | None = None
) -> np.ndarray:
    """Refine soft class maps.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) gray.
        probabilities: (L, H, W) in [0, 1]; clipped at 1e-5 from below.
        settings: pairwise terms.

    Returns:
        (L, H, W) float32 marginals that sum to 1 at each pixel.

    Raises:
        WsssError: if shapes disagree, a value is not finite, or the backend can't be imported.
    """
    probabilities = np.asarray(probabilities)
    if not np.isfinite(probabilities).all():
        raise WsssError("CRF: the class maps hold values that are no numbers")
    if len(probabilities) == 1:
        return np.ones(probabilities.shape, dtype=np.float32)
    unary = np.clip(probabilities, 1e-5, 1).astype(np.float32, copy=False)
    np.negative(np.log(unary, out=unary), out=unary)
    return DenseCrf(image, settings).marginals([unary])[0]


def prepare_crf(settings: CrfSettings) -> None:
    """See to it that the CRF can run, before any photograph is looked at.

    Our own backend is compiled where it has not been, so that processes that are started afterwards
    find it done.

    Raises:
        WsssError: if pydensecrf is wanted and can't be imported.
    """
    if settings.backend == "pydensecrf":
        require_pydensecrf()
        return
    from wsss.refine.lattice import WIDTHS

    crf = DenseCrf(np.zeros((1, 1, 3), dtype=np.uint8), settings)
    for width in WIDTHS:
        crf.marginals([np.zeros((width + 1, 1, 1), dtype=np.float32)])


def require_pydensecrf() -> Any:
    """The module `pydensecrf.densecrf`.

    Raises:
        WsssError: if it can't be imported; the message says what to do.
    """
    try:
        import pydensecrf.densecrf as module
    except ImportError as error:
        raise WsssError(
            f"crf.backend=pydensecrf: pydensecrf can't be imported here ({error}): take "
            f"backend=own, which computes the same, or run 'pip install pydensecrf2' (it needs a "
            f"C++ compiler; with Python 3.13 or later use an environment with Python 3.12)"
        ) from error
    return module


def _by_pydensecrf(image: np.ndarray, unary: np.ndarray, settings: CrfSettings) -> np.ndarray:
    """Marginals (L, H, W) from unary energies (L, H, W)."""
    count, height, width = unary.shape
    crf = require_pydensecrf().DenseCRF2D(width, height, count)
    # Copies: it takes neither views nor what can't be written to.
    crf.setUnaryEnergy(np.array(unary.reshape(count, -1), dtype=np.float32, order="C"))
    crf.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=settings.bilateral_sxy,
        srgb=settings.bilateral_srgb,
        rgbim=np.array(image, order="C"),
        compat=settings.bilateral_compat,
    )
    marginals = crf.inference(settings.iterations)
    return np.array(marginals, dtype=np.float32).reshape(count, height, width)


def seed_probabilities(
    maps: np.ndarray, classes: np.ndarray, background: float | Complement, power: float
) -> np.ndarray:
    """Class maps as probabilities of background and present classes.

    Args:
        maps: (K, H, W) in [0, 1], or (K + 1, H, W) with their own background first.
        classes: (K,) ids of the foreground channels.
        background: background of maps without their own: a constant, or `complement`, 1 - max
            (CLIP-ES).
        power: exponent; above 1 it makes the probabilities surer.

    Returns:
        (K + 1, H, W) float32 that sum to 1; their arg max is the raw seed.
    """
    if len(maps) == len(classes):
        if background == "complement":
            behind = 1 - maps.max(axis=0, keepdims=True, initial=0)
        else:
            behind = np.full((1, *maps.shape[1:]), background, dtype=np.float32)
        maps = np.concatenate([behind, maps])
    raised = np.clip(maps, 1e-5, None) ** power
    return (raised / raised.sum(axis=0, keepdims=True)).astype(np.float32)
