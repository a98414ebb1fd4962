"""Sweeps in which jobs fail: what stands, what is told, what is left in the folders."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from wsss import stages
from wsss.build.job import Result
from wsss.build.settings import Settings
from wsss.errors import WsssError
from wsss.report.gather import read_job
from wsss.run import failures
from wsss.run.failures import FAILED, Failure, SweepFailures

Main = Callable[..., Any]


@pytest.fixture
def main(tmp_path: Path, monkeypatch, command_line) -> Main:
    """The command line in this process; its stages are what the test says."""
    monkeypatch.chdir(tmp_path)

    def call(stage: Callable[[Settings], Result], *arguments: str) -> Any:
        monkeypatch.setattr(stages, "get_stage", lambda name: stage)
        quiet = [f"hydra/{group}=none" for group in ("job_logging", "hydra_logging")]
        return command_line("run_name=x", *quiet, *arguments)

    return call


def broken_seeds(s: Settings) -> Result:
    """A stage that knows two ways to fail."""
    if s.seed == 1:
        raise WsssError("data.root=nowhere: no such folder")
    if s.seed == 2:
        raise ZeroDivisionError("division\nby zero")
    (Path(s.paths.run) / "done").touch()
    return Result("train", {"miou": 1.0})


def test_failed_jobs_are_named_at_the_end_and_the_others_stand(main: Main, tmp_path: Path) -> None:
    done = main(broken_seeds, "-m", "stage=train", "seed=0,1,2,3")
    assert done.returncode == 1
    runs = tmp_path / "outputs" / "x"
    assert sorted(p.parent.name for p in runs.glob("*/done")) == ["seed=0", "seed=3"]
    errors = done.stderr
    end = errors[errors.index("error: 2 jobs failed") :].splitlines()
    for seed, reason in ((1, "data.root=nowhere: no such folder"), (2, "division by zero")):
        at = next(n for n, line in enumerate(end) if line.strip().startswith(f"#{seed} "))
        assert f"stage=train seed={seed}" in end[at]
        assert end[at + 1].strip() == reason
        log = tmp_path / end[at + 2].strip().removeprefix("log: ")
        assert log.parent == runs / f"seed={seed}" / "train"
        assert "Traceback" in log.read_text() and reason.split()[0] in log.read_text()
    assert "ZeroDivisionError" in errors  # a fault of the program is shown whole, at once
    assert sorted(p.parts[-3] for p in runs.rglob(FAILED)) == ["seed=1", "seed=2"]
    (stage,) = read_job(runs / "seed=1").stages  # what the report says of it
    assert (stage.state, stage.failure) == ("failed", "data.root=nowhere: no such folder")
    assert not list((tmp_path / "outputs").glob(".failed*"))


def test_a_job_that_succeeds_later_takes_its_note_away(main: Main, tmp_path: Path) -> None:
    arguments = ("-m", "stage=train", "seed=1,2")
    assert main(broken_seeds, *arguments).returncode == 1
    assert len(list(tmp_path.rglob(FAILED))) == 2
    assert main(lambda s: Result("train"), *arguments).returncode == 0
    assert not list(tmp_path.rglob(FAILED))


def test_the_note_of_a_pipeline_lies_with_the_stage_that_failed(main: Main, tmp_path: Path) -> None:
    count = iter(range(9))

    def second_fails(s: Settings) -> Result:
        if next(count) % 3 == 1:
            raise WsssError("no maps")
        return Result("any")

    done = main(second_fails, "-m", "seed=0,1", "pipeline=[train,make_cam,eval_cam]")
    assert done.returncode == 1
    (path, other) = sorted(tmp_path.rglob(FAILED))
    assert path.parts[-3:] == ("seed=0", "make_cam", FAILED)
    assert json.loads(path.read_text())["stage"] == "make_cam"
    # The third call of the first job never came, so the second job's second call is number 3.
    assert other.parts[-3:-1] == ("seed=1", "eval_cam")
    assert "(make_cam)" in done.stderr


def test_debug_lets_a_fault_of_the_program_end_the_sweep(main: Main, tmp_path: Path) -> None:
    done = main(broken_seeds, "-m", "stage=train", "seed=2,3", "debug=default")
    assert done.returncode == 1
    assert not list(tmp_path.rglob("done")) and not list(tmp_path.rglob(".failed*"))


def test_a_single_run_says_its_error_once(main: Main, tmp_path: Path) -> None:
    done = main(broken_seeds, "stage=train", "seed=1")
    assert done.returncode == 1 and done.stderr == "error: data.root=nowhere: no such folder\n"
    assert len(list(tmp_path.rglob(FAILED))) == 1


def fail_elsewhere(folder: Path, number: int) -> None:
    try:
        raise OSError("lost")
    except OSError as error:
        log = str(folder / "run.log")
        failures.note(folder, Failure(number, "train", (f"seed={number}",), str(error), log))


def test_failures_of_other_processes_reach_the_sweep(tmp_path: Path) -> None:
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "outputs")}}})
    SweepFailures().on_multirun_start(config)
    folders = []
    for number in (10, 9):
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
    context = multiprocessing.get_context(
        "spawn"
    )  # as loky does: only the environment is handed on
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        list(pool.map(fail_elsewhere, folders, (10, 9)))
    found = failures.collect()
    assert [failure.number for failure in found] == [9, 10]
    text = "\n".join(failures.summary(found))
    assert re.search(r"2 jobs failed.*#9 seed=9 \(train\).*lost.*#10 seed=10", text, re.DOTALL)
    assert failures.collect() == []
