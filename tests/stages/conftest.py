"""A run's settings as the command line composes them, for stages called without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from wsss.cli import CONF, settings_path
from wsss.data.scenes import generate


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
            "data.image_set.n_train=6",
            "data.image_set.n_val=4",
            "data.image_set.size=64",
            f"data.root={few_scenes}",
            f"paths.cache={tmp_path / 'cache'}",
        ]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", overrides=[*base, *overrides])
        with open_dict(cfg):
            cfg.paths.run = str(tmp_path / run)
        return cfg

    return settings
