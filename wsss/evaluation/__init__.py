"""Scores of label maps against masks."""

from wsss.evaluation.confusion import Scores, confusion, scores
from wsss.evaluation.curves import ThresholdCurve

__all__ = ["Scores", "ThresholdCurve", "confusion", "scores"]
