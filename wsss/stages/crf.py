"""Refine the seeds by a dense CRF and score them beside the raw ones."""

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
from wsss.data.masks import write_mask
from wsss.data.photographs import load_image
from wsss.evaluation import scoring
from wsss.files import missing_files_of, write_json
from wsss.maps.files import MapSource
from wsss.maps.fuse import enlarge
from wsss.refine.crf import (
    CrfSettings,
    crf_from_probabilities,
    require_pydensecrf,
    seed_probabilities,
)
from wsss.run.folder import StageFolder
from wsss.run.pool import parallel
from wsss.run.progress import duration
from wsss.show.dashboard import show_scores
from wsss.show.sheets import draw_sheet, mask_column, seed_column, truth_column


@dataclass(frozen=True)
class _Refine:
    """Refines one image and writes its label map; runs in a worker process."""

    image_set: ImageSet
    source: MapSource
    target: Path
    background: float
    power: float
    settings: CrfSettings

    def __call__(self, name: str) -> None:
        image = load_image(self.image_set.image_path(name))
        stored = self.source.read(name)
        maps = enlarge(stored.maps[self.source.kind], stored.size)
        scores = seed_probabilities(maps, stored.classes, self.background, self.power)
        labels = crf_from_probabilities(image, scores, self.settings).argmax(axis=0)
        ids = np.concatenate([[0], stored.classes])
        write_mask(self.target / f"{name}.png", ids[labels].astype(np.uint8))


def run(cfg: DictConfig) -> dict[str, Any]:
    """Refine what is not refined yet, then score."""
    source = sources.map_source(cfg, "crf")
    folder = StageFolder(
        ex.stage_folder(cfg, "crf"),
        "crf",
        sources.settings_of(cfg, source, "crf"),
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
    masks = folder.path / scoring.MASKS
    workers = cfg.refine.workers
    options = ex.plain(cfg.refine.crf)
    background, power = options.pop("background"), options.pop("power")
    refine = _Refine(image_set, source, masks, background, power, CrfSettings(**options))
    missing = missing_files_of(masks, names, ".png")
    parallel(refine, missing, "crf", workers)
    scored = scoring.scored_names(cfg, image_set, names)
    facts: dict[str, Any] = {"images": len(names), "kind": source.kind}
    if scored:
        raw = scoring.SeedScore(image_set, source, background)
        refined = scoring.MaskScore(image_set, masks)
        classes = image_set.classes
        result: dict[str, Any] = {
            "seed": scoring.miou(raw, scored, workers, classes, "crf: raw seeds"),
            "crf": scoring.miou(refined, scored, workers, classes, "crf: refined seeds"),
            "images": len(scored),
            "image_labels_known": True,
        }
        write_json(folder.path / "metrics.json", result)
        facts |= {"seed_miou": result["seed"]["miou"], "miou": result["crf"]["miou"]}
    columns = {
        f"{source.kind} seed": seed_column(source.folder, source.kind, background),
        "+ CRF": mask_column(masks, image_set.num_classes),
    }
    if scored:
        columns["truth"] = truth_column(image_set)
    loggers = ex.build_loggers(cfg, folder.path, "crf")
    if scored:
        rows = {row: result[row] for row in ("seed", "crf")}
        show_scores(loggers, folder.path, rows, "crf")
    sheet = folder.path / "contact_sheet.png"
    draw_sheet(image_set, scored or names, cfg.refine.pictures, columns, sheet, loggers)
    folder.close(**facts, seconds=time.monotonic() - start)
    score = f"mIoU {facts['seed_miou']:.2f} -> {facts['miou']:.2f}, " if scored else ""
    ex.say(
        f"crf: {score}{len(names)} images in {duration(time.monotonic() - start)} "
        f"-> {ex.relative(masks)}"
    )
    return folder.manifest
