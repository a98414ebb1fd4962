"""Settings compared two by two over their common seeds, with the noise of seeds and of images."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from wsss.evaluation.paired import (
    Interval,
    aligned,
    over_images,
    over_seeds,
    resampled,
    scores_of,
    verdict,
)
from wsss.evaluation.per_image import Confusions
from wsss.report.gather import Setting, Stage, is_number
from wsss.report.table import NONE, Table
from wsss.show.figure import figure
from wsss.show.fonts import readable

ALL_PAIRS = 8  # settings; of more each is compared with the first
OVER = ("95 % over seeds", "95 % over images")
CLASS_TABLES = 6  # pairs whose classes have a table of their own


@dataclass(frozen=True)
class Contender:
    """A row of scores over seeds.

    Attributes:
        title: of the setting, or of the row within it.
        row: name of the row of scores.
        stages: the stage by seed.
    """

    title: str
    row: str
    stages: dict[int, Stage]


@dataclass(frozen=True)
class Difference:
    """A figure of two contenders, compared over their common seeds; percent points.

    Attributes:
        name: what is compared: a class, or all.
        first: mean of the earlier contender.
        second: mean of the later one.
        differences: second minus first, by seed.
        images: interval over images; None where images were not kept or are not the same.
    """

    name: str
    first: float
    second: float
    differences: tuple[float, ...]
    images: Interval | None

    @property
    def seeds(self) -> Interval:
        """Interval over seeds."""
        return over_seeds(self.differences)


@dataclass(frozen=True)
class Pair:
    """Two contenders.

    Attributes:
        what: the score: `seeds`, `+ CRF`, `val`, ...
        measured: what it was measured on.
        first: title of the earlier one.
        second: title of the later one.
        whole: mIoU.
        classes: ioU of each class.
        reason: why there is no interval over images; empty if there is one.
    """

    what: str
    measured: str
    first: str
    second: str
    whole: Difference
    classes: tuple[Difference, ...]
    reason: str = ""


@dataclass(frozen=True)
class Compared(Table):
    """A table of paired differences.

    Attributes:
        pairs: its rows.
    """

    pairs: tuple[Pair, ...]


def pairs(settings: Sequence[Setting]) -> list[Pair]:
    """All pairs of settings with common seeds, score by score.

    Of a single setting its own rows (kinds of map, with and without CRF) are compared. Settings
    that were scored on other data are not.
    """
    found = []
    names = dict.fromkeys(name for setting in settings for name in setting.stage_names())
    for stage in names:
        groups: dict[tuple[str, tuple[str, ...]], list[Contender]] = {}
        having = [setting for setting in settings if setting.main(stage)]
        for setting in having:
            stages = setting.by_seed(stage)
            rows = setting.rows(stage) if len(having) == 1 else [setting.main(stage)]
            for row in rows:
                title = row if len(having) == 1 else setting.title
                one = Contender(title, row, {k: s for k, s in stages.items() if row in s.scores})
                groups.setdefault(setting.measured_on(stage), []).append(one)
        for (measured, _), group in groups.items():
            found += _pairs(stage, measured, group)
    return found


def _pairs(stage: str, measured: str, group: Sequence[Contender]) -> list[Pair]:
    """Pairs of contenders that were measured on the same; their images are drawn together."""
    chosen = list(combinations(group, 2))
    if len(group) > ALL_PAIRS:
        chosen = [(group[0], other) for other in group[1:]]
    chosen = [(a, b) for a, b in chosen if a.stages.keys() & b.stages.keys()]
    chosen_ids = {id(one) for pair in chosen for one in pair}
    draws, reasons = _draws([one for one in group if id(one) in chosen_ids])
    made = []
    for a, b in chosen:
        made.append(_pair(stage, measured, a, b, draws, reasons))
        if stage == "eval_cam":
            made += _best_thresholds(measured, a, b)
    return made


Draws = dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]


def _draws(group: Sequence[Contender]) -> tuple[Draws, dict[tuple[int, int], str]]:
    """Scores of every run that kept its images: on all of them, and on images drawn anew.

    Returns:
        By contender (its `id`) and seed the scores, or why there are none.
    """
    runs: dict[tuple[int, int], Confusions] = {}
    reasons: dict[tuple[int, int], str] = {}
    for one in group:
        for seed, stage in one.stages.items():
            key = (id(one), seed)
            kept = stage.confusions(one.row)
            if kept is None or not kept.names:
                reasons[key] = "images not kept"
                continue
            try:
                runs[key] = aligned([next(iter(runs.values()), kept), kept])[1]
            except ValueError as error:
                reasons[key] = str(error)
    if len(runs) < 2:
        return {}, reasons
    drawn = resampled(list(runs.values()))
    found = zip(runs, drawn, strict=True)
    return {key: (scores_of(runs[key]), scores) for key, scores in found}, reasons


def _pair(
    stage: str,
    measured: str,
    a: Contender,
    b: Contender,
    draws: Draws,
    reasons: dict[tuple[int, int], str],
) -> Pair:
    seeds = sorted(a.stages.keys() & b.stages.keys())
    scores = [[one.stages[seed].scores[one.row] for seed in seeds] for one in (a, b)]
    keys = [[(id(one), seed) for seed in seeds] for one in (a, b)]
    lacking = [reasons[key] for key in (*keys[0], *keys[1]) if key in reasons]
    names = list(scores[0][0].get("iou", {}))
    images: list[Interval | None] = [None] * (1 + len(names))
    if not lacking and all(key in draws for key in (*keys[0], *keys[1])):
        first, second = (np.stack([draws[key][1] for key in one]) for one in keys)
        low, high = over_images(second, first)
        means = [np.mean([draws[key][0] for key in one], axis=0) for one in keys]
        table = np.stack([means[1] - means[0], low, high], axis=1)
        images = [Interval(*row) for row in table.tolist()]
    values = [[float(one["miou"]) for one in side] for side in scores]
    classes = []
    for name, interval in zip(names, images[1:], strict=True):
        both = [
            (x["iou"][name], y["iou"][name])
            for x, y in zip(*scores, strict=True)
            if is_number(x.get("iou", {}).get(name)) and is_number(y.get("iou", {}).get(name))
        ]
        if both:
            classes.append(_difference(name, [x for x, _ in both], [y for _, y in both], interval))
    whole = _difference("mIoU", values[0], values[1], images[0])
    reason = lacking[0] if lacking else ""
    return Pair(_words(stage), measured, a.title, b.title, whole, tuple(classes), reason)


def _best_thresholds(measured: str, a: Contender, b: Contender) -> list[Pair]:
    """The pair's seeds at their best thresholds; of images only the arg max is kept."""
    figure = "miou_best_threshold"
    values = []
    for seed in sorted(a.stages.keys() & b.stages.keys()):
        x, y = (one.stages[seed].scores[one.row].get(figure) for one in (a, b))
        if is_number(x) and is_number(y):
            values.append((float(x), float(y)))
    if not values:
        return []
    whole = _difference(figure, [x for x, _ in values], [y for _, y in values], None)
    what = "seeds, best threshold"
    return [Pair(what, measured, a.title, b.title, whole, (), "arg max only")]


