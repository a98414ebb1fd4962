"""Training on pseudo masks: what is read, how long, what stops it, and going on after a kill."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback

from wsss.data.masks import read_mask, write_mask
from wsss.data.voc import VOC
from wsss.errors import WsssError
from wsss.files import read_json
from wsss.stages import seg_train
from wsss.stages.seg_train import StopWithoutLoss, training_length

SMALL = (
    "segmentation=demo",
    "segmentation.features=pretrained",
    "segmentation.train.crop_size=32",
    "segmentation.train.batch_size=1",
    "segmentation.train.accumulate=2",
    "segmentation.train.max_epochs=3",
    "segmentation.workers=0",
    "segmentation.pictures=2",
)


@pytest.fixture
def masks(tmp_path: Path, few_scenes: Path) -> Path:
    """Pseudo masks of the training scenes: their truth, shifted, without void."""
    scenes = VOC(few_scenes)
    for name in scenes.names("train"):
        mask = np.roll(read_mask(few_scenes / "SegmentationClass" / f"{name}.png", 6), 3, axis=1)
        write_mask(tmp_path / "masks" / f"{name}.png", np.where(mask == 255, 0, mask))
    return tmp_path / "masks"


def weights(cfg) -> dict[str, torch.Tensor]:
    path = Path(cfg.paths.run) / "seg_train" / "last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


class Killed(RuntimeError):
    """Stands for a killed process."""


class Kill(Callback):
    """Ends the program in the middle of the second epoch."""

    def __init__(self, folder: Path) -> None:
        pass

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.current_epoch == 1:
            raise Killed


def test_a_killed_training_ends_with_the_weights_of_an_uninterrupted_one(
    composed, masks, monkeypatch, capsys
) -> None:
    settings = (*SMALL, f"segmentation.masks={masks}")
    straight, killed = composed(*settings, run="a"), composed(*settings, run="b")
    seg_train.run(straight)
    original = seg_train.ex.build_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(seg_train.ex, "build_callbacks", lambda c, f: [*original(c, f), Kill(f)])
        with pytest.raises(Killed):
            seg_train.run(killed)
    folder = Path(killed.paths.run) / "seg_train"
    assert not (folder / "manifest.json").exists()
    capsys.readouterr()
    seg_train.run(killed)
    assert "seg_train: resumes at step 3" in capsys.readouterr().out
    for key, value in weights(straight).items():
        assert torch.equal(value, weights(killed)[key]), key
    with (folder / "metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == 8
    manifests = [
        read_json(Path(c.paths.run) / "seg_train" / "manifest.json") for c in (straight, killed)
    ]
    assert manifests[0]["hash"] == manifests[1]["hash"]
    assert manifests[0]["steps"] == manifests[1]["steps"] == 9
    seg_train.run(killed)
    assert "finished before" in capsys.readouterr().out


def test_no_truth_is_read_and_the_manifest_tells_what_it_began_with(
    composed, masks, monkeypatch, capsys
) -> None:
    def refuse(*args):
        raise AssertionError("the truth was read")

    for name in ("mask", "mask_path", "has_mask", "labels"):
        monkeypatch.setattr(VOC, name, refuse)
    cfg = composed(*SMALL, f"segmentation.masks={masks}", "segmentation.train.max_epochs=1")
    seg_train.run(cfg)
    folder = Path(cfg.paths.run) / "seg_train"
    manifest = read_json(folder / "manifest.json")
    assert manifest["initial_weights"] == "none" and manifest["images"] == 6
    assert manifest["class_names"] == ["bird", "boat", "car", "cat", "house", "plant"]
    told = capsys.readouterr().out.splitlines()[-1]
    assert "6 pseudo masks of" in told and "initial weights: none ->" in told
    assert Image.open(folder / "samples.png").width > 200


def test_a_training_by_steps_ends_within_an_epoch_and_keeps_its_last_step(composed, masks) -> None:
    cfg = composed(
        *SMALL,
        f"segmentation.masks={masks}",
        "segmentation.train.max_epochs=null",
        "segmentation.train.max_steps=4",
    )
    seg_train.run(cfg)
    path = Path(cfg.paths.run) / "seg_train" / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 4
    assert read_json(path.parent / "manifest.json")["steps"] == 4


def test_faulty_masks_end_it_before_training(composed, masks) -> None:
    name = sorted(masks.iterdir())[2]
    write_mask(name, np.full((64, 64), 7, dtype=np.uint8))
    cfg = composed(*SMALL, f"segmentation.masks={masks}")
    with pytest.raises(WsssError, match=f"1 of 6 pseudo masks in .*{name.name} holds id 7"):
        seg_train.run(cfg)
    assert not (Path(cfg.paths.run) / "seg_train" / "last.ckpt").exists()
    write_mask(name, np.full((64, 64), 6, dtype=np.uint8))
    seg_train.run(
        composed(*SMALL, f"segmentation.masks={masks}", "segmentation.train.max_epochs=1")
    )


def test_other_masks_are_other_results(composed, masks) -> None:
    settings = (*SMALL, f"segmentation.masks={masks}", "segmentation.train.max_epochs=1")
    seg_train.run(composed(*settings))
    noise = np.random.default_rng(0).integers(0, 7, (64, 64)).astype(np.uint8)
    write_mask(sorted(masks.iterdir())[0], noise)
    with pytest.raises(WsssError, match="holds seg_train of other settings .*inputs.masks was"):
        seg_train.run(composed(*settings))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("segmentation.masks=nowhere",), "segmentation.masks=nowhere: no such folder"),
        ((), "stage=seg_train needs stage=irn_masks"),
        (("refine.masks=crf",), "stage=seg_train needs stage=crf"),
        (("refine.masks=seeds",), "refine.masks=seeds: choose irn_masks or crf"),
        (("segmentation.train.max_steps=5",), "max_steps=5 and max_epochs=3; give one of the two"),
        (("segmentation.train.max_epochs=null",), "max_steps=None and max_epochs=None"),
        (("segmentation.train.max_epochs=0",), "at least 1"),
        (("segmentation.loss=dice",), "segmentation.loss=dice: choose"),
        (("segmentation.network.name=unet",), "segmentation.network"),
        (("segmentation.features=random",), "segmentation.features=random: pretrained or method"),
        (("segmentation.split=dev",), "no list for split 'dev'"),
        (
            ("segmentation.features=method", "segmentation.network.name=resnet38d"),
            "needs segmentation.network.name=backbone",
        ),
    ],
)
def test_bad_settings_are_one_line(composed, masks, overrides, message) -> None:
    given = [f"segmentation.masks={masks}"]
    if any("masks" in o for o in overrides) or not overrides:
        given = []
    if "segmentation.features=method" in overrides:
        (Path(masks.parent) / "run" / "train").mkdir(parents=True)
        (Path(masks.parent) / "run" / "train" / "manifest.json").write_text('{"hash": "x"}')
    with pytest.raises(WsssError, match=message) as caught:
        seg_train.run(composed(*SMALL, *given, *overrides))
    assert "\n" not in str(caught.value)


def test_length_by_epochs_or_steps() -> None:
    def length(steps: int | None, epochs: int | None) -> dict[str, int]:
        train = SimpleNamespace(max_steps=steps, max_epochs=epochs)
        return training_length(SimpleNamespace(segmentation=SimpleNamespace(train=train)), 1058)

    assert length(None, 30) == {"max_epochs": 30, "max_steps": -1}
    assert length(20000, None) == {"max_epochs": 19, "max_steps": 20000}
    assert length(1058, None) == {"max_epochs": 1, "max_steps": 1058}


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    stop = StopWithoutLoss()
    trainer = SimpleNamespace(global_step=7)
    stop.on_train_batch_end(trainer, None, {"loss": torch.tensor(1.0)})
    stop.on_train_epoch_end(trainer, None)
    stop.on_train_batch_end(trainer, None, {"loss": torch.tensor(float("nan"))})
    with pytest.raises(WsssError, match="no number at step 7; try segmentation.loss=balanced"):
        stop.on_train_epoch_end(trainer, None)
