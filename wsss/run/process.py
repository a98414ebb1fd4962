"""Which of the command's processes this is, by what its launcher says, and what it prints."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that one command was started as.

    Attributes:
        rank: its number over all machines; 0 is the main one.
        world: how many there are.
        local_rank: its number on its machine.
        local_world: how many there are on its machine.
        node: number of its machine.
        nodes: how many machines there are.
        launcher: what started them, `torchrun` or `srun`; empty for a single process.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    node: int = 0
    nodes: int = 1
    launcher: str = ""


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """What the launcher says: torchrun (and all that speak as it does), or a step of Slurm.

    A batch script of Slurm is no step: what it starts without `srun` is one process.
    """
    e = environment
    if "RANK" in e and "WORLD_SIZE" in e:
        rank, world = int(e["RANK"]), int(e["WORLD_SIZE"])
        local_world = int(e.get("LOCAL_WORLD_SIZE", 1))
        node = int(e.get("GROUP_RANK", rank // local_world))
        nodes = int(e.get("GROUP_WORLD_SIZE", -(-world // local_world)))
        local_rank = int(e.get("LOCAL_RANK", rank % local_world))
        return Place(rank, world, local_rank, local_world, node, nodes, "torchrun")
    tasks = int(e.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks < 2 or "SLURM_PROCID" not in e or "SLURM_STEP_ID" not in e:
        return Place()
    node = int(e.get("SLURM_NODEID", 0))
    per_node = _per_node(e.get("SLURM_STEP_TASKS_PER_NODE", str(tasks)))
    rank, local_rank = int(e["SLURM_PROCID"]), int(e.get("SLURM_LOCALID", 0))
    return Place(rank, tasks, local_rank, per_node[node], node, len(per_node), "srun")


def _per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` as [2, 2, 2, 1]."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def rank() -> int:
    """Number of this process among all of the command, over all machines; 0 alone."""
    return place().rank


def is_main_process() -> bool:
    """Whether this is the one process that speaks and writes manifests."""
    return rank() == 0


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
