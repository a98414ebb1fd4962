"""From seeds to pseudo masks as a user runs it: one command, killed work, foreign files."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.files import read_json, write_json
from wsss.maps.files import read_class_maps
from wsss.maps.interop import write_npy_maps

CHAIN = ("crf", "irn_labels", "irn_train", "irn_masks")
SMALL = [
    "run_name=refined",
    "refine.irn.features=method",
    "refine.irn.scale=[0.75,1.25]",
    "refine.workers=2",
    "refine.pictures=2",
    "refine.irn.crop_size=64",
    "refine.irn.batch_size=4",
    "refine.irn.radius=4",
    "refine.irn.max_epochs=5",
]
PIPELINE = f"pipeline=[train,make_cam,{','.join(CHAIN)}]"


_finished: list[tuple[Any, Path]] = []


@pytest.fixture
def finished(program, tmp_path_factory):
    """The whole chain, run once for all tests: what it printed, and its folder."""
    if not _finished:
        own = program.elsewhere(tmp_path_factory.mktemp("chain"))
        done = own("stage=all", "method=sipe", *SMALL, PIPELINE)
        (run,) = (own.out / "refined").iterdir()
        _finished.append((done, run))
    return _finished[0]


def copy_of(run: Path, program) -> Path:
    """The finished run as if this test's own program had made it."""
    target = program.out / "refined" / run.name
    shutil.copytree(run, target)
    return target


def interrupt(folder: Path) -> None:
    """Make a finished stage look killed: the note of its beginning and no manifest."""
    manifest = read_json(folder / "manifest.json")
    (folder / "manifest.json").unlink()
    write_json(folder / "started.json", {k: manifest[k] for k in ("hash", "settings", "inputs")})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_chain_runs_in_one_command(finished) -> None:
    done, run = finished
    for stage in CHAIN:
        assert f"\n{stage}: " in done.stdout
        assert read_json(run / stage / "manifest.json")["images"] == 12
    for stage in ("crf", "irn_masks"):
        masks = sorted((run / stage / "masks").iterdir())
        assert len(masks) == 12
        for path in masks:
            with Image.open(path) as file:
                assert file.mode == "P" and file.size == (64, 64)
                assert np.asarray(file).max() <= 6
        metrics = read_json(run / stage / "metrics.json")
        assert 0 <= metrics["seed"]["miou"] <= 100 and 0 <= metrics[stage]["miou"] <= 100
        assert (run / stage / "contact_sheet.png").is_file()
    both = [read_json(run / s / "metrics.json")["seed"]["miou"] for s in ("crf", "irn_masks")]
    assert both[0] == both[1]
    rows = [row for row in read_json(run / "irn_masks" / "metrics.json") if row in (*CHAIN, "seed")]
    assert rows == ["seed", "irn_masks"]  # as they are made, in tables and figures too
    shift = read_json(run / "irn_train" / "manifest.json")["mean_displacement"]
    stored = torch.load(run / "irn_train" / "irn.pt", weights_only=True)
    assert stored["heads"]["mean_shift"].tolist() == pytest.approx(shift)
    assert max(abs(value) for value in shift) > 0


def test_pseudo_masks_hold_only_classes_of_the_image(finished) -> None:
    _, run = finished
    for stage in ("crf", "irn_masks", "irn_labels"):
        folder = run / stage / ("labels" if stage == "irn_labels" else "masks")
        for path in folder.iterdir():
            present = {0, 255} if stage == "irn_labels" else {0}
            stored = read_class_maps(run / "make_cam" / "maps" / f"{path.stem}.npz")
            with Image.open(path) as file:
                assert set(np.unique(file)) <= present | set(stored.classes.tolist())


