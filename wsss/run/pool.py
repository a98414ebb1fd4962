"""One function over many items, in several processes, with progress shown."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from typing import TypeVar

import torch

from wsss.errors import WsssError
from wsss.run.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # chunks for each process that wait or whose results wait: so memory stays bounded


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each(
    function: Callable[[Item], Result], items: Sequence[Item], description: str, workers: int = 0
) -> Iterator[Result]:
    """Results of `function` for `items`, in their order, as they come.

    Args:
        function: something that can be pickled: a function of a module, or a partial of one.
        items: what to call it with.
        description: a few words for the progress bar.
        workers: number of processes; 0: this one; -1: one for each core.

    Raises:
        WsssError: a process was killed.
    """
    if workers < 0:
        workers = cores()
    if workers < 2 or len(items) < 2:
        yield from map(function, track(items, description))
        return
    length = max(1, min(16, len(items) // (8 * workers)))
    chunks = iter([items[i : i + length] for i in range(0, len(items), length)])
    work = partial(_each, function)
    with process_pool(workers) as pool:
        waiting: deque[Future[list[Result]]] = deque()

        def results() -> Iterator[list[Result]]:
            for chunk in chunks:
                waiting.append(pool.submit(work, chunk))
                if len(waiting) >= AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        # A chunk counts as what it is: one item after a minute is not an estimate of the rest.
        for chunk_results in track(results(), description, len(items), len):
            yield from chunk_results


def parallel(
    function: Callable[[Item], Result], items: Sequence[Item], description: str, workers: int = 0
) -> list[Result]:
    """The results of `each`, all at once."""
    return list(each(function, items, description, workers))


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one, and at once when the block is left by an exception.

    Raises:
        WsssError: one of them was killed.
    """
    # A process that has begun to use a GPU must not be forked.
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else None)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin)
    try:
        yield pool
        pool.shutdown()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise WsssError(
                "a worker process was killed, perhaps for want of memory: set fewer workers "
                "(refine.workers, eval_cam.workers, segmentation.workers)"
            ) from error
        raise


def _begin() -> None:
    """What a worker does first."""
    # The processes fill the cores: threads in each of them would only wait for one another.
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers, and ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """End this process as soon as its parent has: nobody would fetch its results."""
    wait([sentinel])
    os._exit(1)


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]
