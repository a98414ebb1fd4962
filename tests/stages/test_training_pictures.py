"""Pictures of a training on a dashboard: the same images after each epoch, nothing else touched."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wsss.build.segmenter import find_trained, load_trained
from wsss.build.settings import Settings
from wsss.data.masks import write_mask
from wsss.data.photographs import load_image
from wsss.data.voc import VOC
from wsss.maps.files import MAPS
from wsss.show.dashboard import ROW_HEIGHT
from wsss.show.layout import Shown, compose
from wsss.show.overlays import label_overlay
from wsss.show.sheets import map_column
from wsss.stages import make_cam, seg_train, train


def pictures(folder: Path) -> dict[str, dict[int, np.ndarray]]:
    """Pictures that TensorBoard holds, by name of the image and step."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    return {
        tag.partition("/")[2]: {
            event.step: np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
            for event in events.Images(tag)
        }
        for tag in events.Tags()["images"]
    }


def weights(s: Settings, stage: str) -> dict[str, torch.Tensor]:
    return torch.load(s.folder(stage) / "last.ckpt", weights_only=True)["state_dict"]


def test_class_maps_of_the_same_images_are_shown_after_each_epoch(settings, few_scenes) -> None:
    given = ("method=cpal_small", "method.warmup_epochs=1", "data.scales=[1.0]")
    given += ("optimizer=as_written", "backbone.norm=batch")  # so that maps are not flat
    plain = settings(*given, run="plain")
    shown = settings(*given, "logger=tensorboard", "callbacks.pictures.pictures=2", run="shown")
    for s in (plain, shown):
        train.run(s)
    for key, value in weights(plain, "train").items():
        assert torch.equal(value, weights(shown, "train")[key]), key
    found = pictures(shown.folder("train"))
    scenes = VOC(few_scenes)
    names = scenes.names("train")
    assert sorted(found) == [names[0], names[-1]]
    make_cam.run(shown)
    for name, by_step in found.items():
        assert list(by_step) == [2, 4], "two steps an epoch"
        assert not np.array_equal(by_step[2], by_step[4])
        picture = load_image(scenes.image_path(name))
        ids = tuple((np.flatnonzero(scenes.labels([name])[0]) + 1).tolist())
        maps = shown.folder("make_cam") / MAPS
        # The host's own: CPAL's are made of a bank that is refreshed before maps are made.
        row = [[Shown(picture, ids)], map_column(maps, "cam")(name, picture)]
        expected = compose([row], ["photograph", "cam"], [name], scenes.classes, ROW_HEIGHT)
        height, width = expected.shape[0] - 24, expected.shape[1]
        ours = by_step[4][:height, :width].astype(int)
        assert np.abs(ours - expected[:height]).max() <= 4  # maps are stored in 255 steps


def test_a_tensorboard_shows_settings_and_no_metric_that_nothing_sets(settings) -> None:
    s = settings("logger=tensorboard", "training.max_epochs=1", "callbacks.pictures=null")
    train.run(s)
    events = EventAccumulator(str(s.folder("train") / "tensorboard"))
    events.Reload()
    assert "hp_metric" not in events.Tags()["scalars"]
    assert "train/loss" in events.Tags()["scalars"] and not events.Tags()["images"]
    content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert b"training.max_epochs" in content


def test_label_maps_are_shown_beside_what_they_are_learnt_from(
    settings, few_scenes, tmp_path
) -> None:
    scenes = VOC(few_scenes)
    for name in scenes.names("train"):
        mask = scenes.mask(name)
        write_mask(tmp_path / "masks" / f"{name}.png", np.roll(mask, 5, axis=0))
    s = settings(
        *("segmentation=demo", "segmentation.features=pretrained", "logger=tensorboard"),
        *("segmentation.train.crop_size=32", "segmentation.train.batch_size=3"),
        *("segmentation.train.max_epochs=2", f"segmentation.masks={tmp_path / 'masks'}"),
        *("callbacks.pictures.every_n_epochs=2", "callbacks.pictures.pictures=1"),
    )
    seg_train.run(s)
    ((name, by_step),) = pictures(s.folder("seg_train")).items()
    assert name == scenes.names("train")[0] and list(by_step) == [4]
    segmenter, network = load_trained(s, find_trained(s, "seg_eval"), "seg_eval")
    picture = load_image(scenes.image_path(name))
    mean, std = (torch.tensor(v)[:, None, None] for v in (network.mean, network.std))
    image = (torch.from_numpy(picture).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        logits = F.interpolate(segmenter.logits(image[None]), picture.shape[:2], mode="bilinear")
    masks = [logits[0].argmax(0).numpy(), np.roll(scenes.mask(name), 5, axis=0)]
    row = [picture, *(Shown(label_overlay(picture, m), tuple(np.unique(m))) for m in masks)]
    cells = [row[0], *([one] for one in row[1:])]
    headings = ["photograph", "segmentation", "pseudo mask"]
    expected = compose([cells], headings, [name], scenes.classes, ROW_HEIGHT)
    assert by_step[4].shape == expected.shape
    assert (np.abs(by_step[4].astype(int) - expected).max(2) > 8).mean() < 0.01


@pytest.mark.parametrize("logger", ["csv", "none"])
def test_without_a_dashboard_nothing_is_drawn(settings, logger, monkeypatch) -> None:
    def refuse(*args):
        raise AssertionError("a picture was drawn")

    monkeypatch.setattr("wsss.stages.train.drawn", refuse)
    train.run(settings(f"logger={logger}", "training.max_epochs=1"))
