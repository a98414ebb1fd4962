"""Killed work goes on where it was and ends as if nothing had happened."""

from __future__ import annotations

import csv
import signal
import time
from pathlib import Path

import pytest
import torch

from wsss.files import read_json, write_json


def weights(out: Path, name: str) -> dict[str, torch.Tensor]:
    (path,) = (out / name).rglob("last.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize(("method", "sent"), [("cam", "SIGKILL"), ("cpal", "SIGTERM")])
def test_a_killed_training_ends_with_the_weights_of_an_uninterrupted_one(
    program, method: str, sent: str
) -> None:
    settings = ("stage=train", f"method={method}", "training.max_epochs=6")
    # All in processes of their own: sums depend on the number of threads.
    program("run_name=straight", *settings, fresh=True)
    process = program.start("run_name=killed", *settings)
    deadline = time.monotonic() + 120
    while not list(program.out.glob("killed/*/train/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.Signals[sent])
    # A shell tells a death by SIGKILL as 137; who is asked to end says so himself.
    assert process.wait() == {"SIGKILL": -9, "SIGTERM": 143}[sent]
    (checkpoint,) = program.out.glob("killed/*/train/last.ckpt")
    assert torch.load(checkpoint, weights_only=True)["epoch"] < 5
    assert not list(program.out.glob("killed/*/train/manifest.json"))
    assert "resumes at step" in program("run_name=killed", *settings, fresh=True).stdout
    straight, killed = weights(program.out, "straight"), weights(program.out, "killed")
    assert straight.keys() == killed.keys()
    for key, value in straight.items():
        assert torch.equal(value, killed[key]), key
    (log,) = program.out.glob("killed/*/train/metrics.csv")
    with log.open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(steps)


def test_a_killed_map_making_keeps_whole_files_and_makes_the_rest(program) -> None:
    program("run_name=maps", "stage=train")
    program("run_name=maps", "stage=make_cam")
    (folder,) = program.out.rglob("make_cam")
    maps = folder / "maps"
    before = {path.name: path.read_bytes() for path in maps.iterdir()}
    assert len(before) == 12
    # What a kill leaves behind: the note of the beginning, no manifest, some of the files.
    manifest = read_json(folder / "manifest.json")
    (folder / "manifest.json").unlink()
    write_json(folder / "started.json", {k: manifest[k] for k in ("hash", "settings", "inputs")})
    kept, *lost = sorted(before)
    for name in lost:
        (maps / name).unlink()
    stamp = (maps / kept).stat().st_mtime_ns
    again = program("run_name=maps", "stage=make_cam")
    assert "goes on" in again.stdout
    assert {path.name: path.read_bytes() for path in maps.iterdir()} == before
    assert (maps / kept).stat().st_mtime_ns == stamp
