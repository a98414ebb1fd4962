"""Every recipe composes, and names things that exist; a new one is tested by being there."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from wsss.cli import CONF, choices_of, head, settings_path

EXPERIMENTS = choices_of("experiment")


def targets(node: Any) -> Iterator[dict]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from targets(value)


@pytest.fixture(scope="module", autouse=True)
def resolvers() -> None:
    OmegaConf.register_new_resolver("settings_path", settings_path, replace=True)
    OmegaConf.register_new_resolver("run_name", lambda: "test", replace=True)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes_and_its_keys_are_known_to_what_they_build(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[f"experiment={name}"])
    content = OmegaConf.to_container(cfg, resolve=True)
    found = list(targets(content))
    assert {"wsss"} <= {node["_target_"].split(".")[0] for node in found}
    for node in found:
        parameters = inspect.signature(get_object(node["_target_"])).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        unknown = set(node) - {"_target_", "name"} - set(parameters)
        assert not unknown, f"{node['_target_']} does not know {unknown}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_how_it_is_run(name: str) -> None:
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert "# @package _global_" in text
    assert "python run.py" in text
    assert "Hardware:" in text and "Published:" in text
    assert head(CONF / "experiment" / f"{name}.yaml")
