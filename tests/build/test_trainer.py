"""The trainer that all stages use."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader

from wsss import stages
from wsss.build.job import Result
from wsss.build.settings import Settings
from wsss.build.trainer import build_trainer, read_step, still_missing
from wsss.cli import compose_for_doctor
from wsss.errors import WsssError

CPU = ("trainer=cpu", "trainer.precision=32-true", "backbone.weights=null")


class Counts(pl.LightningModule):
    """Predicts nothing; the third image brings the signal of `kill` and of Slurm."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.seen.append(batch_idx)
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_prediction_ends_with_the_image_at_which_it_is_told_to(
    tmp_path: Path, monkeypatch, command_line
) -> None:
    monkeypatch.chdir(tmp_path)
    module = Counts()

    def predict(s: Settings) -> Result:
        trainer = build_trainer(s, tmp_path)
        trainer.predict(module, DataLoader(torch.zeros(9, 1)), return_predictions=False)
        return Result("make_cam")

    monkeypatch.setattr(stages, "get_stage", lambda name: predict)
    done = command_line(*CPU, "stage=make_cam")
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == "error: terminated; the same command goes on where it was\n"
    assert module.seen == [0, 1, 2]


def test_what_the_settings_say_is_what_lightning_gets(tmp_path: Path) -> None:
    s = compose_for_doctor(
        [*CPU, "trainer.log_every_n_steps=3", "trainer.deterministic=warn", "trainer.strategy=ddp"]
    )

    class Mine(Callback):
        pass

    trainer = build_trainer(s, tmp_path, [Mine()], max_epochs=4, gradient_clip_val=0.5)
    assert (trainer.log_every_n_steps, trainer.num_devices) == (3, 1)
    assert (trainer.max_epochs, trainer.gradient_clip_val) == (4, 0.5)
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    assert any(isinstance(c, Mine) for c in trainer.callbacks)
    assert trainer.checkpoint_callback is None and trainer.precision == "32-true"


def test_a_single_process_does_not_pass_for_several(tmp_path: Path) -> None:
    with pytest.raises(WsssError, match=r"trainer\.devices=2: this is a single process"):
        build_trainer(compose_for_doctor([*CPU, "trainer.devices=2"]), tmp_path)


@pytest.mark.parametrize("wrong", ["trainer.strategy=abacus", "trainer.accelerator=mps"])
def test_what_lightning_refuses_is_one_line(tmp_path: Path, wrong: str) -> None:
    s = compose_for_doctor([*CPU, wrong])
    with pytest.raises(WsssError, match="^trainer: .*(correct the keys of|take) trainer") as caught:
        build_trainer(s, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_broken_checkpoint_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"global_step": 7}, path)
    assert read_step(path) == 7
    for content in (b"", b"half a file", path.read_bytes()[:-40]):
        path.write_bytes(content)
        with pytest.raises(WsssError, match="last.ckpt: can't be read as a checkpoint; delete it"):
            read_step(path)


def test_what_lacks_a_file_in_any_folder_is_missing_in_order(tmp_path: Path) -> None:
    for folder, names in (("a", "xyz"), ("b", "yzw")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.png").touch()
    one, two = ((tmp_path / folder, ".png") for folder in "ab")
    assert still_missing(list("wzyx"), one) == ["w"]
    assert still_missing(list("wzyx"), one, two) == ["w", "x"]
    assert still_missing(["y"], one, two, (tmp_path / "a", ".npz")) == ["y"]
