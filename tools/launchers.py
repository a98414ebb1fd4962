"""Runs the nine stages of a tiny run by each launcher and compares the files with one process's.

    python tools/launchers.py [--methods cam,sipe,cpal] [--launchers own,torchrun,nodes,srun]
        [--seed 0] [key=value ...]

For each method and launcher:

  same      all that is made of one process's trained weights, byte by byte
  fresh     the chain from nothing: the same files; how far the trained weights are apart, relative
  resumed   the chain from nothing, one process of it killed (SIGKILL) in a stage at random, each
            rank once; all others end, and the same command ends with the files of `fresh`

Launchers: `own` (trainer.devices=2), `torchrun` (one node of two processes), `nodes` (torchrun, two
nodes of one process on this machine) and `srun` (Slurm, two nodes; `tools/slurm_here.sh` has one).
Prints a table and exits with 1 on a difference.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from kill_test import CHAIN, ROOT, TINY, artifacts, compare  # noqa: E402

from wsss.data.scenes import generate  # noqa: E402

NINE = [s for s in CHAIN if not s.startswith("psa_") and s not in ("seg_predict", "seg_export")]
TRAININGS = ("train", "irn_train", "seg_train")
# Divisible by two and by three processes.
BATCHES = ("data.batch_size=6", "refine.irn.batch_size=6", "segmentation.train.batch_size=6")
SETTINGS = (
    *TINY,
    *BATCHES,
    "segmentation.train.accumulate=1",
    "stage=all",
    f"pipeline=[{','.join(NINE)}]",
    # Too small to matter, so that chains cost what their start costs.
    *("refine.workers=1", "segmentation.workers=1", "data.num_workers=0"),
)
WORLD = 2


@dataclass
class Row:
    """What was found of a method by a launcher."""

    method: str
    launcher: str
    seconds: float = 0.0
    apart: float = 0.0
    killed: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


def commands(launcher: str, *arguments: str) -> list[list[str]]:
    """The commands that start a run, one for each node that is started by hand."""
    program = [str(ROOT / "run.py"), *arguments]
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    if launcher == "one":
        return [[sys.executable, *program]]
    if launcher == "own":
        return [[sys.executable, *program, f"trainer.devices={WORLD}"]]
    if launcher == "torchrun":
        return [[*torchrun, "--standalone", f"--nproc-per-node={WORLD}", *program]]
    if launcher == "nodes":
        point = [f"--nnodes={WORLD}", "--nproc-per-node=1", "--rdzv-backend=static"]
        point += ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
        return [[*torchrun, *point, f"--node-rank={node}", *program] for node in range(WORLD)]
    if launcher == "srun":
        return [["srun", f"--nodes={WORLD}", f"--ntasks={WORLD}", sys.executable, *program]]
    raise SystemExit(f"error: no launcher {launcher}")


class Run:
    """A command at work, with all that it has started."""

    def __init__(self, launcher: str, folder: Path, *arguments: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.launcher, self.mark = launcher, f"paths.outputs={folder}/outputs"
        self.log = folder / "log.txt"
        with self.log.open("ab") as log:
            self.started = [
                subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
                for command in commands(launcher, *arguments, self.mark)
            ]

    def processes(self) -> dict[int, int]:
        """Process of each rank that is at work, by what the launcher has told it."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                called = (path / "cmdline").read_bytes().decode().split("\0")
                told = dict(
                    entry.split("=", 1)
                    for entry in (path / "environ").read_bytes().decode().split("\0")
                    if "=" in entry
                )
            except (OSError, UnicodeDecodeError):
                continue
            environment = (path / "environ").parent
            if self.launcher == "own":
                continue
            rank = told.get("SLURM_PROCID" if self.launcher == "srun" else "RANK")
            if rank is not None and self.mark in called and "srun" not in called[0]:
                found.setdefault(int(rank), int(environment.name))
        return found if self.launcher != "own" else self._children()

    def _children(self) -> dict[int, int]:
        """Processes that the program has started itself, in the order of their ranks."""
        parent = self.started[0].pid
        path = Path(f"/proc/{parent}/task/{parent}/children")
        pids = [int(pid) for pid in path.read_text().split()] if path.exists() else []
        own = [p for p in pids if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
        return dict(enumerate(sorted(own)))

    def wait(self, seconds: float = 1200) -> list[int]:
        """Exit codes of all commands, once they have ended."""
        return [one.wait(timeout=seconds) for one in self.started]

    def left(self) -> int:
        """How many processes of it are there still."""
        count = 0
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                count += self.mark.encode() in path.read_bytes()
            except OSError:
                continue
        return count


def whole(launcher: str, folder: Path, *arguments: str) -> float:
    """Run a chain to its end; seconds it took.

    Raises:
        RuntimeError: it failed.
    """
    start = time.monotonic()
    run = Run(launcher, folder, *arguments)
    codes = run.wait()
    if any(codes):
        tail = " / ".join(run.log.read_text(errors="replace").splitlines()[-4:])
        raise RuntimeError(f"exit codes {codes}: {tail}")
    return time.monotonic() - start


def stages(folder: Path) -> Path:
    """The run's folder, which holds its stages."""
    (found,) = (folder / "outputs" / "run").iterdir()
    return found


def apart(reference: Path, found: Path) -> float:
    """How far trained weights are apart, relative to their lengths; the worst of the trainings."""
    worst = 0.0
    for stage in TRAININGS:
        one, other = (
            torch.load(run / stage / "last.ckpt", weights_only=True)["state_dict"]
            for run in (reference, found)
        )
        gap = sum(float((one[k].double() - other[k].double()).square().sum()) for k in one)
        length = sum(float(one[k].double().square().sum()) for k in one)
        worst = max(worst, (gap / length) ** 0.5)
    return worst


def same_files(reference: Path, found: Path) -> list[str]:
    """Files that only one of two runs has."""
    names = [set(artifacts(run)) for run in (reference, found)]
    return [f"{name} is in one only" for name in sorted(names[0] ^ names[1])]


def from_weights(row: Row, reference: Path, home: Path, *settings: str) -> None:
    """The column `same`."""
    folder = home / "same"
    target = folder / "outputs" / "run" / stages(reference).name
    for stage in TRAININGS:
        shutil.copytree(stages(reference) / stage, target / stage)
    whole(row.launcher, folder, *settings)
    for stage in NINE:
        faults = compare(stages(reference) / stage, target / stage)
        row.faults += [f"same: {stage}: {fault}" for fault in faults]


def killed(
    row: Row, fresh: Path, home: Path, rank: int, draw: random.Random, *settings: str
) -> None:
    """The column `resumed`: a rank is killed once a stage, drawn at random, has begun."""
    folder, stage = home / f"killed{rank}", draw.choice(NINE)
    run = Run(row.launcher, folder, *settings)
    end = time.monotonic() + 1200
    while not list(folder.glob(f"outputs/run/*/{stage}/started.json")):
        if time.monotonic() > end or all(one.poll() is not None for one in run.started):
            row.faults.append(f"rank {rank}: {stage} never began")
            return
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 1.0))
    pid = run.processes().get(rank)
    if pid is None:
        row.faults.append(f"rank {rank}: not found")
        return
    os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    codes = run.wait(180)
    ended = time.monotonic() - start
    if not any(codes) and (stages(folder) / NINE[-1] / "manifest.json").is_file():
        row.killed.append(f"{rank}:too late")
    elif not all(codes):
        row.faults.append(f"rank {rank} killed in {stage}: exit codes {codes}")
    row.killed.append(f"{rank}:{stage} ({ended:.1f} s)")
    time.sleep(1)
    if left := run.left():
        row.faults.append(f"rank {rank} killed in {stage}: {left} processes are left")
    whole(row.launcher, folder, *settings)
    for name in NINE:
        faults = compare(stages(fresh) / name, stages(folder) / name)
        row.faults += [f"rank {rank} killed in {stage}: {name}: {fault}" for fault in faults]


