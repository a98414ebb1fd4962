"""Is one setting better than another? Paired differences with their noise of seeds and of images.

Two settings that were run with the same seeds and scored on the same images are compared seed by
seed: what a seed or a hard image does to both cancels. Two kinds of noise are left.

- Over seeds: would other trainings say the same? t-interval of the mean paired difference
  (Student 1908).
- Over images: would other images say the same? Bootstrap (Efron 1979): images are drawn anew with
  replacement, the same ones for all runs, and mIoU is computed from their summed confusion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import sparse, stats
from scipy.optimize import brentq
from scipy.special import ndtr

from wsss.evaluation.per_image import Confusions

LEVEL = 0.95  # of all intervals
POWER = 0.8  # chance of an interval without 0 that counts as "would show"
RESAMPLES = 1000
MOST_SEEDS = 1000  # nobody trains more
BLOCK = 2**22  # numbers in a block of weights of the bootstrap: 32 MiB


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; bounds are nan where they can't be known."""

    mean: float
    low: float
    high: float

    @property
    def beyond(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


def over_seeds(differences: Sequence[float]) -> Interval:
    """Mean paired difference with its t-interval.

    Args:
        differences: one for each common seed; with a single one the bounds are nan.
    """
    values = np.asarray(differences, dtype=np.float64)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1) * values.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half)


@cache
def _limits(seeds: int) -> np.ndarray:
    """Bounds of the t-test in units of the true standard error, over equally likely deviations.

    SciPy's noncentral t-distribution is nan in its tails; this mean over a grid never is.
    """
    freedom = seeds - 1
    chances = (np.arange(2000) + 0.5) / 2000
    deviations = np.sqrt(stats.chi2.ppf(chances, freedom) / freedom)
    return stats.t.ppf((1 + LEVEL) / 2, freedom) * deviations


def power(difference: float, deviation: float, seeds: int) -> float:
    """Chance that the t-interval over some seeds leaves out 0, on either side.

    The power of the paired t-test, that is the noncentral t-distribution beyond its bounds.

    Args:
        difference: true mean paired difference.
        deviation: true standard deviation of the paired differences, > 0.
        seeds: how many, ≥ 2.
    """
    shift = abs(difference) / deviation * math.sqrt(seeds)
    limits = _limits(seeds)
    return float((ndtr(shift - limits) + ndtr(-shift - limits)).mean())


def seeds_to_show(difference: float, deviation: float) -> int | None:
    """Fewest seeds that would show a difference with `POWER`; None: more than `MOST_SEEDS`."""
    if deviation == 0:
        return 2 if difference else None
    few, many = 1, MOST_SEEDS  # power grows with the seeds
    if power(difference, deviation, many) < POWER:
        return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (
            (few, middle) if power(difference, deviation, middle) >= POWER else (middle, many)
        )
    return many


def shown_by(deviation: float, seeds: int) -> float:
    """Least difference that so many seeds show with `POWER`."""
    if deviation == 0:
        return 0.0
    limit = float(stats.t.ppf((1 + LEVEL) / 2, seeds - 1)) / math.sqrt(seeds)
    # In units of the deviation; one seed pair has a limit of 12.7, hence the generous end.
    return deviation * float(brentq(lambda d: power(d, 1.0, seeds) - POWER, 0.0, 4 * limit + 4))


def aligned(runs: Sequence[Confusions]) -> list[Confusions]:
    """Runs with their images in the order of the first one's.

    Raises:
        ValueError: they were scored on other images, classes or masks; says which.
    """
    first = runs[0]
    found = [one.in_order(first.names) for one in runs]
    truth = _truth(first)
    for one in found[1:]:
        if one.classes != first.classes:
            raise ValueError("scored on other classes")
        if (_truth(one) != truth).nnz:
            raise ValueError("scored against other masks")
    return found


