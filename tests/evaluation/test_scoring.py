"""Scores of stored label maps, and what is still to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsss.data.masks import write_mask
from wsss.errors import WsssError
from wsss.evaluation.scoring import MaskScore, SeedScore, miou
from wsss.files import missing_files_of
from wsss.maps.files import ClassMaps, MapSource, write_class_maps

RNG = np.random.default_rng(0)
TRUTH = {name: RNG.choice([0, 0, 1, 2, 255], (6, 7)).astype(np.uint8) for name in "ab"}


class Truth:
    """Stands for a data set of two images and two classes."""

    num_classes = 2

    def mask(self, name: str) -> np.ndarray | None:
        return TRUTH.get(name)


def slow_iou(pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    ious = []
    for c in range(3):
        hit = union = 0
        for truth, predicted in pairs:
            for t, p in zip(truth.flat, predicted.flat, strict=True):
                if t != 255:
                    hit += t == c and p == c
                    union += t == c or p == c
        ious.append(100 * hit / union)
    return ious


def test_masks_are_scored_over_all_pixels_and_unsure_ones_are_background(tmp_path: Path) -> None:
    predicted = {name: RNG.choice([0, 1, 2, 255], (6, 7)).astype(np.uint8) for name in "ab"}
    for name, mask in predicted.items():
        write_mask(tmp_path / f"{name}.png", mask)
    found = miou(MaskScore(Truth(), tmp_path), ["a", "b"], 0, ("x", "y"), "score")  # type: ignore[arg-type]
    expected = slow_iou([(TRUTH[n], np.where(predicted[n] == 255, 0, predicted[n])) for n in "ab"])
    assert found["miou"] == pytest.approx(np.mean(expected))
    assert list(found["iou"].values()) == pytest.approx(expected)


@pytest.mark.parametrize("own_background", [False, True])
def test_raw_seeds_are_scored_by_arg_max(tmp_path: Path, own_background: bool) -> None:
    pairs = []
    for name in "ab":
        maps = RNG.random((2 + own_background, 6, 7)).astype(np.float32)
        stored = ClassMaps(np.array([1, 2]), (6, 7), {"k": maps})
        write_class_maps(tmp_path / f"{name}.npz", stored, "float16")
        maps = maps.astype(np.float16).astype(np.float32)
        if not own_background:
            maps = np.concatenate([np.full((1, 6, 7), 0.5, np.float32), maps])
        pairs.append((TRUTH[name], maps.argmax(0)))
    score = SeedScore(Truth(), MapSource(tmp_path, "k", ""), 0.5)  # type: ignore[arg-type]
    found = miou(score, ["a", "b"], 0, ("x", "y"), "score")
    assert found["miou"] == pytest.approx(np.mean(slow_iou(pairs)))


def test_masks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", np.zeros((5, 7), dtype=np.uint8))
    write_mask(tmp_path / "c.png", np.zeros((6, 7), dtype=np.uint8))
    with pytest.raises(WsssError, match=r"image a: a mask of \(6, 7\)"):
        MaskScore(Truth(), tmp_path)("a")  # type: ignore[arg-type]
    with pytest.raises(WsssError, match="image c: no mask"):
        MaskScore(Truth(), tmp_path)("c")  # type: ignore[arg-type]


def test_what_is_missing_is_told_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert missing_files_of(folder, ["b", "a", "c.d"], ".png") == ["b", "a", "c.d"]
    (folder / "a.png").touch()
    (folder / ".b.png.77").touch()
    assert missing_files_of(folder, ["b", "a", "c.d"], ".png") == ["b", "c.d"]
