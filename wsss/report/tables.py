"""The tables of a report, as plain cells: seeds, pseudo masks, segmentation, published numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from wsss.report.gather import Setting

PUBLISHED = Path(__file__).with_name("published.yaml")
NOT_RUN = "not run"
NONE = "–"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: heading.
        note: what a reader must know to read it.
        columns: their names.
        rows: cells as text.
        numbers: how many columns from the right are aligned as numbers.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: int

    def without_empty_published(self) -> Table:
        """The table without columns `published` in which there is nothing but dashes."""
        kept = [
            i
            for i, name in enumerate(self.columns)
            if name != "published" or any(row[i] != NONE for row in self.rows)
        ]
        return Table(
            self.title,
            self.note,
            tuple(self.columns[i] for i in kept),
            tuple(tuple(row[i] for i in kept) for row in self.rows),
            self.numbers - (len(self.columns) - len(kept)),
        )

    def markdown(self) -> str:
        """The table in Markdown, columns aligned."""
        lines = [[c.replace("|", "\\|") for c in row] for row in (self.columns, *self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        shown = [
            "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
            for line in lines
        ]
        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        return "\n".join([f"## {self.title}", "", shown[0], rule, *shown[1:], "", self.note])


@cache
def published() -> dict[str, dict[str, dict[str, Any]]]:
    """Published figures by data set and experiment."""
    content = OmegaConf.to_container(OmegaConf.load(PUBLISHED))
    assert isinstance(content, dict)
    return content  # type: ignore[return-value]


def published_figure(setting: Setting, stage: str, *keys: str) -> str:
    """A published figure of the same experiment on the same data, or a dash.

    Args:
        setting: what it is to stand beside.
        stage: the stage whose score it is; it must have scored the whole split.
        keys: where the figure lies in `published.yaml`.
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


def seed_table(settings: Sequence[Setting]) -> Table | None:
    """Scores of the class maps as seeds."""
    rows = []
    for setting in settings:
        for kind in setting.rows("eval_cam"):
            best = setting.values("eval_cam", kind, "miou_best_threshold")
            at = setting.values("eval_cam", kind, "best_threshold")
            rows.append(
                (
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
            )
    if not rows:
        return None
    note = (
        "mIoU in %, image labels known, as in the papers. The best threshold is chosen on the "
        "masks that are scored; arg max is not."
    )
    columns = ("run", "map", "arg max", "best threshold", "at", "published", "seeds")
    return Table("Seeds", note, columns, tuple(rows), 5)


def mask_table(settings: Sequence[Setting]) -> Table | None:
    """From seeds to pseudo masks."""
    rows = []
    for setting in settings:
        crf, mask = setting.values("crf", "crf"), setting.values("irn_masks", "irn_masks")
        if not crf and not mask:
            continue
        seed = max(setting.values("crf", "seed"), setting.values("irn_masks", "seed"), key=len)
        seeds = max(len(crf), len(mask))
        rows.append(
            (
                setting.title,
                cell(seed, seeds),
                published_figure(setting, "crf" if crf else "irn_masks", "seed"),
                cell(crf, seeds),
                published_figure(setting, "crf", "crf"),
                cell(mask, seeds),
                published_figure(setting, "irn_masks", "mask"),
                str(seeds),
            )
        )
    if not rows:
        return None
    note = "mIoU in %, image labels known. Mask: after IRN's random walk."
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
    return Table("Pseudo masks", note, columns, tuple(rows), 7)


def segmentation_table(settings: Sequence[Setting]) -> Table | None:
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
            rows.append(
                (
                    setting.title,
                    split,
                    ", ".join(sorted(starts)),
                    cell(plain),
                    cell(setting.values(stage, "crf"), len(plain)),
                    published_figure(setting, stage, "seg", split),
                    str(len(plain)),
                )
            )
    if not rows:
        return None
    note = "mIoU in %, image labels unknown. Published numbers are with CRF."
    columns = ("run", "split", "initial weights", "network", "+ CRF", "published", "seeds")
    return Table("Segmentation", note, columns, tuple(rows), 4)


def published_table(settings: Sequence[Setting]) -> Table | None:
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
            rows.append(
                (
                    data,
                    figures["row"],
                    experiment,
                    *(f"{figures[k]:g}" if k in figures else NONE for k in ("seed", "crf", "mask")),
                    f"{segmentation['val']:g}" if "val" in segmentation else NONE,
                    cell(seed),
                    figures["source"],
                )
            )
    if not rows:
        return None
    columns = ("data", "row", "experiment", "seed", "+ CRF", "mask", "val", "our seed", "source")
    return Table("Published on this data", "mIoU in %.", columns, tuple(rows), 6)


def tables(settings: Sequence[Setting]) -> list[Table]:
    """All tables that these runs have numbers for."""
    made = (
        seed_table(settings),
        mask_table(settings),
        segmentation_table(settings),
        published_table(settings),
    )
    return [table.without_empty_published() for table in made if table is not None]
