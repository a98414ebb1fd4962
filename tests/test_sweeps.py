"""Searches of conf/sweep: their keys and values exist, and a job returns what they maximize."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from wsss import cli, stages
from wsss.build.job import Result
from wsss.build.settings import resolve_settings

# Which method a search belongs to is in its name.
SEARCHES = cli.choices_of("sweep")


@pytest.fixture(autouse=True)
def resolvers() -> Iterator[None]:
    """The resolvers of the command line, and what Optuna's plugin would register."""
    OmegaConf.register_new_resolver("settings_path", cli.settings_path, replace=True)
    OmegaConf.register_new_resolver("run_name", cli.run_name, replace=True)
    plugin = {"sampler": {"seed": None}, "direction": "minimize", "n_trials": 1, "n_jobs": 1}
    plugin |= {"max_failure_rate": 0.0, "params": None}
    ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=plugin)
    yield
    HydraConfig.instance().cfg = None


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


@pytest.mark.parametrize("name", SEARCHES)
def test_every_value_of_a_search_builds_its_method(name: str) -> None:
    method = name.split("_")[1]
    cfg = composed(f"method={method}", f"sweep={name}", "run_name=x")
    with open_dict(cfg):
        cfg.paths.run = "out"
    parameters = OmegaConf.to_container(cfg.hydra.sweeper.params)
    assert isinstance(parameters, dict) and len(parameters) >= 3
    parser = OverridesParser.create()
    with open_dict(cfg):
        del cfg["hydra"]
    for key, choice in parameters.items():
        (override,) = parser.parse_overrides([f"{key}={choice}"])
        values = list(override.sweep_string_iterator())
        assert len(values) >= 2
        for value in values:
            one = cfg.copy()
            OmegaConf.update(one, key, yaml.safe_load(value))  # an unknown key is an error
            part = resolve_settings(one).method.branch
            assert part is not None
            branch = part(channels=(8, 8, 16, 16), num_classes=3, seed=0)
            assert type(branch).__name__.lower() == method


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_runs_all_stages_and_keeps_its_results_in_its_own_run(name: str) -> None:
    cfg = composed(f"sweep={name}", f"method={name.split('_')[1]}", "run_name=mine")
    assert cfg.stage == "all" and cfg.pipeline[-1] == "eval_cam"
    assert cfg.hydra.sweeper.direction == "maximize"
    assert cfg.hydra.sweep.dir == "outputs/mine"


def test_the_run_is_named_before_there_is_a_job() -> None:
    assert HydraConfig.instance().cfg is None
    assert composed("method=sipe", "data=voc").run_name == "sipe_voc"


def test_a_search_is_told_the_miou_of_the_last_stage_of_a_job(
    tmp_path: Path, monkeypatch, command_line
) -> None:
    """Hydra's own sweeper notes what each job returned; a stage without a score has none."""
    monkeypatch.chdir(tmp_path)
    returned = []
    found = Plugins.instance().discover(Launcher)
    (basic,) = [one for one in found if one.__name__ == "BasicLauncher"]
    launch = basic.launch

    def noted(self, *arguments, **options):
        jobs = launch(self, *arguments, **options)
        returned.extend(job.return_value for job in jobs)
        return jobs

    monkeypatch.setattr(basic, "launch", noted)
    figures = {"train": {}, "eval_cam": {"miou": 12.5, "images": 3}}
    for stage, manifest in figures.items():
        result = Result(stage, manifest)
        monkeypatch.setattr(stages, "get_stage", lambda name, result=result: lambda s: result)
        assert command_line("-m", f"stage={stage}", "seed=0,1").returncode == 0
    assert returned == [None, None, 12.5, 12.5]
