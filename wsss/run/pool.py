"""One function over many items, in several processes, with progress shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TypeVar

import torch

from wsss.run.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallel(
    function: Callable[[Item], Result], items: Sequence[Item], description: str, workers: int = 0
) -> list[Result]:
    """Results of `function` for `items`, in their order.

    Args:
        function: Something that can be pickled: a function of a module, or a partial of one.
        items: What to call it with.
        description: A few words for the progress bar.
        workers: Number of processes; 0: this one; -1: one for each core.
    """
    if workers < 0:
        workers = cores()
    if workers < 2 or len(items) < 2:
        return [function(item) for item in track(items, description)]
    length = max(1, min(16, len(items) // (8 * workers)))
    chunks = [items[i : i + length] for i in range(0, len(items), length)]
    # The processes fill the cores: threads in each of them would only wait for one another.
    with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        results = pool.map(partial(_each, function), chunks)
        # A chunk counts as what it is: one item after a minute is not an estimate of the rest.
        return [r for chunk in track(results, description, len(items), len) for r in chunk]


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]
