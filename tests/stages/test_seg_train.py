"""Training on pseudo masks: what is read, how long, what stops it, and going on after a kill."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback

from wsss.build.components import Component
from wsss.build.settings import Settings
from wsss.data.masks import read_mask, write_mask
from wsss.data.voc import VOC
from wsss.errors import WsssError
from wsss.files import read_json
from wsss.segmentation.settings import SegmentationSettings, TrainSettings
from wsss.stages import seg_train
from wsss.stages.seg_train import training_length

SMALL = (
    "segmentation=demo",
    "segmentation.features=pretrained",
    "segmentation.train.crop_size=32",
    "segmentation.train.batch_size=1",
    "segmentation.train.accumulate=2",
    "segmentation.train.max_epochs=3",
)


@pytest.fixture
def masks(tmp_path: Path, few_scenes: Path) -> Path:
    """Pseudo masks of the training scenes: their truth, shifted, without void."""
    scenes = VOC(few_scenes)
    for name in scenes.names("train"):
        mask = np.roll(read_mask(few_scenes / "SegmentationClass" / f"{name}.png", 6), 3, axis=1)
        write_mask(tmp_path / "masks" / f"{name}.png", np.where(mask == 255, 0, mask))
    return tmp_path / "masks"


def weights(s: Settings) -> dict[str, torch.Tensor]:
    path = s.folder("seg_train") / "last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


class KilledError(RuntimeError):
    """Stands for a killed process."""


class Kill(Callback):
    """Ends the program in the middle of the second epoch."""

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.current_epoch == 1:
            raise KilledError


def test_a_killed_training_ends_with_the_weights_of_an_uninterrupted_one(
    settings, masks, capsys
) -> None:
    given = (*SMALL, f"segmentation.masks={masks}")
    straight, killed = settings(*given, run="a"), settings(*given, run="b")
    seg_train.run(straight)
    callbacks = {**killed.callbacks, "kill": Component("Kill", Kill, {})}
    with pytest.raises(KilledError):
        seg_train.run(replace(killed, callbacks=callbacks))
    folder = killed.folder("seg_train")
    assert not (folder / "manifest.json").exists()
    capsys.readouterr()
    seg_train.run(killed)
    assert "seg_train: resumes at step 3" in capsys.readouterr().out
    for key, value in weights(straight).items():
        assert torch.equal(value, weights(killed)[key]), key
    with (folder / "metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == 8
    manifests = [read_json(s.folder("seg_train") / "manifest.json") for s in (straight, killed)]
    assert manifests[0]["hash"] == manifests[1]["hash"]
    assert manifests[0]["steps"] == manifests[1]["steps"] == 9
    seg_train.run(killed)
    assert "finished before" in capsys.readouterr().out


def test_no_truth_is_read_and_the_manifest_tells_what_it_began_with(
    settings, masks, monkeypatch, capsys
) -> None:
    def refuse(*args):
        raise AssertionError("the truth was read")

    for name in ("mask", "mask_path", "has_mask", "labels"):
        monkeypatch.setattr(VOC, name, refuse)
    s = settings(*SMALL, f"segmentation.masks={masks}", "segmentation.train.max_epochs=1")
    seg_train.run(s)
    folder = s.folder("seg_train")
    manifest = read_json(folder / "manifest.json")
    assert manifest["initial_weights"] == "none" and manifest["images"] == 6
    assert manifest["class_names"] == ["bird", "boat", "car", "cat", "house", "plant"]
    told = capsys.readouterr().out.splitlines()[-1]
    assert "6 pseudo masks of" in told and "initial weights: none ->" in told
    assert Image.open(folder / "samples.png").width > 200


def test_a_training_by_steps_ends_within_an_epoch_and_keeps_its_last_step(settings, masks) -> None:
    s = settings(
        *SMALL,
        f"segmentation.masks={masks}",
        "segmentation.train.max_epochs=null",
        "segmentation.train.max_steps=4",
    )
    seg_train.run(s)
    path = s.folder("seg_train") / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 4
    assert read_json(path.parent / "manifest.json")["steps"] == 4


def test_faulty_masks_end_it_before_training(settings, masks) -> None:
    name = sorted(masks.iterdir())[2]
    write_mask(name, np.full((64, 64), 7, dtype=np.uint8))
    s = settings(*SMALL, f"segmentation.masks={masks}")
    with pytest.raises(WsssError, match=f"1 of 6 pseudo masks in .*{name.name} holds id 7"):
        seg_train.run(s)
    assert not (s.folder("seg_train") / "last.ckpt").exists()
    write_mask(name, np.full((64, 64), 6, dtype=np.uint8))
    seg_train.run(
        settings(*SMALL, f"segmentation.masks={masks}", "segmentation.train.max_epochs=1")
    )


def test_other_masks_are_other_results(settings, masks) -> None:
    given = (*SMALL, f"segmentation.masks={masks}", "segmentation.train.max_epochs=1")
    seg_train.run(settings(*given))
    noise = np.random.default_rng(0).integers(0, 7, (64, 64)).astype(np.uint8)
    write_mask(sorted(masks.iterdir())[0], noise)
    with pytest.raises(WsssError, match="holds seg_train of other settings .pseudo masks changed"):
        seg_train.run(settings(*given))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("segmentation.masks=nowhere",), "segmentation.masks=nowhere: no such folder"),
        ((), "stage=seg_train needs stage=irn_masks"),
        (("refine.masks=crf",), "stage=seg_train needs stage=crf"),
        (("segmentation.split=dev",), "no list for split 'dev'"),
        (("segmentation.features=method",), "stage=seg_train needs stage=train"),
        (
            ("segmentation.train.batch_size=4",),
            "segmentation.train.batch_size=4 x 2 accumulated is more than the 6 images",
        ),
    ],
)
def test_what_is_missing_or_does_not_fit_is_one_line(settings, masks, overrides, message) -> None:
    given = [f"segmentation.masks={masks}"]
    if any("masks" in o for o in overrides) or not overrides:
        given = []
    with pytest.raises(WsssError, match=message) as caught:
        seg_train.run(settings(*SMALL, *given, *overrides))
    assert "\n" not in str(caught.value)


def test_length_by_epochs_or_steps() -> None:
    def length(steps: int | None, epochs: int | None) -> dict[str, int]:
        train = TrainSettings(max_steps=steps, max_epochs=epochs)
        return training_length(SegmentationSettings(train=train), 1058)

    assert length(None, 30) == {"max_epochs": 30, "max_steps": -1}
    assert length(20000, None) == {"max_epochs": 19, "max_steps": 20000}
    assert length(1058, None) == {"max_epochs": 1, "max_steps": 1058}


def test_a_loss_that_is_no_number_ends_it_with_the_way_out(settings, masks) -> None:
    s = settings(
        *SMALL,
        f"segmentation.masks={masks}",
        "segmentation.optimizer.lr=1e30",
        "segmentation.loss=ce",
    )
    with pytest.raises(WsssError, match="at step .: lower segmentation.optimizer.lr, take") as told:
        seg_train.run(s)
    assert "\n" not in str(told.value) and "segmentation.loss=balanced" in str(told.value)
    folder = s.folder("seg_train")
    assert not list(folder.glob("*.ckpt")) and not (folder / "manifest.json").exists()
