"""What figures show, read off Matplotlib's own objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from wsss.show import charts
from wsss.show.charts import (
    draw_class_bars,
    draw_confusion,
    draw_steps,
    draw_threshold_curves,
    draw_training,
    series,
)

LOG = [
    {"step": "0", "train/loss": "2.0", "train/loss_cls": "1.5", "lr/head": ""},
    {"step": "0", "train/loss": "", "train/loss_cls": "", "lr/head": "0.1"},
    {"step": "4", "train/loss": "1.0", "train/loss_cls": "0.75", "lr/head": "0.05"},
]


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were made."""
    made: list[Figure] = []
    original = charts._figure

    def keep(width: float, height: float) -> Figure:
        made.append(original(width, height))
        return made[-1]

    monkeypatch.setattr(charts, "_figure", keep)
    return made


def test_a_series_leaves_out_what_a_row_does_not_say() -> None:
    assert series(LOG, "lr") == {"lr/head": ([0, 4], [0.1, 0.05])}
    assert series(LOG, "bank") == {}


def test_training_figures_are_losses_and_rates(tmp_path: Path, drawn: list[Figure]) -> None:
    files = draw_training(LOG, tmp_path)
    assert [file.name for file in files] == ["losses.png", "rates.png"]
    losses, rates = (figure.axes[0] for figure in drawn)
    shown = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
    assert shown == {"train/loss": [[0, 2], [4, 1]], "train/loss_cls": [[0, 1.5], [4, 0.75]]}
    assert rates.lines[0].get_xydata().tolist() == [[0, 0.1], [4, 0.05]]
    assert draw_training([], tmp_path) == []


def test_a_threshold_curve_marks_its_best_point(tmp_path: Path, drawn: list[Figure]) -> None:
    curve = {"threshold": [0.1, 0.2, 0.3], "miou": [1.0, 3.0, 2.0]}
    draw_threshold_curves({"cam": {"curve": curve}}, tmp_path / "a.png")
    assert not drawn[0].axes[0].collections, "no band without a spread"
    line, mark = drawn[0].axes[0].lines
    assert line.get_xydata().tolist() == [[0.1, 1], [0.2, 3], [0.3, 2]]
    assert mark.get_xydata().tolist() == [[0.2, 3]]


def test_a_spread_over_seeds_is_a_band_and_error_bars(tmp_path: Path, drawn: list[Figure]) -> None:
    curve = {"threshold": [0.1, 0.2], "miou": [10.0, 30.0], "miou_spread": [1.0, 2.0]}
    draw_threshold_curves({"cam": {"curve": curve}}, tmp_path / "a.png")
    (band,) = drawn[0].axes[0].collections
    (outline,) = band.get_paths()
    assert {tuple(p) for p in outline.vertices.tolist()} == {
        (0.1, 9),
        (0.1, 11),
        (0.2, 28),
        (0.2, 32),
    }
    row = {"iou": {"cat": 20.0, "background": 80.0}, "iou_spread": {"cat": 3.0, "background": 1.0}}
    draw_class_bars({"cam": row | {"miou": 50.0}}, tmp_path / "b.png")
    (bars,) = drawn[1].axes[0].collections
    assert [ends[:, 0].tolist() for ends in bars.get_segments()] == [[79, 81], [17, 23]]


def test_steps_are_a_line_of_means_and_a_point_for_every_seed(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    rows = {"a": {"seeds": [40.0, 42.0], "masks": [50.0]}, "b": {"masks": [60.0, 70.0]}}
    draw_steps(rows, tmp_path / "a.png")
    axis = drawn[0].axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["seeds", "masks"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b"]
    shown = [line.get_ydata() for line in axis.lines]
    assert [list(map(float, one)) for one in shown] == [[41, 50], [40, 42], [50], [65], [60, 70]]
    assert [round(float(line.get_xdata()[-1])) for line in axis.lines] == [1, 0, 1, 1, 1]


def test_bars_are_every_class_of_every_row(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = {
        "seed": {"iou": {"background": 80.0, "cat": 20.0, "dog": None}, "miou": 50.0},
        "crf": {"iou": {"background": 85.0, "cat": 30.0, "dog": None}, "miou": 57.5},
    }
    draw_class_bars(rows, tmp_path / "a.png")
    axis = drawn[0].axes[0]
    assert [bar.get_width() for bar in axis.patches] == [80, 20, 0, 85, 30, 0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["background", "cat", "dog"]
    tops = [bar.get_y() for bar in axis.patches]
    assert tops[0] < tops[3] < tops[1] < tops[4] < tops[2] < tops[5]


@pytest.mark.parametrize("labels", [3, 81])
def test_a_confusion_matrix_is_shown_as_shares_of_the_truth(
    tmp_path: Path, drawn: list[Figure], labels: int
) -> None:
    matrix = np.random.default_rng(0).integers(0, 9, (labels, labels))
    matrix[1] = 0  # a class that does not occur
    draw_confusion(matrix, [str(n) for n in range(labels)], tmp_path / "a.png", "cam")
    shown = np.asarray(drawn[0].axes[0].images[0].get_array())
    assert (shown[1] == 0).all()
    assert shown[2] == pytest.approx(100 * matrix[2] / matrix[2].sum())
