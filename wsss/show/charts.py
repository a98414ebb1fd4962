"""Figures of a stage's numbers as PNG files: losses, rates, curves, classes, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wsss.files import atomic

NAMED_CELLS = 30  # confusion matrices up to this many labels have their names on both axes
ERROR_BARS = {"lw": 0.8, "capsize": 1.5, "ecolor": "0.3"}
LONG_LABEL = 32  # characters; longer ones stand in a legend one below the other


def series(rows: Sequence[Mapping[str, str]], prefix: str) -> dict[str, tuple[list, list]]:
    """Columns of a training's `metrics.csv` as points.

    Args:
        rows: the file's rows, see `wsss.run.logs.read_metrics`.
        prefix: what the wanted columns' names begin with.

    Returns:
        For each column its steps and values, where it has any.
    """
    found: dict[str, tuple[list, list]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith(prefix) and value and row.get("step"):
                steps, values = found.setdefault(name, ([], []))
                steps.append(int(row["step"]))
                values.append(float(value))
    return found


def draw_training(rows: Sequence[Mapping[str, str]], folder: Path) -> list[Path]:
    """Write `losses.png` and `rates.png`, each where the log has what it shows.

    Args:
        rows: rows of a training's `metrics.csv`.
        folder: an existing folder.

    Returns:
        The files.
    """
    files = []
    for name, prefix, title in (
        ("losses.png", "train/loss", "loss"),
        ("rates.png", "lr", "learning rate"),
    ):
        lines = series(rows, prefix)
        if not lines:
            continue
        figure = _figure(7, 3.6)
        axis = figure.subplots()
        for column, (steps, values) in sorted(lines.items()):
            # A short training has few points, which a line alone may not show.
            axis.plot(steps, values, "." * (len(steps) < 20) + "-", label=column)
        axis.set_yscale("log" if all(min(v) > 0 for _, v in lines.values()) else "linear")
        axis.set(xlabel="step", title=title)
        axis.legend()
        files.append(_save(figure, folder / name))
    return files


def draw_threshold_curves(rows: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Write the mIoU (%) at every constant background threshold, one line for each row of scores.

    Args:
        rows: for each row its `curve`: `threshold`, `miou` and, where it is a mean over seeds,
            `miou_spread`, which is drawn as a band. The best point is marked and told.
        path: PNG to write.

    Returns:
        `path`.
    """
    figure = _figure(7, 4)
    axis = figure.subplots()
    for kind, scores in rows.items():
        at, miou = (np.asarray(scores["curve"][key]) for key in ("threshold", "miou"))
        best = int(miou.argmax())
        label = f"{kind}: {miou[best]:.2f} at {at[best]:.2f}"
        (line,) = axis.plot(at, miou, label=label)
        axis.plot(at[[best]], miou[[best]], "o", color=line.get_color())
        spread = np.asarray(scores["curve"].get("miou_spread", [0.0]))
        if spread.any():
            color = line.get_color()
            axis.fill_between(at, miou - spread, miou + spread, color=color, alpha=0.2, lw=0)
    axis.set(xlabel="background threshold (chosen on these masks)", ylabel="mIoU (%)")
    axis.legend()
    return _save(figure, path)


def draw_class_bars(rows: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Write every class's IoU (%), one bar for each row of scores.

    Args:
        rows: for each row its scores: `iou` by class name (None where a class does not occur),
            `miou` and, where they are means over seeds, `iou_spread`, drawn as error bars. The
            background stands first.
        path: PNG to write.

    Returns:
        `path`.
    """
    names = sorted(next(iter(rows.values()))["iou"], key=lambda name: name != "background")
    labels = [f"{row}: mean {scores['miou']:.2f}" for row, scores in rows.items()]
    columns = 1 if max(len(label) for label in labels) > LONG_LABEL else min(len(rows), 2)
    lines = -(-len(rows) // columns)
    figure = _figure(7, 1.0 + 0.2 * lines + 0.1 * len(names) * (len(rows) + 1))
    axis = figure.subplots()
    height = 0.8 / len(rows)
    for number, scores in enumerate(rows.values()):
        places = np.arange(len(names)) + (number - (len(rows) - 1) / 2) * height
        values = [scores["iou"][name] or 0.0 for name in names]
        spread = [scores.get("iou_spread", {}).get(name, 0.0) for name in names]
        errors = spread if any(spread) else None
        axis.barh(places, values, height, label=labels[number], xerr=errors, error_kw=ERROR_BARS)
    axis.set_yticks(range(len(names)), names, fontsize="small")
    axis.set(xlabel="IoU (%)", xlim=(0, 100), ylim=(len(names) - 0.4, -0.6))
    figure.legend(loc="outside upper center", ncols=columns)
    return _save(figure, path)


def draw_steps(rows: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> Path:
    """Write the mIoU (%) from step to step of the chain, a line of means for each setting.

    Args:
        rows: for each setting, for each step that it has, in order, the figures of all its seeds.
            Every seed is a point.
        path: PNG to write.

    Returns:
        `path`.
    """
    names = list(dict.fromkeys(name for steps in rows.values() for name in steps))
    figure = _figure(7, 4)
    axis = figure.subplots()
    for number, (setting, steps) in enumerate(rows.items()):
        shift = 0.08 * (number - (len(rows) - 1) / 2)  # points of several settings side by side
        places = [names.index(name) + shift for name in steps]
        means = [float(np.mean(values)) for values in steps.values()]
        (line,) = axis.plot(places, means, "_-", ms=12, mew=2, lw=1, label=setting)
        for place, values in zip(places, steps.values(), strict=True):
            axis.plot([place] * len(values), values, ".", color=line.get_color(), alpha=0.6)
    axis.set_xticks(range(len(names)), names)
    axis.set(ylabel="mIoU (%)", xlim=(-0.5, len(names) - 0.5))
    axis.grid(axis="y", alpha=0.3)
    axis.legend()
    return _save(figure, path)


def draw_confusion(matrix: np.ndarray, names: Sequence[str], path: Path, title: str) -> Path:
    """Write a confusion matrix, each row as shares (%) of that true label's pixels.

    Args:
        matrix: int64 (L, L), rows true, columns predicted.
        names: the L labels, background included.
        path: PNG to write.
        title: what was scored.

    Returns:
        `path`.
    """
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.28 * min(len(names), NAMED_CELLS)
    figure = _figure(side + 0.8, side)
    axis: Axes = figure.subplots()
    picture = axis.imshow(shares, vmin=0, vmax=100, cmap="viridis")
    if len(names) <= NAMED_CELLS:
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize="small")
        axis.set_yticks(range(len(names)), names, fontsize="small")
    axis.set(xlabel="predicted", ylabel="true", title=title)
    figure.colorbar(picture, label="% of the true pixels", shrink=0.8)
    return _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    """A figure without pyplot's global state; size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
    return path