def test_killed_stages_end_with_the_same_files_with_any_workers(finished, program) -> None:
    run = copy_of(finished[1], program)
    kept, before = {}, {}
    for stage, part in (("crf", "masks"), ("irn_labels", "labels"), ("irn_masks", "masks")):
        folder = run / stage / part
        before[folder] = contents(folder)
        interrupt(run / stage)
        first, *lost = before[folder]
        for name in lost:
            (folder / name).unlink()
        (folder / f".{lost[0]}.1").write_bytes(b"half a file")
        kept[folder / first] = (folder / first).stat().st_mtime_ns
    done = program("stage=all", "method=sipe", *SMALL, "refine.workers=0", PIPELINE)
    assert done.stdout.count("goes on in") == 3
    assert done.stdout.count("finished before") == 3  # train, make_cam, irn_train
    for path, stamp in kept.items():
        assert path.stat().st_mtime_ns == stamp
    for folder, files in before.items():
        assert {k: v for k, v in contents(folder).items() if k[0] != "."} == files


def test_a_killed_irn_training_ends_with_the_weights_of_an_uninterrupted_one(
    finished, program
) -> None:
    run = copy_of(finished[1], program)
    for stage in ("irn_train", "irn_masks"):
        shutil.rmtree(run / stage)
    longer = ["stage=irn_train", "method=sipe", *SMALL]
    process = program.start(*longer)
    deadline = time.monotonic() + 120
    while not (run / "irn_train" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "irn_train" / "manifest.json").exists()
    assert "resumes at step" in program(*longer).stdout
    one, two = (
        torch.load(path / "irn_train" / "irn.pt", weights_only=True) for path in (finished[1], run)
    )
    for part in ("backbone", "heads"):
        assert one[part].keys() == two[part].keys()
        for key, value in one[part].items():
            assert torch.equal(value, two[part][key]), key


def test_maps_go_out_and_come_in_as_foreign_files(finished, program) -> None:
    run = copy_of(finished[1], program)
    program("stage=export_cam", "method=sipe", *SMALL)  # as IRN's, the default
    # Folders without "=" in their names, which Hydra would want quoted.
    irn, sipe = program.out / "irn_npy", program.out / "sipe_npy"
    shutil.copytree(run / "export_cam" / "npy", irn)
    sipe.mkdir()
    for path in (run / "make_cam" / "maps").iterdir():
        maps = read_class_maps(path, "is_cam")
        write_npy_maps(sipe / f"{path.stem}.npy", maps, "is_cam", "sipe")
    for name, folder, kind in (("irn", irn, "cam"), ("sipe", sipe, "is_cam")):
        program(
            "stage=all", "pipeline=[import_cam,crf]", f"run_name={name}", f"refine.npy={folder}"
        )
        (foreign,) = (program.out / name).iterdir()
        for path in (foreign / "make_cam" / "maps").iterdir():
            ours = read_class_maps(run / "make_cam" / "maps" / path.name, "is_cam")
            theirs = read_class_maps(path, kind)
            expected = ours.maps["is_cam"][1:] if name == "irn" else ours.maps["is_cam"]
            assert theirs.classes.tolist() == ours.classes.tolist() and theirs.size == ours.size
            # SIPE's files hold the enlarged maps only.
            limit = 0.003 if name == "irn" else 0.05
            assert np.abs(theirs.maps[kind] - expected).mean() <= limit
        scores = [read_json(r / "crf" / "metrics.json")["crf"]["miou"] for r in (foreign, run)]
        assert name == "irn" or abs(scores[0] - scores[1]) < 5


def test_missing_steps_and_bad_keys_are_one_line(finished, program) -> None:
    run = copy_of(finished[1], program)
    for stage in ("irn_train", "irn_labels"):
        shutil.rmtree(run / stage)
    done = program("-m", "stage=irn_train,irn_masks,import_cam", "method=sipe", *SMALL, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "stage=irn_train needs stage=irn_labels" in done.stderr
    assert "stage=irn_masks needs stage=irn_train" in done.stderr
    assert "refine.npy=DIR" in done.stderr
