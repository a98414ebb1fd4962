"""Kills the stages of a tiny run at random moments and compares what they make after all.

    python tools/kill_test.py --kills 40 [--seed 0] [--stages train,crf] [key=value ...]

A round throws one stage of a finished run away, kills it (SIGKILL, the main process alone) one to
three times at random moments of its work, lets it end, and compares all that lies in its folder:
weights and optimizer, maps, masks, pictures, metrics, manifest. Times, logs and where the program
ran are no results. Prints a table and exits with 1 on a difference.

The program is forked from this process, which has imported everything: so the kills fall on the
work, and a killed stage begins again within milliseconds.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402

from wsss.cli import main  # noqa: E402
from wsss.data.scenes import generate  # noqa: E402
from wsss.files import read_json  # noqa: E402
from wsss.refine.crf import CrfSettings, crf_from_probabilities  # noqa: E402
from wsss.stages import get_stage  # noqa: E402

CHAIN = (
    *("train", "make_cam", "eval_cam", "crf", "irn_labels", "irn_train", "irn_masks"),
    *("psa_labels", "psa_train", "psa_masks"),
    *("seg_train", "seg_eval", "seg_predict", "seg_export"),
)
TINY = (
    f"hydra.searchpath=[file://{ROOT}/tests/integration/conf]",
    *("experiment=tiny_segmentation", "paths.outputs=outputs", "run_name=run", "method=cpal"),
    *("refine.masks=irn_masks", "refine.workers=2", "eval_cam.workers=2", "data.num_workers=2"),
    *("segmentation.workers=2", "refine.irn.features=method", "refine.irn.scale=[0.75,1.25]"),
    *("refine.irn.crop_size=64", "refine.irn.batch_size=4", "refine.irn.radius=4"),
    "refine.irn.max_epochs=3",
    *("refine.psa.network=backbone", "refine.psa.crop_size=64", "refine.psa.radius=3"),
    *("refine.psa.batch_size=4", "refine.psa.max_epochs=3", "refine.psa_walk.radius=3"),
)
NOT_RESULTS = {"seconds", "revision", "time"}
MOST = 3  # kills of one round


@dataclass
class Row:
    """What was done to a stage, and what was found."""

    stage: str
    seconds: float
    kills: int = 0
    rounds: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Program:
    """The program in a folder of its own."""

    folder: Path
    settings: tuple[str, ...]

    def start(self, *arguments: str) -> int:
        """Fork it; returns the number of its process, which leads a group of its own."""
        sys.stdout.flush()
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            os.setsid()
            os.chdir(self.folder)
            log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.argv[1:] = [*self.settings, *arguments]
            main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def run(self, *arguments: str) -> None:
        """Run it to its end.

        Raises:
            RuntimeError: it failed.
        """
        code = os.waitstatus_to_exitcode(os.waitpid(self.start(*arguments), 0)[1])
        if code:
            tail = " / ".join((self.folder / "log.txt").read_text().splitlines()[-3:])
            raise RuntimeError(f"exit code {code}: {tail}")

    def kill(self, after: float, *arguments: str) -> bool:
        """Start it and kill it after some seconds; False if it has ended before.

        Raises:
            RuntimeError: it failed, or a process of it lives on.
        """
        child, end = self.start(*arguments), time.monotonic() + after
        while time.monotonic() < end:
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                return False
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return True

    @property
    def run_folder(self) -> Path:
        """Where its stages lie."""
        (found,) = (self.folder / "outputs" / "run").iterdir()
        return found


def group(leader: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(member) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def artifacts(folder: Path) -> dict[str, Path]:
    """Files of a stage that are results, by their place in its folder."""
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".log" and ".hydra" not in path.parts
    }


def results(content: Any) -> Any:
    """Nested content without times and the like."""
    if isinstance(content, dict):
        return {k: results(v) for k, v in content.items() if k not in NOT_RESULTS}
    return [results(one) for one in content] if isinstance(content, (list, tuple)) else content


def content_of(path: Path) -> Any:
    """What a file holds, in a form that can be compared."""
    if path.suffix == ".pt2":
        program = torch.export.load(path)
        return {"weights": dict(program.state_dict), "graph": program.graph_module.code}
    if path.suffix in (".ckpt", ".pt"):
        return torch.load(path, map_location="cpu", weights_only=True)
    if path.suffix == ".npz":
        with np.load(path) as stored:
            return {name: stored[name] for name in stored.files}
    if path.suffix == ".json":
        return results(read_json(path))
    if path.suffix == ".yaml":
        return results(yaml.safe_load(path.read_text()))
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [results(row) for row in csv.DictReader(file)]
    return path.read_bytes()


def differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """Where two contents differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys(), key=str):
            if key not in a or key not in b:
                yield f"{where}.{key} is in one only"
            else:
                yield from differences(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            yield f"{where} has {len(a)} and {len(b)} entries"
        for n, (one, other) in enumerate(zip(a, b, strict=False)):
            yield from differences(one, other, f"{where}[{n}]")
    elif isinstance(a, (torch.Tensor, np.ndarray)) and isinstance(b, type(a)):
        one, other = np.asarray(a), np.asarray(b)
        if one.dtype != other.dtype or not np.array_equal(one, other):
            yield where
    elif a != b:
        yield where if isinstance(a, bytes) else f"{where} {str(a)[:60]} | {str(b)[:60]}"


def compare(reference: Path, found: Path) -> list[str]:
    """What differs between two folders of a stage."""
    one, other = artifacts(reference), artifacts(found)
    faults = [f"{name} is in one only" for name in sorted(one.keys() ^ other.keys())]
    for name in sorted(one.keys() & other.keys()):
        faults += differences(content_of(one[name]), content_of(other[name]), name)
    return faults


def attack(row: Row, program: Program, reference: Path, draw: random.Random) -> None:
    """One round: the stage anew, killed some times, and compared."""
    stage = program.run_folder / row.stage
    shutil.rmtree(stage)
    row.rounds += 1
    try:
        for _ in range(draw.randint(1, MOST)):
            # The later starts have less to do.
            if program.kill(draw.uniform(0, row.seconds), f"stage={row.stage}"):
                row.kills += 1
        program.run(f"stage={row.stage}")
    except RuntimeError as error:
        row.faults.append(str(error))
        return
    row.faults += compare(reference / row.stage, stage)


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Options, and settings for the program."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40, help="of each stage")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--stages", default=",".join(CHAIN), help="which stages, A,B,...")
    return parser.parse_known_args(arguments)


