"""From a composed configuration to the objects that a stage works with."""

from __future__ import annotations

from wsss.run.process import is_main_process
from wsss.run.process import say
from wsss.run.process import relative

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra.utils
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from wsss.run.folder import StageFolder, require
from wsss.backbones.base import Backbone
from wsss.run.compute import choose_memory_format, choose_precision
from wsss.show.dashboard import hyperparameters
from wsss.data.base import ImageSet
from wsss.data.datamodule import WSSSDataModule
from wsss.errors import WsssError
from wsss.hosts.released import read_checkpoint
from wsss.hosts.base import SeedMethod
from wsss.run.callbacks import CHECKPOINT, EndOnSigterm, SeedEpochs

# Keys of `data` that are not the data module's own.
_DATA_ONLY = ("name", "root", "sbd_root", "image_set", "expected_counts", "val_split")
# Keys whose value can't change a result, or only says where things lie on this machine.
_INCIDENTAL = {
    "data": ("root", "sbd_root", "num_workers", "image_set", "expected_counts", "val_split"),
    "trainer": ("accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps"),
}
_INFERENCE_KEYS = ("infer_split", "eval_split", "scales", "infer_long_side")


def plain(config: Any) -> Any:
    """A resolved copy of plain dicts, lists and scalars."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def stage_folder(cfg: DictConfig, stage: str) -> Path:
    """Folder of one stage of this run."""
    return Path(cfg.paths.run) / stage


def build_image_set(cfg: DictConfig) -> ImageSet:
    """The data set that `data.image_set` describes."""
    return hydra.utils.instantiate(cfg.data.image_set)


def build_backbone(cfg: DictConfig, pretrained: bool = True) -> Backbone:
    """The backbone; without its initial weights when a checkpoint will fill it anyway."""
    torch.manual_seed(cfg.seed)
    if pretrained:
        return hydra.utils.instantiate(cfg.backbone)
    return hydra.utils.instantiate(cfg.backbone, weights=None)


def build_datamodule(cfg: DictConfig, image_set: ImageSet, backbone: Backbone) -> WSSSDataModule:
    """Loaders over `image_set`, normalized as the backbone wants."""
    settings = {k: v for k, v in plain(cfg.data).items() if k not in _DATA_ONLY}
    return WSSSDataModule(
        image_set, **settings, mean=backbone.mean, std=backbone.std, seed=cfg.seed
    )


def build_method(cfg: DictConfig, backbone: Backbone, num_classes: int) -> SeedMethod:
    """The method's module, its new layers drawn from the seed."""
    options = {k: v for k, v in plain(cfg.method).items() if k != "name"}
    torch.manual_seed(cfg.seed)
    return hydra.utils.instantiate(
        {**options, "_convert_": "all", "_recursive_": False},
        backbone=backbone,
        num_classes=num_classes,
        optimizer=plain(cfg.optimizer),
        memory_format=choose_memory_format(cfg.trainer.memory_format),
    )


def load_method(cfg: DictConfig, checkpoint: Path, num_classes: int) -> SeedMethod:
    """The method with the weights (and buffers) of a checkpoint, ours or SIPE's or IRN's.

    Raises:
        WsssError: the file is missing, broken, or of another method, backbone or class count.
    """
    state = read_checkpoint(checkpoint)
    method = build_method(cfg, build_backbone(cfg, pretrained=False), num_classes)
    try:
        method.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise WsssError(
            f"{checkpoint}: not a checkpoint of method={cfg.method.name} with this backbone and "
            f"{num_classes} classes ({reason[:200]})"
        ) from error
    return method.eval()


def build_callbacks(cfg: DictConfig, folder: Path) -> list[Callback]:
    """Callbacks of a training: the configured ones, and the seeding of epochs."""
    chosen = [hydra.utils.instantiate(c, **_folder(c, folder)) for c in _entries(cfg.callbacks)]
    return [SeedEpochs(cfg.seed), *chosen]


