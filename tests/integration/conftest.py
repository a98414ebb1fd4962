"""The command line as a user calls it, on scenes small enough for a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsss.data.scenes import generate

ROOT = Path(__file__).resolve().parents[2]

TINY = [
    "data.image_set.n_train=12",
    "data.image_set.n_val=4",
    "data.image_set.size=64",
    "data.crop_size=64",
    "data.long_side=[56,80]",
    "data.batch_size=4",
    "data.scales=[1.0,0.5]",
    "backbone.weights=null",
    "backbone.frozen_stages=0",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "eval_cam.workers=1",
    "eval_cam.pictures=2",
]


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory) -> Path:
    """Twelve generated scenes of 64 × 64 pixels."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    generate(root, seed=0, n_train=12, n_val=4, size=64)
    return root


class Program:
    """Runs `run.py` on the tiny scenes, with results below the test's own folder."""

    def __init__(self, folder: Path, scenes: Path) -> None:
        self.folder, self.out, self.scenes = folder, folder / "out", scenes
        self.env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def command(self, *arguments: str, tiny: bool = True) -> list[str]:
        """The whole command line; `tiny` makes data and training small."""
        settings = [f"paths.outputs={self.out}"]
        if tiny:
            settings += [*TINY, f"data.root={self.scenes}"]
        return [sys.executable, str(ROOT / "run.py"), *settings, *arguments]

    def __call__(
        self, *arguments: str, tiny: bool = True, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; with `check`, exit code 0 is expected."""
        done = subprocess.run(
            self.command(*arguments, tiny=tiny),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
            env=self.env,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Begin, to be killed."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            env=self.env,
        )


@pytest.fixture
def program(tmp_path, tiny_scenes) -> Program:
    """The program with a results folder of its own (`program.out`)."""
    return Program(tmp_path, tiny_scenes)
