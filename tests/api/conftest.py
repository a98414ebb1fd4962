"""Seed networks of every kind with random weights, as a training would have left them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsss.build.objects import build_image_set, build_network
from wsss.build.settings import Settings
from wsss.data.masks import write_mask
from wsss.data.scenes import CLASSES
from wsss.data.voc import VOC
from wsss.maps.files import ClassMaps, write_class_maps


@pytest.fixture
def scenes(few_scenes: Path) -> VOC:
    return VOC(few_scenes)


def words(scenes: VOC, name: str) -> list[str]:
    """Class names of an image."""
    return [scenes.classes[n] for n in np.flatnonzero(scenes.labels([name])[0])]


@pytest.fixture
def labels(scenes: VOC) -> dict[str, list[str]]:
    """Class names of each training image."""
    return {name: words(scenes, name) for name in scenes.names("train")}


@pytest.fixture
def files(scenes: VOC) -> list[Path]:
    """The training images."""
    return [scenes.image_path(name) for name in scenes.names("train")]


@pytest.fixture
def beside(tmp_path: Path, scenes: VOC) -> dict[str, Path]:
    """Folders of what some hosts read: label maps, class maps."""
    rng = np.random.default_rng(0)
    for name in scenes.names("train"):
        ids = np.flatnonzero(scenes.labels([name])[0]) + 1
        cells = rng.choice([0, *ids, 255], (8, 8)).astype(np.uint8)
        write_mask(tmp_path / "label_maps" / f"{name}.png", np.kron(cells, np.ones((8, 8), int)))
        maps = {"cam": rng.random((len(ids), 16, 16), dtype=np.float32)}
        write_class_maps(tmp_path / "class_maps" / f"{name}.npz", ClassMaps(ids, (64, 64), maps))
    return {"labels": tmp_path / "label_maps", "maps": tmp_path / "class_maps"}


@pytest.fixture
def written(settings) -> Callable[..., tuple[Settings, Path]]:
    """`written("method=sipe")`: settings, and the checkpoint of such a network."""

    def write(*overrides: str) -> tuple[Settings, Path]:
        s = settings(*overrides)
        network = build_network(s, tuple(CLASSES))
        with torch.no_grad():
            for name, values in network.named_parameters():
                if "classifier" in name or "projection" in name:
                    values.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
        path = s.folder("train") / "last.ckpt"
        path.parent.mkdir(parents=True)
        checkpoint: dict[str, Any] = {"state_dict": network.state_dict()}
        network.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, path)
        assert build_image_set(s).classes == tuple(CLASSES)
        return s, path

    return write
