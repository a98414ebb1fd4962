"""A report as one HTML file that needs nothing beside itself."""

from __future__ import annotations

import base64
import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from wsss.report.compare import Compared, draw_differences
from wsss.report.gather import Setting, Stage, differing
from wsss.report.table import Table, escaped
from wsss.run.logs import read_metrics
from wsss.run.progress import duration, track
from wsss.show.charts import (
    draw_class_bars,
    draw_confusion,
    draw_steps,
    draw_threshold_curves,
    draw_training,
)

CHART_WIDTH = 1000  # pixels; wider charts (confusions of many classes) have a line to themselves
WIDEST = 1400  # pixels, at most
MOST_COMPARED = 8  # settings in one figure
MOST_DRAWN = 24  # differences in one figure; the table has all
MOST_SHOWN = 12  # settings whose figures are in the page; those of further ones are linked
NAMED_GAPS = 3  # runs named in a line that stands for several
SCORED = ("eval_cam", "crf", "irn_masks", "psa_masks", "seg_eval")
OTHER_FIGURES = ("bank_history.png",)
NOTES = (
    "± is the sample standard deviation over seeds; bars and bands in figures of several settings "
    "are 95 % t-intervals of the mean. Published numbers were measured on VOC 2012 and COCO 2014; "
    "they stand only beside runs of the same experiment on the same data. "
    "A cell says “not run” where nothing was measured."
)


@dataclass(frozen=True)
class Picture:
    """A picture inside the page: data URL, size in pixels, what it shows."""

    source: str
    width: int
    height: int
    caption: str

    @property
    def wide(self) -> bool:
        """Whether it has a line of the page to itself."""
        return self.width > CHART_WIDTH


