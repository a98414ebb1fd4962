"""Derive lists, labels and masks from the raw data, check all of it, and show what it is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from wsss.build import objects as ex
from wsss.data.base import ImageSet
from wsss.data.photographs import load_image
from wsss.data.prepare import complaint, prepare
from wsss.files import read_json, write_json
from wsss.run.folder import MANIFEST, StageFolder
from wsss.run.progress import duration
from wsss.show.overlays import contact_sheet, label_overlay

PICTURES = 12  # rows of the contact sheet
CLASSES_IN_A_LINE = 4


def run(cfg: DictConfig) -> dict[str, Any]:
    """Prepare and check the splits that the other stages use; all problems are told at once."""
    data = ex.plain(cfg.data)
    expected = {s: n for s, n in (data["expected_counts"] or {}).items() if n is not None}
    used = {key: data[key] for key in ("train_split", "infer_split", "eval_split", "val_split")}
    settings = {"data": {"name": data["name"], "expected_counts": expected, **used}}
    folder = StageFolder(ex.stage_folder(cfg, "prepare"), "prepare", settings)
    if not ex.is_main_process():
        return {}
    image_set = ex.build_image_set(cfg)
    forget_if_changed(folder, image_set.fingerprint())
    if not ex.begin(cfg, folder):
        return folder.manifest
    start = time.monotonic()
    # Masks and the segmentation network's split may be wanting where only seeds are trained.
    needed = {used["train_split"], used["infer_split"], *expected}
    splits = [*dict.fromkeys(split for split in (*used.values(), *expected) if split)]
    report, problems = prepare(
        image_set,
        splits,
        expected,
        held_out=[*dict.fromkeys(s for s in (used["val_split"], "val", "test") if s)],
        workers=data["num_workers"],
        optional=[split for split in splits if split not in needed],
    )
    write_json(folder.path / "report.json", {**report, "problems": problems})
    for line in report_lines(report):
        ex.say(line)
    if problems:
        raise complaint(f"{image_set!r}", problems)
    images = sum(entry["images"] for entry in report["splits"].values())
    sheet = draw_sheet(image_set, sheet_names(report, image_set, used), folder.path)
    seconds = time.monotonic() - start
    folder.close(fingerprint=image_set.fingerprint(), images=images, seconds=seconds)
    ex.say(f"prepare: nothing is wrong, {duration(seconds)} -> {ex.relative(sheet)}")
    return report


def forget_if_changed(folder: StageFolder, fingerprint: str) -> None:
    """Have the stage done again if the raw data are not those that it ended with."""
    path = folder.path / MANIFEST
    if not path.is_file():
        return
    there = read_json(path)
    if there.get("hash") == folder.hash and there.get("fingerprint") != fingerprint:
        ex.say("prepare: the data have changed since it last ended")
        path.unlink()


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


def class_lines(report: Mapping[str, Any]) -> list[str]:
    """Images with 1, 2, ... labels and images per class, of every split that has labels."""
    labelled = {s: e for s, e in report["splits"].items() if "images_per_class" in e}
    lines = []
    for split, entry in labelled.items():
        counts = entry["labels_per_image"]["images"]
        text = ", ".join(f"{images} with {labels}" for labels, images in counts.items())
        lines.append(f"labels of an image in {split}: {text}")
    if not labelled:
        return lines
    cells = [
        f"{name} {' / '.join(str(e['images_per_class'][name]) for e in labelled.values())}"
        for name in report["classes"]
    ]
    width = max(len(cell) for cell in cells) + 2
    lines.append(f"images of a class in {' / '.join(labelled)}:")
    for i in range(0, len(cells), CLASSES_IN_A_LINE):
        row = "".join(f"{cell:<{width}}" for cell in cells[i : i + CLASSES_IN_A_LINE])
        lines.append(f"  {row.rstrip()}")
    return lines


def sheet_names(
    report: Mapping[str, Any], image_set: ImageSet, used: Mapping[str, str | None]
) -> list[str]:
    """Images for the sheet, spread over the scored split, or the trained one without masks."""
    scored = report["splits"].get(used["eval_split"], {"masks": 0})
    split = used["eval_split"] if scored["masks"] else used["train_split"]
    names = image_set.names(str(split))
    chosen = np.linspace(0, len(names) - 1, min(PICTURES, len(names)))
    return [names[round(i)] for i in chosen]


def draw_sheet(image_set: ImageSet, names: Sequence[str], folder: Path) -> Path:
    """Photographs with their labels, and their masks where there are some."""
    rows, captions = [], []
    for name, label in zip(names, image_set.labels(names), strict=True):
        picture = load_image(image_set.image_path(name))
        mask = image_set.mask(name)
        # Void is shown as it is: it says how much of a mask is left out of the scores.
        rows.append([picture] if mask is None else [picture, label_overlay(picture, mask)])
        present = [image_set.classes[i] for i in np.flatnonzero(label)]
        captions.append(f"{name}: {', '.join(present)}")
    headings = ["photograph", "mask"][: max(len(row) for row in rows)]
    return contact_sheet(rows, headings, captions, folder / "contact_sheet.png")


def _size(size: Sequence[int] | None) -> str:
    return "-" if size is None else f"{size[1]}x{size[0]}"
