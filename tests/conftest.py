"""Fixtures shared by all tests: real data, small runs that are lent, W&B's files, threads."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from wsss.build.segmenter import build_segmenter
from wsss.build.settings import Settings, resolve_settings
from wsss.cli import CONF, settings_path
from wsss.data.scenes import CLASSES, generate
from wsss.files import write_json
from wsss.stages import get_stage

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


MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="session")
def few_scenes(tmp_path_factory) -> Path:
    """Ten generated scenes of 64 × 64 pixels."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    generate(root, seed=0, n_train=6, n_val=4, size=64)
    return root


@pytest.fixture(scope="session")
def settings_in(few_scenes: Path) -> MakeSettings:
    """`settings_in(folder, "key=value", ..., run="name")`: settings of a run below a folder."""

    def make(folder: Path, *overrides: str, run: str = "run") -> Settings:
        OmegaConf.register_new_resolver("settings_path", settings_path, replace=True)
        OmegaConf.register_new_resolver("run_name", lambda: "test", replace=True)
        base = [
            "trainer=cpu",
            "trainer.precision=32-true",
            "trainer.log_every_n_steps=1",
            "backbone=timm",  # a ResNet of 0.4 million parameters
            "backbone.name=test_resnet",
            "backbone.weights=null",
            "backbone.frozen_stages=0",
            f"paths.outputs={folder / 'outputs'}",
            f"paths.cache={folder / 'cache'}",
            "data.num_workers=0",
            *(f"{group}.workers=0" for group in ("eval_cam", "refine", "segmentation")),
            *(f"{group}.pictures=2" for group in ("eval_cam", "refine", "segmentation")),
        ]
        if not any(override.startswith("data=") for override in overrides):
            base += [f"data.root={few_scenes}", "data.crop_size=48", "data.long_side=[40,64]"]
            base += ["data.batch_size=3", "data.scales=[1.0,0.5]", "training.max_epochs=2"]
            base += [f"data.image_set.{size}" for size in ("n_train=6", "n_val=4", "size=64")]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", overrides=[*base, *overrides])
        with open_dict(cfg):
            cfg.paths.run = str(folder / run)
        return resolve_settings(cfg)

    return make


@pytest.fixture
def settings(tmp_path: Path, settings_in: MakeSettings) -> MakeSettings:
    """`settings("key=value", ..., run="name")`: typed settings on the few scenes."""

    def make(*overrides: str, run: str = "run") -> Settings:
        return settings_in(tmp_path, *overrides, run=run)

    return make


@pytest.fixture(scope="session")
def lender(tmp_path_factory, settings_in: MakeSettings) -> Callable[..., Path]:
    """Runs stages once per session and setting; gives the run's folder, which is not to change."""
    made: dict[tuple[str, ...], Path] = {}

    def lend(stages: tuple[str, ...], overrides: tuple[str, ...]) -> Path:
        if overrides not in made:
            made[overrides] = tmp_path_factory.mktemp("lent")
        folder = made[overrides]
        s = settings_in(folder, *overrides)
        for stage in stages:
            if not (s.folder(stage) / "manifest.json").is_file():
                get_stage(stage)(s)
        return folder / "run"

    return lend


@pytest.fixture
def lend(lender, settings: MakeSettings) -> Callable[..., Settings]:
    """`lend("train", "make_cam", of=("method=sipe",))`: settings of a run that has these stages.

    The run is a copy: it may be changed, and stages may be run on it with more overrides
    (`settings(*of, "key=value")`).
    """

    def get(*stages: str, of: tuple[str, ...] = (), run: str = "run") -> Settings:
        s = settings(*of, run=run)
        source = lender(stages, of)
        for stage in stages:
            shutil.copytree(source / stage, s.folder(stage))
        return s

    return get


@pytest.fixture
def untrained_network() -> Callable[[Settings], None]:
    """Puts a segmentation network with random weights where seg_train leaves a trained one."""

    def write(s: Settings) -> None:
        segmenter, _ = build_segmenter(s, CLASSES)
        with torch.no_grad():  # all labels are predicted somewhere
            for parameter in segmenter.network.aspp.parameters():  # type: ignore[union-attr]
                parameter.normal_(std=0.3)
        folder = s.folder("seg_train")
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = {"state_dict": segmenter.state_dict()}
        segmenter.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, folder / "last.ckpt")
        facts = {"class_names": list(CLASSES), "initial_weights": "none"}
        write_json(folder / "manifest.json", {"hash": "h", "stage": "seg_train", **facts})

    return write