def embed(path: Path, caption: str, photographic: bool = False) -> Picture:
    """A picture file as part of the page, at most `WIDEST` pixels wide.

    Args:
        path: any format that Pillow reads.
        caption: what it shows.
        photographic: stored as JPEG instead of PNG.
    """
    with Image.open(path) as file:
        picture = file.convert("RGB")
    if picture.width > WIDEST:
        height = max(1, round(picture.height * WIDEST / picture.width))
        picture = picture.resize((WIDEST, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if photographic:
        picture.save(buffer, "JPEG", quality=82)
    else:
        picture.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    kind = "jpeg" if photographic else "png"
    data = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:image/{kind};base64,{data}", picture.width, picture.height, caption)


def charts_of(stage: Stage) -> list[Picture]:
    """Figures of a stage's numbers: curves of a training, scores by class and by threshold."""
    made: list[tuple[Path, str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = read_metrics(stage.folder / "metrics.csv")
        if stage.name.endswith("train"):
            made += [(path, path.stem) for path in draw_training(rows, folder)]
        scores = stage.scores
        if scores and stage.name.partition("/")[0] in SCORED:
            curves = {kind: one for kind, one in scores.items() if "curve" in one}
            if curves:
                path = draw_threshold_curves(curves, folder / "curve.png")
                made.append((path, "mIoU by background threshold"))
            if all("iou" in one for one in scores.values()):
                made.append((draw_class_bars(scores, folder / "classes.png"), "IoU by class"))
            main = stage.main
            if "confusion" in scores[main] and "iou" in scores[main]:
                names = label_names(scores[main])
                matrix = np.array(scores[main]["confusion"])
                path = draw_confusion(matrix, names, folder / "confusion.png", main)
                made.append((path, f"confusion of {main}"))
        made += [
            (stage.folder / name, name.removesuffix(".png").replace("_", " "))
            for name in OTHER_FIGURES
            if (stage.folder / name).is_file()
        ]
        return [embed(p, f"{stage.name}: {what}") for p, what in made]


def differences(tables: Sequence[Table]) -> list[Picture]:
    """A figure of each table of paired differences."""
    made = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, table in enumerate(tables):
            if isinstance(table, Compared) and len(table.pairs) <= MOST_DRAWN:
                path = draw_differences(table.pairs, Path(temporary) / f"{number}.png")
                made.append(embed(path, table.title))
    return made


def comparison(settings: Sequence[Setting]) -> list[Picture]:
    """The steps of the chain, classes and thresholds of settings on the same data, side by side."""
    groups: dict[Any, list[Setting]] = {}
    for setting in settings:
        # Scored on the same images, as in the tables; without seeds' scores, of the same data set.
        groups.setdefault((setting.data, setting.measured_on("eval_cam")), []).append(setting)
    return [picture for group in groups.values() for picture in _comparison(group)]


def _comparison(settings: Sequence[Setting]) -> list[Picture]:
    if not 2 <= len(settings) <= MOST_COMPARED:
        return []
    titles = [setting.title for setting in settings]
    if len({setting.run for setting in settings}) == 1:  # what they share tells nothing
        titles = [title.removeprefix(settings[0].run).strip() or title for title in titles]
    named = dict(zip(titles, settings, strict=True))
    several = ", means over seeds" if any(len(setting.jobs) > 1 for setting in settings) else ""
    steps = {title: chain for title, one in named.items() if (chain := chain_of(one))}
    seeds = {title: scores for title, one in named.items() if (scores := one.averaged("eval_cam"))}
    comparable = {tuple(scores.get("iou", ())) for scores in seeds.values()}
    made = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if sum(len(one) > 1 for one in steps.values()) > 1:
            each = ", each seed a point" if several else ""
            path = draw_steps(steps, folder / "steps.png")
            made.append((path, f"mIoU from step to step{several}{each}"))
        if len(seeds) > 1 and len(comparable) == 1 and comparable != {()}:
            path = draw_class_bars(seeds, folder / "classes.png")
            made.append((path, f"IoU of the seeds by class{several}"))
        if len(seeds) > 1 and all("curve" in scores for scores in seeds.values()):
            path = draw_threshold_curves(seeds, folder / "curve.png")
            what = "mIoU of the seeds by background threshold"
            made.append((path, what + (f"{several}, one threshold for all" if several else "")))
        return [embed(path, what) for path, what in made]


def chain_of(setting: Setting) -> dict[str, list[float]]:
    """The figures of all seeds of each step of the chain that a setting has, in order."""
    places = [
        ("seeds", "eval_cam", setting.main("eval_cam")),
        ("+ CRF", "crf", "crf"),
        ("pseudo masks", setting.mask_stage, setting.mask_stage),
    ]
    for stage in setting.stage_names():
        name, _, split = stage.partition("/")
        if name == "seg_eval":
            places += [(f"{split}: network", stage, "network"), (f"{split}: + CRF", stage, "crf")]
    found = {what: setting.values(stage, row) for what, stage, row in places}
    return {what: values for what, values in found.items() if values}


def label_names(scores: dict[str, Any]) -> list[str]:
    """Labels in the order of their ids: background, then classes as the scores name them."""
    names = [name for name in scores["iou"] if name != "background"]
    return ["background", *names]


def _about(setting: Setting) -> str:
    config, choices = setting.jobs[0].config, setting.jobs[0].choices
    parts = [
        f"{group} {choices[group]}"
        for group in ("method", "backbone", "data")
        if choices.get(group)
    ]
    for key, what in (
        ("data.train_split", "trained on"),
        ("data.infer_split", "maps of"),
        ("data.eval_split", "scored on"),
    ):
        if config.get(key):
            parts.append(f"{what} {config[key]}")
    revisions = _revisions(setting)
    if len(revisions) == 1:
        parts.append(f"code {revisions.pop()}")
    return ", ".join(parts)


def _revisions(setting: Setting) -> set[str]:
    """Revisions of the code that made the stages; `+`: of a changed working tree."""
    manifests = [s.manifest for job in setting.jobs for s in job.stages if s.manifest]
    return {str(m["revision"]) for m in manifests if m.get("revision")}


def _state(stage: Stage | None, revision: bool) -> tuple[str, str]:
    """Class and text of a cell of the table of stages, with the code's revision or without."""
    if stage is None:
        return "none", "not run"
    if stage.state != "finished":
        return stage.state, f"{stage.state}{': ' + stage.failure if stage.failure else ''}"
    manifest = stage.manifest or {}
    parts = [f"mIoU {manifest['miou']:.2f}"] if isinstance(manifest.get("miou"), float) else []
    if isinstance(manifest.get("loss"), float):
        parts.append(f"loss {manifest['loss']:.4f}")
    if "images" in manifest:
        parts.append(f"{manifest['images']} images")
    if "seconds" in manifest:
        parts.append(duration(manifest["seconds"]))
    if revision and "revision" in manifest:
        parts.append(str(manifest["revision"]))
    return "finished", ", ".join(parts) or "finished"


def _entry(setting: Setting, folder: Path | None = None) -> dict[str, Any]:
    """What the page says of a setting.

    Args:
        setting: the setting.
        folder: that the page lies in, to link figures from; None: they are in the page.
    """
    first = setting.jobs[0]
    revisions = _revisions(setting)
    charts: list[Picture] = []
    sheets: list[Picture] = []
    links: list[tuple[str, str]] = []
    for stage in first.stages:
        if folder is not None:
            for path in sorted(stage.folder.glob("*.png")):
                target = os.path.relpath(path, folder)
                links.append((quote(target), f"{stage.name}/{path.stem}"))
            continue
        charts += charts_of(stage)
        sheet = stage.folder / "contact_sheet.png"
        shown_later = stage.name == "make_cam" and first.stage("eval_cam") is not None
        if sheet.is_file() and not shown_later:  # eval_cam's has the same maps and more
            sheets.append(embed(sheet, f"{stage.name}: pictures", photographic=True))
    newest = next((s.manifest for s in reversed(first.stages) if s.manifest), None) or {}
    versions = [(f"version of {k}", v) for k, v in newest.get("versions", {}).items()]
    return {
        "title": setting.title,
        "about": _about(setting),
        "jobs": [job.folder.name for job in setting.jobs],
        "stages": [
            (name, [_state(job.stage(name), len(revisions) > 1) for job in setting.jobs])
            for name in setting.stage_names()
        ],
        "charts": charts,
        "sheets": sheets,
        "links": links,
        "config": [*sorted(first.config.items()), *versions],
    }


def counted(number: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def missing(settings: Sequence[Setting]) -> list[str]:
    """A line for each gap; one for all runs that lack the same."""
    places: dict[str, list[str]] = {}
    for setting in settings:
        for gap in setting.gaps():
            places.setdefault(gap.what, []).append(gap.where)
    lines = []
    for what, where in places.items():
        if len(where) <= NAMED_GAPS:
            lines += [f"{one}{what}" for one in where]
        else:
            named = "; ".join(where[:NAMED_GAPS])
            lines.append(
                f"{what.lstrip('/: ')} ({len(where)} runs: {named} and "
                f"{len(where) - NAMED_GAPS} more)"
            )
    return lines


def markdown(title: str, settings: Sequence[Setting], tables: Sequence[Table]) -> str:
    """The tables and what is missing in Markdown; the arguments are those of `render`."""
    parts = [f"# {escaped(title)}", *(table.markdown() for table in tables), escaped(NOTES)]
    gaps = [f"- {escaped(gap)}" for gap in missing(settings)]
    parts += ["\n".join(["## Missing", "", *gaps])] if gaps else []
    return "\n\n".join(parts) + "\n"


def render(
    title: str, settings: Sequence[Setting], tables: Sequence[Table], folder: Path = Path()
) -> str:
    """The page.

    Args:
        title: its heading.
        settings: what was gathered.
        tables: shown first, in this order.
        folder: that the page will lie in. Figures of the first `MOST_SHOWN` settings are in the
            page, those of further ones are linked from there.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    entries = [
        _entry(setting, folder if number >= MOST_SHOWN else None)
        for number, setting in enumerate(track(settings, "report: figures"))
    ]
    jobs = [job for setting in settings for job in setting.jobs]
    failed = sum(any(stage.state == "failed" for stage in job.stages) for job in jobs)
    runs = counted(len(jobs), "run") + (f", {failed} of them failed" if failed else "")
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    summary = f"{counted(len(settings), 'setting')}, {runs}; made {made}"
    return environment.get_template("page.html.j2").render(
        title=title,
        summary=summary,
        tables=tables,
        notes=NOTES,
        gaps=missing(settings),
        comparison=differences(tables) + comparison(settings),
        differing=differing(settings),
        settings=entries,
        many=len(settings) > MOST_SHOWN,
        shown=MOST_SHOWN,
    )
