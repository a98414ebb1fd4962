"""Lightning's trainer, one way to train and one way to predict, for all stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from wsss.build.job import Job
from wsss.build.settings import Settings, plain
from wsss.data.datamodule import EpochData, WholeSet
from wsss.errors import WsssError
from wsss.files import missing_files_of
from wsss.run.callbacks import (
    CHECKPOINT,
    AtomicCheckpoints,
    FiniteLoss,
    OwnSignals,
    PredictionProgress,
    SeedBatches,
)
from wsss.run.compute import choose_precision
from wsss.run.group import led
from wsss.run.launch import Started, processes_of
from wsss.run.logs import join_metrics, keep_metrics
from wsss.run.process import say
from wsss.run.reduce import GlobalBatchNorm
from wsss.show.charts import draw_training
from wsss.show.training import Album


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
    started = Started()
    where = started.place
    if where.world == 1 and processes_of(s.trainer) > 1:
        raise WsssError(
            f"trainer.devices={s.trainer.devices}: this is a single process; run.py starts the "
            "others, or start them by torchrun"
        )
    # What was started counts; a list says which devices these are.
    options["num_nodes"] = where.nodes
    if not isinstance(options["devices"], list):
        options["devices"] = where.local_world
    if options["strategy"] in ("auto", "ddp"):
        options["strategy"] = "ddp" if where.world > 1 else "auto"
    if options["strategy"] == "ddp":
        # Every process computes the same statistics and keeps the same bank: no buffer needs
        # sending. What has no part in a loss is frozen: nothing needs searching for.
        options["strategy"] = DDPStrategy(find_unused_parameters=False, broadcast_buffers=False)
    try:
        return pl.Trainer(
            **options,
            default_root_dir=folder,
            callbacks=[OwnSignals(), *callbacks],
            logger=list(loggers) or False,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[AtomicCheckpoints(), GlobalBatchNorm(), started],
            enable_checkpointing=any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks),
        )
    except (pl.utilities.exceptions.MisconfigurationException, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise WsssError(f"trainer: {first.rstrip('!.')}; {_way_out(s)}") from error


def _way_out(s: Settings) -> str:
    """What to do where Lightning takes these settings of `trainer` for impossible."""
    if s.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        several = s.trainer.strategy != "auto" or s.trainer.devices not in (1, "auto")
        share = ", for several processes with trainer.devices=2" if several else ""
        return f"there is no GPU here; take trainer.accelerator=cpu{share}"
    if s.trainer.accelerator == "mps":
        return "take trainer.accelerator=auto"
    return "correct the keys of trainer, or take trainer=auto for one device"


@dataclass(frozen=True)
class Fitted:
    """A training that has ended.

    Attributes:
        steps: optimizer steps of all its starts.
        loss: the last one; None where nothing was logged.
        device: where it ran.
        checkpoint: the file of the weights.
        figures: PNG files of what its log shows.
    """

    steps: int
    loss: float | None
    device: torch.device
    checkpoint: Path
    figures: list[Path]

    def __str__(self) -> str:
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        return f"{self.steps} steps in {{time}}{loss}"


def fit(
    job: Job,
    module: pl.LightningModule,
    data: EpochData,
    rate: str,
    greeting: str = "",
    album: Album | None = None,
    **trainer: Any,
) -> Fitted:
    """Train, or go on with a training that was killed.

    Args:
        job: the stage.
        module: what is trained.
        data: its loaders.
        rate: the setting that holds the learning rate, for messages.
        greeting: said when the training begins anew.
        album: the pictures that it can show of itself; None: none.
        trainer: settings of this training: `max_epochs`, `gradient_clip_val`, ...

    Raises:
        WsssError: the loss or the weights became no numbers.
    """
    s, path = job.settings, job.path
    given = {"folder": path, "album": album}
    own = [
        c(**{name: value for name, value in given.items() if c.takes(name)})
        for c in s.callbacks.values()
        if album is not None or not c.takes("album")
    ]
    checkpoint = path / CHECKPOINT

    @led
    def to_resume() -> Path | None:
        if not checkpoint.is_file():
            if greeting:
                say(f"{job.stage}: {greeting}")
            return None
        resumed_at = read_step(checkpoint)
        say(f"{job.stage}: resumes at step {resumed_at}")
        keep_metrics(path, resumed_at)
        return checkpoint

    resume = to_resume()
    # Only now, as the loggers begin a new metrics.csv. Without any the rate has nowhere to go.
    if not job.loggers:
        own = [one for one in own if not isinstance(one, LearningRateMonitor)]
    # A training of few steps is logged, too.
    every = min(s.trainer.log_every_n_steps, data.steps_per_epoch)
    engine = build_trainer(
        s,
        path,
        [SeedBatches(s.seed), FiniteLoss(rate), *own],
        job.loggers,
        log_every_n_steps=every,
        **trainer,
    )
    engine.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    figures: list[Path] = []
    loss: float | None = None
    if job.main:
        rows = join_metrics(path)
        figures = draw_training(rows, path)
        # Of a training that had ended when it was killed nothing is left but its log.
        logged = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
        last = engine.callback_metrics.get("train/loss", logged[-1] if logged else None)
        loss = None if last is None else float(last)
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

    A process ends with its own share; `lead` waits for all.

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


@led
def still_missing(names: Sequence[str], *folders: tuple[Path, str]) -> list[str]:
    """Names that lack a file in any of some folders, given with its suffix; in their order.

    As main sees it, for all: the shares of several processes come of one list.
    """
    lacking = {name for folder, end in folders for name in missing_files_of(folder, names, end)}
    return [name for name in names if name in lacking]
