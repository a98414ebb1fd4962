"""Paired tables of runs that the test writes, against SciPy and the dense matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy import stats

from wsss.errors import WsssError
from wsss.evaluation.confusion import scores
from wsss.evaluation.per_image import Collector, sparse, write_confusions
from wsss.files import read_json, write_json
from wsss.report.compare import draw_differences, pairs
from wsss.report.gather import gather
from wsss.report.page import markdown, render
from wsss.report.tables import tables

CLASSES = ("zebra", "ant")
IMAGES = 30


def dense(seed: int, right: float) -> np.ndarray:
    """(IMAGES, 3, 3) confusion of predictions that are right with some chance."""
    truth = np.random.default_rng(99).integers(0, 3, (IMAGES, 40))
    rng = np.random.default_rng([seed, int(1000 * right)])
    predicted = np.where(rng.random(truth.shape) < right, truth, rng.integers(0, 3, truth.shape))
    found = np.zeros((IMAGES, 3, 3), dtype=int)
    for image in range(IMAGES):
        np.add.at(found[image], (truth[image], predicted[image]), 1)
    return found


def run(
    outputs: Path, name: str, seed: int, rows: dict[str, np.ndarray], kept: bool = True
) -> Path:
    """A finished `eval_cam` with some kinds of maps."""
    folder = outputs / name / f"seed={seed}" / "eval_cam"
    write_json(folder / "manifest.json", {"stage": "eval_cam"})
    kinds, images = {}, {}
    for row, matrices in rows.items():
        figures = scores(matrices.sum(0)).as_dict(CLASSES)
        kinds[row] = {**figures, "confusion": matrices.sum(0).tolist()}
        kinds[row]["miou_best_threshold"] = kinds[row]["miou"] + seed
        collector = Collector(CLASSES)
        for number, one in enumerate(matrices):
            collector.add(f"i{number}", sparse(np.repeat(np.arange(9), one.ravel())))
        images[row] = collector.confusions()
    write_json(folder / "metrics.json", {"kinds": kinds, "images": IMAGES})
    (folder / ".hydra").mkdir()
    OmegaConf.save({"seed": seed, "data": {"name": "voc"}}, folder / ".hydra" / "config.yaml")
    if kept:
        write_confusions(folder / "confusions.npz", images)
    return folder


def test_two_settings_are_compared_over_their_common_seeds(tmp_path) -> None:
    a = {seed: dense(seed, 0.6) for seed in (0, 1, 2, 3)}
    b = {seed: dense(seed, 0.8) for seed in (5, 1, 2, 3)}
    for name, ours in (("a", a), ("b", b)):
        for seed, matrices in ours.items():
            run(tmp_path, name, seed, {"cam": matrices})
    settings = gather([tmp_path / "a", tmp_path / "b"])
    found, best = pairs(settings)
    gaps = [scores(b[s].sum(0)).miou - scores(a[s].sum(0)).miou for s in (1, 2, 3)]
    assert (found.first, found.second) == ("a", "b")
    assert found.whole.differences == pytest.approx(gaps)
    expected = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert (found.whole.seeds.low, found.whole.seeds.high) == pytest.approx(tuple(expected))
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(1000):
        chosen = rng.integers(0, IMAGES, IMAGES)
        one = [
            scores(b[s][chosen].sum(0)).miou - scores(a[s][chosen].sum(0)).miou for s in (1, 2, 3)
        ]
        draws.append(np.mean(one))
    images = found.whole.images
    assert images is not None and images.mean == pytest.approx(np.mean(gaps))
    assert [images.low, images.high] == pytest.approx(np.percentile(draws, [2.5, 97.5]).tolist())
    for label, one in enumerate(found.classes):
        assert one.name == ("background", *CLASSES)[label]
        iou = [scores(b[s].sum(0)).iou[label] - scores(a[s].sum(0)).iou[label] for s in (1, 2, 3)]
        assert one.differences == pytest.approx(iou)
        assert one.images is not None and one.images.mean == pytest.approx(np.mean(iou))
    assert best.what == "seeds, best threshold" and best.whole.differences == pytest.approx(gaps)
    made = {table.title: table for table in tables(settings)}
    row = made["Paired differences"].rows[0]
    assert row[:3] == ("seeds, arg max", "b", "a") and row[6:] == ("3", "beyond noise")
    assert row[3] == f"{np.mean(gaps):+.2f}"
    classes = made["Classes: b against a, seeds, arg max"]
    assert [r[0] for r in classes.rows] == ["background", *CLASSES]
    page, text = (one("r", settings, tables(settings)) for one in (render, markdown))
    for where in (page, text):
        assert "beyond noise" in where and row[4] in where and row[5] in where
    assert 'alt="Paired differences"' in page


def test_the_same_twice_is_inside_noise(tmp_path) -> None:
    for seed in range(4):
        run(tmp_path, "a", seed, {"cam": dense(seed, 0.7)})
        run(tmp_path, "b", seed, {"cam": dense(seed + 10, 0.7)})
    first, _ = pairs(gather([tmp_path / "a", tmp_path / "b"]))
    assert first.whole.images is not None
    assert first.whole.seeds.low < 0 < first.whole.seeds.high
    made = next(t for t in tables(gather([tmp_path / "a", tmp_path / "b"])) if "Paired" in t.title)
    assert made.rows[0][-1].startswith("inside noise: ")


def test_kinds_of_one_setting_are_compared_with_one_another(tmp_path) -> None:
    for seed in (0, 1):
        run(tmp_path, "a", seed, {"cam": dense(seed, 0.6), "pacam": dense(seed, 0.9)})
    found = [p for p in pairs(gather([tmp_path / "a"])) if p.classes]
    assert [(p.first, p.second) for p in found] == [("cam", "pacam")]


def test_without_images_or_common_seeds_it_says_so(tmp_path) -> None:
    run(tmp_path, "a", 0, {"cam": dense(0, 0.6)})
    run(tmp_path, "b", 0, {"cam": dense(0, 0.8)}, kept=False)
    run(tmp_path, "c", 1, {"cam": dense(0, 0.8)})
    settings = gather([tmp_path / name for name in "abc"])
    found, _ = pairs(settings)
    assert (found.first, found.second) == ("a", "b") and found.whole.images is None
    table = next(t for t in tables(settings) if "Paired" in t.title)
    assert table.rows[0][4:] == ("–", "images not kept", "1", "one seed: noise of training unknown")


def test_images_scored_against_other_masks_are_not_drawn(tmp_path) -> None:
    changed = dense(0, 0.8)
    changed[3, 1] += 1
    run(tmp_path, "a", 0, {"cam": dense(0, 0.6)})
    run(tmp_path, "b", 0, {"cam": changed})
    run(tmp_path, "c", 0, {"cam": dense(0, 0.9)})
    found = pairs(gather([tmp_path / name for name in "abc"]))
    said = {(p.first, p.second): p.reason for p in found if p.classes}
    other = "scored against other masks"
    assert said == {("a", "b"): other, ("a", "c"): "", ("b", "c"): other}


def test_a_file_that_does_not_add_up_is_refused(tmp_path) -> None:
    folder = run(tmp_path, "a", 0, {"cam": dense(0, 0.6)})
    run(tmp_path, "b", 0, {"cam": dense(0, 0.7)})
    metrics = read_json(folder / "metrics.json")
    metrics["kinds"]["cam"]["confusion"][0][0] += 1
    write_json(folder / "metrics.json", metrics)
    with pytest.raises(WsssError, match="confusions.npz: does not add up to cam"):
        tables(gather([tmp_path / "a", tmp_path / "b"]))
    (folder / "confusions.npz").write_bytes(b"PK")
    with pytest.raises(WsssError, match="confusions.npz: damaged"):
        tables(gather([tmp_path / "a", tmp_path / "b"]))


def test_of_many_settings_each_is_compared_with_the_first(tmp_path) -> None:
    for number in range(10):
        run(tmp_path, f"r{number}", 0, {"cam": dense(number, 0.7)})
    found = [p for p in pairs(gather([tmp_path / f"r{n}" for n in range(10)])) if p.classes]
    assert [(p.first, p.second) for p in found] == [("r0", f"r{n}") for n in range(1, 10)]


def test_the_figure_has_a_line_for_each_interval(tmp_path, monkeypatch) -> None:
    for seed in (0, 1, 2):
        run(tmp_path, "a", seed, {"cam": dense(seed, 0.6)})
        run(tmp_path, "b $x$", seed, {"cam": dense(seed, 0.8)})
    found = pairs(gather([tmp_path / "a", tmp_path / "b $x$"]))
    drawn = []
    from matplotlib.axes import Axes

    plot = Axes.plot

    def spy(axis, x, y, *rest, **options):
        drawn.append(list(x))
        return plot(axis, x, y, *rest, **options)

    monkeypatch.setattr(Axes, "plot", spy)
    assert draw_differences(found, tmp_path / "x.png").stat().st_size > 5000
    for interval in (found[0].whole.seeds, found[0].whole.images):
        assert [interval.low, interval.high] in drawn
