"""Figures of a stage's numbers as PNG files: losses, rates, curves, classes, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from wsss.show.colors import ABSENT, HEAT
from wsss.show.figure import figure
from wsss.show.fonts import class_names, readable

WRITTEN_CELLS = 12  # confusion matrices up to this many labels have their shares written into them
ERROR_BARS = {"lw": 0.8, "capsize": 1.5, "ecolor": "0.3"}
LONG_LABEL = 32  # characters; longer ones stand in a legend one below the other
NO_BAR = "does not occur"
NO_TRUTH = "in no mask, only predicted"
AT_THE_EDGE = "the edge of the range; a wider one may hold a better threshold"


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
        files.append(folder / name)
        with figure(files[-1], 7, 3.6) as made:
            axis = made.subplots()
            nested(axis, {column: lines[column] for column in sorted(lines)})
            low = min(min(values) for _, values in lines.values())
            high = max(max(values) for _, values in lines.values())
            if 0 < low < high / 5:
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axis.yaxis.set_minor_locator(NullLocator())
            axis.set(xlabel="step", title=title)
            axis.legend()
    return files


def nested(axis: Axes, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Draw lines so that each is seen where they lie on each other: the first is the widest."""
    widths = np.linspace(1.4 + min(2.4 * (len(lines) - 1), 8.0), 1.4, len(lines)).tolist()
    for width, (label, (x, y)) in zip(widths, lines.items(), strict=True):
        # A short line has few points, which it alone may not show.
        marker = "." if len(x) < 20 else ""
        axis.plot(x, y, marker=marker, lw=width, ms=width + 4, alpha=0.85, label=label)


