"""Who this process is among several, and what it says."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def rank() -> int:
    """Number of this process among all of the run, over all machines; 0 alone.

    Of a process group where there is one; before it, what the launcher says: torchrun and Lightning
    (RANK), Slurm (SLURM_PROCID, where a step has several tasks), Lightning's own children
    (LOCAL_RANK, NODE_RANK).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    environment = os.environ
    if "RANK" in environment:
        return int(environment["RANK"])
    if int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environment:
        return int(environment["SLURM_PROCID"])
    # Of a node's first process alone the number of those before it matters: is it the very first?
    local, node = int(environment.get("LOCAL_RANK", 0)), int(environment.get("NODE_RANK", 0))
    return local if node == 0 else local + 1


def is_main_process() -> bool:
    """Whether this is the one process that speaks and writes manifests."""
    return rank() == 0


def wait_for_all() -> None:
    """Let the processes of a distributed run meet; nothing in a single one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def say(text: str) -> None:
    """Print a line, on the main process only."""
    if is_main_process():
        print(text, flush=True)


def relative(path: Path) -> str:
    """A path as short as can be for a message."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
