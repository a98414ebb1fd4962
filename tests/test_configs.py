"""Every recipe composes, and names things that exist; a new one is tested by being there."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from wsss.cli import CONF, choices_of, head, settings_of, settings_path
from wsss.errors import WsssError

EXPERIMENTS = choices_of("experiment")


@pytest.fixture(scope="module", autouse=True)
def resolvers() -> None:
    OmegaConf.register_new_resolver("settings_path", settings_path, replace=True)
    OmegaConf.register_new_resolver("run_name", lambda: "test", replace=True)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_key_of_a_recipe_is_known_and_of_its_type(name: str) -> None:
    cfg = composed(f"experiment={name}", "run_name=test", "paths.run=test")
    stages = list(cfg.pipeline)
    settings = settings_of(cfg, stages)
    assert set(settings) == set(stages)


@pytest.mark.parametrize(
    "key", ["method.no_such_key", "method.bank.no_such_key", "host.no_such_key"]
)
def test_a_key_that_nothing_knows_is_told(key: str) -> None:
    cfg = composed("experiment=cpal_voc", "run_name=test", "paths.run=test", f"+{key}=1")
    with pytest.raises(WsssError, match=key):
        settings_of(cfg, ["train"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_how_it_is_run(name: str) -> None:
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert "# @package _global_" in text
    assert "python run.py" in text
    assert "Hardware:" in text and "Published:" in text
    assert head(CONF / "experiment" / f"{name}.yaml")


TABLE1 = ("context", "aware", "alignment")


def method_of(name: str) -> dict[str, Any]:
    return flat(OmegaConf.to_container(composed(f"experiment={name}").method, resolve=True))


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in node.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else None
        found |= {f"{prefix}{key}": value} if inner is None else inner
    return found


@pytest.mark.parametrize(
    ("rows", "last"),
    [("cpal_table1", "cpal_voc"), ("cpal_mini_table1", "cpal_voc2007_mini")],
)
def test_each_row_of_table_1_adds_its_component_alone(rows: str, last: str) -> None:
    methods = [method_of(f"{rows}_{row}") for row in TABLE1] + [method_of(last)]
    added = [
        {key: (one[key], other[key]) for key in one if one[key] != other[key]}
        for one, other in pairwise(methods)
    ]
    neighbours = methods[1]["neighbours"]
    aware = {"positiveness": (False, True)}
    if neighbours != "all":
        aware["neighbours"] = ("all", neighbours)
    assert added == [
        aware,
        {"alignment": ("off", "pixel"), "test.alignment": ("off", "batch")},
        {"lambda_self": (0.0, 1.0)},
    ]
