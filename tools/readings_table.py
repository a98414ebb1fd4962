"""Readings of `tools/readings.py` compared over seeds, in Markdown.

    python tools/readings_table.py FOLDER/0 FOLDER/1 ... [--against sipe] [--rows 'cpal K*;cam'] [--by classes]

A folder is a seed. Each cell is the mean paired difference of mIoU to the reading `--against` in
percent points, its 95 % interval over seeds (t) and, in parentheses, over images (bootstrap). Photographs are halved by their names: one half to choose a reading by, which the rows
are sorted by, the other to report it on.
"""  # noqa: E501

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from wsss.evaluation.confusion import scores
from wsss.evaluation.curves import ThresholdCurve
from wsss.evaluation.paired import (
    over_images,
    over_seeds,
    resampled,
    scores_of,
    shown_by,
)
from wsss.evaluation.per_image import Confusions, read_confusions
from wsss.report.table import Table

THRESHOLDS = 80  # of a curve


@dataclass(frozen=True)
class Run:
    """A seed: confusion matrices and threshold curves of each reading."""

    matrices: Mapping[str, Confusions]
    curves: Mapping[str, Confusions]


def read_run(folder: Path) -> Run:
    """What `tools/readings.py` wrote; the cells of a curve begin with the threshold's number."""
    matrices = read_confusions(folder / "confusions.npz")
    first = next(iter(matrices.values()))
    with np.load(folder / "curves.npz", allow_pickle=False) as stored:
        curves = {row: Confusions(first.names, first.classes, stored[row]) for row in stored.files}
    return Run(matrices, curves)


