"""Seeds as probabilities for the CRF."""

from __future__ import annotations

import numpy as np
import pytest

from wsss.evaluation.seeds import seed_labels
from wsss.refine.crf import seed_probabilities

CLASSES = np.array([3, 9])


@pytest.mark.parametrize("own_background", [False, True])
@pytest.mark.parametrize("power", [1.0, 2.5])
def test_probabilities_sum_to_one_and_keep_the_seed(own_background: bool, power: float) -> None:
    maps = np.random.default_rng(0).random((2 + own_background, 7, 9)).astype(np.float32)
    found = seed_probabilities(maps, CLASSES, background=0.4, power=power)
    assert found.shape == (3, 7, 9) and found.dtype == np.float32
    assert np.allclose(found.sum(0), 1, atol=1e-6)
    seed, _, _ = seed_labels(maps, CLASSES, None if own_background else 0.4)
    assert np.array_equal(np.array([0, 3, 9])[found.argmax(0)], seed)


def test_ratios_are_those_of_the_maps() -> None:
    maps = np.array([0.2, 0.6], dtype=np.float32).reshape(2, 1, 1)
    assert np.allclose(seed_probabilities(maps, CLASSES, 0.2, 1).ravel(), [0.2, 0.2, 0.6])
    squared = seed_probabilities(maps, CLASSES, 0.2, 2).ravel()
    assert np.allclose(squared, np.array([0.04, 0.04, 0.36]) / 0.44)


def test_empty_maps_are_sure_background() -> None:
    found = seed_probabilities(np.zeros((2, 4, 4), np.float32), CLASSES, 0.15, 1)
    assert (found[0] > 0.999).all()


def test_an_image_without_classes() -> None:
    assert (seed_probabilities(np.zeros((0, 4, 4), np.float32), CLASSES[:0], 0.15, 1) == 1).all()
