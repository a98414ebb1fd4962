"""What every training of the project has in common: losses, checkpoints, progress, signals."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from wsss.errors import WsssError
from wsss.files import atomic
from wsss.run import signals
from wsss.run.compute import at_least_float32
from wsss.run.group import current
from wsss.run.progress import Lines, bar, track

CHECKPOINT = "last.ckpt"
BLUEPRINT = "blueprint"  # in a checkpoint: what its network is built from
LOOK_EVERY = 10  # steps between two looks at the loss on a GPU


def log_losses(
    module: pl.LightningModule, losses: Mapping[str, Tensor], batch_size: int, factor: float = 1.0
) -> dict[str, Any]:
    """Log loss terms and their sum; what a `training_step` returns, for all trainings.

    Args:
        module: the module in training.
        losses: scalars by name, already weighted.
        batch_size: of this process.
        factor: on the sum.

    Returns:
        `loss`, the sum, and `terms`, the detached scalars by name, which
        `FiniteLoss` looks at.
    """
    total = torch.stack([at_least_float32(loss) for loss in losses.values()]).sum() * factor
    for name, loss in losses.items():
        module.log(f"train/loss_{name}", loss.detach(), batch_size=batch_size, sync_dist=True)
    module.log("train/loss", total.detach(), batch_size=batch_size, prog_bar=True, sync_dist=True)
    return {"loss": total, "terms": {name: loss.detach() for name, loss in losses.items()}}


def log_epoch(trainer: pl.Trainer, values: Mapping[str, Any]) -> None:
    """Log what an epoch has come to, at its last step, from `on_train_epoch_end`.

    Lightning's own `log(on_epoch=True)` reaches the loggers after the checkpoint is written: a
    training killed in between would go on without that row.

    Args:
        trainer: the engine.
        values: figures by name, equal on all processes.
    """
    figures = {name: float(value) for name, value in values.items()}
    for logger in trainer.loggers:
        logger.log_metrics(
            {"epoch": trainer.current_epoch, **figures}, step=trainer.global_step - 1
        )


class EpochCheckpoint(ModelCheckpoint):
    """`last.ckpt` in the stage's folder after each epoch, from which a killed training goes on.

    And after the step at which it is asked to end (SIGTERM, SIGUSR1). Everything random is drawn
    from seed, epoch and batch, so that a training resumed from it ends with the weights of an
    uninterrupted one.

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
        self.asked = 0  # the signal that one of the processes was asked to end with

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """From here to the end of the epoch a signal waits for the end of a step."""
        self._stop(trainer)
        signals.save_first(True)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save after a step, if one of the processes was asked to end; its log is written yet."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        progress = trainer.fit_loop.epoch_loop.batch_progress
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not progress.is_last_batch:
            return
        group = current()
        self.asked = signals.asked() if group is None else group.greatest(signals.asked())
        if self.asked and not progress.is_last_batch:
            # Weights that are no numbers may not have been noticed yet.
            if all(bool(torch.isfinite(p).all()) for p in pl_module.parameters()):
                trainer.save_checkpoint(Path(str(self.dirpath)) / CHECKPOINT)

    def _stop(self, trainer: pl.Trainer) -> None:
        """End what was asked to end.

        Raises:
            Signalled: it was.
        """
        if self.asked:
            signals.save_first(False)
            for logger in trainer.loggers:
                logger.save()
            raise signals.Signalled(128 + self.asked)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have the logs on disk before the checkpoint: what it goes on after is not made again."""
        signals.save_first(False)
        for logger in trainer.loggers:
            logger.save()
        super().on_train_epoch_end(trainer, pl_module)
        self._stop(trainer)


def seed_of(*key: int) -> int:
    """A seed for generators that take 32 bits; other keys, however alike, give another one."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them, once the disk holds them.

    Lightning's own way writes to the temporary folder; moved to another file system from there, a
    kill or a full disk would leave half of the only checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to `path`, whole or not at all."""
        with atomic(Path(path), durable=True) as temporary:
            torch.save(checkpoint, temporary)


class OwnSignals(Callback):
    """Takes the signals back from Lightning, which would send word of them between the processes.

    In the midst of what these exchange, that is, and so have them wait for one another.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has just taken them."""
        signals.listen_again()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning has just taken them."""
        signals.listen_again()


class SeedBatches(Callback):
    """Seeds the global generators from (seed, epoch, batch) before each batch.

    So that dropout and the like do not depend on whether the training was interrupted.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed Python, NumPy and PyTorch; each process differently."""
        key = (self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        pl.seed_everything(seed_of(*key), verbose=False)


class LearningRates(LearningRateMonitor):
    """Logs the learning rates of each optimizer step, once where several batches make one."""

    def __init__(self) -> None:
        super().__init__(logging_interval="step")
        self.logged = -1

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Log before the first batch of a step."""
        if trainer.global_step != self.logged:
            self.logged = trainer.global_step
            super().on_train_batch_start(trainer, *args, **kwargs)


class FiniteLoss(Callback):
    """Ends a training whose loss or weights are no numbers any more, before they are kept.

    Each look waits for a GPU, so there are few of them; the first bad step is remembered meanwhile.

    Args:
        key: the setting that holds the learning rate, for the message.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.first: Tensor | None = None  # first bad step, or -1
        self.terms: dict[str, Tensor] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Remember the first step whose loss is no number, and look now and then."""
        loss = outputs["loss"]
        if self.first is None:
            self.first = torch.full_like(loss, -1.0, dtype=torch.float64)
        new = (self.first < 0) & ~torch.isfinite(loss)
        self.first = torch.where(new, float(trainer.global_step), self.first)
        for name, term in outputs["terms"].items():
            # The terms of the first bad step stay.
            known = self.terms.get(name, term)
            self.terms[name] = torch.where((self.first < 0) | new, term, known)
        if loss.device.type == "cpu" or trainer.global_step % LOOK_EVERY == 0:
            self.look(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at loss and weights before the checkpoint is written."""
        self.look(trainer)
        wrong = [n for n, p in pl_module.named_parameters() if not bool(torch.isfinite(p).all())]
        if wrong:
            self.stop(trainer, trainer.global_step, f"the weights {wrong[0]} are no numbers")

    def look(self, trainer: pl.Trainer) -> None:
        """Raise if a loss was no number."""
        if self.first is None or (step := int(self.first)) < 0:
            return
        bad = [name for name, term in self.terms.items() if not math.isfinite(float(term))]
        self.stop(trainer, step, f"the loss {' and '.join(bad) or 'as a whole'} is no number")

    def stop(self, trainer: pl.Trainer, step: int, what: str) -> None:
        """End the training, with the way out.

        Raises:
            WsssError: always.
        """
        kept = Path(str(getattr(trainer.checkpoint_callback, "dirpath", None) or ".")) / CHECKPOINT
        good = f"; the last good checkpoint is {kept}" if kept.is_file() else ""
        clip = trainer.gradient_clip_val
        rather = "set a gradient_clip_val" if clip is None else f"gradient_clip_val, now {clip:g}"
        raise WsssError(f"{what} at step {step}: lower {self.key} or {rather}{good}")


class PredictionProgress(Callback):
    """Counts the pictures that this process predicts.

    Args:
        description: what heads the lines.
    """

    def __init__(self, description: str) -> None:
        self.description = description
        self.steps: Iterator[int] = iter(())

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin counting."""
        total = int(sum(trainer.num_predict_batches))
        self.steps = iter(track(range(total), self.description, total))
        next(self.steps, None)

    def on_predict_batch_end(self, *args: Any) -> None:
        """Count one."""
        next(self.steps, None)


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
