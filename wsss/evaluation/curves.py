"""Seeds scored with a constant background, at every threshold in one pass over the pixels."""

from __future__ import annotations

import numpy as np

from wsss.evaluation.confusion import VOID
from wsss.evaluation.per_image import Sparse, sparse


class ThresholdCurve:
    """Confusion matrices of arg max over [constant t, foreground maps] for many t at once.

    For one pixel the best foreground class does not depend on t, and the pixel is background
    exactly when its best value is ≤ t. So a histogram of the best value per (truth, class) pair
    holds the confusion matrix of every t. (At a tie the background wins, as in the arg max with
    the constant in front.)

    Args:
        num_labels: classes, background included.
        thresholds: ascending constants in [0, 1).
    """

    def __init__(self, num_labels: int, thresholds: np.ndarray) -> None:
        self.thresholds = np.asarray(thresholds, dtype=np.float64)
        if np.any(np.diff(self.thresholds) <= 0):
            raise ValueError("thresholds must ascend")
        self.num_labels = num_labels
        # counts[b, t, c]: pixels of true label t, best class c, whose best value exceeds exactly
        # the first b thresholds.
        self.counts = np.zeros((len(self.thresholds) + 1, num_labels, num_labels), dtype=np.int64)

    def count(self, truth: np.ndarray, best: np.ndarray, value: np.ndarray) -> Sparse:
        """What one image adds to `counts`; the curve itself stays as it is.

        Args:
            truth: (H, W) labels, 255 left out.
            best: (H, W) foreground class id of the highest map.
            value: (H, W) that map's value.
        """
        counted = truth != VOID
        # Compared in the maps' own precision, as the arg max beside a constant channel does.
        limits = self.thresholds.astype(value.dtype)
        bucket = np.searchsorted(limits, value[counted], side="left")
        n = self.num_labels
        return sparse((bucket * n + truth[counted].astype(np.int64)) * n + best[counted])

    def add(self, image: Sparse) -> None:
        """Add what `count` has found in an image."""
        self.counts.reshape(-1)[image.cells] += image.counts

    def matrices(self) -> np.ndarray:
        """Confusion matrices (T, num_labels, num_labels), one for each threshold."""
        result = np.zeros((len(self.thresholds), self.num_labels, self.num_labels), dtype=np.int64)
        for k in range(len(self.thresholds)):
            result[k] = self.counts[k + 1 :].sum(0)
            result[k, :, 0] += self.counts[: k + 1].sum((0, 2))
        return result
