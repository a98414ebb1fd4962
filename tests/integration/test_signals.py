"""Ctrl-C and SIGTERM end the program with one line, and the same command ends as if undisturbed."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wsss.files import read_json

# Long enough to be stopped twice, with worker processes in both stages.
SETTINGS = (
    "run_name=run",
    "training.max_epochs=8",
    "data.num_workers=2",
    "refine.workers=2",
    "refine.pictures=2",
    "refine.crf.iterations=300",
)


def living(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, member = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(member) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def stop(program, stage: str, send: Callable[[int], None], ready: Callable[[], bool]) -> Any:
    """Start a stage and end it when it is ready; returns exit code, lines on stderr, workers."""
    process = program.start(
        *SETTINGS, f"stage={stage}", stderr=subprocess.PIPE, start_new_session=True
    )
    wait_until(lambda: ready() or process.poll() is not None)
    workers = [pid for pid in living(process.pid) if pid != process.pid]
    send(process.pid)
    _, err = process.communicate(timeout=120)
    wait_until(lambda: not living(process.pid), 20)
    return process.returncode, err.decode().splitlines(), workers


def terminal(pid: int) -> None:
    """What Ctrl-C does: the whole group gets the signal."""
    os.killpg(pid, signal.SIGINT)


def scheduler(pid: int) -> None:
    """What `kill`, Slurm and Docker do: the main process gets it."""
    os.kill(pid, signal.SIGTERM)


_finished: list[Path] = []


@pytest.fixture
def undisturbed(program, tmp_path_factory) -> Path:
    """The run without a signal, once for all tests."""
    if not _finished:
        own = program.elsewhere(tmp_path_factory.mktemp("undisturbed"))
        own(*SETTINGS, "stage=all", "pipeline=[train,make_cam,crf]", fresh=True)
        _finished.extend((own.out / "run").iterdir())
    return _finished[0]


def trained(stage: Path) -> dict[str, Any]:
    state = torch.load(stage / "last.ckpt", weights_only=True)
    with (stage / "metrics.csv").open(newline="") as file:
        # An epoch's means are logged after its checkpoint: a signal between the two loses the row.
        rows = [row for row in csv.DictReader(file) if row["lr/backbone"]]
    assert rows
    weights = {name: value.numpy().tobytes() for name, value in state["state_dict"].items()}
    return {"weights": weights, "step": state["global_step"], "metrics": rows}


def refined(stage: Path) -> dict[str, Any]:
    masks = {path.name: path.read_bytes() for path in sorted((stage / "masks").iterdir())}
    assert len(masks) == 12
    return {"masks": masks, "metrics": read_json(stage / "metrics.json")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "progress", "result"),
    [
        ("train", lambda folder: [p.stat().st_mtime_ns for p in folder.glob("last.ckpt")], trained),
        ("crf", lambda folder: len(list(folder.glob("masks/*.png"))), refined),
    ],
    ids=["train", "crf"],
)
def test_a_stopped_stage_says_so_in_a_line_and_goes_on_when_called_again(
    program, undisturbed: Path, stage: str, progress: Callable, result: Callable
) -> None:
    run = Path(shutil.copytree(undisturbed, program.out / "run" / undisturbed.name))
    shutil.rmtree(run / stage)
    for send, code, word in ((terminal, 130, "stopped"), (scheduler, 143, "terminated")):
        before = progress(run / stage)
        found, lines, workers = stop(
            program, stage, send, lambda before=before: progress(run / stage) != before
        )
        assert lines == [f"error: {word}; the same command goes on where it was"]
        assert found == code
        assert len(workers) >= 2
        assert not (run / stage / "manifest.json").exists()
    done = program(*SETTINGS, f"stage={stage}", fresh=True)
    assert "goes on in" in done.stdout
    assert result(run / stage) == result(undisturbed / stage)
