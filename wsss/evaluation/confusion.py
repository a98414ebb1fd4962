"""Confusion matrices over all pixels of a split, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VOID = 255


def confusion(truth: np.ndarray, prediction: np.ndarray, num_labels: int) -> np.ndarray:
    """Count pixels by true and predicted label.

    Args:
        truth: integer label map of any shape; 255 (void) is left out.
        prediction: label map of the same shape, values in [0, num_labels).
        num_labels: classes, background included.

    Returns:
        int64 (num_labels, num_labels), rows true, columns predicted.

    Raises:
        ValueError: shapes differ or a label is out of range.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    counted = truth != VOID
    t, p = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
    if t.size and (t.max() >= num_labels or p.max() >= num_labels or min(t.min(), p.min()) < 0):
        raise ValueError(f"labels must lie in 0..{num_labels - 1} (or be 255 in the truth)")
    counts = np.bincount(t * num_labels + p, minlength=num_labels**2)
    return counts.reshape(num_labels, num_labels)


@dataclass(frozen=True)
class Scores:
    """Percentages that follow from a confusion matrix.

    Attributes:
        miou: mean IoU over the classes that occur in truth or prediction. It is the one that every
            stage goes by.
        miou_truth: mean IoU over the classes that occur in the truth, as segmentation networks are
            published (deeplab-pytorch). A class that is only predicted lowers the IoU of others,
            and is not itself a zero among them. The two are equal where every class occurs in the
            truth, as in the whole of VOC's or COCO's val.
        iou: ioU of each class; nan where the class occurs in neither.
        false_positive: foreground predictions on pixels of another class, as a share of the union
            of truth and prediction, mean over occurring foreground classes.
        false_negative: missed pixels, likewise.
        precision: mean precision over occurring classes.
        recall: mean recall over occurring classes.
    """

    miou: float
    miou_truth: float
    iou: np.ndarray
    false_positive: float
    false_negative: float
    precision: float
    recall: float

    def as_dict(self, names: tuple[str, ...]) -> dict[str, object]:
        """Plain numbers for JSON; `names` are those of the foreground classes."""
        return {
            "miou": self.miou,
            "miou_truth": self.miou_truth,
            "false_positive": self.false_positive,
            "false_negative": self.false_negative,
            "precision": self.precision,
            "recall": self.recall,
            "iou": {
                name: None if np.isnan(value) else float(value)
                for name, value in zip(("background", *names), self.iou, strict=True)
            },
        }


def scores(matrix: np.ndarray) -> Scores:
    """Mean IoU and its parts, in percent, from an int64 confusion matrix (rows true)."""
    matrix = matrix.astype(np.float64)
    hit = np.diag(matrix)
    truth, predicted = matrix.sum(1), matrix.sum(0)
    union = truth + predicted - hit
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = 100 * hit / union
        extra = 100 * (predicted - hit) / union
        missed = 100 * (truth - hit) / union
        precision = np.where(predicted > 0, 100 * hit / predicted, 0)
        recall = np.where(truth > 0, 100 * hit / truth, 0)
    occurs = union > 0

    def mean(values: np.ndarray, where: np.ndarray) -> float:
        return float(values[where].mean()) if where.any() else float("nan")

    foreground = occurs.copy()
    foreground[0] = False
    return Scores(
        miou=mean(iou, occurs),
        miou_truth=mean(iou, truth > 0),
        iou=iou,
        false_positive=mean(extra, foreground),
        false_negative=mean(missed, foreground),
        precision=mean(precision, occurs),
        recall=mean(recall, occurs),
    )