def _difference(
    name: str, first: Sequence[float], second: Sequence[float], images: Interval | None
) -> Difference:
    gaps = tuple(y - x for x, y in zip(first, second, strict=True))
    return Difference(name, float(np.mean(first)), float(np.mean(second)), gaps, images)


def _words(stage: str) -> str:
    """What a stage's scores are of."""
    name, _, split = stage.partition("/")
    known = {"eval_cam": "seeds, arg max", "crf": "seeds + CRF", "irn_masks": "pseudo masks"}
    return f"segmentation of {split}" if split else known.get(name, name)


def shown(interval: Interval | None) -> str:
    """An interval's bounds, signed, or a dash."""
    if interval is None or math.isnan(interval.low):
        return NONE
    return f"{interval.low:+.2f} to {interval.high:+.2f}"


def compared(found: Sequence[Pair]) -> list[Table]:
    """Tables of paired differences: one for each data set, then classes of the first pairs."""
    made: list[Table] = []
    columns = ("score", "setting", "against", "difference", *OVER, "common seeds", "verdict")
    note = (
        "Percent points of mIoU, setting minus the one that it is compared with, paired by seed. "
        "Over seeds: t-interval of the mean paired difference. Over images: bootstrap of the "
        "scored images, the same ones drawn for all runs. Beyond noise: both leave out 0. What "
        "more seeds would show, or these would have shown, is by a power of 80 %."
    )
    with_classes = [pair for pair in found if pair.classes]
    if len(with_classes) > CLASS_TABLES:
        note += f" Classes: of the first {CLASS_TABLES} pairs; report.runs=[...] names others."
    datas = dict.fromkeys(pair.measured for pair in found)
    for data in datas:
        here = tuple(pair for pair in found if pair.measured == data)
        rows: list[tuple[str, ...]] = [
            (
                pair.what,
                pair.second,
                pair.first,
                f"{pair.whole.seeds.mean:+.2f}",
                shown(pair.whole.seeds),
                shown(pair.whole.images) if pair.whole.images else pair.reason or NONE,
                str(len(pair.whole.differences)),
                verdict(pair.whole.differences, pair.whole.images),
            )
            for pair in here
        ]
        title = "Paired differences" + (f": {data}" if len(datas) > 1 and data else "")
        heads: tuple[str, ...] = columns
        against = {pair.first for pair in here}
        if len({pair.second for pair in here}) >= ALL_PAIRS and len(against) == 1:
            # All are compared with one: it stands once, above.
            title += f", against {against.pop()}"
            heads = tuple(column for column in columns if column != "against")
            rows = [(*row[:2], *row[3:]) for row in rows]
        made.append(Compared(title, note, heads, tuple(rows), 5, here))
    return made + [_class_table(pair) for pair in with_classes[:CLASS_TABLES]]


