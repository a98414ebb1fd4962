"""The tables of a report, as plain cells: seeds, pseudo masks, segmentation, published numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from wsss.report.compare import compared, pairs
from wsss.report.gather import Setting
from wsss.report.table import NONE, NOT_RUN, Table

RECIPES = Path(__file__).resolve().parents[2] / "conf" / "experiment"


@cache
def published() -> dict[str, dict[str, dict[str, Any]]]:
    """Published figures by data set and experiment: the key `published` of the recipes.

    A recipe built on another one has that one's data set unless it chooses its own. Figures are not
    handed on: they belong to the recipe that gives them.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    recipes = {path.stem: yaml.safe_load(path.read_text()) for path in RECIPES.glob("*.yaml")}

    def data_of(name: str) -> str:
        data = ""
        for entry in recipes[name].get("defaults", []):
            if isinstance(entry, dict):
                data = entry.get("override /data", data)
            elif entry in recipes:
                data = data_of(entry)
        return data

    for name in sorted(recipes):
        figures = recipes[name].get("published")
        if figures:
            found.setdefault(data_of(name), {})[name] = figures
    return found


Row = tuple[str, ...]
Measured = tuple[str, tuple[str, ...]]  # of `Setting.measured_on`


def by_data(
    rows: Iterable[tuple[Measured, Row]], make: Callable[[str, list[Row]], Table]
) -> list[Table]:
    """A table for each data set: figures on different ones can't be ranked.

    Args:
        rows: each with what it was measured on.
        make: a table from what its title is to end in and its rows.
    """
    groups: dict[Measured, list[Row]] = {}
    for measured, row in rows:
        groups.setdefault(measured, []).append(row)
    endings: list[str] = []
    for words, _ in groups:
        ending = f": {words}" if len(groups) > 1 and words else ""
        others = sum(one == ending for one in endings)
        endings.append(f"{ending} ({others + 1})" if others else ending)
    return [make(e, rows) for e, rows in zip(endings, groups.values(), strict=True)]


def published_figure(setting: Setting, stage: str, *keys: str) -> str:
    """A published figure of the same experiment on the same data, or a dash.

    Args:
        setting: what it is to stand beside.
        stage: the stage whose score it is; it must have scored the whole split.
        keys: where the figure lies under the recipe's key `published`.
    """
    value: Any = published().get(str(setting.data), {}).get(str(setting.experiment), {})
    if setting.overrides or not setting.scored_whole(stage):
        value = {}  # something else than what was published
    for key in keys:
        value = value.get(key, {}) if isinstance(value, dict) else {}
    return f"{value:g}" if isinstance(value, int | float) else NONE


def spread(values: Sequence[float]) -> str:
    """`41.20 ± 0.60` (sample standard deviation), or `41.20` for a single value."""
    mean = statistics.fmean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def cell(values: Sequence[float], seeds: int | None = None) -> str:
    """Mean and sample standard deviation over seeds, or `not run`.

    Args:
        values: one for each seed that has it.
        seeds: how many seeds the row has; a cell with fewer says so.
    """
    if not values:
        return NOT_RUN
    fewer = seeds is not None and len(values) < seeds
    return f"{spread(values)} ({len(values)} of {seeds})" if fewer else spread(values)


def seed_tables(settings: Sequence[Setting]) -> list[Table]:
    """Scores of the class maps as seeds."""
    rows = []
    for setting in settings:
        for kind in setting.rows("eval_cam"):
            best = setting.values("eval_cam", kind, "miou_best_threshold")
            at = setting.values("eval_cam", kind, "best_threshold")
            row = (
                setting.title,
                kind,
                cell(setting.values("eval_cam", kind)),
                cell(best),
                "" if not at else "–".join(dict.fromkeys(f"{f(at):.2f}" for f in (min, max))),
                published_figure(setting, "eval_cam", "seed")
                if kind == setting.main("eval_cam")
                else NONE,
                str(len(setting.values("eval_cam", kind))),
            )
            rows.append((setting.measured_on("eval_cam"), row))
    note = (
        "mIoU in %, image labels known, as in the papers. The best threshold is chosen on the "
        "masks that are scored; arg max is not."
    )
    columns = ("run", "map", "arg max", "best threshold", "at", "published", "seeds")
    return by_data(rows, lambda end, rows: Table(f"Seeds{end}", note, columns, tuple(rows), 5))


