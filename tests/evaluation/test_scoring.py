"""Scores of stored label maps and class maps, taken one by one, and what is still to do."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from wsss.data.base import ImageSet
from wsss.data.masks import write_mask
from wsss.errors import WsssError
from wsss.evaluation.confusion import confusion
from wsss.evaluation.scoring import (
    Counted,
    MaskScore,
    SeedScore,
    absent_classes,
    scored_names,
    tally,
)
from wsss.files import missing_files_of
from wsss.maps.files import ClassMaps, MapSource, write_class_maps

RNG = np.random.default_rng(0)
TRUTH = {name: RNG.choice([0, 0, 1, 2, 255], (6, 7)).astype(np.uint8) for name in "ab"}


class Truth:
    """Stands for a data set of two images and two classes."""

    num_classes = 2
    classes = ("x", "y")

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
    score = MaskScore(Truth(), tmp_path)  # type: ignore[arg-type]
    total = tally(score, map(score, ["a", "b"]))
    found = total.figures()
    expected = slow_iou([(TRUTH[n], np.where(predicted[n] == 255, 0, predicted[n])) for n in "ab"])
    assert found["miou"] == pytest.approx(np.mean(expected))
    assert list(found["iou"].values()) == pytest.approx(expected)
    kept = total.confusions()
    assert kept.names == ("a", "b") and kept.classes == ("x", "y")
    assert kept.total().tolist() == found["confusion"]
    for number, name in enumerate(kept.names):
        _, cells, counts = kept.triplets[:, kept.triplets[0] == number]
        dense = np.zeros(9, dtype=int)
        dense[cells] = counts
        same = confusion(TRUTH[name], np.where(predicted[name] == 255, 0, predicted[name]), 3)
        assert dense.reshape(3, 3).tolist() == same.tolist()


@pytest.mark.parametrize("gone", [0, 2])
def test_a_class_that_no_mask_shows_is_named(tmp_path: Path, monkeypatch, gone: int) -> None:
    for name, mask in TRUTH.items():
        monkeypatch.setitem(TRUTH, name, np.where(mask == gone, 255, mask).astype(np.uint8))
        write_mask(tmp_path / f"{name}.png", mask)  # right, where the truth says anything
    score = MaskScore(Truth(), tmp_path)  # type: ignore[arg-type]
    found = tally(score, map(score, ["a", "b"])).figures()
    name = ("background", "x", "y")[gone]
    assert found["absent"] == [name]
    (line,) = absent_classes({"crf": found})
    assert f"no mask shows {name};" in line and line.endswith("crf 100.00")
    assert absent_classes({"crf": {**found, "absent": []}}) == []


@pytest.mark.parametrize("own_background", [False, True])
def test_raw_seeds_are_scored_by_arg_max(tmp_path: Path, own_background: bool) -> None:
    pairs, foreground = [], []
    for name in "ab":
        maps = RNG.random((2 + own_background, 6, 7)).astype(np.float32)
        stored = ClassMaps(np.array([1, 2]), (6, 7), {"k": maps})
        write_class_maps(tmp_path / f"{name}.npz", stored, "float16")
        maps = maps.astype(np.float16).astype(np.float32)
        foreground.append(maps[own_background:])
        if not own_background:
            maps = np.concatenate([np.full((1, 6, 7), 0.5, np.float32), maps])
        pairs.append((TRUTH[name], maps.argmax(0)))
    source = MapSource(tmp_path, "k", "")
    score = SeedScore(Truth(), source, 0.5, (0.2, 0.5, 0.9))  # type: ignore[arg-type]
    found = tally(score, map(score, ["a", "b"])).figures()
    assert found["miou"] == pytest.approx(np.mean(slow_iou(pairs)))
    for number, threshold in enumerate((0.2, 0.5, 0.9)):
        at = []
        for name, maps in zip("ab", foreground, strict=True):
            constant = np.full((1, 6, 7), threshold, np.float32)
            at.append((TRUTH[name], np.concatenate([constant, maps]).argmax(0)))
        assert found["curve"]["miou"][number] == pytest.approx(np.mean(slow_iou(at)))
    best = int(np.argmax(found["curve"]["miou"]))
    assert found["best_threshold"] == (0.2, 0.5, 0.9)[best]
    assert found["miou_best_threshold"] == found["best"]["miou"] == max(found["curve"]["miou"])
    plain = SeedScore(Truth(), source, 0.5)  # type: ignore[arg-type]
    assert "curve" not in tally(plain, map(plain, ["a", "b"])).figures()


def test_what_does_not_fit_is_named_with_its_file(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", np.zeros((5, 7), dtype=np.uint8))
    write_mask(tmp_path / "b.png", np.full((6, 7), 3, dtype=np.uint8))
    write_mask(tmp_path / "c.png", np.zeros((6, 7), dtype=np.uint8))
    masks = MaskScore(Truth(), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(
        WsssError, match=r"a\.png and the mask of image a differ in size, 5x7 and 6x7"
    ):
        masks("a")
    with pytest.raises(WsssError, match=r"b\.png holds id 3"):
        masks("b")
    with pytest.raises(WsssError, match=r"image c: no mask to score .*c\.png"):
        masks("c")
    seeds = SeedScore(Truth(), MapSource(tmp_path, "k", ""), 0.5)  # type: ignore[arg-type]
    huge = ClassMaps(np.array([1]), (24000, 24000), {"k": np.zeros((1, 2, 2), np.float32)})
    write_class_maps(tmp_path / "a.npz", huge)  # refused before it is enlarged
    with pytest.raises(
        WsssError, match=r"a\.npz and the mask .* 24000x24000 and 6x7; make it again"
    ):
        seeds("a")
    foreign = ClassMaps(np.array([1, 300]), (6, 7), {"k": np.zeros((2, 2, 2), np.float32)})
    write_class_maps(tmp_path / "b.npz", foreign)
    with pytest.raises(WsssError, match=r"b\.npz: class id 300, but the data set has 2 classes"):
        seeds("b")


def test_a_truth_with_foreign_ids_is_named(tmp_path: Path, monkeypatch) -> None:
    write_mask(tmp_path / "a.png", np.zeros((6, 7), dtype=np.uint8))
    monkeypatch.setitem(TRUTH, "a", np.full((6, 7), 7, dtype=np.uint8))
    with pytest.raises(WsssError, match="mask of image a: labels must lie in 0..2"):
        MaskScore(Truth(), tmp_path)("a")  # type: ignore[arg-type]


class Coco:
    """Masks of COCO's 80 classes, small."""

    num_classes = 80
    classes = tuple(f"c{i}" for i in range(1, 81))

    def mask(self, name: str) -> np.ndarray:
        ids = np.random.default_rng(int(name)).integers(0, 81, 4)
        return ids.repeat(16).astype(np.uint8).reshape(8, 8)


