"""The command line as a user calls it, on scenes small enough for a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsss.data.scenes import generate

ROOT = Path(__file__).resolve().parents[2]
CONF = Path(__file__).resolve().parent / "conf"


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
        """The whole command line; `tiny` makes data and training small (`conf/experiment/`)."""
        settings = [f"paths.outputs={self.out}", f"hydra.searchpath=[file://{CONF}]"]
        if tiny:
            settings += [f"data.root={self.scenes}"]
            if not any(argument.startswith("experiment=") for argument in arguments):
                settings += ["experiment=tiny"]
        return [sys.executable, str(ROOT / "run.py"), *settings, *arguments]

    def __call__(
        self, *arguments: str, tiny: bool = True, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; with `check`, exit code 0 is expected, and plain lines always."""
        command = self.command(*arguments, tiny=tiny)
        piped = subprocess.run(
            command, cwd=self.folder, capture_output=True, timeout=300, env=self.env
        )
        # Not `text=True`, which would read the carriage returns of a bar as ends of lines.
        out, err = piped.stdout.decode(), piped.stderr.decode()
        assert not set("\r\x1b") & set(out + err), f"for terminals only: {out + err!r}"
        done = subprocess.CompletedProcess(command, piped.returncode, out, err)
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
