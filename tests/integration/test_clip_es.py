"""CLIP-ES alone and with CPAL in both readings, stopped, and by two processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsss.data.masks import read_mask
from wsss.maps.files import read_class_maps, write_class_maps

ALONE, GIVEN = "experiment=tiny_clip_es", "experiment=tiny_clip_es_given"


def folder(out: Path, name: str) -> Path:
    (found,) = (out / name).iterdir()
    return found


def manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text())


def all_maps(path: Path) -> dict[str, dict[str, np.ndarray]]:
    files = sorted((path / "make_cam" / "maps").iterdir())
    return {file.stem: read_class_maps(file).maps for file in files}


def test_alone_it_trains_nothing_and_makes_both_kinds(program) -> None:
    said = program(ALONE, "run_name=alone", "stage=all").stdout
    assert "CLIPES learns nothing, its maps can be made at once" in said
    run = folder(program.out, "alone")
    assert not (run / "train" / "last.ckpt").exists()
    assert manifest(run / "make_cam")["kinds"] == {"cam": False, "caa": False}
    assert manifest(run / "crf")["kind"] == "caa"
    maps = all_maps(run)
    assert len(maps) == 12 and all(list(kinds) == ["cam", "caa"] for kinds in maps.values())
    unsure = 0
    for name in maps:
        mask = read_mask(run / "crf" / "masks" / f"{name}.png", 6)
        labels = read_mask(run / "crf" / "labels" / f"{name}.png", 6)
        assert (labels != 255).all() and (mask[mask != 255] == labels[mask != 255]).all()
        unsure += int((mask == 255).sum())
    assert unsure > 0
    assert program(ALONE, "run_name=alone", "stage=all").stdout.count("finished before") == 4


@pytest.mark.slow
def test_maps_are_the_same_after_a_stop_and_by_two_processes(program) -> None:
    for name in ("whole", "stopped"):
        program(ALONE, f"run_name={name}", "pipeline=[train,make_cam]", "stage=all")
    whole, stopped = (folder(program.out, name) for name in ("whole", "stopped"))
    # As a stop leaves it, some files are missing.
    for file in sorted((stopped / "make_cam" / "maps").iterdir())[5:]:
        file.unlink()
    program(ALONE, "run_name=stopped", "stage=make_cam")
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    shutil.copytree(whole / "train", program.out / "two" / whole.name / "train")
    program(ALONE, "run_name=two", "stage=make_cam", *two, fresh=True)
    wanted = all_maps(whole)
    for other in (stopped, folder(program.out, "two")):
        found = all_maps(other)
        assert found.keys() == wanted.keys()
        for name, kinds in wanted.items():
            for kind, values in kinds.items():
                assert np.allclose(found[name][kind], values, atol=1 / 255), (name, kind)


def test_cpal_inside_learns_its_projection_alone(program) -> None:
    program(ALONE, "run_name=inside", "method=cpal", "pipeline=[train,make_cam,eval_cam]")
    run = folder(program.out, "inside")
    checkpoint = torch.load(run / "train" / "last.ckpt", weights_only=True)
    assert all(name.startswith("branch.") for name in checkpoint["state_dict"])
    kinds = manifest(run / "make_cam")["kinds"]
    assert kinds == {"cam": False, "caa": False, "pacam": True}
    single = [maps["pacam"] for maps in all_maps(run).values() if len(maps["pacam"]) == 2]
    assert single
    for background, foreground in single:
        # It is 1 - max of what CAA made of PACAM; stored in steps of 1/255.
        assert np.allclose(background, 1 - foreground, atol=1.01 / 255)


@pytest.mark.slow
def test_cpal_network_learns_from_stored_maps_by_one_command(program) -> None:
    said = program(GIVEN, "run_name=given", "stage=all").stdout
    assert "[2/5] clip/make_cam" in said and "[3/5] train" in said
    run = folder(program.out, "given")
    assert manifest(run / "clip" / "make_cam")["kinds"] == {"cam": False, "caa": False}
    assert manifest(run / "make_cam")["kinds"] == {"cam": False, "pacam": True}
    state = torch.load(run / "train" / "last.ckpt", weights_only=True)["state_dict"]
    assert {"host.classifier.weight", "branch.projection.0.weight"} <= state.keys()
    # Other maps are another training; missing ones are named.
    file = next((run / "clip" / "make_cam" / "maps").iterdir())
    kept = file.read_bytes()
    write_class_maps(file, read_class_maps(file), "float16")
    again = program(GIVEN, "run_name=given", "stage=train", check=False)
    assert again.returncode == 1 and "overwrite=true" in again.stderr
    file.unlink()
    gone = program(GIVEN, "run_name=given", "stage=train", check=False)
    assert gone.returncode == 1
    assert "host.maps" in gone.stderr and "1 of 12 class maps are missing" in gone.stderr
    file.write_bytes(kept)
    assert "finished before" in program(GIVEN, "run_name=given", "stage=train").stdout
    nowhere = program(GIVEN, "stage=train", "host.maps=null", check=False)
    assert nowhere.returncode == 1 and "host.maps: is not given" in nowhere.stderr


@pytest.mark.slow
def test_maps_leave_and_come_back_in_the_released_form(program) -> None:
    pipeline = "pipeline=[train,make_cam,export_cam]"
    program(ALONE, "run_name=out", pipeline, "refine.npy_format=clip_es")
    files = program.out.glob("out/*/export_cam/npy")
    (npy,) = (path for path in files)
    content = np.load(next(npy.iterdir()), allow_pickle=True).item()
    assert set(content) == {"keys", "attn_highres"}
    program(ALONE, "run_name=back", "stage=import_cam", f"refine.npy={npy}")
    there, back = (all_maps(path) for path in (npy.parents[1], folder(program.out, "back")))
    for name, kinds in back.items():
        assert list(kinds) == ["caa"]
        assert np.allclose(kinds["caa"], there[name]["caa"], atol=0.06)


def test_a_weights_file_that_is_not_there_is_named(program) -> None:
    pipeline = "pipeline=[train,make_cam]"
    failed = program(ALONE, pipeline, "host.weights=nowhere.pt", check=False)
    assert failed.returncode == 1 and "learns nothing" in failed.stdout
    assert "host.weights=nowhere.pt: no such file" in failed.stderr
