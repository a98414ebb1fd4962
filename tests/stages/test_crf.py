"""Seeds as probabilities for the CRF, and what becomes of unsure pixels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss.build.settings import SeedCrf
from wsss.data.masks import read_mask
from wsss.errors import WsssError
from wsss.evaluation.scoring import label_folder
from wsss.evaluation.seeds import seed_labels
from wsss.maps.files import ClassMaps, MapSource, write_class_maps
from wsss.refine.crf import seed_probabilities
from wsss.settings import resolve
from wsss.stages.crf import RefineSeeds

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


def test_complement_is_one_minus_the_largest_map() -> None:
    maps = np.random.default_rng(0).random((2, 5, 6)).astype(np.float32)
    found = seed_probabilities(maps, CLASSES, "complement", 1.0)
    with_own = np.concatenate([1 - maps.max(0, keepdims=True), maps])
    assert np.allclose(found, with_own / with_own.sum(0), atol=1e-6)
    # Its raw seeds are those of the constant that the settings name.
    seed, _, _ = seed_labels(maps, CLASSES, SeedCrf(background="complement").constant)
    assert np.array_equal(np.array([0, *CLASSES])[found.argmax(0)], seed)
    empty = seed_probabilities(np.zeros((0, 4, 4), np.float32), CLASSES[:0], "complement", 1)
    assert empty.shape == (1, 4, 4) and (empty == 1).all()


def test_background_is_a_share_or_the_complement() -> None:
    assert resolve(SeedCrf, {"background": "complement"}).constant == 0.5
    assert resolve(SeedCrf, {"background": 0.3}).constant == 0.3
    with pytest.raises(WsssError, match="crf.background=other"):
        resolve(SeedCrf, {"background": "other"}, "crf")


@pytest.mark.parametrize("confidence", [None, 0.6])
def test_unsure_pixels_are_ignored_in_masks_and_scored_by_their_best_label(
    confidence: float | None, tmp_path: Path, monkeypatch: Any
) -> None:
    # Without its iterations the CRF answers with the probabilities themselves.
    monkeypatch.setattr("wsss.stages.crf.crf_from_probabilities", lambda image, scores, _: scores)
    Image.new("RGB", (6, 5)).save(tmp_path / "x.png")
    maps = np.random.default_rng(1).random((2, 5, 6)).astype(np.float32)
    write_class_maps(tmp_path / "x.npz", ClassMaps(CLASSES, (5, 6), {"caa": maps}), "float16")
    options = SeedCrf(background="complement", confidence=confidence)
    images: Any = SimpleNamespace(image_path=lambda name: tmp_path / f"{name}.png")
    RefineSeeds(images, MapSource(tmp_path, "caa", ""), tmp_path / "crf", options)("x")
    shares = seed_probabilities(maps.astype(np.float16), CLASSES, "complement", 1.0)
    mask = read_mask(tmp_path / "crf/masks/x.png", 20)
    labels = read_mask(label_folder(tmp_path / "crf") / "x.png", 20)
    unsure = 0
    for y in range(5):
        for x in range(6):
            best = int(shares[:, y, x].argmax())
            assert labels[y, x] == [0, 3, 9][best]
            sure = confidence is None or shares[best, y, x] >= confidence
            assert mask[y, x] == (labels[y, x] if sure else 255)
            unsure += not sure
    assert (confidence is None) == (unsure == 0) and unsure < 30
