"""The command line as a user calls it, on scenes small enough for a test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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
    """Calls the command line on the tiny scenes, with results below the test's own folder.

    Most calls stay in the tests' process, which has imported PyTorch already; `fresh` ones are a
    process of their own, as a user's are.
    """

    def __init__(self, folder: Path, scenes: Path, command_line: Callable[..., Any]) -> None:
        self.folder, self.out, self.scenes = folder, folder / "out", scenes
        self.here = command_line
        self.env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def arguments(self, *arguments: str, tiny: bool = True) -> list[str]:
        """All arguments; `tiny` makes data and training small (`conf/experiment/`)."""
        settings = [f"paths.outputs={self.out}", f"hydra.searchpath=[file://{CONF}]"]
        if tiny:
            settings += [f"data.root={self.scenes}"]
            if not any(argument.startswith("experiment=") for argument in arguments):
                settings += ["experiment=tiny"]
        return [*settings, *arguments]

    def __call__(
        self, *arguments: str, tiny: bool = True, check: bool = True, fresh: bool = False
    ) -> Any:
        """Run to the end; with `check`, exit code 0 is expected, and plain lines always.

        Returns:
            `returncode`, `stdout` and `stderr`.
        """
        given = self.arguments(*arguments, tiny=tiny)
        if fresh:
            command = [sys.executable, str(ROOT / "run.py"), *given]
            piped = subprocess.run(
                command, cwd=self.folder, capture_output=True, timeout=300, env=self.env
            )
            # Not `text=True`, which would read the carriage returns of a bar as ends of lines.
            out, err = piped.stdout.decode(), piped.stderr.decode()
            done: Any = subprocess.CompletedProcess(command, piped.returncode, out, err)
        else:
            with contextlib.chdir(self.folder):
                done = self.here(*given)
        said = done.stdout + done.stderr
        assert not set("\r\x1b") & set(said), f"for terminals only: {said!r}"
        if check:
            assert done.returncode == 0, said
        return done

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Begin, to be killed; `options` go to `Popen`."""
        return subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), *self.arguments(*arguments)],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            env=self.env,
            **options,
        )

    def assert_resumes(self, *arguments: str, sent: str = "SIGKILL") -> Path:
        """A training killed after its first checkpoint ends with the weights of a whole one.

        All in processes of their own: sums depend on the number of threads.

        Returns:
            The folder of the training that was killed and resumed.
        """
        settings = ("stage=train", "training.max_epochs=6", *arguments)
        self("run_name=straight", *settings, fresh=True)
        process, deadline = self.start("run_name=killed", *settings), time.monotonic() + 300
        while not list(self.out.glob("killed/*/train/last.ckpt")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.Signals[sent])
        # A shell tells a death by SIGKILL as 137; who is asked to end says so himself.
        assert process.wait() == {"SIGKILL": -9, "SIGTERM": 143}[sent]
        (straight,), (killed,) = (
            list(self.out.glob(f"{name}/*/train")) for name in ("straight", "killed")
        )
        assert torch.load(killed / "last.ckpt", weights_only=True)["epoch"] < 5
        assert not (killed / "manifest.json").exists()
        assert "resumes at step" in self("run_name=killed", *settings, fresh=True).stdout
        one, other = (
            torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
            for folder in (straight, killed)
        )
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]), key
        return killed

    def elsewhere(self, folder: Path) -> Program:
        """The same program with another folder."""
        return Program(folder, self.scenes, self.here)


@pytest.fixture
def program(tmp_path, tiny_scenes, command_line) -> Program:
    """The program with a results folder of its own (`program.out`)."""
    return Program(tmp_path, tiny_scenes, command_line)
