"""Figures of a stage, and what dashboards are given: read back from the files that they write."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wsss.evaluation.confusion import scores
from wsss.run.logs import (
    csv_logger,
    finish_wandb,
    read_metrics,
    tensorboard_logger,
    wandb_logger,
)
from wsss.show.dashboard import ROW_HEIGHT, show_facts, show_pictures, show_scores
from wsss.show.layout import Cell, Shown, compose

CLASSES = ("cat", "dog")
MATRIX = np.array([[50, 3, 0], [10, 20, 7], [0, 0, 0]])
OTHER = np.array([[40, 9, 4], [8, 25, 4], [0, 0, 0]])


def scored(matrix: np.ndarray, curve: bool) -> dict:
    result = {**scores(matrix).as_dict(CLASSES), "confusion": matrix.tolist()}
    if curve:
        result |= {"miou_best_threshold": 60.0, "best_threshold": 0.2}
        result["curve"] = {"threshold": [0.1, 0.2, 0.3], "miou": [40.0, 60.0, 50.0]}
    return result


def picture_row(gray: int) -> list[Cell]:
    """A photograph and a picture that shows two classes."""
    picture = np.full((5, 8, 3), gray, dtype=np.uint8)
    return [picture, [Shown(picture, (0, 1, 2))]]


def test_scores_without_wandb_are_files_and_csv(tmp_path: Path) -> None:
    rows = {"seed": scored(MATRIX, False), "crf": scored(OTHER, False)}
    files = show_scores([csv_logger(tmp_path, "run", "crf")], tmp_path, rows, "crf")
    assert [path.name for path in files] == ["per_class.png", "confusion.png"]
    (logged,) = read_metrics(tmp_path / "metrics.csv")
    assert float(logged["eval/seed_miou"]) == pytest.approx(rows["seed"]["miou"])
    assert float(logged["eval/miou"]) == pytest.approx(rows["crf"]["miou"])
    for path in files:
        assert len(np.unique(np.asarray(Image.open(path)))) > 10


def test_facts_carry_the_stage_s_name_and_leave_out_what_is_unknown(tmp_path: Path) -> None:
    facts = {"images": 3, "foreground_share": 0.25, "right_share_of_sure": None}
    show_facts([csv_logger(tmp_path, "run", "irn_labels")], "irn_labels", facts)
    (logged,) = read_metrics(tmp_path / "metrics.csv")
    assert float(logged["irn_labels/images"]) == 3
    assert float(logged["irn_labels/foreground_share"]) == 0.25
    assert "irn_labels/right_share_of_sure" not in logged


def test_wandb_holds_scores_tables_charts_and_pictures(tmp_path: Path, read_wandb) -> None:
    stage = tmp_path / "seed=0" / "eval_cam"
    stage.mkdir(parents=True)
    loggers = [wandb_logger(stage, "my_run", "eval_cam", offline=True)]
    rows = {"cam": scored(MATRIX, True), "is_cam": scored(OTHER, True)}
    files = show_scores(loggers, stage, rows, "is_cam")
    assert (stage / "threshold_curve.png") in files
    shown_row, headings = picture_row(77), ["photograph", "truth"]
    show_pictures(loggers, [shown_row], headings, ["a"], CLASSES)
    finish_wandb(0)
    (found,) = read_wandb(stage)
    assert found.exit_code == 0
    assert (found.run.run_group, found.run.job_type) == ("my_run", "eval_cam")
    for row, values in rows.items():
        for key in ("miou", "miou_best_threshold", "best_threshold", "false_positive"):
            assert found.logged(f"eval/{row}_{key}") == [pytest.approx(values[key])]
    assert found.logged("eval/miou") == [pytest.approx(rows["is_cam"]["miou"])]
    columns, cells = found.table("per_class")
    assert columns == ["class", "cam", "is_cam"]
    assert [line[0] for line in cells] == ["background", "cat", "dog"]
    for name, *values in cells:
        assert values == [rows["cam"]["iou"][name], rows["is_cam"]["iou"][name]]
    _, cells = found.table("confusion_table")
    names = ["background", "cat", "dog"]
    counted = {(true, predicted): count for true, predicted, count in cells}
    for i, true in enumerate(names):
        for j, predicted in enumerate(names):
            assert counted[true, predicted] == OTHER[i, j]
    columns, cells = found.table("threshold_curve_table")
    points = {(line[columns.index("lineKey")], line[columns.index("step")]): line for line in cells}
    assert len(points) == 6
    assert points["cam", 0.2][columns.index("lineVal")] == 60.0
    (pictures,) = found.logged("pictures")
    assert pictures["captions"] == ["a: cat, dog\nphotograph | truth"]
    (file,) = pictures["filenames"]
    shown = np.asarray(Image.open(found.folder / "files" / file))[..., :3]
    assert np.array_equal(shown, compose([shown_row], headings, ["a"], CLASSES, ROW_HEIGHT))


def test_tensorboard_holds_the_same_pictures_and_the_charts(tmp_path: Path) -> None:
    loggers = [tensorboard_logger(tmp_path, "my_run", "eval_cam")]
    files = show_scores(loggers, tmp_path, {"cam": scored(MATRIX, True)}, "cam")
    rows, headings = [picture_row(77), picture_row(150)], ["photograph", "truth"]
    show_pictures(loggers, rows, headings, ["a", "b"], CLASSES, step=7)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()

    def picture(tag: str, step: int) -> np.ndarray:
        (event,) = events.Images(tag)
        assert event.step == step
        return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))

    assert set(events.Tags()["images"]) == {
        "per_class",
        "confusion",
        "threshold_curve",
        "pictures/a",
        "pictures/b",
    }
    for path in files:
        assert np.array_equal(picture(path.stem, 0), np.asarray(Image.open(path).convert("RGB")))
    for row, name in zip(rows, "ab", strict=True):
        expected = compose([row], headings, [name], CLASSES, ROW_HEIGHT)
        assert np.array_equal(picture(f"pictures/{name}", 7), expected)


def test_pictures_of_a_training_stand_at_its_step(tmp_path: Path, read_wandb) -> None:
    show_pictures([csv_logger(tmp_path, "r", "train")], [picture_row(1)], ["a", "b"], ["n"])
    assert not list(tmp_path.rglob("*.png"))
    loggers = [wandb_logger(tmp_path, "r", "train", offline=True)]
    show_pictures(loggers, [picture_row(1)], ["a", "b"], ["n"], step=5)
    finish_wandb(0)
    (found,) = read_wandb(tmp_path)
    assert found.logged("trainer/global_step") == [5]
    assert found.logged("pictures")[0]["captions"] == ["n\na | b"]
