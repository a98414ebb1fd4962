"""Killed work goes on where it was and ends as if nothing had happened."""

from __future__ import annotations

import csv

import pytest

from wsss.files import read_json, write_json


@pytest.mark.parametrize(("method", "sent"), [("cam", "SIGKILL"), ("cpal", "SIGTERM")])
def test_a_killed_training_ends_with_the_weights_of_an_uninterrupted_one(
    program, method: str, sent: str
) -> None:
    folder = program.assert_resumes(f"method={method}", sent=sent)
    with (folder / "metrics.csv").open(newline="") as file:
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