def mask_tables(settings: Sequence[Setting]) -> list[Table]:
    """From seeds to pseudo masks."""
    rows = []
    for setting in settings:
        made_by = setting.mask_stage
        crf, mask = setting.values("crf", "crf"), setting.values(made_by, made_by)
        if not crf and not mask:
            continue
        seed = max(setting.values("crf", "seed"), setting.values(made_by, "seed"), key=len)
        seeds = max(len(crf), len(mask))
        row = (
            setting.title,
            cell(seed, seeds),
            published_figure(setting, "crf" if crf else made_by, "seed"),
            cell(crf, seeds),
            published_figure(setting, "crf", "crf"),
            cell(mask, seeds),
            published_figure(setting, made_by, "mask"),
            str(seeds),
        )
        rows.append((setting.measured_on("crf" if crf else made_by), row))
    note = "mIoU in %, image labels known. Mask: after the random walk of IRN or PSA."
    columns = (
        "run",
        "seed",
        "published",
        "+ CRF",
        "published",
        "pseudo mask",
        "published",
        "seeds",
    )
    return by_data(
        rows, lambda end, rows: Table(f"Pseudo masks{end}", note, columns, tuple(rows), 7)
    )


def segmentation_tables(settings: Sequence[Setting]) -> list[Table]:
    """Scores of the segmentation network."""
    rows = []
    for setting in settings:
        for stage in setting.stage_names():
            if not stage.startswith("seg_eval") or not setting.rows(stage):
                continue
            split = stage.partition("/")[2]
            starts = {
                one.metrics.get("initial_weights", "?")
                for job in setting.jobs
                if (one := job.stage(stage)) is not None
            }
            plain = setting.values(stage, "network")
            row = (
                setting.title,
                split,
                ", ".join(sorted(str(start) for start in starts)),
                cell(plain),
                cell(setting.values(stage, "crf"), len(plain)),
                published_figure(setting, stage, "seg", split),
                str(len(plain)),
            )
            rows.append((setting.measured_on(stage), row))
    note = "mIoU in %, image labels unknown. Published numbers are with CRF."
    columns = ("run", "split", "initial weights", "network", "+ CRF", "published", "seeds")
    return by_data(
        rows, lambda end, rows: Table(f"Segmentation{end}", note, columns, tuple(rows), 4)
    )


def published_tables(settings: Sequence[Setting]) -> list[Table]:
    """What is published on the data of these runs, ours beside it or `not run`."""
    rows = []
    for data in dict.fromkeys(str(setting.data) for setting in settings):
        for experiment, figures in published().get(data, {}).items():
            ours = [
                s
                for s in settings
                if s.experiment == experiment and not s.overrides and s.scored_whole("eval_cam")
            ]
            seed = ours[0].values("eval_cam", ours[0].main("eval_cam")) if ours else []
            segmentation = figures.get("seg", {})
            row = (
                data,
                figures["row"],
                experiment,
                *(f"{figures[k]:g}" if k in figures else NONE for k in ("seed", "crf", "mask")),
                f"{segmentation['val']:g}" if "val" in segmentation else NONE,
                cell(seed),
                figures["source"],
            )
            rows.append(((data, ()), row))
    columns = ("data", "row", "experiment", "seed", "+ CRF", "mask", "val", "our seed", "source")
    return by_data(
        rows,
        lambda end, rows: Table(
            f"Published on this data{end}", "mIoU in %.", columns, tuple(rows), 6
        ),
    )


def tables(settings: Sequence[Setting]) -> list[Table]:
    """All tables that these runs have numbers for."""
    made = [
        *seed_tables(settings),
        *mask_tables(settings),
        *segmentation_tables(settings),
        *compared(pairs(settings)),
        *published_tables(settings),
    ]
    return [table.without_empty_published() for table in made]