def table(rows: list[Row]) -> str:
    """What was done and found, a line per stage."""
    lines = [f"{'stage':<12}{'seconds':>8}{'kills':>7}{'rounds':>8}  equal"]
    for row in rows:
        equal = "yes" if not row.faults else f"NO: {row.faults[0]}"
        lines.append(f"{row.stage:<12}{row.seconds:>8.1f}{row.kills:>7}{row.rounds:>8}  {equal}")
    kills, rounds = sum(row.kills for row in rows), sum(row.rounds for row in rows)
    lines.append(f"{'all':<12}{'':>8}{kills:>7}{rounds:>8}")
    return "\n".join(lines)


def run() -> int:
    """Exit code of the whole."""
    options, more = parse()
    stages = options.stages.split(",")
    for stage in CHAIN:
        get_stage(stage)  # imports what it needs, once for all forks
    torch.set_num_threads(1)
    crf_from_probabilities(np.zeros((8, 8, 3), np.uint8), np.full((2, 8, 8), 0.5), CrfSettings())
    draw, home = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="kill_test_"))
    try:
        generate(home / "scenes", seed=0, n_train=12, n_val=4, size=64)
        given = (f"data.root={home / 'scenes'}", f"input={home / 'scenes' / 'JPEGImages'}")
        program = Program(home / "work", (*TINY, *given, *more))
        program.folder.mkdir()
        rows = []
        for stage in CHAIN:
            start = time.monotonic()
            program.run(f"stage={stage}")
            if stage in stages:
                rows.append(Row(stage, time.monotonic() - start))
        calm = Path(shutil.copytree(program.run_folder, home / "calm", symlinks=True))
        for row in rows:
            while row.kills < options.kills and not row.faults:
                attack(row, program, calm, draw)
            print(json.dumps(vars(row)), file=sys.stderr, flush=True)
            # The later stages read the undisturbed: equal weights may lie in a file of other bytes.
            shutil.rmtree(program.run_folder / row.stage)
            shutil.copytree(calm / row.stage, program.run_folder / row.stage)
        print(table(rows))
        return int(any(row.faults for row in rows))
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(run())
