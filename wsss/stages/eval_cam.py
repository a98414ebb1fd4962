"""Score class maps as seeds on data.eval_split, and show them in a contact sheet."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsss.build.identity import masks_of
from wsss.build.job import METRICS, Job, Result
from wsss.build.objects import build_image_set
from wsss.build.settings import Settings, plain
from wsss.build.sources import map_source
from wsss.evaluation.scoring import SeedScore, absent_classes
from wsss.files import read_json
from wsss.maps.files import MapSource
from wsss.run.folder import MANIFEST
from wsss.run.group import led
from wsss.run.process import say
from wsss.show.charts import AT_THE_EDGE, at_the_edge
from wsss.show.sheets import Drawing, map_column, seed_column, truth_column


def threshold_grid(first: float, last: float, step: float) -> np.ndarray:
    """The constants first, first + step, ..., last."""
    return np.round(np.arange(first, last + step / 2, step), 6)


def seed_table(kinds: dict[str, Any], main: str) -> str:
    """The figures of all kinds, as aligned lines."""
    lines = [f"{'map':<10}{'arg max':>9}{'best':>8}{'at':>6}{'FP':>7}{'FN':>7}"]
    for kind, result in kinds.items():
        lines.append(
            f"{kind + (' *' if kind == main else ''):<10}{result['miou']:>9.2f}"
            f"{result['miou_best_threshold']:>8.2f}{result['best_threshold']:>6.2f}"
            f"{result['false_positive']:>7.1f}{result['false_negative']:>7.1f}"
        )
    return "\n".join(lines)


def remarks(kinds: dict[str, Any], thresholds: tuple[float, ...]) -> list[str]:
    """What is to be known beside the figures: searches that ended at an edge, absent classes."""
    edge = [
        kind
        for kind, result in kinds.items()
        if at_the_edge(thresholds, thresholds.index(result["best_threshold"]))
    ]
    said = [f"{', '.join(edge)}: best at {AT_THE_EDGE} (eval_cam.thresholds)"] if edge else []
    return said + absent_classes(kinds)


@led
def run(s: Settings) -> Result:
    """Score every kind of map that make_cam made."""
    image_set = build_image_set(s)
    split = s.data.eval_split
    if s.stage == "all" and not any(map(image_set.has_mask, image_set.names(split))):
        say(f"eval_cam: left out, as no image of split '{split}' has a mask to score against")
        return Result("eval_cam")
    source = map_source(s, "eval_cam", image_set.classes)
    made = read_json(source.folder.parent / MANIFEST)
    image_set.check(s.data.eval_split, need_masks=True)
    options = {k: v for k, v in plain(s.eval_cam).items() if k not in ("workers", "pictures")}
    identity = {"eval_cam": options, "eval_split": s.data.eval_split, "kind": source.kind}
    inputs = {"make_cam": made["hash"], **masks_of(s, image_set, s.data.eval_split)}
    job = Job(s, "eval_cam", identity, inputs, needs=lambda path: [path / METRICS])
    if job.finished:
        return job.result()
    names = image_set.names(s.data.eval_split)
    maps, main = source.folder, source.kind
    thresholds = tuple(threshold_grid(*s.eval_cam.thresholds).tolist())
    scores = {
        kind: SeedScore(
            image_set, MapSource(maps, kind, made["hash"]), s.eval_cam.background, thresholds
        )
        for kind in made["kinds"]
    }
    kinds = job.scores(
        scores,
        names,
        main,
        s.eval_cam.workers,
        split=s.data.eval_split,
        image_labels_known=True,
        tuned_on_masks=["miou_best_threshold", "best_threshold"],
    )
    result = kinds[main]
    columns: dict[str, Drawing] = {}
    for kind in kinds:
        columns[kind] = map_column(maps, kind)
        columns[f"{kind} seed"] = seed_column(maps, kind, s.eval_cam.background)
    columns["truth"] = truth_column(image_set)
    sheet = job.sheet(image_set, names, s.eval_cam.pictures, columns)
    say(seed_table(kinds, main))
    for line in remarks(kinds, thresholds):
        say(f"eval_cam: {line}")
    return job.close(
        f"mIoU {result['miou']:.2f} by arg max, {result['miou_best_threshold']:.2f} at the best "
        f"threshold (tuned on these masks), {len(names)} images of {s.data.eval_split} in {{time}}",
        sheet or job.path,
        miou=result["miou"],
        images=len(names),
    )
