"""Figures of a stage, and what W&B is given: read back from the files that it writes offline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from wsss.evaluation.confusion import scores
from wsss.run.logs import csv_logger, finish_wandb, read_metrics, wandb_logger
from wsss.show.dashboard import beside, hyperparameters, show_facts, show_pictures, show_scores

CLASSES = ("cat", "dog")
MATRIX = np.array([[50, 3, 0], [10, 20, 7], [0, 0, 0]])
OTHER = np.array([[40, 9, 4], [8, 25, 4], [0, 0, 0]])


def scored(matrix: np.ndarray, curve: bool) -> dict:
    result = {**scores(matrix).as_dict(CLASSES), "confusion": matrix.tolist()}
    if curve:
        result |= {"miou_best_threshold": 60.0, "best_threshold": 0.2}
        result["curve"] = {"threshold": [0.1, 0.2, 0.3], "miou": [40.0, 60.0, 50.0]}
    return result


def test_hyperparameters_are_all_settings_by_dotted_key_and_the_revision() -> None:
    cfg = OmegaConf.create(
        {"seed": 3, "method": {"bank": {"size": 5}, "seed": "${seed}"}, "scales": [1.0, 0.5]}
    )
    found = hyperparameters(cfg)
    assert found.pop("revision")
    assert found == {"seed": 3, "method.bank.size": 5, "method.seed": 3, "scales": [1.0, 0.5]}


def test_pictures_side_by_side_keep_every_pixel() -> None:
    wide = np.full((4, 6, 3), 10, dtype=np.uint8)
    high = np.full((7, 2, 3), 20, dtype=np.uint8)
    both = beside([wide, high])
    assert both.shape[0] == 7
    assert (both[:4, :6] == 10).all() and (both[:, -2:] == 20).all()
    assert (both[4:, :6] == 255).all() and (both[:, 6:-2] == 255).all()


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
    picture = np.full((5, 8, 3), 77, dtype=np.uint8)
    show_pictures(loggers, [[picture, picture]], ["photograph", "truth"], ["a: cat, dog"])
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
    assert np.array_equal(
        np.asarray(Image.open(found.folder / "files" / file))[..., :3], beside([picture, picture])
    )
