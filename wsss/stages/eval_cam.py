"""Score class maps as seeds on data.eval_split, and show them in a contact sheet."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsss.build.job import METRICS, Job, Result
from wsss.build.objects import build_image_set
from wsss.build.settings import Settings, plain
from wsss.evaluation.confusion import scores
from wsss.evaluation.seeds import SeedTask
from wsss.files import write_json
from wsss.maps.files import MAPS
from wsss.run.folder import require
from wsss.run.pool import parallel
from wsss.run.process import say
from wsss.show.dashboard import show_scores
from wsss.show.sheets import Drawing, map_column, seed_column, truth_column

CHUNK = 8


def threshold_grid(first: float, last: float, step: float) -> np.ndarray:
    """The constants first, first + step, ..., last."""
    return np.round(np.arange(first, last + step / 2, step), 6)


def score_kind(task: SeedTask, names: list[str], workers: int) -> dict[str, Any]:
    """All figures of one kind of map, in percent."""
    classes = task.image_set.classes
    chunks = [names[i : i + CHUNK] for i in range(0, len(names), CHUNK)]
    labels = len(classes) + 1
    matrix = np.zeros((labels, labels), dtype=np.int64)
    by_threshold = np.zeros((len(task.thresholds), labels, labels), dtype=np.int64)
    for one, curve in parallel(task, chunks, f"eval_cam {task.kind}", workers):
        matrix += one
        by_threshold += curve
    curve_scores = [scores(m) for m in by_threshold]
    best = int(np.argmax([s.miou for s in curve_scores]))
    return {
        **scores(matrix).as_dict(classes),
        "miou_best_threshold": curve_scores[best].miou,
        "best_threshold": float(task.thresholds[best]),
        "best": curve_scores[best].as_dict(classes),
        "curve": {
            "threshold": task.thresholds.tolist(),
            "miou": [s.miou for s in curve_scores],
            "false_positive": [s.false_positive for s in curve_scores],
            "false_negative": [s.false_negative for s in curve_scores],
        },
        "confusion": matrix.tolist(),
    }


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


def run(s: Settings) -> Result:
    """Score every kind of map that make_cam made."""
    made = require(s.folder("make_cam"), "make_cam", "eval_cam")
    options = {k: v for k, v in plain(s.eval_cam).items() if k not in ("workers", "pictures")}
    identity = {"eval_cam": options, "eval_split": s.data.eval_split}
    job = Job(s, "eval_cam", identity, {"make_cam": made["hash"]})
    if job.finished or not job.main:
        return job.result()
    image_set = build_image_set(s)
    image_set.check(s.data.eval_split, need_masks=True)
    names = image_set.names(s.data.eval_split)
    maps = s.folder("make_cam") / MAPS
    thresholds = threshold_grid(*s.eval_cam.thresholds)
    kinds = {
        kind: score_kind(
            SeedTask(image_set, maps, kind, s.eval_cam.background, thresholds),
            names,
            s.eval_cam.workers,
        )
        for kind in made["kinds"]
    }
    main = list(kinds)[-1]
    result = {
        **{k: kinds[main][k] for k in ("miou", "miou_best_threshold", "best_threshold")},
        "main": main,
        "kinds": kinds,
        "images": len(names),
        "image_labels_known": True,
        "tuned_on_masks": ["miou_best_threshold", "best_threshold"],
    }
    write_json(job.path / METRICS, result)
    show_scores(job.loggers, job.path, kinds, main)
    columns: dict[str, Drawing] = {}
    for kind in kinds:
        columns[kind] = map_column(maps, kind)
        columns[f"{kind} seed"] = seed_column(maps, kind, s.eval_cam.background)
    columns["truth"] = truth_column(image_set)
    sheet = job.sheet(image_set, names, s.eval_cam.pictures, columns)
    say(seed_table(kinds, main))
    return job.close(
        f"mIoU {result['miou']:.2f} by arg max, {result['miou_best_threshold']:.2f} at the best "
        f"threshold (tuned on these masks), {len(names)} images in {{time}}",
        sheet or job.path,
        miou=result["miou"],
        images=len(names),
    )
