"""Every recipe composes and every one of its keys is known; a new one is tested by being there."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from wsss.build import by_number
from wsss.build.compose import composed as plain_content
from wsss.build.settings import resolve_settings
from wsss.cli import (
    CONF,
    MOVED,
    choices_of,
    head,
    settings_of,
    settings_path,
)
from wsss.errors import WsssError
from wsss.stages import stage_names

EXPERIMENTS = choices_of("experiment")
# Groups whose every choice stands by itself; what else it needs.
GROUPS = {
    "host": (),
    "method": (),
    "backbone": (),
    "optimizer": (),
    "data": (),
    "refine": (),
    "segmentation": ("segmentation.checkpoint=null",),
    "trainer": (),
    "logger": (),
    "debug": (),
}


@pytest.fixture(scope="module", autouse=True)
def resolvers() -> None:
    OmegaConf.register_new_resolver("settings_path", settings_path, replace=True)
    OmegaConf.register_new_resolver("run_name", lambda: "test", replace=True)
    by_number.register()


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=list(overrides))
    with open_dict(cfg):
        cfg.paths.run = "out/test"
    return cfg


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiments_keys_are_known_to_what_they_build(name: str) -> None:
    """All of them: those of host, method, backbone and of the runs inside the run."""
    cfg = composed(f"experiment={name}")
    pipeline = [str(stage) for stage in cfg.pipeline]
    for stage, s in settings_of(cfg, pipeline).items():
        assert stage.rpartition("/")[2] in stage_names()
        assert stage.rpartition("/")[0] in s.paths.run
        for part in (s.host, s.backbone, s.data.image_set):
            assert part.target.startswith("wsss.")
    # A wrong key of the method is no less an error than one elsewhere.
    for part in ("method", "host", "backbone"):
        with open_dict(cfg):
            cfg[part].nonsense = 1
        with pytest.raises(WsssError, match=rf"^{part}\.nonsense: "):
            resolve_settings(cfg)
        with open_dict(cfg):
            del cfg[part].nonsense


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group in GROUPS for name in choices_of(group)]
)
def test_every_choice_of_a_group_fits_the_settings(group: str, name: str) -> None:
    resolve_settings(composed(f"{group}={name}", *GROUPS[group]))
    assert head(CONF / group / f"{name}.yaml")


def test_what_goes_by_numbers_is_plain_for_python_and_help_too() -> None:
    content, _ = plain_content(["experiment=folder_segmentation"])
    assert content["pipeline"][-1] == "seg_predict" and content["refine"]["masks"] == "crf"


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
    neighbors = methods[1]["neighbors"]
    aware = {"positiveness": (False, True)}
    if neighbors != "all":
        aware["neighbors"] = ("all", neighbors)
    assert added == [
        aware,
        {"alignment": ("off", "pixel"), "test.alignment": ("off", "batch")},
        {"lambda_self": (0.0, 1.0)},
    ]


def numbers_of(node: Any) -> set[float]:
    if isinstance(node, dict):
        return set().union(*(numbers_of(value) for value in node.values()))
    return {float(number) for number in re.findall(r"\b\d\d\.\d\b", str(node))}


READMES = sorted(CONF.parent.glob("wsss/*/*/README.md"))


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_published_numbers_of_a_readme_are_those_of_its_recipes(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = line.strip().strip("|").split("|")
        named = [name for name in re.findall(r"`(\w+)`", line) if name in EXPERIMENTS]
        if not line.startswith("|") or named in ([], ["cam_voc"]):
            continue  # of plain CAM: SIPE and CPAL measure their own baseline, 50.1
        published = [
            OmegaConf.load(CONF / "experiment" / f"{name}.yaml").get("published") for name in named
        ]
        if None in published:
            continue  # a row of our own numbers
        expected = numbers_of([OmegaConf.to_container(one) for one in published])
        last = max(i for i, cell in enumerate(cells) if any(f"`{n}`" in cell for n in named))
        assert numbers_of(cells[last + 1 :]) <= expected, line


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_key_that_has_moved_is_there_by_its_new_name_alone(old: str, new: str) -> None:
    cfg = composed("experiment=cpal_voc")
    assert OmegaConf.select(cfg, new) is not None and OmegaConf.select(cfg, old) is None
