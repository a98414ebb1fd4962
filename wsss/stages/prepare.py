"""Derive lists, labels and masks from the raw data, check all of it, and show what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsss.build.job import SHEET, Job, Result
from wsss.build.objects import build_image_set
from wsss.build.settings import Settings
from wsss.data.prepare import complaint, prepare
from wsss.files import read_json, write_json
from wsss.run.folder import MANIFEST, reopen
from wsss.run.group import led
from wsss.run.process import say
from wsss.show.sheets import label_sheet

PICTURES = 12  # rows of the contact sheet
CLASSES_IN_A_LINE = 4
LARGE = 2.0  # times the largest long side in training


@led
def run(s: Settings) -> Result:
    """Prepare and check the splits that the other stages use; all problems are told at once."""
    data = s.data
    expected = {split: n for split, n in (data.expected_counts or {}).items() if n is not None}
    used = {key: getattr(data, f"{key}_split") for key in ("train", "infer", "eval", "val")}
    image_set = build_image_set(s)
    forget_if_changed(s.folder("prepare"), image_set.fingerprint())
    job = Job(s, "prepare", {"name": data.name, "expected_counts": expected, "splits": used})
    if job.finished:
        return job.result()
    # Masks and the segmentation network's split may be wanting where only seeds are trained.
    needed = {used["train"], used["infer"], *expected}
    splits = [*dict.fromkeys(split for split in (*used.values(), *expected) if split)]
    report, problems = prepare(
        image_set,
        splits,
        expected,
        held_out=[*dict.fromkeys(split for split in (used["val"], "val", "test") if split)],
        workers=data.num_workers,
        optional=[split for split in splits if split not in needed],
    )
    write_json(job.path / "report.json", {**report, "problems": problems})
    for line in [*report_lines(report), *large_photographs(s, report["splits"])]:
        say(line)
    if problems:
        raise complaint(f"{image_set!r}", problems)
    images = sum(entry["images"] for entry in report["splits"].values())
    shown = image_set.names(sheet_split(report, used))
    sheet = label_sheet(image_set, shown, PICTURES, job.path / SHEET) or job.path
    return job.close(
        "nothing is wrong, {time}", sheet, fingerprint=image_set.fingerprint(), images=images
    )


def forget_if_changed(folder: Path, fingerprint: str) -> None:
    """Have the stage done again if the raw data are not those that it ended with."""
    path = folder / MANIFEST
    if path.is_file() and read_json(path).get("fingerprint") != fingerprint:
        say("prepare: the data have changed since it last ended")
        reopen(folder)


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The report as a person reads it: counts, sizes, labels, classes, oddities."""
    lines = [f"{report['data_set']}: {len(report['classes'])} classes"]
    for what, facts in report["derived"].items():
        told = facts if isinstance(facts, Mapping) else {"": facts}
        text = ", ".join(f"{count} {key.replace('_', ' ')}".strip() for key, count in told.items())
        lines.append(f"  {what.replace('_', ' ')}: {text}")
    width = max((len(split) for split in report["splits"]), default=0) + 2
    lines.append(
        f"{'split':<{width}}{'images':>8}{'masks':>8}{'labels/image':>14}"
        f"{'smallest':>12}{'median':>12}{'largest':>12}"
    )
    for split, entry in report["splits"].items():
        sizes = "".join(f"{_size(entry.get(key)):>12}" for key in ("smallest", "median", "largest"))
        mean = entry.get("labels_per_image", {}).get("mean")
        labels = "-" if mean is None else f"{mean:.2f}"
        lines.append(f"{split:<{width}}{entry['images']:>8}{entry['masks']:>8}{labels:>14}{sizes}")
    lines += class_lines(report)
    lines += [f"warning: {line}" for line in report["warnings"]]
    return lines


def large_photographs(s: Settings, splits: Mapping[str, Any]) -> list[str]:
    """The key to set where photographs are far larger than what the network is trained on."""
    seen, median = s.data.long_side[1], max(splits.get(s.data.train_split, {}).get("median", [0]))
    if s.data.infer_long_side is not None or median < LARGE * seen:
        return []
    return [
        f"prepare: the photographs are large (long side {median}, median; the network is trained "
        f"on up to {seen}): data.infer_long_side={seen} makes the class maps of them at that size"
    ]


def class_lines(report: Mapping[str, Any]) -> list[str]:
    """Images with 1, 2, ... labels and images per class, of every split that has labels."""
    labeled = {s: e for s, e in report["splits"].items() if "images_per_class" in e}
    lines = []
    for split, entry in labeled.items():
        counts = entry["labels_per_image"]["images"]
        text = ", ".join(f"{images} with {labels}" for labels, images in counts.items())
        lines.append(f"labels of an image in {split}: {text}")
    if not labeled:
        return lines
    cells = [
        f"{name} {' / '.join(str(e['images_per_class'][name]) for e in labeled.values())}"
        for name in report["classes"]
    ]
    width = max(len(cell) for cell in cells) + 2
    lines.append(f"images of a class in {' / '.join(labeled)}:")
    for i in range(0, len(cells), CLASSES_IN_A_LINE):
        row = "".join(f"{cell:<{width}}" for cell in cells[i : i + CLASSES_IN_A_LINE])
        lines.append(f"  {row.rstrip()}")
    return lines


def sheet_split(report: Mapping[str, Any], used: Mapping[str, str | None]) -> str:
    """The split that the sheet shows: the scored one, or the trained one without masks."""
    scored = report["splits"].get(used["eval"], {"masks": 0})
    return str(used["eval"] if scored["masks"] else used["train"])


def _size(size: Sequence[int] | None) -> str:
    return "-" if size is None else f"{size[1]}x{size[0]}"
