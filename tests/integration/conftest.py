"""The command line as a user calls it, on scenes small enough for a test."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

    def elsewhere(self, folder: Path) -> Program:
        """The same program with another folder."""
        return Program(folder, self.scenes, self.here)


@pytest.fixture
def program(tmp_path, tiny_scenes, command_line) -> Program:
    """The program with a results folder of its own (`program.out`)."""
    return Program(tmp_path, tiny_scenes, command_line)
