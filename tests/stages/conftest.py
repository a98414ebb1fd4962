"""A run's settings as the command line composes them, for stages called without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from wsss.build.segmenter import build_segmenter
from wsss.cli import CONF, settings_path
from wsss.data.scenes import CLASSES, generate
from wsss.files import write_json


@pytest.fixture(scope="session")
def few_scenes(tmp_path_factory) -> Path:
    """Ten generated scenes of 64 × 64 pixels."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    generate(root, seed=0, n_train=6, n_val=4, size=64)
    return root


@pytest.fixture
def composed(tmp_path: Path, few_scenes: Path) -> Callable[..., DictConfig]:
    """`composed("key=value", ..., run="name")`: settings on the few scenes."""
    OmegaConf.register_new_resolver("settings_path", settings_path, replace=True)
    OmegaConf.register_new_resolver("run_name", lambda: "test", replace=True)

    def settings(*overrides: str, run: str = "run") -> DictConfig:
        base = [
            "trainer=cpu",
            "trainer.precision=32-true",
            "trainer.log_every_n_steps=1",
            "backbone.weights=null",
            f"data.root={few_scenes}",
            f"paths.cache={tmp_path / 'cache'}",
        ]
        if not any(override.startswith("data=") for override in overrides):
            sizes = ("n_train=6", "n_val=4", "size=64")
            base += [f"data.image_set.{size}" for size in sizes]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", overrides=[*base, *overrides])
        with open_dict(cfg):
            cfg.paths.run = str(tmp_path / run)
        return cfg

    return settings


@pytest.fixture
def untrained_network() -> Callable[[DictConfig], None]:
    """Puts a segmentation network with random weights where seg_train leaves a trained one."""

    def write(cfg: DictConfig) -> None:
        classes = CLASSES
        segmenter, _ = build_segmenter(cfg, classes)
        with torch.no_grad():  # all labels are predicted somewhere
            for parameter in segmenter.network.aspp.parameters():
                parameter.normal_(std=0.3)
        folder = Path(cfg.paths.run) / "seg_train"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": segmenter.state_dict()}, folder / "last.ckpt")
        facts = {"class_names": list(classes), "initial_weights": "none"}
        write_json(folder / "manifest.json", {"hash": "h", "stage": "seg_train", **facts})

    return write
