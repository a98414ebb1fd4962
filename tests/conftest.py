"""Fixtures shared by all tests: the optional real data, W&B's files, a fixed number of threads."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    # The tests' tensors are small: more threads cost more in waiting than they win, and
    # sums must not depend on how many cores the machine has.
    torch.set_num_threads(min(2, os.cpu_count() or 1))


def _shared(relative: str) -> Path:
    """Returns a path below $WSSS_SHARED (by default ../shared beside the checkout) or skips."""
    shared = Path(os.environ.get("WSSS_SHARED", ROOT.parent / "shared"))
    path = shared / relative
    if not path.exists():
        pytest.skip(f"real data absent: {path} (set WSSS_SHARED to the folder that has {relative})")
    return path


@dataclass
class Ended:
    """What a command line ended with."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command_line(monkeypatch, capsys) -> Iterator[Callable[..., Ended]]:
    """`command_line("stage=train", ...)`: the command line in this process, and all that it says.

    Whatever it changes for its process (environment, signals, logging, Hydra) is put back.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    from wsss.cli import main

    environment = dict(os.environ)
    answers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    handlers, level = list(logging.root.handlers), logging.root.level

    def restore() -> None:
        os.environ.clear()
        os.environ.update(environment)
        for one, answer in answers.items():
            signal.signal(one, answer)
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            restore()
        return Ended(code, *capsys.readouterr())

    yield call
    restore()


@pytest.fixture(scope="session")
def voc2007_mini() -> Path:
    """The root of the small real data set, laid out as Pascal VOC; skips where it is absent."""
    return _shared("data/voc2007-mini")


@pytest.fixture(scope="session")
def lite0_weights() -> Path:
    """The file of ImageNet weights of tf_efficientnet_lite0; skips where it is absent."""
    return _shared("weights/tf_efficientnet_lite0.safetensors")


@dataclass
class WandbFile:
    """What one W&B process wrote to its `run-ID.wandb`."""

    folder: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None

    def logged(self, key: str) -> list[Any]:
        """All values of a key, in order."""
        return [row[key] for row in self.history if key in row]

    def table(self, key: str) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of the last table logged under a key."""
        content = json.loads((self.folder / "files" / self.logged(key)[-1]["path"]).read_text())
        return content["columns"], content["data"]


def _wandb_records(path: Path) -> Iterator[bytes]:
    """Records of a W&B file: LevelDB's log format after 7 bytes, blocks of 32 KiB."""
    content, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]
        if position + 7 + length > len(content):
            return  # still being written
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def _read_wandb(folder: Path, patience: float = 20.0) -> list[WandbFile]:
    """Reads until every file has its end: W&B's own process writes on after `finish` returns."""
    end = time.monotonic() + patience
    while True:
        found = _read_wandb_once(folder)
        if all(one.exit_code is not None for one in found) or time.monotonic() > end:
            return found
        time.sleep(0.1)


def _read_wandb_once(folder: Path) -> list[WandbFile]:
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted(folder.rglob("run-*.wandb"), key=lambda p: p.parent.name):
        one = WandbFile(path.parent)
        for content in _wandb_records(path):
            record = Record.FromString(content)
            kind = record.WhichOneof("record_type")
            config = record.config
            if kind == "run":
                one.run, config = record.run, record.run.config
            elif kind == "history":
                one.history.append({})
                for item in record.history.item:
                    *outer, last = item.nested_key or [item.key]
                    place = one.history[-1]
                    for name in outer:
                        place = place.setdefault(name, {})
                    place[last] = json.loads(item.value_json)
            elif kind == "exit":
                one.exit_code = record.exit.exit_code
            for item in config.update:
                one.config[".".join(item.nested_key) or item.key] = json.loads(item.value_json)
        found.append(one)
    return found


@pytest.fixture
def read_wandb(monkeypatch) -> Callable[[Path], list[WandbFile]]:
    """Reads the W&B files below a folder, oldest first; W&B stays off the network meanwhile."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return _read_wandb
