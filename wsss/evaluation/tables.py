"""Tables of results: seeds of several runs gathered, mean and standard deviation."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss.artifacts import read_json


@dataclass(frozen=True)
class SeedRow:
    """One kind of map of one setting, over its seeds.

    Attributes:
        run: name of the run.
        settings: overrides that name the run's folder, the seed left out.
        kind: kind of map.
        argmax: arg-max mIoU of each seed, percent.
        best: mIoU at the best threshold (tuned on the masks) of each seed.
        thresholds: those thresholds.
    """

    run: str
    settings: str
    kind: str
    argmax: tuple[float, ...]
    best: tuple[float, ...]
    thresholds: tuple[float, ...]


def without_seed(settings: str) -> str:
    """A run's settings without `seed=...`, which only numbers repetitions."""
    kept = [item for item in settings.split(",") if not item.startswith("seed=")]
    return "" if kept in ([], ["default"]) else ",".join(kept)


def gather_seeds(runs: Iterable[Path]) -> list[SeedRow]:
    """Rows for all finished `eval_cam` stages below the folders of some runs."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for run in runs:
        for path in sorted(run.glob("*/eval_cam/metrics.json")):
            if not (path.parent / "manifest.json").is_file():
                continue
            settings = without_seed(path.parents[1].name)
            for kind, figures in read_json(path)["kinds"].items():
                found.setdefault((run.name, settings, kind), []).append(figures)
    return [
        SeedRow(
            *key,
            argmax=tuple(f["miou"] for f in figures),
            best=tuple(f["miou_best_threshold"] for f in figures),
            thresholds=tuple(f["best_threshold"] for f in figures),
        )
        for key, figures in found.items()
    ]


def spread(values: Sequence[float]) -> str:
    """`41.2 ± 0.6` (sample standard deviation), or `41.2` for a single value."""
    mean = statistics.fmean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def seed_rows_as_markdown(rows: Sequence[SeedRow]) -> str:
    """The rows as a Markdown table with aligned columns."""
    cells = [["run", "settings", "map", "arg max", "best threshold", "at", "seeds"]]
    for row in rows:
        low, high = min(row.thresholds), max(row.thresholds)
        cells.append(
            [
                row.run,
                row.settings,
                row.kind,
                spread(row.argmax),
                spread(row.best),
                f"{low:.2f}" if low == high else f"{low:.2f}–{high:.2f}",
                str(len(row.argmax)),
            ]
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
