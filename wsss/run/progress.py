"""Progress of long work: a bar on a terminal, plain lines with the time left elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from wsss.run.process import is_main_process

T = TypeVar("T")
LINE_EVERY_S = 15.0


def duration(seconds: float) -> str:
    """Seconds as `1 h 05 min`, `3 min 20 s` or `12 s`."""
    whole = max(round(seconds), 0)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


class Lines:
    """Plain progress lines, one every `every` seconds, with an estimate of the time left."""

    def __init__(self, description: str, total: int | None, every: float = LINE_EVERY_S) -> None:
        self.description, self.total, self.every = description, total, every
        self.start = self.last = time.monotonic()
        self.done = 0
        self.last_done = 0

    def advance(self, note: str = "", count: int = 1) -> None:
        """Count one, or `count` that came at once; print a line when it is time."""
        self.done += count
        now = time.monotonic()
        if now - self.last >= self.every or self.done == self.total:
            self.last, self.last_done = now, self.done
            print(self.line(now, note), flush=True)

    def line(self, now: float, note: str = "") -> str:
        """The line for the present state."""
        spent = now - self.start
        of = f"/{self.total}" if self.total else ""
        text = f"{self.description}: {self.done}{of}"
        if self.total and self.done < self.total:
            left = spent / max(self.done, 1) * (self.total - self.done)
            text += f", {duration(left)} left"
        else:
            text += f" in {duration(spent)}"
        return text + (f", {note}" if note else "")


def bar(console: Console | None = None) -> Progress:
    """The project's progress bar."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def track(
    items: Iterable[T],
    description: str,
    total: int | None = None,
    size: Callable[[T], int] = lambda item: 1,
) -> Iterator[T]:
    """Yield `items`, showing how far the work is and how long it will still take.

    Args:
        items: what to go through.
        description: a few words, e.g. `make_cam`.
        total: how much there is; read off `items` where it has a length.
        size: how much of the total an item is.
    """
    if total is None:
        try:
            total = len(items)  # type: ignore[arg-type]
        except TypeError:
            total = None
    if not is_main_process():
        yield from items
        return
    if sys.stdout.isatty():
        with bar() as progress:
            task = progress.add_task(description, total=total)
            for item in items:
                yield item
                progress.advance(task, size(item))
        return
    lines = Lines(description, total)
    for item in items:
        yield item
        lines.advance(count=size(item))
