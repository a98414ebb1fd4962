"""Scores from Python are those of a slow count, from folders and from memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import wsss
from wsss.data.masks import read_mask, write_mask
from wsss.errors import WsssError
from wsss.files import read_json
from wsss.maps.files import ClassMaps, write_class_maps
from wsss.stages import eval_cam

CLASSES = ("cat", "dog", "car")


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Truth and prediction of some images, in folders `masks` and `found` too."""
    rng = np.random.default_rng(0)
    made = {}
    for name in ("a", "b", "c"):
        truth = rng.choice([0, 1, 2, 255], (9, 7)).astype(np.uint8)
        found = np.where(rng.random((9, 7)) < 0.6, truth, rng.choice([0, 1, 2, 3, 255], (9, 7)))
        made[name] = truth, found.astype(np.uint8)
        write_mask(tmp_path / "masks" / f"{name}.png", truth)
        write_mask(tmp_path / "found" / f"{name}.png", made[name][1])
    return made


def slow_iou(pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[float]:
    hit, union = np.zeros(4), np.zeros(4)
    for truth, found in pairs.values():
        for t, p in zip(truth.ravel(), found.ravel(), strict=True):
            p = 0 if p == 255 else p
            for c in range(4):
                hit[c] += t != 255 and t == p == c
                union[c] += t != 255 and (t == c or p == c)
    return list(100 * hit / union)


def test_label_maps_in_any_form_have_the_scores_of_a_slow_count(pairs, tmp_path) -> None:
    expected = slow_iou(pairs)
    forms = {
        "folders": (tmp_path / "found", str(tmp_path / "masks")),
        "mapping": ({n: p for n, (_, p) in pairs.items()}, tmp_path / "masks"),
        "lists": ([p for _, p in pairs.values()], [t for t, _ in pairs.values()]),
        "files": (
            iter([tmp_path / "found" / f"{n}.png" for n in pairs]),
            [t for t, _ in pairs.values()],
        ),
    }
    for form, (found, masks) in forms.items():
        result = wsss.evaluate(found, masks, classes=CLASSES)
        assert result.images == 3, form
        assert list(result.iou) == ["background", *CLASSES]
        assert list(result.iou.values()) == pytest.approx(expected), form
        assert result.miou == pytest.approx(np.mean(expected))
        assert result.miou_truth == pytest.approx(np.mean(expected[:3]))
    assert str(result).startswith(f"mIoU {result.miou:.2f} over 3 images\nbackground  ")
    (tmp_path / "masks" / "b.png").unlink()
    few = wsss.evaluate(tmp_path / "found", tmp_path / "masks")
    assert few.images == 2 and list(few.iou) == ["background", "class 1", "class 2", "class 3"]


def test_class_maps_are_scored_as_seeds_and_streams_by_their_names(lend, settings, scenes) -> None:
    s = lend("train", "make_cam")
    eval_cam.run(settings("eval_cam.background=0.3"))
    expected = read_json(s.folder("eval_cam") / "metrics.json")
    maps = wsss.read_maps(s.folder("make_cam"))
    masks = {name: scenes.mask(name) for name in reversed(scenes.names("train"))}
    for found in (maps, s.folder("make_cam") / "maps"):
        result = wsss.evaluate(found, masks, background=0.3)
        assert result.miou == pytest.approx(expected["miou"])
        assert result.confusion.tolist() == expected["cam"]["confusion"]
        assert tuple(result.iou) == ("background", *scenes.classes)
    model = wsss.load(s.folder("train"))
    labels = {n: [scenes.classes[i] for i in np.flatnonzero(scenes.labels([n])[0])] for n in masks}
    images = [scenes.image_path(name) for name in masks]
    stream = wsss.evaluate(model.stream(images, labels), masks)
    again = wsss.evaluate(model.predict(images, labels), list(masks.values()))
    assert stream.miou == again.miou and stream.images == 6


def test_maps_are_read_back_by_name(tmp_path) -> None:
    values = np.random.default_rng(0).random((2, 3, 4)).astype(np.float32)
    for name in ("x", "y"):
        stored = ClassMaps(np.array([1, 3]), (12, 16), {"cam": values})
        write_class_maps(tmp_path / "maps" / f"{name}.npz", stored, "float16")
    for folder in (tmp_path, tmp_path / "maps"):
        found = wsss.read_maps(folder)
        assert list(found) == ["x", "y"] and len(found) == 2 and found.classes is None
        np.testing.assert_allclose(found["y"].maps["cam"], values, atol=1e-3)
    assert wsss.read_maps(tmp_path / "maps" / "x.npz").classes.tolist() == [1, 3]
    with pytest.raises(KeyError):
        found["z"]
    with pytest.raises(WsssError, match="no class maps"):
        wsss.read_maps(Path(__file__).parent)
    with pytest.raises(WsssError, match=r"x\.npz"):
        (tmp_path / "maps" / "x.npz").write_bytes(b"no")
        found["x"]


def test_what_can_not_be_scored_is_one_line(pairs, tmp_path) -> None:
    found, masks = tmp_path / "found", tmp_path / "masks"
    small = np.zeros((2, 2), dtype=np.uint8)
    wrong = {
        "no such folder": lambda: wsss.evaluate(tmp_path / "no", masks),
        "no image has both": lambda: wsss.evaluate({"z": small}, masks),
        "a: the label map is 2 x 2, its mask 9 x 7": lambda: wsss.evaluate({"a": small}, masks),
        "class id 3 is there, but 2 classes": lambda: wsss.evaluate(
            found, masks, classes=("cat", "dog")
        ),
        r"must be \(H, W\) whole numbers": lambda: wsss.evaluate({"a": small / 2}, masks),
    }
    for told, call in wrong.items():
        with pytest.raises(WsssError, match=told):
            call()
    assert read_mask(masks / "a.png", 3).shape == (9, 7)
