"""Under a real Slurm of two nodes: `make test-slurm`. Skipped where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from wsss.data.scenes import generate

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "integration" / "conf"

pytestmark = [
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm: make test-slurm"),
    pytest.mark.timeout(1200),
]


class Cluster:
    """Runs the program on tiny scenes as jobs of Slurm."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        generate(folder / "scenes", seed=0, n_train=12, n_val=4, size=64)
        self.env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def program(self, *arguments: str) -> list[str]:
        given = [f"paths.outputs={self.out}", f"hydra.searchpath=[file://{TINY}]"]
        given += [f"data.root={self.folder / 'scenes'}", "experiment=tiny", *arguments]
        return [sys.executable, str(ROOT / "run.py"), *given]

    def call(self, *command: str, code: int = 0) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def batch(self, *options: str, line: str) -> str:
        """Hand in a script of one line; number of the job."""
        script = self.folder / "job.sh"
        script.write_text(f"#!/bin/bash\n{line}\n")
        return self.call("sbatch", "--parsable", *options, str(script)).strip()

    def state(self, job: str) -> str:
        return self.call("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")

    def wait(self, job: str, seconds: float = 600) -> None:
        """Until no part of the job is left to do."""
        end = time.monotonic() + seconds
        busy = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING")
        while any(word in self.state(job) for word in busy):
            assert time.monotonic() < end, self.call("scontrol", "show", "job", job)
            time.sleep(0.5)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Cluster:
    return Cluster(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def one(cluster: Cluster) -> Path:
    """The run of one process."""
    pipeline = "pipeline=[train,make_cam,eval_cam,crf]"
    cluster.call(*cluster.program("run_name=one", "stage=all", pipeline, "training.max_epochs=6"))
    (run,) = (cluster.out / "one").iterdir()
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "train" / "last.ckpt", weights_only=True)["state_dict"]


def made(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.suffix in (".npz", ".png") and path.relative_to(run).parts[0] != "train"
    }


def test_a_step_over_two_nodes_without_tasks_per_node(cluster: Cluster, one: Path) -> None:
    two = cluster.out / "two" / one.name
    shutil.copytree(one / "train", two / "train")
    pipeline = "pipeline=[train,make_cam,eval_cam,crf]"
    said = cluster.call(
        *("srun", "--nodes=2", "--ntasks=2"),
        *cluster.program("run_name=two", "stage=all", pipeline, "training.max_epochs=6"),
    )
    assert said.count("] make_cam\n") == 1
    assert len(made(one)) > 24
    assert made(two) == made(one)


def test_a_training_over_two_nodes_is_that_of_one_process(cluster: Cluster, one: Path) -> None:
    cluster.call(
        *("srun", "--nodes=2", "--ntasks-per-node=1"),
        *cluster.program("run_name=nodes", "stage=train", "training.max_epochs=6"),
    )
    (run,) = (cluster.out / "nodes").iterdir()
    for key, value in weights(one).items():
        torch.testing.assert_close(weights(run)[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_a_task_that_fails_ends_the_step_with_one_line_for_all(cluster: Cluster, one: Path) -> None:
    command = cluster.program("run_name=fails", "stage=crf")
    said = cluster.call("srun", "--nodes=2", "--ntasks=2", *command, code=1)
    errors = [line for line in said.splitlines() if line.startswith("error: stage=crf needs")]
    assert len(errors) == 2 and len(set(errors)) == 1


def test_one_task_with_two_devices_is_two_processes(cluster: Cluster) -> None:
    command = " ".join(
        cluster.program("run_name=devices", "stage=train", "trainer.devices=2", "data.batch_size=3")
    ).replace("[", "\\[")
    job = cluster.batch("--ntasks=1", "--output=devices.txt", line=command)
    cluster.wait(job)
    assert (
        "data.batch_size=3 is the global batch and must be divisible by the 2 processes"
        in (cluster.folder / "devices.txt").read_text()
    )


def test_a_job_whose_time_is_nearly_up_saves_and_is_requeued_and_ends_as_if_undisturbed(
    cluster: Cluster,
) -> None:
    settings = ("stage=train", "training.max_epochs=60", "trainer.devices=1")
    cluster.call(*cluster.program("run_name=calm", *settings))
    (calm,) = (cluster.out / "calm").iterdir()
    command = " ".join(cluster.program("run_name=requeued", *settings)).replace("[", "\\[")
    job = cluster.batch(
        *("--ntasks=1", "--requeue", "--open-mode=append", "--output=requeued.txt"),
        line=f"srun {command}",
    )
    end = time.monotonic() + 120
    while not list(cluster.out.glob("requeued/*/train/last.ckpt")):
        assert time.monotonic() < end
        time.sleep(0.02)
    cluster.call("scancel", "--signal=USR1", job)  # as --signal=USR1@SECONDS does
    log = cluster.folder / "requeued.txt"
    while "out of time" not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    time.sleep(2)
    cluster.call("scontrol", "update", f"JobId={job}", "StartTime=now")
    cluster.wait(job)
    said = log.read_text()
    assert "resumes at step" in said, said
    (requeued,) = (cluster.out / "requeued").iterdir()
    for key, value in weights(calm).items():
        assert torch.equal(weights(requeued)[key], value), key
    assert not list(cluster.folder.rglob("hpc_ckpt*"))


def test_an_array_of_seeds(cluster: Cluster) -> None:
    command = " ".join(
        cluster.program("run_name=seeds", "stage=train", "seed=$SLURM_ARRAY_TASK_ID")
    )
    job = cluster.batch(
        "--array=0-1", "--ntasks=1", "--output=seed%a.txt", line=command.replace("[", "\\[")
    )
    cluster.wait(job)
    runs = sorted((cluster.out / "seeds").iterdir())
    assert [run.name for run in runs] == ["seed=0", "seed=1"]
    assert all((run / "train" / "manifest.json").is_file() for run in runs)


def test_a_sweep_by_submitit_with_the_options_of_the_readme(cluster: Cluster) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    readme = (ROOT / "README.md").read_text()
    (line,) = (line for line in readme.splitlines() if "submitit_slurm" in line)
    options = [one for one in line.split() if one.startswith(("hydra/", "hydra."))]
    assert len(options) > 4
    cluster.call(*cluster.program("run_name=sweep", "stage=train", "seed=0,1", "-m"), *options)
    runs = sorted((cluster.out / "sweep").iterdir())
    assert [run.name for run in runs] == ["seed=0", "seed=1"]
    assert all((run / "train" / "manifest.json").is_file() for run in runs)
