"""Several processes of one job: what main leads, and how all end together."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("group_processes.py")


def run(*what: str, world: int = 3) -> list[tuple[int, list[str]]]:
    """Exit code and lines of each process; they find one another as in a step of Slurm."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    base = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    base |= {"MASTER_PORT": str(port), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(world)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *what],
            env={**base, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    outs = [process.communicate(timeout=120)[0] for process in processes]
    return [
        (process.returncode, out.splitlines()) for process, out in zip(processes, outs, strict=True)
    ]


def test_what_main_leads_is_shared_and_known_to_all() -> None:
    ended = run("share", "cores", "slow")
    squares = [[n * n for n in range(count)] for count in (0, 1, 2, 7, 500)]
    expected = [*squares, [n * n for n in range(20)], [0, 1, 2, 0, 1, 2, 0]]
    whole = len(os.sched_getaffinity(0))
    for code, (shared, part, slow) in [
        (code, [line for line in lines if not line.startswith(("wor", "who"))])
        for code, lines in ended
    ]:
        assert code == 0
        assert shared == str(expected)
        assert int(part) == max(1, whole // 3)
        assert slow == "done"
    # Main alone tells how far it is.
    assert [any("work: 500/500" in line for line in lines) for _, lines in ended] == [1, 0, 0]


def test_a_failure_ends_the_job_everywhere_with_its_line_and_the_next_job_begins() -> None:
    for code, lines in run("fail", "share"):
        assert code == 0  # of the second job
        assert "error: item 4 is broken" in lines


@pytest.mark.parametrize(
    ("what", "victim"), [("die", 1), ("main dies", 0), ("alone", 1)], ids=["at work", "main", "far"]
)
def test_a_killed_process_ends_all_at_once_with_one_line(what: str, victim: int) -> None:
    start = time.monotonic()
    ended = run(what)
    assert time.monotonic() - start < 55  # nobody waits for what never comes
    assert ended[victim][0] == -9
    lines = {lines[-1] for rank, (_, lines) in enumerate(ended) if rank != victim}
    assert [code for rank, (code, _) in enumerate(ended) if rank != victim] == [1, 1]
    (line,) = lines
    assert re.match(
        rf"error: process {victim} of 3 \(process \d+ on .*\) was killed or can't be reached; "
        "the same command goes on where it was",
        line,
    )
