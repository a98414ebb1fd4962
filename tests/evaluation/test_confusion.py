"""Scores against pixel loops and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest

from wsss.evaluation import ThresholdCurve, confusion, scores
from wsss.evaluation.seeds import seed_labels


def test_confusion_counts_every_pixel_but_the_void_ones() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (13, 17))
    truth[rng.random(truth.shape) < 0.2] = 255
    prediction = rng.integers(0, 4, truth.shape)
    expected = np.zeros((4, 4), dtype=np.int64)
    for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
        if t != 255:
            expected[t, p] += 1
    got = confusion(truth.astype(np.uint8), prediction, 4)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, expected)


def test_confusion_refuses_labels_out_of_range_and_other_shapes() -> None:
    with pytest.raises(ValueError, match="labels"):
        confusion(np.array([0, 4]), np.array([0, 0]), 4)
    with pytest.raises(ValueError, match="shape"):
        confusion(np.zeros((2, 2)), np.zeros((2, 3)), 4)


def test_scores_of_a_case_done_by_hand() -> None:
    # Class 2 occurs nowhere: it does not count in the mean.
    matrix = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    result = scores(matrix)
    assert result.iou[0] == pytest.approx(100 * 6 / 9)
    assert result.iou[1] == pytest.approx(100 * 3 / 6)
    assert np.isnan(result.iou[2])
    assert result.miou == pytest.approx(100 * (6 / 9 + 3 / 6) / 2)
    assert result.false_positive == pytest.approx(100 * 2 / 6)
    assert result.false_negative == pytest.approx(100 * 1 / 6)
    assert result.as_dict(("a", "b"))["iou"]["b"] is None


def test_a_class_that_is_only_predicted_counts_with_zero() -> None:
    assert scores(np.array([[8, 2], [0, 0]])).miou == pytest.approx((80 + 0) / 2)


def test_the_two_means_of_a_matrix_have_names_of_their_own() -> None:
    # IoU: background 100, a 50, b (only predicted) 0.
    result = scores(np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]])).as_dict(("a", "b"))
    assert result["miou"] == pytest.approx(50.0) and result["miou_truth"] == pytest.approx(75.0)
    rng = np.random.default_rng(4)
    whole = scores(rng.integers(1, 9, (5, 5)))
    assert whole.miou == whole.miou_truth, "every class occurs in the truth"


def test_scores_agree_with_torchmetrics() -> None:
    import torch
    from torchmetrics.classification import MulticlassJaccardIndex

    rng = np.random.default_rng(1)
    truth, prediction = rng.integers(0, 5, 500), rng.integers(0, 5, 500)
    truth[:50] = 255
    metric = MulticlassJaccardIndex(5, average="none", ignore_index=255)
    expected = metric(torch.from_numpy(prediction), torch.from_numpy(truth)).numpy() * 100
    np.testing.assert_allclose(scores(confusion(truth, prediction, 5)).iou, expected, rtol=1e-5)


def test_the_curve_is_the_arg_max_with_each_constant() -> None:
    rng = np.random.default_rng(2)
    thresholds = np.array([0.0, 0.1, 0.25, 0.5, 0.75])
    curve = ThresholdCurve(4, thresholds)
    expected = np.zeros((5, 4, 4), dtype=np.int64)
    classes = np.array([1, 3])
    for _ in range(3):
        maps = rng.choice([0.0, 0.1, 0.2, 0.25, 0.6, 0.75, 1.0], (2, 9, 8)).astype(np.float32)
        truth = rng.choice([0, 1, 3, 255], (9, 8))
        _, best, value = seed_labels(maps, classes, 0.1)
        curve.add(curve.count(truth, best, value))
        for k, threshold in enumerate(thresholds):
            stack = np.concatenate([np.full((1, 9, 8), threshold, dtype=np.float32), maps])
            label = np.array([0, 1, 3])[stack.argmax(0)]
            expected[k] += confusion(truth, label, 4)
    np.testing.assert_array_equal(curve.matrices(), expected)


def test_seed_labels_with_a_background_of_their_own() -> None:
    maps = np.array([[[0.5, 0.2]], [[0.4, 0.3]], [[0.1, 0.9]]], dtype=np.float32)
    label, best, value = seed_labels(maps, np.array([2, 5]), None)
    assert label.tolist() == [[0, 5]]
    assert best.tolist() == [[2, 5]]
    np.testing.assert_allclose(value, [[0.4, 0.9]], rtol=1e-6)


def test_an_image_without_classes_is_all_background() -> None:
    label, _, value = seed_labels(np.zeros((0, 3, 4), np.float32), np.zeros(0, int), 0.2)
    assert label.shape == (3, 4)
    assert not label.any()
    assert not value.any()