def _class_table(pair: Pair) -> Table:
    rows = [
        (
            one.name,
            f"{one.first:.2f}",
            f"{one.second:.2f}",
            f"{one.seeds.mean:+.2f}",
            shown(one.seeds),
            shown(one.images),
            "beyond noise"
            if one.seeds.beyond and (one.images is None or one.images.beyond)
            else "",
        )
        for one in pair.classes
    ]
    note = (
        f"IoU in %, {pair.what}. With {len(rows)} classes, about {0.05 * len(rows):.0f} of the "
        "intervals of each column leave out 0 by chance alone."
    )
    columns = ("class", pair.first, pair.second, "difference", *OVER, "verdict")
    title = f"Classes: {pair.second} against {pair.first}, {pair.what}"
    return Table(title, note, columns, tuple(rows), 6)


def draw_differences(found: Sequence[Pair], path: Path) -> Path:
    """Write paired differences of mIoU with their intervals over seeds and over images.

    Args:
        found: one line each.
        path: PNG to write.

    Returns:
        `path`.
    """
    titles = [
        "\n".join(
            textwrap.shorten(readable(line), 40, placeholder="…")
            for line in (pair.second, f"against {pair.first}", pair.what)
        )
        for pair in found
    ]
    with figure(path, 7, 1.2 + 0.6 * len(found)) as made:
        axis = made.subplots()
        axis.axvline(0, color="0.6", lw=0.8)
        for shift, color, what in ((-0.12, "C0", "seeds"), (0.12, "C1", "images")):
            labeled = False
            for place, pair in enumerate(found):
                interval = pair.whole.seeds if what == "seeds" else pair.whole.images
                if interval is None or math.isnan(interval.low):
                    continue
                label = None if labeled else f"95 % over {what}"
                bounds, line = [interval.low, interval.high], [place + shift] * 2
                axis.plot(bounds, line, "|-", color=color, label=label)
                labeled = True
        for place, pair in enumerate(found):
            gaps = pair.whole.differences
            axis.plot(gaps, [place] * len(gaps), ".", color="0.5", ms=4)
            axis.plot([float(np.mean(gaps))], [place], "ko", ms=5)
        axis.set_yticks(range(len(found)), titles, fontsize="small")
        axis.set(xlabel="difference of mIoU (percent points)", ylim=(len(found) - 0.4, -0.6))
        if axis.get_legend_handles_labels()[0]:
            made.legend(loc="outside upper center", ncols=2)
    return path