class Maps:
    """Class maps of the images of `Coco`."""

    folder, kind = Path("maps"), "k"

    def read(self, name: str) -> ClassMaps:
        rng = np.random.default_rng(int(name))
        classes = np.unique(rng.integers(1, 81, 3))
        maps = rng.random((len(classes), 8, 8), dtype=np.float32)
        return ClassMaps(classes, (8, 8), {"k": maps})


def test_memory_is_flat_over_thousands_of_images() -> None:
    """With a curve of 80 thresholds: 4 MB of matrices for each image, if they were kept dense."""
    thresholds = tuple(np.round(np.arange(0.01, 0.81, 0.01), 2).tolist())
    score = SeedScore(Coco(), Maps(), 0.15, thresholds)  # type: ignore[arg-type]

    def peak(images: int) -> float:
        taken = 0

        def results() -> Iterator[Counted]:
            nonlocal taken
            for number in range(images):
                taken += 1
                yield score(str(number))

        tracemalloc.start()
        try:
            total = tally(score, results())
            found = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert taken == images and len(total.confusions().names) == images
        return found

    few, many = peak(20), peak(2000)
    assert few > 4e6, "the curve itself is counted"
    assert (many - few) / 1980 < 1000, "bytes for each image more"


class Split:
    """Names with and without masks."""

    def names(self, split: str) -> list[str]:
        return {"all": ["b", "a", "c"], "some": ["b", "a"]}[split]

    def has_mask(self, name: str) -> bool:
        return name != "c"


def test_only_a_split_with_all_its_masks_is_scored() -> None:
    data: ImageSet = Split()  # type: ignore[assignment]
    assert scored_names(data, "some", ["a", "b", "x"]) == ["b", "a"]
    assert scored_names(data, "some", ["a"]) == ["a"]
    assert scored_names(data, "all", ["a", "b", "c"]) == []
    assert scored_names(data, "all", ["a", "b"]) == ["b", "a"]


def test_what_is_missing_is_told_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert missing_files_of(folder, ["b", "a", "c.d"], ".png") == ["b", "a", "c.d"]
    (folder / "a.png").touch()
    (folder / ".b.png.77").touch()
    assert missing_files_of(folder, ["b", "a", "c.d"], ".png") == ["b", "c.d"]
