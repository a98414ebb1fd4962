"""AMN's two steps by one command, with and without CPAL, and stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.maps.files import read_class_maps

AMN = "experiment=tiny_amn"


def folder(out: Path, name: str) -> Path:
    (found,) = (out / name).iterdir()
    return found


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "train" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture
def labels(program, tmp_path: Path) -> str:
    """Label maps of the scenes as no step made them: stripes of background, objects, unsure."""
    made = tmp_path / "labels"
    made.mkdir()
    for number, path in enumerate(sorted((program.scenes / "JPEGImages").iterdir())):
        width, height = Image.open(path).size
        ids = np.resize(np.repeat([0, 1 + number % 3, 255, 2], 9), (height, width))
        Image.fromarray(ids.astype(np.uint8)).save(made / f"{path.stem}.png")
    return f"host.labels={made}"


def test_one_command_runs_both_steps_and_again_nothing(program) -> None:
    said = program(AMN, "run_name=both").stdout
    assert "[3/6] step1/irn_labels" in said and "[4/6] train" in said
    run = folder(program.out, "both")
    first = json.loads((run / "step1" / "irn_labels" / "manifest.json").read_text())
    assert first["settings"]["labels"]["foreground_threshold"] == 0.30
    assert first["settings"]["labels"]["background_threshold"] == 0.05
    trained = json.loads((run / "train" / "manifest.json").read_text())
    assert trained["settings"]["optimizer"]["name"] == "adam"
    earlier = json.loads((run / "step1" / "train" / "manifest.json").read_text())
    assert earlier["settings"]["optimizer"]["name"] == "sgd"
    labels = sorted(path.stem for path in (run / "step1" / "irn_labels" / "labels").iterdir())
    maps = sorted(path.stem for path in (run / "make_cam" / "maps").iterdir())
    assert labels == maps and len(maps) == 12
    for name in maps:
        stored = read_class_maps(run / "make_cam" / "maps" / f"{name}.npz")
        assert list(stored.maps) == ["amn_cam"] and not stored.has_background("amn_cam")
    assert json.loads((run / "eval_cam" / "metrics.json").read_text())["images"] == 12
    again = program(AMN, "run_name=both").stdout
    assert again.count("finished before") == 6


def test_cpal_makes_the_first_steps_maps_or_works_inside_the_second(program) -> None:
    program(AMN, "run_name=a", "method@first.step1.method=cpal_small", "stage=all")
    run = folder(program.out, "a")
    made = json.loads((run / "step1" / "irn_labels" / "manifest.json").read_text())
    assert made["kind"] == "pacam"
    maps = json.loads((run / "make_cam" / "manifest.json").read_text())
    assert list(maps["kinds"]) == ["amn_cam"]
    program(AMN, "run_name=b", "method=cpal", "stage=all")
    run = folder(program.out, "b")
    maps = json.loads((run / "make_cam" / "manifest.json").read_text())
    assert list(maps["kinds"]) == ["amn_cam", "pacam"]
    state = weights(run)
    assert {"host.classifier.0.weight", "branch.projection.0.weight"} <= state.keys()
    scored = json.loads((run / "eval_cam" / "metrics.json").read_text())
    assert scored["main"] == "amn_cam" and scored["miou"] == scored["amn_cam"]["miou"]
    assert "pacam" in scored
    program(AMN, "run_name=b", "method=cpal", "stage=irn_labels")
    made = json.loads((run / "irn_labels" / "manifest.json").read_text())
    assert made["kind"] == "amn_cam"  # what AMN calls its seed, PACAM beside it or not


def test_a_killed_training_ends_with_the_weights_of_an_uninterrupted_one(
    program, labels: str
) -> None:
    program.assert_resumes(AMN, labels)
