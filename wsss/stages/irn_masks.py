"""Make pseudo masks: class maps propagated by a random walk up to IRN's edges."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from PIL import Image
from pytorch_lightning.callbacks import Callback

from wsss.build import objects as ex
from wsss.build import sources
from wsss.data.masks import write_mask
from wsss.evaluation import scoring
from wsss.files import atomic, missing_files_of, write_json
from wsss.maps.files import MapSource
from wsss.refine.data import AffinityData, WholeImages
from wsss.refine.irn import GRID_STRIDE, EdgeDisplacement, edge_map
from wsss.refine.pseudo_mask import WalkSettings, pseudo_mask
from wsss.run.folder import MANIFEST, StageFolder, require
from wsss.run.progress import duration, track
from wsss.show.dashboard import show_scores
from wsss.show.overlays import heat
from wsss.show.sheets import Drawing, draw_sheet, mask_column, truth_column
from wsss.stages.irn_train import WEIGHTS, load_irn

EDGES = "edges"
ROWS = ("seed", "crf", "irn_masks")  # of the scores, in this order


class _MaskMaker(pl.LightningModule):
    """Runs the network and the walk over whole images and writes each one's edges and mask."""

    def __init__(
        self,
        network: EdgeDisplacement,
        source: MapSource,
        folder: Path,
        settings: WalkSettings,
    ) -> None:
        super().__init__()
        self.network, self.source, self.folder, self.settings = network, source, folder, settings

    def predict_step(self, sample: Mapping[str, Any], batch_idx: int) -> None:
        """Edge map and pseudo mask of one image; the mask is written last."""
        name = sample["name"]
        edge = edge_map(self.network, sample["image"])
        stored = self.source.read(name)
        mask = pseudo_mask(
            torch.from_numpy(stored.maps[self.source.kind]).to(edge.device),
            torch.from_numpy(stored.classes),
            edge,
            stored.size,
            self.settings,
        )
        gray = Image.fromarray((edge.cpu().numpy() * 255).round().astype(np.uint8))
        with atomic(self.folder / EDGES / f"{name}.png") as temporary:
            gray.save(temporary, format="PNG")
        write_mask(self.folder / scoring.MASKS / f"{name}.png", mask.numpy())


class _Progress(Callback):
    """Counts predicted images."""

    def __init__(self, total: int) -> None:
        self.steps = iter(track(range(total), "irn_masks", total))

    def on_predict_batch_end(self, *args: Any) -> None:
        """Count one image."""
        next(self.steps, None)

    def on_predict_end(self, *args: Any) -> None:
        """Close the bar."""
        next(self.steps, None)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Make the masks that are not there yet, then score them beside the seeds."""
    source = sources.map_source(cfg, "irn_masks")
    trained = ex.stage_folder(cfg, "irn_train")
    inputs = {
        "make_cam": source.hash,
        "irn_train": require(trained, "irn_train", "irn_masks")["hash"],
    }
    folder = StageFolder(
        ex.stage_folder(cfg, "irn_masks"),
        "irn_masks",
        sources.settings_of(cfg, source, "walk"),
        inputs,
    )
    if not ex.begin(cfg, folder):
        return folder.manifest
    start = time.monotonic()
    image_set = ex.build_image_set(cfg)
    image_set.check(cfg.data.infer_split)
    names = image_set.names(cfg.data.infer_split)
    masks = folder.path / scoring.MASKS
    missing = missing_files_of(masks, names, ".png")
    if missing:
        network = load_irn(cfg, trained / WEIGHTS)
        maker = _MaskMaker(network, source, folder.path, WalkSettings(**ex.plain(cfg.refine.walk)))
        mean, std = network.backbone.mean, network.backbone.std
        data = AffinityData(
            whole=WholeImages(image_set, missing, mean, std), num_workers=cfg.data.num_workers
        )
        trainer = ex.build_trainer(
            cfg,
            folder.path,
            [_Progress(len(missing))] if ex.is_main_process() else [],
            limit_train_batches=None,
        )
        trainer.predict(maker, datamodule=data, return_predictions=False)
        trainer.strategy.barrier("irn_masks")
    if not ex.is_main_process():
        return {}
    scored = scoring.scored_names(cfg, image_set, names)
    facts: dict[str, Any] = {"images": len(names), "kind": source.kind}
    table = ""
    if scored:
        result = _score(cfg, image_set, source, masks, scored)
        write_json(folder.path / "metrics.json", result)
        facts["miou"] = result["irn_masks"]["miou"]
        shown = ", ".join(f"{row} {result[row]['miou']:.2f}" for row in ROWS if row in result)
        table = f"mIoU {shown}; "

    def edges(name: str, picture: np.ndarray) -> np.ndarray:
        with Image.open(folder.path / EDGES / f"{name}.png") as file:
            shown = heat(np.asarray(file) / 255.0)
        shown = shown.repeat(GRID_STRIDE, axis=0).repeat(GRID_STRIDE, axis=1)
        return shown[: picture.shape[0], : picture.shape[1]]

    columns: dict[str, Drawing] = {
        "edges": edges,
        "pseudo mask": mask_column(masks, image_set.num_classes),
    }
    if scored:
        columns["truth"] = truth_column(image_set)
    loggers = ex.build_loggers(cfg, folder.path, "irn_masks")
    if scored:
        rows = {row: result[row] for row in ROWS if row in result}
        show_scores(loggers, folder.path, rows, "irn_masks")
    sheet = folder.path / "contact_sheet.png"
    draw_sheet(image_set, scored or names, cfg.refine.pictures, columns, sheet, loggers)
    folder.close(**facts, seconds=time.monotonic() - start)
    ex.say(
        f"irn_masks: {table}{len(names)} images in {duration(time.monotonic() - start)} "
        f"-> {ex.relative(masks)}"
    )
    return folder.manifest


def _score(
    cfg: DictConfig, image_set: Any, source: MapSource, masks: Path, names: list[str]
) -> dict[str, Any]:
    """Scores of seeds, of CRF-refined seeds where stage=crf was run, and of pseudo masks."""
    workers, classes = cfg.refine.workers, image_set.classes
    seeds = scoring.SeedScore(image_set, source, cfg.eval_cam.background)
    scored: dict[str, tuple[Callable[[str], np.ndarray], str]] = {"seed": (seeds, "raw seeds")}
    crf = ex.stage_folder(cfg, "crf")
    if (crf / MANIFEST).is_file():
        scored["crf"] = (scoring.MaskScore(image_set, crf / scoring.MASKS), "crf")
    scored["irn_masks"] = (scoring.MaskScore(image_set, masks), "pseudo masks")
    result: dict[str, Any] = {
        row: scoring.miou(score, names, workers, classes, f"irn_masks: {what}")
        for row, (score, what) in scored.items()
    }
    result |= {"images": len(names), "image_labels_known": True}
    return result
