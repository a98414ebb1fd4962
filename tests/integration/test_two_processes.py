"""Several processes do what one does, end together, and are told at the start what cannot work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from wsss.maps.files import read_class_maps

ROOT = Path(__file__).resolve().parents[2]
TRAININGS = ("train", "irn_train", "seg_train")
CHAIN = (
    "experiment=tiny_segmentation",
    "refine.masks=irn_masks",
    "refine.irn={features: method, scale: [0.75, 1.25], crop_size: 64, batch_size: 6, radius: 4, "
    "max_epochs: 1}",
    *("data.batch_size=6", "segmentation.train.batch_size=3"),  # three processes can share them
    "pipeline=[train,make_cam,eval_cam,crf,irn_labels,irn_train,irn_masks,seg_train,seg_eval]",
)


def torchrun(program, *arguments: str, world: int) -> list[str]:
    given = program.arguments(*arguments, tiny=False)
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*started, f"--nproc-per-node={world}", str(ROOT / "run.py"), *given]


def results(run: Path) -> dict[str, bytes]:
    """All that the stages of a run have made, trainings and manifests (with their times) apart."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.suffix in (".npz", ".png", ".json")
        and path.relative_to(run).parts[0] not in TRAININGS
        and path.name != "manifest.json"
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_processes_make_the_files_of_one_from_its_weights(program) -> None:
    settings = (f"data.root={program.scenes}", *CHAIN, "stage=all")
    program("run_name=one", *settings, tiny=False, fresh=True)
    (one,) = (program.out / "one").iterdir()
    three = program.out / "three" / one.name
    for stage in TRAININGS:
        shutil.copytree(one / stage, three / stage)
    command = torchrun(program, "run_name=three", *settings, world=3)
    done = subprocess.run(
        command, cwd=program.folder, env=program.env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("] make_cam\n") == 1  # one of them speaks
    made = results(one)
    assert len(made) > 80
    assert results(three) == made


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_map_and_score_as_one_and_go_on_when_one_was_killed(program) -> None:
    settings = ("stage=all", "training.max_epochs=2")
    program("run_name=one", *settings)
    two_devices = (*settings, "trainer.devices=2")
    killed = program.start("run_name=two", *two_devices, stderr=subprocess.PIPE)
    kill_a_rank(killed, lambda: list(program.out.glob("two/*/make_cam/started.json")))
    program("run_name=two", *two_devices, fresh=True)
    (one,), (two,) = (list((program.out / name).glob("*")) for name in ("one", "two"))
    weights = [
        torch.load(run / "train" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (one, two)
    ]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-4, msg=key)
    maps = [
        sorted(path.name for path in (run / "make_cam" / "maps").iterdir()) for run in (one, two)
    ]
    assert maps[0] == maps[1] and len(maps[0]) == 12
    for name in maps[0]:
        cams = [read_class_maps(run / "make_cam" / "maps" / name).maps["cam"] for run in (one, two)]
        assert abs(cams[0] - cams[1]).max() < 0.05
    scores = [json.loads((run / "eval_cam" / "metrics.json").read_text()) for run in (one, two)]
    assert scores[0]["images"] == scores[1]["images"] == 12
    pixels = [sum(map(sum, s["cam"]["confusion"])) for s in scores]
    assert pixels[0] == pixels[1]
    manifests = [json.loads((run / "train" / "manifest.json").read_text()) for run in (one, two)]
    assert manifests[0]["hash"] == manifests[1]["hash"]  # how many processes is no setting


def ranks_of(pid: int) -> list[int]:
    """The processes that the program has started as its ranks."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def kill_a_rank(program: subprocess.Popen, ready) -> None:
    """Kill the second process of two; all must end, with one line."""
    end = time.monotonic() + 120
    while not ready():
        assert program.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    ranks = ranks_of(program.pid)
    assert len(ranks) == 2
    os.kill(max(ranks), signal.SIGKILL)
    _, err = program.communicate(timeout=60)
    assert program.returncode == 1
    lines = err.decode().splitlines()
    assert len(lines) == 1, lines
    (line,) = lines
    assert line.startswith("error: process 1 of 2") and "was killed" in line
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            ("trainer.devices=3",),
            "stage=train: data.batch_size=4 is the global batch and must be divisible by the 3 "
            "processes: take 3 or 6, or another number of processes",
        ),
        (
            ("trainer.devices=2", "pipeline=[train,make_cam,seg_train]", "segmentation=demo"),
            "stage=seg_train: segmentation.train.batch_size=5 is the global batch and must be "
            "divisible by the 2 processes: take 4 or 6, or another number of processes",
        ),
        (
            ("data.batch_size=16",),
            "stage=train: data.batch_size=16 is more than the 12 images to train on: not one step "
            "can be filled",
        ),
        (
            ("trainer.num_nodes=2",),
            "trainer.num_nodes=2: start the command on each of them by torchrun or by Slurm's "
            "srun; this is a single process",
        ),
    ],
    ids=["divide", "later stage", "too few images", "nodes"],
)
def test_what_cannot_work_is_said_before_the_first_stage(
    program, settings: tuple[str, ...], line: str
) -> None:
    more = ("segmentation.train.batch_size=5",) if "segmentation=demo" in settings else ()
    done = program("stage=all", *settings, *more, check=False)
    assert (done.returncode, done.stderr) == (1, f"error: {line}\n")
    assert not list(program.out.glob("*/*/train"))
