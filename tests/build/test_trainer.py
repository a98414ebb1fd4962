"""The trainer that all stages use."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from wsss.build.objects import build_trainer

CPU = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true"}


class Counts(pl.LightningModule):
    """Predicts nothing; the third image brings the signal of `kill` and of Slurm."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.seen.append(batch_idx)
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_prediction_ends_with_the_image_at_which_it_is_told_to(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    trainer = build_trainer(OmegaConf.create({"trainer": CPU}), tmp_path)
    module = Counts()
    with pytest.raises(SystemExit):
        trainer.predict(module, DataLoader(torch.zeros(9, 1)), return_predictions=False)
    assert module.seen == [0, 1, 2]
    assert signal.getsignal(signal.SIGTERM) == before
