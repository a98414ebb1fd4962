"""Train the segmentation network on the pseudo masks; writes last.ckpt."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback

from wsss.build import objects as ex
from wsss.build.segmenter import ON_BACKBONE, build_segmenter, initial_weights
from wsss.data.masks import VOID
from wsss.errors import WsssError
from wsss.evaluation import scoring
from wsss.run.callbacks import CHECKPOINT
from wsss.run.folder import StageFolder, require
from wsss.run.logs import METRICS, join_metrics, read_metrics
from wsss.run.progress import duration
from wsss.segmentation.base import SegmentationNetwork
from wsss.segmentation.data import PseudoMaskSet, SegmentationCrop, SegmentationData
from wsss.segmentation.mask_check import check_masks, masks_fingerprint
from wsss.show.charts import draw_training
from wsss.show.overlays import contact_sheet, label_overlay

SOURCES = ("irn_masks", "crf")
LOOK_EVERY = 10  # steps between two looks at the loss


def training_settings(cfg: DictConfig) -> dict[str, Any]:
    """All that the trained network depends on, the pseudo masks apart."""
    training = ex.training_settings(cfg)
    options = ex.plain(cfg.segmentation)
    network = dict(options["network"])
    if network.get("weights"):
        network["weights"] = Path(network["weights"]).name
    settings = {
        key: options[key]
        for key in ("features", "msc", "msc_scales", "loss", "optimizer", "train", "long_side")
    }
    if network["name"] == ON_BACKBONE:
        settings["backbone"] = training["backbone"]
    trainer = {k: training["trainer"][k] for k in ("precision", "memory_format")}
    trainer["limit_train_batches"] = cfg.trainer.limit_train_batches
    return {
        **settings,
        "network": network,
        "split": split_of(cfg),
        "data": cfg.data.name,
        "trainer": trainer,
        "seed": cfg.seed,
    }


def split_of(cfg: DictConfig) -> str:
    """The split whose pseudo masks are trained on."""
    return str(cfg.segmentation.split or cfg.data.infer_split)


def mask_source(cfg: DictConfig) -> tuple[Path, str | None]:
    """Folder of the pseudo masks, and the stage of this run that made them, if one did.

    Raises:
        WsssError: If the stage has not ended, the folder is not there, or a key is unknown.
    """
    if cfg.segmentation.masks:
        folder = Path(cfg.segmentation.masks).expanduser()
        if not folder.is_dir():
            raise WsssError(
                f"segmentation.masks={folder}: no such folder; give a folder of label maps "
                f"NAME.png, or null for those of this run"
            )
        return folder, None
    stage = cfg.refine.masks
    if stage not in SOURCES:
        raise WsssError(f"refine.masks={stage}: choose {' or '.join(SOURCES)}")
    folder = ex.stage_folder(cfg, stage)
    require(folder, stage, "seg_train")
    return folder / scoring.MASKS, stage


def training_length(cfg: DictConfig, steps_per_epoch: int) -> dict[str, int]:
    """Lightning's `max_epochs` and `max_steps` (-1: no limit) for `segmentation.train`.

    Raises:
        WsssError: If not just one of the two keys is given.
    """
    steps, epochs = cfg.segmentation.train.max_steps, cfg.segmentation.train.max_epochs
    if (steps is None) == (epochs is None) or (steps or epochs) < 1:
        raise WsssError(
            f"segmentation.train: max_steps={steps} and max_epochs={epochs}; give one of the two, "
            f"at least 1, and null for the other"
        )
    if steps is None:
        return {"max_epochs": int(epochs), "max_steps": -1}
    return {"max_epochs": math.ceil(steps / steps_per_epoch), "max_steps": int(steps)}


class StopWithoutLoss(Callback):
    """Ends a training whose loss is no number any more, before a checkpoint is written of it."""

    def __init__(self) -> None:
        self.loss: torch.Tensor | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Look now and then: each look waits for a GPU."""
        self.loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if trainer.global_step % LOOK_EVERY == 0:
            self.look(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look before the checkpoint is written."""
        self.look(trainer)

    def look(self, trainer: pl.Trainer) -> None:
        """Raise if the loss is no number."""
        if self.loss is not None and not bool(torch.isfinite(self.loss)):
            raise WsssError(
                f"seg_train: the loss is no number at step {trainer.global_step}; try "
                f"segmentation.loss=balanced, or a lower segmentation.optimizer.lr"
            )


def build_data(
    cfg: DictConfig, image_set: Any, names: list[str], masks: Path, network: SegmentationNetwork
) -> SegmentationData:
    """The loaders of a training."""
    options = ex.plain(cfg.segmentation)["train"]
    scales, limits = options["scales"], options["scale_range"]
    crop = SegmentationCrop(
        crop_size=options["crop_size"],
        mean=network.mean,
        std=network.std,
        scales=None if scales is None else tuple(scales),
        scale_range=None if limits is None else tuple(limits),
        long_side=cfg.segmentation.long_side,
        mirror=options["mirror"],
        pad_label=options["pad_label"],
    )
    return SegmentationData(
        PseudoMaskSet(image_set, names, masks, crop, cfg.seed),
        batch_size=options["batch_size"],
        accumulate=options["accumulate"],
        num_workers=cfg.data.num_workers,
    )


def draw_samples(data: PseudoMaskSet, count: int, path: Path) -> None:
    """A contact sheet of crops as the network is shown them; what is ignored is white."""
    if not count:
        return
    crop, rows, captions = data.crop, [], []
    for index in np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int):
        sample = data[0, int(index)]
        std, mean = (torch.tensor(v)[:, None, None] for v in (crop.std, crop.mean))
        pixels = ((sample["image"] * std + mean) * 255).round().clamp(0, 255).byte()
        picture, target = pixels.permute(1, 2, 0).numpy(), sample["target"].numpy()
        shown = label_overlay(picture, np.where(target == VOID, 0, target))
        shown[target == VOID] = 255
        rows.append([picture, shown])
        captions.append(sample["name"])
    contact_sheet(rows, ["crop", "pseudo mask"], captions, path)


def run(cfg: DictConfig) -> None:
    """Train, or go on with a killed training; no mask but the pseudo masks is ever read."""
    masks, stage = mask_source(cfg)
    image_set = ex.build_image_set(cfg)
    names = image_set.names(split_of(cfg))
    if stage is None:
        inputs = {"masks": masks_fingerprint(names, masks)}
    else:
        inputs = {stage: require(masks.parent, stage, "seg_train")["hash"]}
    if cfg.segmentation.features == "method":
        inputs["train"] = ex.find_checkpoint(cfg, "seg_train")[1]
    settings = training_settings(cfg)
    folder = StageFolder(ex.stage_folder(cfg, "seg_train"), "seg_train", settings, inputs)
    if not ex.begin(cfg, folder):
        return
    start = time.monotonic()
    image_set.check(split_of(cfg))
    segmenter, network = build_segmenter(cfg, image_set.classes)
    begins_with = initial_weights(cfg, network)
    if begins_with == "none" and network.fixed_norms:
        ex.say(
            "seg_train: warning: the network starts from random weights with fixed batch "
            "statistics and will hardly learn; give segmentation.network.weights=FILE"
        )
    data = build_data(cfg, image_set, names, masks, network)
    assert data.train_set is not None
    length = training_length(cfg, data.steps_per_epoch)
    facts: dict[str, Any] = {}
    if ex.is_main_process():
        way_out = (
            "correct them, or give another segmentation.masks"
            if stage is None
            else f"run stage={stage} again (overwrite=true)"
        )
        counts = check_masks(image_set, names, masks, way_out, cfg.segmentation.workers)
        facts["pseudo_masks"] = counts.as_dict(image_set.classes)
        for line in counts.warnings(image_set.classes):
            ex.say(f"seg_train: warning: {line}")
        draw_samples(data.train_set, cfg.segmentation.pictures, folder.path / "samples.png")
    checkpoint = folder.path / CHECKPOINT
    resume = checkpoint if checkpoint.is_file() else None
    earlier = read_metrics(folder.path / METRICS) if resume else []
    trainer = ex.build_trainer(
        cfg,
        folder.path,
        [*ex.build_callbacks(cfg, folder.path), StopWithoutLoss()],
        ex.build_loggers(cfg, folder.path, "seg_train"),
        **length,
        accumulate_grad_batches=data.accumulate,
        gradient_clip_val=cfg.segmentation.train.gradient_clip_val,
    )
    if resume:
        resumed_at = torch.load(resume, map_location="cpu", weights_only=True)["global_step"]
        ex.say(f"seg_train: resumes at step {resumed_at}")
    else:
        ex.say(f"seg_train: {len(names)} pseudo masks; initial weights: {begins_with}")
    trainer.fit(segmenter, datamodule=data, ckpt_path=resume, weights_only=True)
    if not trainer.is_global_zero:
        return
    if resume:
        join_metrics(earlier, folder.path / METRICS, resumed_at)
    draw_training(read_metrics(folder.path / METRICS), folder.path)
    loss = float(trainer.callback_metrics.get("train/loss", torch.nan))
    seconds = time.monotonic() - start
    folder.close(
        loss=loss,
        steps=trainer.global_step,
        images=len(names),
        masks=stage or ex.relative(masks),
        initial_weights=begins_with,
        class_names=list(image_set.classes),
        seconds=seconds,
        **facts,
    )
    ex.say(
        f"seg_train: {trainer.global_step} steps in {duration(seconds)}, loss {loss:.4f}; "
        f"{len(names)} pseudo masks of {stage or ex.relative(masks)}, initial weights: "
        f"{begins_with} -> {ex.relative(checkpoint)}"
    )
