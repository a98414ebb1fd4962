"""Refine the seeds by a dense CRF and score them beside the raw ones."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from wsss import experiment as ex
from wsss.artifacts import StageFolder, write_json
from wsss.dashboard import show_scores
from wsss.data.base import ImageSet
from wsss.data.masks import write_mask
from wsss.data.pool import parallel
from wsss.data.transforms import load_image
from wsss.evaluation.seeds import enlarge
from wsss.progress import duration
from wsss.refine import chain
from wsss.refine.crf import CrfSettings, crf_from_probabilities, require_pydensecrf
from wsss.sheets import draw_sheet, mask_column, seed_column, truth_column


def seed_probabilities(
    maps: np.ndarray, classes: np.ndarray, background: float, power: float
) -> np.ndarray:
    """Class maps as probabilities of background and present classes.

    Args:
        maps: (K, H, W) in [0, 1], or (K + 1, H, W) with their own background first.
        classes: (K,) ids of the foreground channels.
        background: Constant background of maps without their own.
        power: Exponent; above 1 it makes the probabilities surer.

    Returns:
        (K + 1, H, W) float32 that sum to 1; their arg max is the raw seed.
    """
    if len(maps) == len(classes):
        constant = np.full((1, *maps.shape[1:]), background, dtype=np.float32)
        maps = np.concatenate([constant, maps])
    raised = np.clip(maps, 1e-5, None) ** power
    return (raised / raised.sum(axis=0, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class _Refine:
    """Refines one image and writes its label map; runs in a worker process."""

    image_set: ImageSet
    source: chain.MapSource
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
    source = chain.map_source(cfg, "crf")
    folder = StageFolder(
        ex.stage_folder(cfg, "crf"),
        "crf",
        chain.settings_of(cfg, source, "crf"),
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
    masks = folder.path / chain.MASKS
    workers = cfg.refine.workers
    options = ex.plain(cfg.refine.crf)
    background, power = options.pop("background"), options.pop("power")
    refine = _Refine(image_set, source, masks, background, power, CrfSettings(**options))
    missing = chain.missing_files_of(masks, names, ".png")
    parallel(refine, missing, "crf", workers)
    scored = chain.scored_names(cfg, image_set, names)
    facts: dict[str, Any] = {"images": len(names), "kind": source.kind}
    if scored:
        raw = chain.SeedScore(image_set, source, background)
        refined = chain.MaskScore(image_set, masks)
        classes = image_set.classes
        result: dict[str, Any] = {
            "seed": chain.miou(raw, scored, workers, classes, "crf: raw seeds"),
            "crf": chain.miou(refined, scored, workers, classes, "crf: refined seeds"),
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
