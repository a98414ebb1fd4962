"""What figures show, read off Matplotlib's own objects and the pixels of their files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from wsss.show import charts
from wsss.show.charts import (
    at_the_edge,
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
    original = charts.figure

    @contextmanager
    def keep(path: Path, width: float, height: float) -> Iterator[Figure]:
        with original(path, width, height) as one:
            made.append(one)
            yield one

    monkeypatch.setattr(charts, "figure", keep)
    return made


def share_of(path: Path, color: str) -> float:
    """Share of a picture's pixels that have about this color of Matplotlib's cycle."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(float) / 255
    return float((np.abs(pixels - to_rgb(color)).max(axis=2) < 0.18).mean())


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


@pytest.mark.parametrize("points", [5, 60])
def test_curves_that_lie_on_each_other_are_all_seen(tmp_path: Path, points: int) -> None:
    values = [(str(n), str(1 + np.sin(n))) for n in range(points)]
    same = [{"step": n, "train/loss": v, "train/loss_cls": v} for n, v in values]
    (file,) = draw_training(same, tmp_path)
    legend = 0.0005  # what its entries alone take
    assert share_of(file, "C0") > 4 * legend and share_of(file, "C1") > 4 * legend


def test_a_loss_that_falls_far_has_plain_numbers_on_a_log_scale(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    draw_training([{"step": str(n), "train/loss": str(2 / 10**n)} for n in range(3)], tmp_path)
    axis = drawn[0].axes[0]
    assert axis.get_yscale() == "log"
    texts = {label.get_text() for label in axis.get_yticklabels()}
    assert {"0.02", "0.1", "1", "2"} <= texts


def test_a_threshold_curve_marks_its_best_point(tmp_path: Path, drawn: list[Figure]) -> None:
    curve = {"threshold": [0.1, 0.2, 0.3], "miou": [1.0, 3.0, 2.0]}
    draw_threshold_curves({"cam": {"curve": curve}}, tmp_path / "a.png")
    assert not drawn[0].axes[0].collections, "no band without a spread"
    line, mark = drawn[0].axes[0].lines
    assert line.get_xydata().tolist() == [[0.1, 1], [0.2, 3], [0.3, 2]]
    assert mark.get_xydata().tolist() == [[0.2, 3]]
    assert drawn[0].axes[0].get_title() == ""


def test_a_best_threshold_at_the_edge_is_remarked(tmp_path: Path, drawn: list[Figure]) -> None:
    inside = {"threshold": [0.1, 0.2, 0.3], "miou": [1.0, 3.0, 2.0]}
    outside = {"threshold": [0.1, 0.2, 0.3], "miou": [1.0, 2.0, 3.0]}
    draw_threshold_curves({"a": {"curve": inside}, "b": {"curve": outside}}, tmp_path / "a.png")
    assert drawn[0].axes[0].get_title().startswith("b: best at the edge")
    assert [at_the_edge([0.1, 0.2, 0.3], best) for best in range(3)] == [True, False, True]
    assert not at_the_edge([0.0, 0.2, 0.3], 0), "there is nothing below 0"
    assert not at_the_edge([0.3], 0)


def test_a_curve_without_truth_is_named(tmp_path: Path, drawn: list[Figure]) -> None:
    nothing = {"threshold": [0.1, 0.2], "miou": [float("nan")] * 2}
    draw_threshold_curves({"cam": {"curve": nothing}}, tmp_path / "a.png")
    assert drawn[0].axes[0].get_legend().get_texts()[0].get_text() == "cam: no mIoU"


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


def test_bars_are_the_classes_that_occur_and_the_others_are_named(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    rows = {
        "seed": {"iou": {"background": None, "cat": 20.0, "dog": None, "cow": 0.0}, "miou": 10.0},
        "crf": {"iou": {"background": None, "cat": 30.0, "dog": 5.0, "cow": 0.0}, "miou": 11.7},
    }
    draw_class_bars(rows, tmp_path / "a.png")
    axis = drawn[0].axes[0]
    assert [bar.get_width() for bar in axis.patches] == [20, 0, 30, 5, 0]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["background", "cat", "dog", "cow"]
    places = [(text.get_text(), round(float(text.get_position()[1]), 1)) for text in axis.texts]
    assert places == [
        ("does not occur", -0.2),
        ("does not occur", 1.8),
        ("does not occur", 0.2),
    ]
    middles = [bar.get_y() + bar.get_height() / 2 for bar in axis.patches]
    assert middles == pytest.approx([0.8, 2.8, 1.2, 2.2, 3.2])


def test_a_class_of_no_mask_is_said_to_be_none(tmp_path: Path, drawn: list[Figure]) -> None:
    iou = {"background": 0.0, "cat": 20.0, "dog": 0.0, "cow": None}
    rows = {"seed": {"iou": iou, "miou": 6.7, "absent": ["background", "cow"]}}
    draw_class_bars(rows, tmp_path / "a.png")
    axis = drawn[0].axes[0]
    places = [(text.get_text(), round(float(text.get_position()[1]))) for text in axis.texts]
    assert places == [("in no mask, only predicted", 0), ("does not occur", 3)]


@pytest.mark.parametrize("labels", [2, 3, 21, 81])
def test_a_confusion_matrix_is_shown_as_shares_of_the_truth(
    tmp_path: Path, drawn: list[Figure], labels: int
) -> None:
    matrix = np.random.default_rng(0).integers(1, 9, (labels, labels))
    matrix[1] = 0  # a class that does not occur
    names = ["background", *(f"name of class {n}" for n in range(1, labels))]
    path = draw_confusion(matrix, names, tmp_path / "a.png", "cam")
    axis = drawn[0].axes[0]
    shown = axis.images[0].get_array()
    assert shown.mask[1].all() and not shown.mask[0].any()
    for true in {0, labels - 1} - {1}:
        expected = [100 * count / sum(matrix[true]) for count in matrix[true]]
        assert shown.data[true] == pytest.approx(expected)
    ticks = [*axis.get_xticklabels(), *axis.get_yticklabels()]
    assert [tick.get_text() for tick in ticks] == names * 2
    assert min(tick.get_fontsize() for tick in ticks) >= 7
    # No name lies on its neighbor, and all are inside the picture.
    for several in (axis.get_xticklabels(), axis.get_yticklabels()):
        boxes = [tick.get_window_extent() for tick in several]
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))
        width, _ = Image.open(path).size
        assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width for box in boxes)
    assert len(axis.texts) == (labels**2 if labels < 20 else 0)


def test_names_in_any_alphabet_and_with_dollars_are_drawn_without_a_warning(
    tmp_path: Path, drawn: list[Figure], system_fonts
) -> None:
    names = ("Kühe ß", "$x_1$", "牛", "猫")
    for there, expected in (("", ("class 3", "class 4")), ("牛", ("牛", "class 4"))):
        if there:
            system_fonts("Oxen", there)
        row = {"iou": dict.fromkeys(("background", *names), 50.0), "miou": 50.0}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw_class_bars({"牛 run": row}, tmp_path / "bars.png")
            draw_confusion(np.eye(5, dtype=int), ["background", *names], tmp_path / "c.png", "猫")
        for one in drawn[-2:]:
            labels = [label.get_text() for label in one.axes[0].get_yticklabels()]
            assert labels == ["background", "Kühe ß", "$x_1$", *expected]
        legend = drawn[-2].legends[0].get_texts()[0].get_text()
        assert legend == f"{'牛' if there else chr(92) + 'u725b'} run: mean 50.00"
        assert drawn[-1].axes[0].get_title(loc="left") == "\\u732b"
