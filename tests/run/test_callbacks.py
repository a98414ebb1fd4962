"""What every training has in common: loss terms, checkpoints, seeds, an end at losses like NaN."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from wsss.errors import WsssError
from wsss.run.callbacks import (
    CHECKPOINT,
    EpochCheckpoint,
    FiniteLoss,
    LearningRates,
    PredictionProgress,
    SeedBatches,
    log_epoch,
    log_losses,
)
from wsss.run.logs import read_metrics

STEPS = 4  # of an epoch


class Terms(pl.LightningModule):
    """Two loss terms on one weight; from a given step on one of them is what it is told to be."""

    def __init__(self, bad_step: int | None = None, bad: float = math.nan) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.bad_step, self.bad = bad_step, bad
        self.drawn: list[tuple[float, ...]] = []
        self.returned: list[dict[str, Any]] = []

    def training_step(self, batch: Tensor, index: int) -> dict[str, Any]:
        self.drawn.append((float(torch.rand(1)), float(np.random.rand()), random.random()))
        bad = self.bad_step is not None and self.global_step >= self.bad_step
        terms = {"one": self.weight.sum() * (self.bad if bad else 1), "two": 2 * self.weight.sum()}
        self.returned.append(log_losses(self, terms, len(batch), factor=0.5))
        return self.returned[-1]

    def predict_step(self, batch: Tensor, index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def run(
    module: pl.LightningModule,
    folder: Path,
    callbacks: Sequence[Callback],
    epochs: int = 3,
    resume: Path | None = None,
    **options: Any,
) -> pl.Trainer:
    trainer = pl.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        log_every_n_steps=1,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, **options},
    )
    # A generator of its own, as the project's loaders have: an iterator draws from it.
    loader = DataLoader(torch.zeros(2 * STEPS, 1), batch_size=2, generator=torch.Generator())
    trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
    return trainer


def test_terms_and_their_sum_are_returned_and_logged(tmp_path: Path) -> None:
    module = Terms()
    logger = CSVLogger(tmp_path, name="", version="")
    run(module, tmp_path, [EpochCheckpoint(tmp_path)], 1, logger=logger)
    rows = read_metrics(tmp_path / "metrics.csv")
    weight = 1.0
    for row, returned in zip(rows, module.returned, strict=True):
        one, two = weight, 2 * weight
        expected = {"one": one, "two": two}
        assert {n: float(t) for n, t in returned["terms"].items()} == pytest.approx(expected)
        assert float(returned["loss"].detach()) == pytest.approx(0.5 * (one + two))
        assert float(row["train/loss_one"]) == pytest.approx(one)
        assert float(row["train/loss_two"]) == pytest.approx(two)
        assert float(row["train/loss"]) == pytest.approx(0.5 * (one + two))
        weight -= 0.01 * 1.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [0, 5, 7])
def test_a_loss_that_is_no_number_ends_the_training_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, bad: float, step: int
) -> None:
    callbacks = [FiniteLoss("optimizer.lr"), EpochCheckpoint(tmp_path)]
    with pytest.raises(WsssError) as caught:
        run(Terms(step, bad), tmp_path, callbacks)
    told = str(caught.value)
    assert "\n" not in told and "lower optimizer.lr or set a gradient_clip_val" in told
    assert "the loss one is no number" in told and "two" not in told
    # Lightning counts a step before its callbacks are called.
    assert f"at step {step + 1}:" in told
    kept = tmp_path / CHECKPOINT
    assert kept.is_file() == (step >= STEPS)
    if step >= STEPS:
        assert f"the last good checkpoint is {kept}" in told
        state = torch.load(kept, weights_only=True)
        assert state["global_step"] == STEPS
        assert state["state_dict"]["weight"].item() == pytest.approx(1 - 0.015 * STEPS)
    else:
        assert "checkpoint" not in told


def test_weights_that_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    class Spoil(Callback):
        """The last step of the second epoch leaves a weight of infinity behind a finite loss."""

        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *rest: Any) -> None:
            if trainer.global_step == 2 * STEPS:
                module.weight.data.fill_(math.inf)

    callbacks = [FiniteLoss("lr"), EpochCheckpoint(tmp_path), Spoil()]
    with pytest.raises(WsssError, match=f"weights weight are no numbers at step {2 * STEPS}: "):
        run(Terms(), tmp_path, callbacks)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert state["global_step"] == STEPS and state["state_dict"]["weight"].isfinite()


def test_on_a_gpu_the_first_bad_step_and_its_terms_are_remembered_until_the_next_look() -> None:
    """A look waits for the device, so there are few; here the tensors only seem to be on one."""

    class Elsewhere(torch.Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("meta")

    class Step:
        global_step, checkpoint_callback, gradient_clip_val = 0, None, 0.5

    watch, trainer = FiniteLoss("lr"), Step()
    for step in range(1, 10):
        trainer.global_step = step
        value = math.nan if step == 3 else float(step)  # the sum recovers, as with a scaler
        loss = torch.tensor(value).as_subclass(Elsewhere)
        terms = {"a": torch.tensor(1.0), "b": torch.tensor(value)}
        watch.on_train_batch_end(trainer, None, {"loss": loss, "terms": terms})  # type: ignore[arg-type]
    with pytest.raises(
        WsssError,
        match="^the loss b is no number at step 3: lower lr or gradient_clip_val, now 0.5",
    ):
        watch.look(trainer)  # type: ignore[arg-type]


def test_everything_random_in_an_epoch_comes_from_seed_and_epoch(tmp_path: Path) -> None:
    straight = Terms()
    run(straight, tmp_path / "a", [SeedBatches(3)])
    first = Terms()
    run(first, tmp_path / "b", [SeedBatches(3), EpochCheckpoint(tmp_path / "b")], epochs=1)
    torch.manual_seed(99)
    rest = Terms()
    run(rest, tmp_path / "c", [SeedBatches(3)], resume=tmp_path / "b" / CHECKPOINT)
    assert straight.drawn == first.drawn + rest.drawn and len(rest.drawn) == 2 * STEPS
    assert torch.equal(straight.weight, rest.weight)
    assert len(set(straight.drawn)) == len(straight.drawn)
    other = Terms()
    run(other, tmp_path / "d", [SeedBatches(4)])
    assert not set(other.drawn) & set(straight.drawn)


def test_all_that_an_epoch_logs_is_on_disk_before_its_checkpoint(tmp_path: Path) -> None:
    """So that a training killed at any time after it has every row once."""

    class Ends(Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            log_epoch(trainer, {"bank/fill": torch.tensor(trainer.current_epoch + 0.5)})

    class Looks(EpochCheckpoint):
        seen: tuple[list[dict[str, str]], ...] = ()

        def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
            self.seen = (*self.seen, read_metrics(tmp_path / "metrics.csv"))
            super()._save_checkpoint(trainer, filepath)

    looks = Looks(tmp_path)
    logger = CSVLogger(tmp_path, name="", version="", flush_logs_every_n_steps=1000)
    run(Terms(), tmp_path, [Ends(), looks], epochs=2, logger=logger)
    for epoch, rows in enumerate(looks.seen, 1):
        steps = [int(row["step"]) for row in rows if row["train/loss"]]
        assert steps == list(range(STEPS * epoch))
        ends = [(int(r["epoch"]), int(r["step"]), r["bank/fill"]) for r in rows if r["bank/fill"]]
        assert ends == [(n, STEPS * (n + 1) - 1, str(n + 0.5)) for n in range(epoch)]
    assert len(looks.seen) == 2


def test_a_step_of_several_batches_logs_its_learning_rate_once(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    run(Terms(), tmp_path, [LearningRates()], epochs=2, logger=logger, accumulate_grad_batches=2)
    rates = [row for row in read_metrics(tmp_path / "metrics.csv") if row["lr-SGD"]]
    assert [int(row["step"]) for row in rates] == list(range(STEPS))
    assert {float(row["lr-SGD"]) for row in rates} == {0.01}


def test_a_prediction_counts_its_pictures(tmp_path: Path, capsys) -> None:
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        callbacks=[PredictionProgress("make_cam")],
        enable_progress_bar=False,
    )
    trainer.predict(Terms(), DataLoader(torch.zeros(5, 1)), return_predictions=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if "make_cam" in line]
    assert len(lines) == 1 and lines[0].startswith("make_cam: 5/5 in ")