def draw_threshold_curves(rows: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Write the mIoU (%) at every constant background threshold, one line for each row of scores.

    Args:
        rows: for each row its `curve`: `threshold`, `miou` and, where it is a mean over seeds,
            `miou_spread`, which is drawn as a band. The best point is marked and told, and it is
            remarked if it lies at the edge of the range that was tried.
        path: PNG to write.

    Returns:
        `path`.
    """
    named = {readable(row): scores["curve"] for row, scores in rows.items()}
    with figure(path, 7, 4) as made:
        axis = made.subplots()
        edge = []
        for row, curve in named.items():
            at, miou = (np.asarray(curve[key], dtype=np.float64) for key in ("threshold", "miou"))
            if np.isnan(miou).all():
                axis.plot([], [], label=f"{row}: no mIoU")
                continue
            best = int(np.nanargmax(miou))
            label = f"{row}: {miou[best]:.2f} at {at[best]:.2f}"
            (line,) = axis.plot(at, miou, label=label)
            axis.plot(at[[best]], miou[[best]], "o", color=line.get_color())
            spread = np.asarray(curve.get("miou_spread", [0.0]))
            if spread.any():
                color = line.get_color()
                axis.fill_between(at, miou - spread, miou + spread, color=color, alpha=0.2, lw=0)
            if at_the_edge(at, best):
                edge.append(row)
        axis.set(xlabel="background threshold (chosen on these masks)", ylabel="mIoU (%)")
        if edge:
            axis.set_title(f"{', '.join(edge)}: best at {AT_THE_EDGE}", fontsize="small", wrap=True)
        axis.legend()
    return path


def at_the_edge(thresholds: Sequence[float] | np.ndarray, best: int) -> bool:
    """Whether a better threshold may lie beyond those tried (one alone was no search).

    Args:
        thresholds: ascending, in [0, 1).
        best: place of the best one.
    """
    last = len(thresholds) - 1
    return last > 0 and (best == last or (best == 0 and thresholds[0] > 0))


def draw_class_bars(rows: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Write every class's IoU (%), one bar for each row of scores.

    Args:
        rows: for each row its scores: `iou` by class name (None where a class does not occur,
            which is said in place of the bar), `miou`, the classes `absent` in all masks, whose 0
            is said to be none, and, where they are means over seeds, `iou_spread`, drawn as error
            bars. The background stands first, and classes are in the
            order of their ids.
        path: PNG to write.

    Returns:
        `path`.
    """
    names = sorted(next(iter(rows.values()))["iou"], key=lambda name: name != "background")
    shown = [*names[:1], *class_names(names[1:])] if names[0] == "background" else names
    labels = [readable(f"{row}: mean {scores['miou']:.2f}") for row, scores in rows.items()]
    columns = 1 if max(len(label) for label in labels) > LONG_LABEL else min(len(rows), 2)
    lines = -(-len(rows) // columns)
    bars = len(names) * (len(rows) + 1)
    height = 0.8 / len(rows)
    with figure(path, 7, 1.0 + 0.2 * lines + 0.1 * bars) as made:
        axis = made.subplots()
        for number, scores in enumerate(rows.values()):
            places = np.arange(len(names)) + (number - (len(rows) - 1) / 2) * height
            values = [scores["iou"][name] for name in names]
            spread = [scores.get("iou_spread", {}).get(name) or 0.0 for name in names]
            errors = np.array(spread) if any(spread) else None
            there = np.array([value is not None for value in values])
            axis.barh(
                places[there],
                [value for value in values if value is not None],
                height,
                label=labels[number],
                color=f"C{number}",
                xerr=None if errors is None else errors[there],
                error_kw=ERROR_BARS,
            )
            absent = scores.get("absent", ())
            for name, place, value in zip(names, places, values, strict=True):
                if value is None or name in absent:
                    text = NO_BAR if value is None else NO_TRUTH
                    axis.text(0.5, place, text, va="center", fontsize=6, color=f"C{number}")
        axis.set_yticks(range(len(names)), shown, fontsize="small")
        axis.set(xlabel="IoU (%)", xlim=(0, 100), ylim=(len(names) - 0.4, -0.6))
        made.legend(loc="outside upper center", ncols=columns)
    return path


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
    settings = {readable(setting): steps for setting, steps in rows.items()}
    with figure(path, 7, 4) as made:
        axis = made.subplots()
        for number, (setting, steps) in enumerate(settings.items()):
            shift = 0.08 * (number - (len(rows) - 1) / 2)  # points of several settings apart
            places = [names.index(name) + shift for name in steps]
            means = [float(np.mean(values)) for values in steps.values()]
            (line,) = axis.plot(places, means, "_-", ms=12, mew=2, lw=1, label=setting)
            for place, values in zip(places, steps.values(), strict=True):
                axis.plot([place] * len(values), values, ".", color=line.get_color(), alpha=0.6)
        axis.set_xticks(range(len(names)), names)
        axis.set(ylabel="mIoU (%)", xlim=(-0.5, len(names) - 0.5))
        axis.grid(axis="y", alpha=0.3)
        axis.legend()
    return path


def draw_confusion(matrix: np.ndarray, names: Sequence[str], path: Path, title: str) -> Path:
    """Write a confusion matrix, each row as shares (%) of that true label's pixels.

    A label without true pixels has no shares: its row is gray.

    Args:
        matrix: int64 (L, L), rows true, columns predicted.
        names: the L labels, background first.
        path: PNG to write.
        title: what was scored.

    Returns:
        `path`.
    """
    total = matrix.sum(axis=1, keepdims=True)
    empty = np.repeat(total == 0, len(matrix), axis=1)
    shares = np.ma.masked_where(empty, 100 * matrix / np.maximum(total, 1))
    shown = [readable(names[0]), *class_names(names[1:])]
    cell = 0.55 if len(names) <= WRITTEN_CELLS else 0.26 if len(names) <= 40 else 0.15
    side = max(2.2, cell * len(names))
    margin = 0.5 + 0.08 * max(map(len, shown))
    size = "small" if len(names) <= 40 else 7
    colors = matplotlib.colormaps[HEAT].with_extremes(bad=ABSENT)
    with figure(path, side + margin + 1.2, side + margin + 0.4) as made:
        axis: Axes = made.subplots()
        picture = axis.imshow(shares, vmin=0, vmax=100, cmap=colors)
        axis.set_xticks(range(len(names)), shown, rotation=90, fontsize=size)
        axis.set_yticks(range(len(names)), shown, fontsize=size)
        if len(names) <= WRITTEN_CELLS:
            for (true, predicted), share in np.ndenumerate(shares.filled(np.nan)):
                text = "–" if np.isnan(share) else f"{share:.0f}" if share >= 10 else f"{share:.1f}"
                ink = "black" if np.isnan(share) or 20 < share < 85 else "white"
                style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": "small"}
                axis.text(predicted, true, text, color=ink, **style)
        axis.set(xlabel="predicted", ylabel="true")
        axis.set_title(readable(title), loc="left")
        made.colorbar(picture, label="% of the true pixels", shrink=0.8)
    return path