def chooses(name: str) -> bool:
    """Whether a photograph is of the half that readings are chosen by."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 0


def part(one: Confusions, keep: Callable[[int], bool]) -> Confusions:
    """The images (by their number) that are kept."""
    numbers = [k for k in range(len(one.names)) if keep(k)]
    place = np.full(len(one.names), -1, dtype=np.int32)
    place[numbers] = np.arange(len(numbers))
    image, cell, count = one.triplets
    there = place[image] >= 0
    triplets = np.stack([place[image][there], cell[there], count[there]])
    return Confusions(tuple(one.names[k] for k in numbers), one.classes, triplets)


def at_threshold(curve: Confusions, index: int) -> Confusions:
    """Confusion matrices at one of the thresholds, by its number."""
    labels = curve.num_labels
    image, cell, count = curve.triplets
    bucket, pair = cell // labels**2, cell % labels**2
    true, best = pair // labels, pair % labels
    cells = true * labels + np.where(bucket > index, best, 0)
    return Confusions(curve.names, curve.classes, np.stack([image, cells, count]).astype(np.int32))


def best_threshold(curve: Confusions) -> int:
    """Number of the threshold of the highest mIoU."""
    labels = curve.num_labels
    whole = ThresholdCurve(labels, np.arange(THRESHOLDS) / THRESHOLDS)
    _, cell, count = curve.triplets
    sums = np.bincount(cell, count, whole.counts.size)
    whole.counts[:] = sums.reshape(whole.counts.shape)
    return int(np.argmax([scores(matrix).miou for matrix in whole.matrices()]))


def miou(one: Confusions) -> float:
    """MIoU over all its images, in percent."""
    return float(scores_of(one)[0])


def gaps(ours: Sequence[Confusions], theirs: Sequence[Confusions]) -> list[float]:
    """Difference of mIoU of each seed."""
    return [miou(a) - miou(b) for a, b in zip(ours, theirs, strict=True)]


def compared(ours: Sequence[Confusions], theirs: Sequence[Confusions]) -> str:
    """Mean paired difference of mIoU with its two intervals."""
    seeds = over_seeds(gaps(ours, theirs))
    drawn = resampled([*ours, *theirs])
    low, high = over_images(drawn[: len(ours)], drawn[len(ours) :])
    text = f"{seeds.mean:+.2f}, {seeds.low:+.2f} to {seeds.high:+.2f}"
    return f"{text} ({low[0]:+.2f} to {high[0]:+.2f})"


def groups_of(one: Confusions, by: str) -> dict[str, Callable[[int], bool]]:
    """Which images (by number) a column is of."""
    labels = one.num_labels
    table = np.zeros((len(one.names), labels))
    image, cell, count = one.triplets
    np.add.at(table, (image, cell // labels), count)
    classes = (table[:, 1:] > 0).sum(1)
    size = 100 * table[:, 1:].sum(1) / table.sum(1) / np.maximum(classes, 1)
    low, high = np.quantile(size, [1 / 3, 2 / 3])
    return {
        "halves": {
            "choosing half": lambda k: chooses(one.names[k]),
            "reporting half": lambda k: not chooses(one.names[k]),
            "all": lambda k: True,
        },
        "classes": {
            "1 class": lambda k: classes[k] == 1,
            "2 classes": lambda k: classes[k] == 2,
            "3 and more": lambda k: classes[k] > 2,
        },
        "size": {
            f"below {low:.0f} % of the image a class": lambda k: size[k] < low,
            "between": lambda k: low <= size[k] <= high,
            f"above {high:.0f} %": lambda k: size[k] > high,
        },
    }[by]


def halves(runs: Sequence[Run], against: str, rows: Sequence[str], by: str) -> Table:
    """Readings by groups of images; by halves also at their best thresholds."""
    first = runs[0].matrices[against]
    groups = groups_of(first, by)
    lines = []
    for row in rows:
        pair = [[run.matrices[one] for run in runs] for one in (row, against)]
        values = [miou(one) for one in pair[0]]
        parts = [[[part(one, keep) for one in side] for side in pair] for keep in groups.values()]
        cells = [row, f"{np.mean(values):.2f}", *(compared(*both) for both in parts)]
        if by == "halves":
            differences = gaps(*pair)
            shown = shown_by(float(np.std(differences, ddof=1)), len(runs)) if len(runs) > 1 else 0
            cells += [f"{shown:.2f}", *_thresholds(runs, row, against)]
        lines.append((float(np.mean(gaps(*parts[0]))), tuple(cells)))
    lines.sort(key=lambda line: -line[0])
    columns = ["reading", "arg max", *groups]
    if by == "halves":
        columns += ["shown by these seeds", "best threshold", "against", "at the other half's"]
    counts = [sum(map(keep, range(len(first.names)))) for keep in groups.values()]
    note = f"Against {against}; {len(runs)} seeds; photographs: {', '.join(map(str, counts))}."
    return Table("Readings", note, tuple(columns), tuple(cells for _, cells in lines), 0)


def _thresholds(runs: Sequence[Run], row: str, against: str) -> list[str]:
    """At the threshold that is best on all masks; at that of the choosing half, on the other."""
    best, held = [], []
    for one in (row, against):
        curves = [run.curves[one] for run in runs]
        best.append([at_threshold(curve, best_threshold(curve)) for curve in curves])
        sides = [groups_of(curve, "halves") for curve in (run.matrices[one] for run in runs)]
        held.append(
            [
                part(
                    at_threshold(curve, best_threshold(part(curve, side["choosing half"]))),
                    side["reporting half"],
                )
                for curve, side in zip(curves, sides, strict=True)
            ]
        )
    return [f"{np.mean([miou(one) for one in best[0]]):.2f}", compared(*best), compared(*held)]


def confused(runs: Sequence[Run], rows: Sequence[str]) -> Table:
    """Where the foreground goes, in percent of it."""
    lines = []
    for row in rows:
        shares = []
        for run in runs:
            matrix = run.matrices[row].total().astype(float)
            hit, inside = np.trace(matrix[1:, 1:]), matrix[1:, 1:].sum()
            parts = [hit, inside - hit, matrix[1:, 0].sum(), matrix[0, 1:].sum()]
            shares.append(100 * np.array(parts) / matrix[1:].sum())
        lines.append((row, *(f"{value:.2f}" for value in np.mean(shares, 0))))
    columns = ("reading", "right", "other class", "background", "background taken for it")
    note = "Percent of the foreground's pixels."
    return Table("Confusion", note, columns, tuple(lines), 4)


def per_class(runs: Sequence[Run], against: str, rows: Sequence[str]) -> Table:
    """IoU of each class against a reading, with intervals over seeds."""
    names = ("background", *runs[0].matrices[against].classes)
    iou = {
        row: np.stack([scores_of(run.matrices[row])[1:] for run in runs])
        for row in (against, *rows)
    }
    lines = []
    for k, name in enumerate(names):
        cells = [name, f"{iou[against][:, k].mean():.1f}"]
        for row in rows:
            gap = over_seeds((iou[row] - iou[against])[:, k].tolist())
            cells.append(f"{gap.mean:+.1f}, {gap.low:+.1f} to {gap.high:+.1f}")
        lines.append(tuple(cells))
    return Table("Classes", "IoU in percent.", ("class", against, *rows), tuple(lines), 0)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--against", default="sipe")
    parser.add_argument("--rows", default="*", help="patterns of names, with ; between")
    ways = ["halves", "classes", "size", "class", "confusion"]
    parser.add_argument("--by", choices=ways, default="halves")
    args = parser.parse_args()
    runs = [read_run(folder) for folder in args.folders]
    patterns = args.rows.split(";")
    rows = [
        row for row in runs[0].matrices if any(fnmatch.fnmatchcase(row, one) for one in patterns)
    ]
    if args.by == "confusion":
        table = confused(runs, rows)
    elif args.by == "class":
        table = per_class(runs, args.against, rows)
    else:
        table = halves(runs, args.against, rows, args.by)
    print(table.markdown())


if __name__ == "__main__":
    main()
