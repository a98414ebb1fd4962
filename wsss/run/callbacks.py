"""Lightning callbacks that every training of the project uses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from wsss.run.progress import Lines, bar

CHECKPOINT = "last.ckpt"


class EpochCheckpoint(ModelCheckpoint):
    """`last.ckpt` in the stage's folder after each epoch, from which a killed training goes on.

    Everything random in an epoch is drawn from seed and epoch, so that a training resumed from
    it ends with the weights of an uninterrupted one.

    Args:
        folder: the stage's folder.
        every_n_epochs: how often.
    """

    def __init__(self, folder: Path, every_n_epochs: int = 1) -> None:
        super().__init__(
            dirpath=folder,
            filename=CHECKPOINT.removesuffix(".ckpt"),
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )


class SeedEpochs(Callback):
    """Seeds the global generators from (seed, epoch) at each epoch's start.

    So that dropout and the like do not depend on whether the training was interrupted.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed Python, NumPy and PyTorch; each process differently."""
        pl.seed_everything(
            (self.seed * 1000 + trainer.current_epoch) * 64 + trainer.global_rank, verbose=False
        )


class EndOnSigterm(Callback):
    """Ends a prediction after the image at which SIGTERM came; Lightning ends trainings alone.

    Without it `kill`, or Slurm at a job's time limit, would be ignored until the last image.
    """

    def on_predict_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Leave with Lightning's own exception."""
        if trainer.received_sigterm:
            raise SIGTERMException


class TrainingProgress(Callback):
    """Steps done, the loss and the time left: a bar on a terminal, plain lines elsewhere.

    Args:
        folder: the stage's folder; its name heads the lines.
        every_s: seconds between two plain lines.
    """

    def __init__(self, folder: Path, every_s: float = 15.0) -> None:
        self.name, self.every = folder.name, every_s
        self.lines: Lines | None = None
        self.bar: Any = None
        self.step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin counting at the step the training begins with."""
        if not trainer.is_global_zero:
            return
        self.step = trainer.global_step
        total = int(trainer.estimated_stepping_batches) - self.step
        if sys.stdout.isatty():
            self.bar = bar()
            self.task = self.bar.add_task(self.name, total=total)
            self.bar.start()
        else:
            self.lines = Lines(self.name, total, self.every)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Count one step; with accumulated gradients only the last batch makes one."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        if self.bar is not None:
            loss = trainer.progress_bar_metrics.get("train/loss")
            note = f"{self.name} epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            note += f" loss {loss:.4f}" if isinstance(loss, float) else ""
            self.bar.update(self.task, advance=1, description=note)
        elif self.lines is not None:
            loss = trainer.progress_bar_metrics.get("train/loss")
            note = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.lines.advance(note + (f", loss {loss:.4f}" if isinstance(loss, float) else ""))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar before the error is printed."""
        self.on_train_end(trainer, pl_module)
