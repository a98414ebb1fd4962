"""Make the confident labels that IRN learns from: class maps read twice, each through a CRF."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from wsss.build import objects as ex
from wsss.build import sources
from wsss.data.base import ImageSet
from wsss.data.masks import VOID, read_mask, write_mask
from wsss.data.photographs import load_image
from wsss.evaluation import scoring
from wsss.files import missing_files_of
from wsss.maps.files import MapSource
from wsss.maps.fuse import enlarge
from wsss.refine.crf import CrfSettings, require_pydensecrf
from wsss.refine.labels import LabelSettings, confident_labels
from wsss.run.folder import StageFolder
from wsss.run.pool import parallel
from wsss.run.progress import duration
from wsss.show.dashboard import show_facts
from wsss.show.overlays import label_overlay, over
from wsss.show.sheets import Drawing, draw_sheet, truth_column

LABELS = "labels"


@dataclass(frozen=True)
class _Label:
    """Labels one image and writes the file; runs in a worker process."""

    image_set: ImageSet
    source: MapSource
    target: Path
    settings: LabelSettings

    def __call__(self, name: str) -> None:
        image = load_image(self.image_set.image_path(name))
        stored = self.source.read(name)
        maps = enlarge(stored.maps[self.source.kind], stored.size)
        write_mask(
            self.target / f"{name}.png",
            confident_labels(image, maps, stored.classes, self.settings),
        )


@dataclass(frozen=True)
class _Shares:
    """Pixels of one image's labels: all, foreground, unsure; sure ones with truth, right ones."""

    image_set: ImageSet
    labels: Path
    scored: frozenset[str]

    def __call__(self, name: str) -> np.ndarray:
        labels = read_mask(self.labels / f"{name}.png", self.image_set.num_classes)
        sure = labels != VOID
        counts = [labels.size, int((sure & (labels > 0)).sum()), int((~sure).sum()), 0, 0]
        truth = self.image_set.mask(name) if name in self.scored else None
        if truth is not None:
            known = sure & (truth != VOID)
            counts[3:] = [int(known.sum()), int((truth == labels)[known].sum())]
        return np.array(counts, dtype=np.int64)


def label_picture(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels over the photograph, unsure pixels white."""
    shown = label_overlay(picture, np.where(labels == VOID, 0, labels))
    return over(shown, np.full_like(picture, 255), np.where(labels == VOID, 0.7, 0.0))


def run(cfg: DictConfig) -> dict[str, Any]:
    """Label what is not labelled yet."""
    source = sources.map_source(cfg, "irn_labels")
    folder = StageFolder(
        ex.stage_folder(cfg, "irn_labels"),
        "irn_labels",
        sources.settings_of(cfg, source, "labels"),
        {"make_cam": source.hash},
    )
    if not ex.is_main_process():
        return {}
    if not ex.begin(cfg, folder):
        return folder.manifest
    require_pydensecrf()
    start = time.monotonic()
    image_set = ex.build_image_set(cfg)
    image_set.check(cfg.data.infer_split)
    names = image_set.names(cfg.data.infer_split)
    labels = folder.path / LABELS
    options = ex.plain(cfg.refine.labels)
    crf = options.pop("crf")
    settings = LabelSettings(**options, crf=CrfSettings(**crf) if crf else None)
    work = _Label(image_set, source, labels, settings)
    workers = cfg.refine.workers
    missing = missing_files_of(labels, names, ".png")
    parallel(work, missing, "irn_labels", workers)
    scored = scoring.scored_names(cfg, image_set, names)
    shares = _Shares(image_set, labels, frozenset(scored))
    pixels, foreground, unsure, known, right = np.sum(
        parallel(shares, names, "irn_labels: shares", workers), axis=0
    ).tolist()
    facts = {
        "images": len(names),
        "kind": source.kind,
        "foreground_share": foreground / pixels,
        "unsure_share": unsure / pixels,
        "right_share_of_sure": right / known if known else None,
    }

    def shown(name: str, picture: np.ndarray) -> np.ndarray:
        return label_picture(picture, read_mask(labels / f"{name}.png", image_set.num_classes))

    columns: dict[str, Drawing] = {"confident labels (white: unsure)": shown}
    if scored:
        columns["truth"] = truth_column(image_set)
    sheet = folder.path / "contact_sheet.png"
    loggers = ex.build_loggers(cfg, folder.path, "irn_labels")
    show_facts(loggers, "irn_labels", {k: v for k, v in facts.items() if k != "kind"})
    draw_sheet(image_set, scored or names, cfg.refine.pictures, columns, sheet, loggers)
    folder.close(**facts, seconds=time.monotonic() - start)
    quality = f", {100 * right / known:.1f} % of the sure pixels right" if known else ""
    ex.say(
        f"irn_labels: {len(names)} images, {100 * foreground / pixels:.1f} % foreground, "
        f"{100 * unsure / pixels:.1f} % unsure{quality}, in "
        f"{duration(time.monotonic() - start)} -> {ex.relative(labels)}"
    )
    return folder.manifest
