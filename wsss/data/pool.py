"""One function over many items, in several processes, with progress shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from wsss.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")


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
        workers = os.cpu_count() or 1
    if workers < 2 or len(items) < 2:
        return [function(item) for item in track(items, description)]
    chunk = max(1, min(32, len(items) // (4 * workers)))
    with ProcessPoolExecutor(workers) as pool:
        results = pool.map(function, items, chunksize=chunk)
        return list(track(results, description, total=len(items)))