def _truth(run: Confusions) -> sparse.csr_matrix:
    image, cell, count = run.triplets
    shape = (len(run.names), run.num_labels)
    return sparse.csr_matrix((count.astype(np.int64), (image, cell // run.num_labels)), shape)


def _sums(run: Confusions) -> sparse.csr_matrix:
    """Pixels hit, true and predicted by label and image, (3L, images): all that IoU needs."""
    labels = run.num_labels
    image, cell, count = run.triplets
    true, predicted = cell // labels, cell % labels
    hit = true == predicted
    rows = np.concatenate([true[hit], labels + true, 2 * labels + predicted])
    columns = np.concatenate([image[hit], image, image])
    values = np.concatenate([count[hit], count, count]).astype(np.float64)
    return sparse.csr_matrix((values, (rows, columns)), (3 * labels, len(run.names)))


def _scores(sums: np.ndarray) -> np.ndarray:
    """From (..., 3, L) sums: IoU in percent and, before it, the mean over occurring labels."""
    hit, union = sums[..., 0, :], sums[..., 1, :] + sums[..., 2, :] - sums[..., 0, :]
    occurs = union > 0
    iou = np.where(occurs, 100 * hit / np.where(occurs, union, 1), 0.0)
    occurring = occurs.sum(-1, keepdims=True)
    mean = np.where(occurring, iou.sum(-1, keepdims=True) / np.maximum(occurring, 1), np.nan)
    return np.concatenate([mean, np.where(occurs, iou, np.nan)], axis=-1)


def resampled(runs: Sequence[Confusions], resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Scores of runs on images drawn anew with replacement, the same ones for all runs.

    Memory is that of the sparse matrices, of a block of weights (32 MiB) and of the result,
    whatever the number of images.

    Args:
        runs: r of them, on the same images (see `aligned`).
        resamples: how often, B.
        seed: of the draws.

    Returns:
        (R, B, 1+L) float64 in percent: mIoU, then each label's IoU; nan where it does not occur.
    """
    images, labels = len(runs[0].names), runs[0].num_labels
    sums = sparse.vstack([_sums(run) for run in runs], format="csr")
    rng = np.random.default_rng(seed)
    found = np.empty((len(runs), resamples, 1 + labels))
    block = max(1, min(resamples, BLOCK // max(images, 1)))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        weights = np.empty((images, count))
        for column in range(count):
            drawn = rng.integers(0, images, images)
            weights[:, column] = np.bincount(drawn, minlength=images)
        table = (sums @ weights).reshape(len(runs), 3, labels, count)
        found[:, start : start + count] = _scores(table.transpose(0, 3, 1, 2))
    return found


def scores_of(run: Confusions) -> np.ndarray:
    """Mean and each label's IoU of a run on all its images, (1+L,) in percent."""
    table = np.asarray(_sums(run).sum(axis=1)).reshape(3, run.num_labels)
    return _scores(table)


def over_images(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Interval of the mean difference of two settings over resampled images (percentiles).

    Args:
        first: scores (S, B, 1+L) of a setting's S runs, of `resampled`.
        second: those of the other one, seed by seed.

    Returns:
        Lower and upper bounds (1+L,); nan where a label does not occur in most resamples.
    """
    differences = np.sort((first - second).mean(axis=0), axis=0)  # nan goes to the end
    known = np.count_nonzero(~np.isnan(differences), axis=0)
    bounds = []
    for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        place = np.maximum(share * (known - 1), 0)
        below = np.floor(place).astype(int)
        above = np.minimum(below + 1, np.maximum(known - 1, 0))
        low, high = (np.take_along_axis(differences, i[None], 0)[0] for i in (below, above))
        value = low + (place - below) * (high - low)
        bounds.append(np.where(2 * known > len(differences), value, np.nan))
    return bounds[0], bounds[1]


def verdict(differences: Sequence[float], images: Interval | None) -> str:
    """What paired differences show, in words.

    Args:
        differences: of the common seeds.
        images: interval over images, where there is one.
    """
    count = len(differences)
    where = "" if images is None else "beyond" if images.beyond else "inside"
    if count < 2:
        rest = f"; {where} that of the images" if where else ""
        return f"one seed: noise of training unknown{rest}"
    seeds = over_seeds(differences)
    if seeds.beyond:
        return (
            "beyond noise of seeds, inside that of images"
            if where == "inside"
            else ("beyond noise" if where else "beyond noise of seeds")
        )
    deviation = float(np.std(differences, ddof=1))
    if deviation == 0:
        return "no difference"
    needed = seeds_to_show(seeds.mean, deviation)
    more = f"{needed - count} more seeds" if needed else f"no {MOST_SEEDS} seeds"
    if needed == count + 1:
        more = "1 more seed"
    return (
        f"inside noise: {more} would show {abs(seeds.mean):.2f}; "
        f"these {count} would have shown {shown_by(deviation, count):.2f}"
    )
