"""Train a method from image labels; writes last.ckpt."""

from __future__ import annotations

import time

import torch
from omegaconf import DictConfig

from wsss.build import objects as ex
from wsss.run.callbacks import CHECKPOINT
from wsss.run.folder import StageFolder
from wsss.run.logs import METRICS, join_metrics, read_metrics
from wsss.run.progress import duration
from wsss.show.charts import draw_training


def run(cfg: DictConfig) -> None:
    """Train, or go on with a killed training; no mask is ever read."""
    folder = StageFolder(ex.stage_folder(cfg, "train"), "train", ex.training_settings(cfg))
    if not ex.begin(cfg, folder):
        return
    start = time.monotonic()
    image_set = ex.build_image_set(cfg)
    image_set.check(cfg.data.train_split)
    backbone = ex.build_backbone(cfg)
    datamodule = ex.build_datamodule(cfg, image_set, backbone)
    method = ex.build_method(cfg, backbone, datamodule.num_classes)
    checkpoint = folder.path / CHECKPOINT
    resume = checkpoint if checkpoint.is_file() else None
    earlier = read_metrics(folder.path / METRICS) if resume else []
    trainer = ex.build_trainer(
        cfg,
        folder.path,
        ex.build_callbacks(cfg, folder.path),
        ex.build_loggers(cfg, folder.path, "train"),
    )
    if resume:
        resumed_at = torch.load(resume, map_location="cpu", weights_only=True)["global_step"]
        ex.say(f"train: resumes at step {resumed_at}")
    trainer.fit(method, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    if trainer.is_global_zero:
        if resume:
            join_metrics(earlier, folder.path / METRICS, resumed_at)
        if (folder.path / METRICS).is_file():
            figures = draw_training(read_metrics(folder.path / METRICS), folder.path)
            figures += method.training_figures(folder.path / METRICS, folder.path)
            for path in figures:
                ex.say(f"train: {ex.relative(path)}")
        loss = float(trainer.callback_metrics.get("train/loss", torch.nan))
        seconds = time.monotonic() - start
        folder.close(
            loss=loss,
            steps=trainer.global_step,
            images=len(image_set.names(cfg.data.train_split)),
            seconds=seconds,
            class_names=list(image_set.classes),
        )
        ex.say(
            f"train: {trainer.global_step} steps in {duration(seconds)}, loss {loss:.4f} "
            f"-> {ex.relative(checkpoint)}"
        )
