"""A run's settings as the command line composes them, and small runs lent to all stages' tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from wsss.build.segmenter import build_segmenter
from wsss.build.settings import Settings, resolve_settings
from wsss.cli import CONF, settings_path
from wsss.data.scenes import CLASSES, generate
from wsss.files import write_json
from wsss.stages import get_stage

MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="session")
def few_scenes(tmp_path_factory) -> Path:
    """Ten generated scenes of 64 × 64 pixels."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    generate(root, seed=0, n_train=6, n_val=4, size=64)
    return root


@pytest.fixture(scope="session")
def settings_in(few_scenes: Path) -> MakeSettings:
    """`settings_in(folder, "key=value", ..., run="name")`: settings of a run below a folder."""

    def make(folder: Path, *overrides: str, run: str = "run") -> Settings:
        OmegaConf.register_new_resolver("settings_path", settings_path, replace=True)
        OmegaConf.register_new_resolver("run_name", lambda: "test", replace=True)
        base = [
            "trainer=cpu",
            "trainer.precision=32-true",
            "trainer.log_every_n_steps=1",
            "backbone=timm",  # a ResNet of 0.4 million parameters
            "backbone.name=test_resnet",
            "backbone.weights=null",
            "backbone.frozen_stages=0",
            f"paths.outputs={folder / 'outputs'}",
            f"paths.cache={folder / 'cache'}",
            "data.num_workers=0",
            *(f"{group}.workers=0" for group in ("eval_cam", "refine", "segmentation")),
            *(f"{group}.pictures=2" for group in ("eval_cam", "refine", "segmentation")),
        ]
        if not any(override.startswith("data=") for override in overrides):
            base += [f"data.root={few_scenes}", "data.crop_size=48", "data.long_side=[40,64]"]
            base += ["data.batch_size=3", "data.scales=[1.0,0.5]", "training.max_epochs=2"]
            base += [f"data.image_set.{size}" for size in ("n_train=6", "n_val=4", "size=64")]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", overrides=[*base, *overrides])
        with open_dict(cfg):
            cfg.paths.run = str(folder / run)
        return resolve_settings(cfg)

    return make


@pytest.fixture
def settings(tmp_path: Path, settings_in: MakeSettings) -> MakeSettings:
    """`settings("key=value", ..., run="name")`: typed settings on the few scenes."""

    def make(*overrides: str, run: str = "run") -> Settings:
        return settings_in(tmp_path, *overrides, run=run)

    return make


@pytest.fixture(scope="session")
def lender(tmp_path_factory, settings_in: MakeSettings) -> Callable[..., Path]:
    """Runs stages once per session and setting; gives the run's folder, which is not to change."""
    made: dict[tuple[str, ...], Path] = {}

    def lend(stages: tuple[str, ...], overrides: tuple[str, ...]) -> Path:
        if overrides not in made:
            made[overrides] = tmp_path_factory.mktemp("lent")
        folder = made[overrides]
        s = settings_in(folder, *overrides)
        for stage in stages:
            if not (s.folder(stage) / "manifest.json").is_file():
                get_stage(stage)(s)
        return folder / "run"

    return lend


@pytest.fixture
def lend(lender, settings: MakeSettings) -> Callable[..., Settings]:
    """`lend("train", "make_cam", of=("method=sipe",))`: settings of a run that has these stages.

    The run is a copy: it may be changed, and stages may be run on it with more overrides
    (`settings(*of, "key=value")`).
    """

    def get(*stages: str, of: tuple[str, ...] = (), run: str = "run") -> Settings:
        s = settings(*of, run=run)
        source = lender(stages, of)
        for stage in stages:
            shutil.copytree(source / stage, s.folder(stage))
        return s

    return get


@pytest.fixture
def untrained_network() -> Callable[[Settings], None]:
    """Puts a segmentation network with random weights where seg_train leaves a trained one."""

    def write(s: Settings) -> None:
        segmenter, _ = build_segmenter(s, CLASSES)
        with torch.no_grad():  # all labels are predicted somewhere
            for parameter in segmenter.network.aspp.parameters():  # type: ignore[union-attr]
                parameter.normal_(std=0.3)
        folder = s.folder("seg_train")
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": segmenter.state_dict()}, folder / "last.ckpt")
        facts = {"class_names": list(CLASSES), "initial_weights": "none"}
        write_json(folder / "manifest.json", {"hash": "h", "stage": "seg_train", **facts})

    return write
