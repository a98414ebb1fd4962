"""Lightning's trainer, one way to train and one way to predict, for all stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from wsss.build.job import Job
from wsss.build.settings import Settings, plain
from wsss.data.datamodule import EpochData, WholeSet
from wsss.errors import WsssError
from wsss.files import missing_files_of
from wsss.run.callbacks import (
    CHECKPOINT,
    EndOnSigterm,
    FiniteLoss,
    PredictionProgress,
    SeedEpochs,
)
from wsss.run.compute import choose_precision
from wsss.run.logs import METRICS, join_metrics, read_metrics
from wsss.run.process import say
from wsss.show.charts import draw_training


def build_trainer(
    s: Settings,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    **overrides: Any,
) -> pl.Trainer:
    """Lightning's trainer with the settings of `trainer`.

    Raises:
        WsssError: what is asked for is not on this machine.
    """
    options = {**plain(s.trainer), **overrides}
    options.pop("memory_format")
    options["precision"] = choose_precision(str(options["precision"]), options["accelerator"])
    if options["strategy"] == "ddp":
        # Statistics are fixed and every process keeps the same bank: no buffer needs sending.
        # In CPAL's warm-up the projection has no gradient.
        options["strategy"] = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    try:
        return pl.Trainer(
            **options,
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


@dataclass(frozen=True)
class Fitted:
    """A training that has ended.

    Attributes:
        steps: optimizer steps of all its starts.
        loss: the last one.
        device: where it ran.
        checkpoint: the file of the weights.
        figures: PNG files of what its log shows.
    """

    steps: int
    loss: float
    device: torch.device
    checkpoint: Path
    figures: list[Path]


def fit(
    job: Job,
    module: pl.LightningModule,
    data: EpochData,
    rate: str,
    greeting: str = "",
    **trainer: Any,
) -> Fitted:
    """Train, or go on with a training that was killed.

    Args:
        job: the stage.
        module: what is trained.
        data: its loaders.
        rate: the setting that holds the learning rate, for messages.
        greeting: said when the training begins anew.
        trainer: settings of this training: `max_epochs`, `gradient_clip_val`, ...

    Raises:
        WsssError: the loss or the weights became no numbers.
    """
    s, path = job.settings, job.path
    own = [c(**({"folder": path} if c.takes("folder") else {})) for c in s.callbacks.values()]
    checkpoint = path / CHECKPOINT
    resume = checkpoint if checkpoint.is_file() else None
    earlier = read_metrics(path / METRICS) if resume else []
    engine = build_trainer(
        s, path, [SeedEpochs(s.seed), FiniteLoss(rate), *own], job.loggers, **trainer
    )
    resumed_at = 0
    if resume:
        resumed_at = read_step(resume)
        say(f"{job.stage}: resumes at step {resumed_at}")
    elif greeting:
        say(f"{job.stage}: {greeting}")
    engine.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    figures: list[Path] = []
    if job.main:
        if resume:
            join_metrics(earlier, path / METRICS, resumed_at)
        figures = draw_training(read_metrics(path / METRICS), path)
    loss = float(engine.callback_metrics.get("train/loss", torch.nan))
    device = engine.strategy.root_device
    return Fitted(engine.global_step, loss, device, checkpoint, figures)


def read_step(checkpoint: Path) -> int:
    """The step at which a training goes on.

    Raises:
        WsssError: the checkpoint is broken.
    """
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])
    except Exception as error:  # a broken file can fail in any way
        raise WsssError(
            f"{checkpoint}: can't be read as a checkpoint; delete it, and the same command trains "
            "from the beginning"
        ) from error


def predict(
    job: Job,
    module: pl.LightningModule,
    whole: WholeSet,
    before: Callable[[torch.device], None] | None = None,
    needs_grad: bool = False,
) -> None:
    """Run a module over whole pictures, each process its share; it writes what it makes itself.

    Args:
        job: the stage.
        module: its `predict_step` takes one sample.
        whole: the pictures.
        before: called with the device first.
        needs_grad: whether the module computes gradients.
    """
    s = job.settings
    progress = [PredictionProgress(job.stage)] if job.main else []
    engine = build_trainer(
        s, job.path, progress, limit_train_batches=None, inference_mode=not needs_grad
    )
    if before is not None:
        before(engine.strategy.root_device)
    data = EpochData(whole=whole, num_workers=s.data.num_workers)
    engine.predict(module, datamodule=data, return_predictions=False)
    engine.strategy.barrier(job.stage)  # all files are there before a manifest says so


def still_missing(names: Sequence[str], *folders: tuple[Path, str]) -> list[str]:
    """Names that lack a file in any of some folders, given with the files' suffix; in their order."""
    lacking = {name for folder, end in folders for name in missing_files_of(folder, names, end)}
    return [name for name in names if name in lacking]

