"""One function over many items, by all processes of the command and workers of each of them."""

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
from itertools import chain, islice
from multiprocessing.connection import wait
from typing import TypeVar

import torch

from wsss.errors import WsssError
from wsss.run.group import Group, current, helpers
from wsss.run.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # chunks for each process that wait or whose results wait: so memory stays bounded
ROUND = 64  # results of each process of the command that go to main at once


def cores() -> int:
    """Cores for this process: those it may use, parted with the command's others on its machine."""
    group = current()
    if group is not None:
        return group.cores()
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each(
    function: Callable[[Item], Result], items: Sequence[Item], description: str, workers: int = 0
) -> Iterator[Result]:
    """Results of `function` for `items`, in their order, as they come.

    Where the command is several processes and this is in `lead`, each of them does its share.

    Args:
        function: something that can be pickled: a function of a module, or a partial of one.
        items: what to call it with.
        description: a few words for the progress bar.
        workers: worker processes of each process; 0: none, the work is done by the process itself;
            -1: one for each core.

    Raises:
        WsssError: a process was killed.
    """
    group = helpers()
    if group is None or len(items) < 2:
        results = _worked(function, items, workers)
    else:
        group.share(partial(_help, function, items, workers))
        results = _joined(group, function, items, workers)
    # A chunk counts as what it is: one item after a minute is not an estimate of the rest.
    for chunk in track(results, description, len(items), len):
        yield from chunk


def _help(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> None:
    """What the others do when main calls `each`."""
    group = current()
    assert group is not None
    for _ in _joined(group, function, items, workers):
        pass


def _joined(
    group: Group, function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[list[Result]]:
    """Results of all processes, in the order of the items, on main; nothing elsewhere."""
    rank, world = group.place.rank, group.place.world
    mine = chain.from_iterable(_worked(function, items[rank::world], workers))
    for _ in range(0, len(items), ROUND * world):
        parts = group.gather(list(islice(mine, ROUND)))
        if parts is not None:
            yield [parts[i % world][i // world] for i in range(sum(map(len, parts)))]


def _worked(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[list[Result]]:
    """Results by the workers of this process, in chunks."""
    if workers < 0:
        workers = cores()
    if workers < 2 or len(items) < 2:
        yield from ([function(item)] for item in items)
        return
    length = max(1, min(16, len(items) // (8 * workers)))
    chunks = iter([items[i : i + length] for i in range(0, len(items), length)])
    work = partial(_each, function)
    with process_pool(workers) as pool:
        waiting: deque[Future[list[Result]]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(work, chunk))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


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
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # Slurm sends it to every process of a job
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