def table(rows: list[Row]) -> str:
    """What was found, a line for each method and launcher."""
    lines = [f"{'method':<8}{'launcher':<10}{'fresh s':>8}{'weights':>10}  {'equal':<6}killed"]
    for row in rows:
        equal = "yes" if not row.faults else "NO"
        lines.append(
            f"{row.method:<8}{row.launcher:<10}{row.seconds:>8.0f}{row.apart:>10.1e}  {equal:<6}"
            f"{', '.join(row.killed)}"
        )
        lines += [f"  {fault}" for fault in row.faults[:5]]
    return "\n".join(lines)


def main() -> int:
    """Exit code of the whole."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="cam,sipe,cpal")
    parser.add_argument("--launchers", default="own,torchrun,nodes")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    options, more = parser.parse_known_args()
    draw, home = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="launchers_"))
    rows = []
    try:
        generate(home / "scenes", seed=0, n_train=12, n_val=4, size=64)
        for method in options.methods.split(","):
            settings = (*SETTINGS, f"data.root={home / 'scenes'}", f"method={method}", *more)
            reference = home / method / "one"
            whole("one", reference, *settings)
            for launcher in options.launchers.split(","):
                row, place = Row(method, launcher), home / method / launcher
                rows.append(row)
                try:
                    from_weights(row, reference, place, *settings)
                    row.seconds = whole(launcher, place / "fresh", *settings)
                    row.faults += same_files(stages(reference), stages(place / "fresh"))
                    row.apart = apart(stages(reference), stages(place / "fresh"))
                    for rank in range(WORLD):
                        killed(row, place / "fresh", place, rank, draw, *settings)
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    row.faults.append(str(error)[:300])
                print(table([row]), file=sys.stderr, flush=True)
        print(table(rows))
        return int(any(row.faults for row in rows))
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
