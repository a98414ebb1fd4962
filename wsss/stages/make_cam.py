"""Make class maps of every image of data.infer_split from a trained method."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback

from wsss.build import objects as ex
from wsss.hosts.base import SeedMethod
from wsss.maps.files import ClassMaps, write_class_maps
from wsss.maps.fuse import fuse_scales
from wsss.run.folder import StageFolder
from wsss.run.progress import duration, track
from wsss.show.dashboard import show_facts
from wsss.show.sheets import draw_sheet, map_column

MAPS = "maps"


class _MapMaker(pl.LightningModule):
    """Runs a method over whole images and writes a file for each."""

    def __init__(self, method: SeedMethod, folder: Path, stride: int, dtype: str) -> None:
        super().__init__()
        self.method, self.folder, self.stride, self.dtype_name = method, folder, stride, dtype

    def predict_step(self, sample: Mapping[str, Any], batch_idx: int) -> None:
        """Class maps of one image, all scales."""
        label = sample["label"]
        height, width = sample["size"].tolist()
        grid = ((height - 1) // self.stride + 1, (width - 1) // self.stride + 1)
        by_scale = [
            self.method.maps_at_scale(torch.stack([image, image.flip(-1)]), label)
            for image in sample["images"]
        ]
        maps = {
            kind: fuse_scales([scale[kind] for scale in by_scale], grid).cpu().numpy()
            for kind in self.method.kinds
        }
        classes = np.flatnonzero(label.cpu().numpy()) + 1
        write_class_maps(
            self.folder / f"{sample['name']}.npz",
            ClassMaps(classes, (height, width), maps),
            self.dtype_name,
        )


class _Progress(Callback):
    """Counts predicted images."""

    def __init__(self, total: int) -> None:
        self.steps = iter(track(range(total), "make_cam", total))

    def on_predict_batch_end(self, *args: Any) -> None:
        """Count one image."""
        next(self.steps, None)

    def on_predict_end(self, *args: Any) -> None:
        """Close the bar."""
        next(self.steps, None)


def map_settings(cfg: DictConfig) -> dict[str, Any]:
    """All that class maps depend on, the training apart."""
    return {
        "make_cam": {k: v for k, v in ex.plain(cfg.make_cam).items() if k != "pictures"},
        "test": ex.plain(cfg.method).get("test", {}),
        "data": {k: ex.plain(cfg.data)[k] for k in ("infer_split", "scales", "infer_long_side")},
    }


def run(cfg: DictConfig) -> None:
    """Make the maps that are not there yet."""
    checkpoint, source = ex.find_checkpoint(cfg, "make_cam")
    folder = StageFolder(
        ex.stage_folder(cfg, "make_cam"), "make_cam", map_settings(cfg), {"train": source}
    )
    if not ex.begin(cfg, folder):
        return
    start = time.monotonic()
    image_set = ex.build_image_set(cfg)
    image_set.check(cfg.data.infer_split)
    method = ex.load_method(cfg, checkpoint, image_set.num_classes)
    datamodule = ex.build_datamodule(cfg, image_set, method.backbone)
    method.backbone = method.backbone.folded()
    maps = folder.path / MAPS
    maps.mkdir(exist_ok=True)
    names = image_set.names(cfg.data.infer_split)
    there = {path.stem for path in maps.glob("*.npz")}
    missing = [name for name in names if name not in there]
    if missing:
        trainer = ex.build_trainer(
            cfg,
            folder.path,
            [_Progress(len(missing))] if ex.is_main_process() else [],
            limit_train_batches=None,
        )
        method.to(trainer.strategy.root_device)
        method.before_maps(datamodule)
        maker = _MapMaker(method, maps, cfg.make_cam.stride, cfg.make_cam.dtype)
        trainer.predict(maker, datamodule=datamodule.only(missing), return_predictions=False)
        trainer.strategy.barrier("make_cam")  # all files are there before the manifest says so
    if ex.is_main_process():
        seconds = time.monotonic() - start
        size = sum((maps / f"{name}.npz").stat().st_size for name in names)
        loggers = ex.build_loggers(cfg, folder.path, "make_cam")
        facts = {"images": len(names), "bytes_per_image": size / len(names)}
        show_facts(loggers, "make_cam", facts)
        columns = {kind: map_column(maps, kind) for kind in method.kinds}
        sheet = folder.path / "contact_sheet.png"
        draw_sheet(image_set, names, cfg.make_cam.pictures, columns, sheet, loggers)
        folder.close(
            kinds=dict(method.kinds),
            notes=method.map_notes(),
            checkpoint=ex.relative(checkpoint),
            **facts,
            seconds=seconds,
        )
        ex.say(
            f"make_cam: {len(names)} images ({', '.join(method.kinds)}) in {duration(seconds)}, "
            f"{size / len(names) / 1024:.1f} KiB each -> {ex.relative(maps)}"
        )
