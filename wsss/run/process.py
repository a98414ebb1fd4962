"""Who this process is among several, and what it says."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def wait_for_all() -> None:
    """Let the processes of a distributed run meet; nothing in a single one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def is_main_process() -> bool:
    """Whether this is the one process that speaks and writes manifests."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


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