def build_loggers(cfg: DictConfig, folder: Path, stage: str) -> list[Logger]:
    """The configured loggers of one stage, told all settings."""
    loggers = [
        hydra.utils.instantiate(entry, folder=folder, run_name=cfg.run_name, stage=stage)
        for entry in _entries(cfg.logger)
    ]
    settings = hyperparameters(cfg) if loggers else {}
    for logger in loggers:
        logger.log_hyperparams(settings)
    return loggers


def build_trainer(
    cfg: DictConfig,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    **overrides: Any,
) -> pl.Trainer:
    """Lightning's trainer with the settings of `trainer`.

    Raises:
        WsssError: what is asked for is not on this machine.
    """
    settings = {**plain(cfg.trainer), **overrides}
    settings.pop("memory_format", None)
    settings["precision"] = choose_precision(settings["precision"], settings["accelerator"])
    if settings["strategy"] == "ddp":
        # Statistics are fixed and every process keeps the same bank: no buffer needs sending.
        # In CPAL's warm-up the projection has no gradient.
        settings["strategy"] = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    try:
        return pl.Trainer(
            **settings,
            default_root_dir=folder,
            callbacks=[*callbacks, EndOnSigterm()],
            logger=list(loggers) or False,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks),
        )
    except (pl.utilities.exceptions.MisconfigurationException, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise WsssError(
            f"trainer: {first}; choose trainer=cpu, gpu or ddp, or correct the key"
        ) from error


def training_settings(cfg: DictConfig) -> dict[str, Any]:
    """All that the result of a training depends on."""
    content = {k: plain(cfg[k]) for k in ("data", "method", "backbone", "optimizer", "trainer")}
    for group, keys in _INCIDENTAL.items():
        content[group] = {k: v for k, v in content[group].items() if k not in keys}
    content["data"] = {k: v for k, v in content["data"].items() if k not in _INFERENCE_KEYS}
    content["method"].pop("test", None)
    weights = content["backbone"].get("weights")
    if weights:
        content["backbone"]["weights"] = Path(weights).name
    content["trainer"]["precision"] = choose_precision(
        cfg.trainer.precision, cfg.trainer.accelerator
    )
    content["trainer"]["memory_format"] = choose_memory_format(cfg.trainer.memory_format)
    return {**content, "seed": cfg.seed}


def find_checkpoint(cfg: DictConfig, wanted_by: str) -> tuple[Path, str]:
    """The checkpoint that a stage reads, and a hash that stands for it.

    `checkpoint=FILE` names one of another run; otherwise it is that of this run's training.
    """
    if cfg.checkpoint:
        path = Path(cfg.checkpoint)
        if not path.is_file():
            raise WsssError(f"checkpoint={path}: no such file")
        beside = path.parent / "manifest.json"
        return path, require(path.parent, "train", wanted_by)["hash"] if beside.is_file() else str(
            path.resolve()
        )
    folder = stage_folder(cfg, "train")
    return folder / CHECKPOINT, require(folder, "train", wanted_by)["hash"]


def begin(cfg: DictConfig, folder: StageFolder) -> bool:
    """Open a stage's folder and say what is there; False when there is nothing left to do.

    Raises:
        WsssError: the folder holds results of other settings and `overwrite` is false.
    """
    folder.open(overwrite=cfg.overwrite, main=is_main_process())
    if folder.finished:
        say(
            f"{folder.stage}: finished before in {relative(folder.path)} (overwrite=true redoes it)"
        )
    elif folder.resumed:
        say(f"{folder.stage}: goes on in {relative(folder.path)}")
    return not folder.finished










def _entries(group: Mapping[str, Any] | None) -> list[Any]:
    return [entry for entry in (group or {}).values() if entry and "_target_" in entry]


def _folder(entry: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Our own callbacks are told the stage's folder; those of libraries are not."""
    return {"folder": folder} if str(entry["_target_"]).startswith("wsss.") else {}
