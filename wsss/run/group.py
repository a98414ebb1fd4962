"""The processes of one job: one group from its first stage to its last, and one end for all.

Main leads: what it alone has to do it does in `lead`, while the others wait and help with what it
shares out (`wsss.run.pool.each`). None waits for main with a limit of time. That none waits for a
process that is gone is the work of a thread, which looks at the others every second.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from wsss.errors import WsssError
from wsss.files import alive
from wsss.run.process import Place, place

T = TypeVar("T")

FOREVER = timedelta(days=365)  # of waiting for a process that lives; the thread knows of the others
START_S = 600.0  # between the start of the first process and that of the last
LOOK_S = 1.0  # between two looks at the others
SILENT = 60  # looks in a row that find no sign of life of a process on another machine
LEAVE_S = 20.0  # for a process to end by itself once it knows that it must
WAKE = signal.SIGURG  # nobody minds it: tells the main thread to look at `Group.lost`

_group: Group | None = None


class Lost(Exception):  # noqa: N818 - not an error of its own
    """The job has ended in another process.

    Attributes:
        line: why.
        code: the exit code of all.
    """

    def __init__(self, line: str, code: int) -> None:
        super().__init__(line)
        self.line, self.code = line, code


@dataclass(frozen=True)
class Member:
    """A process of the group, as the others know it.

    Attributes:
        host: name of its machine.
        space: where its number holds: containers have numbers of their own.
        pid: its number.
        cores: those that it may use.
    """

    host: str
    space: str
    pid: int
    cores: frozenset[int]

    @staticmethod
    def here() -> Member:
        """This process."""
        space = Path("/proc/self/ns/pid")
        return Member(_host(), os.readlink(space) if space.exists() else "", os.getpid(), _cores())

    def is_near(self) -> bool:
        """Whether this process can see it."""
        return (self.host, self.space) == (_host(), Member.here().space)

    def is_dead(self) -> bool:
        """Whether this process sees that it has ended, be it that nobody has asked for its code."""
        if not self.is_near():
            return False
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
            return stat.rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return not alive(self.pid)


class Group:
    """The processes of one job.

    Args:
        where: this one's place.
        name: of the job, different from those before it in the same command.
        gpu: whether trainings are on GPUs.

    Raises:
        WsssError: not all have come.
    """

    def __init__(self, where: Place, name: str, gpu: bool) -> None:
        self.place, self.leading = where, False
        self.lost: Lost | None = None
        self._over = threading.Event()
        self._store, self._watched = _connect(where, name), _connect(where, name)
        self._store.set(f"beat/{where.rank}", "0")
        self._store.set(f"gpu/{where.rank}", str(gpu))
        self._meet()
        if self._store.get("gpu/0").decode() != str(gpu):
            raise WsssError(
                f"process {where.rank} on {_host()} sees {'a' if gpu else 'no'} GPU, the main one "
                f"{'none' if gpu else 'does'}: choose one kind for all (trainer.accelerator)"
            )
        backend = "nccl" if gpu else "gloo"
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", self._store),
            rank=where.rank,
            world_size=where.world,
            timeout=FOREVER,
        )
        self._talk: Any = dist.group.WORLD
        if gpu:
            self._talk = dist.new_group(backend="gloo", timeout=FOREVER)
        self.members: list[Member] = self.gather_all(Member.here())
        signal.signal(WAKE, self._wake)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _meet(self) -> None:
        """Wait until all have come."""
        end = time.monotonic() + START_S
        self._store.add("arrived", 1)
        while (there := self._store.add("arrived", 0)) < self.place.world:
            if time.monotonic() > end:
                raise WsssError(
                    f"{there} of {self.place.world} processes have started within "
                    f"{START_S / 60:.0f} minutes: look at what the others say"
                )
            time.sleep(0.05)

    # ---- talking

    def share(self, content: Any) -> Any:
        """What main gives, on all."""
        box = [content if self.place.rank == 0 else None]
        dist.broadcast_object_list(box, src=0, group=self._talk)
        return box[0]

    def gather(self, content: Any) -> list[Any] | None:
        """What each gives, in rank order, on main; None elsewhere."""
        boxes: list[Any] | None = [None] * self.place.world if self.place.rank == 0 else None
        dist.gather_object(content, boxes, dst=0, group=self._talk)
        return boxes

    def gather_all(self, content: Any) -> list[Any]:
        """What each gives, in rank order, on all."""
        boxes: list[Any] = [None] * self.place.world
        dist.all_gather_object(boxes, content, group=self._talk)
        return boxes

    def lead(self, work: Callable[[], T]) -> T:
        """See `lead`."""
        if self.leading:
            return work()
        self.wait()
        if self.place.rank == 0:
            self.leading = True
            try:
                answer = work()
            finally:
                self.leading = False
            self.share(_Answer(answer))
            return answer
        while True:
            message = self.share(None)
            if isinstance(message, _Answer):
                return message.content
            message()

    def wait(self) -> None:
        """Wait for all, without a limit."""
        dist.barrier(group=self._talk)

    def cores(self) -> int:
        """Cores of its machine for this process: its part of those that several may use."""
        mine = self.members[self.place.rank]
        users = Counter(core for one in self.members if one.host == mine.host for core in one.cores)
        # Rounded, as thirds don't add up.
        return max(1, int(sum(1 / users[core] for core in mine.cores) + 1e-6))

    def greatest(self, number: int) -> int:
        """The greatest of all processes' numbers, on all."""
        box = torch.tensor([number])
        dist.all_reduce(box, dist.ReduceOp.MAX, group=self._talk)
        return int(box)

    # ---- ending

    def leave(self) -> None:
        """End the job with all others."""
        self._over.set()
        self.wait()
        self._thread.join()
        dist.destroy_process_group()

    def fail(self, line: str, code: int, error: BaseException | None = None) -> Lost:
        """End the job for all, with the line of whoever is first to give one.

        Args:
            line: why.
            code: exit code.
            error: what it came from. Where another's end has torn the connection, the line is the
                other's.
        """
        if self.lost is None and error is not None and _is_torn(error):
            self._await_news()
        if self.lost is None and (gone := self._missing(Counter())) is not None:
            line, code = self._obituary(gone), 1
        self._over.set()
        verdict = self.lost or Lost(line, code)
        try:
            note = self._store.compare_set("failed", "", json.dumps([verdict.line, verdict.code]))
            verdict = Lost(*json.loads(note))
            self._store.set(f"told/{self.place.rank}", "")
            end = time.monotonic() + LEAVE_S / 2
            # Main may hold the notes, and torchrun ends the others as soon as one has ended.
            while time.monotonic() < end and not self._store.check(self._to_be_told()):
                time.sleep(0.05)
        except RuntimeError:  # the notes went with main
            pass
        timer = threading.Timer(LEAVE_S, _give_up, (verdict,))
        timer.daemon = True
        timer.start()
        self._talk = None  # the last word of the connections: closed, they tell those who wait
        if dist.is_initialized():
            dist.destroy_process_group()
        timer.cancel()
        return verdict

    def _to_be_told(self) -> list[str]:
        """Notes of all processes that live, as far as can be seen from here."""
        return [f"told/{n}" for n, one in enumerate(self.members) if not one.is_dead()]

    def _await_news(self) -> None:
        """Give the thread the time to learn of another's end."""
        near = all(one.is_near() for one in self.members)
        end = time.monotonic() + (5 if near else SILENT + 5) * LOOK_S
        with _deaf():
            while self.lost is None and time.monotonic() < end:
                time.sleep(0.05)

    def _watch(self) -> None:
        """Give signs of life, and look for those of the others, until the job is over."""
        silence: Counter[int] = Counter()
        beats: dict[int, bytes] = {}
        count = 0
        while not self._over.wait(LOOK_S):
            count += 1
            try:
                self._watched.set(f"beat/{self.place.rank}", str(count))
                if self._watched.check(["failed"]):
                    self._fall(Lost(*json.loads(self._watched.get("failed"))))
                    return
                # Main looks at all, the others at main.
                for one in range(self.place.world) if self.place.rank == 0 else [0]:
                    beat = self._watched.get(f"beat/{one}")
                    silence[one] = 0 if beats.get(one) != beat else silence[one] + 1
                    beats[one] = beat
            except RuntimeError:
                if not self._over.is_set():
                    self._fall(Lost(self._obituary(0), 1))
                return
            gone = self._missing(silence)
            if gone is not None:
                self._fall(Lost(self._obituary(gone), 1))
                return

    def _missing(self, silence: Counter[int]) -> int | None:
        """Rank of a process that is gone: dead on this machine, or silent for long on another."""
        for number, one in enumerate(self.members):
            if one.is_dead() or silence[number] >= SILENT:
                return number
        return None

    def _obituary(self, number: int) -> str:
        one = self.members[number]
        return (
            f"process {number} of {self.place.world} (process {one.pid} on {one.host}) was killed "
            "or can't be reached; the same command goes on where it was"
        )

    def _fall(self, lost: Lost) -> None:
        """Have the main thread end the job here, and see that it does."""
        self.lost = lost
        try:
            self._watched.compare_set("failed", "", json.dumps([lost.line, lost.code]))
            self._watched.set(f"told/{self.place.rank}", "")
        except RuntimeError:
            pass
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, WAKE)
        if not self._over.wait(LEAVE_S):  # it waits in a call that nothing interrupts
            _give_up(lost)

    def _wake(self, number: int, frame: object) -> None:
        if self.lost is not None and not self._over.is_set():
            raise self.lost


def _give_up(lost: Lost) -> None:
    """End this process whose main thread does not come back."""
    print(f"error: {lost.line}", file=sys.stderr, flush=True)
    os._exit(lost.code)


@dataclass(frozen=True)
class _Answer:
    """Ends the others' help."""

    content: Any


@contextmanager
def group_of(name: str, gpu: bool) -> Iterator[Group | None]:
    """The group of a job while it lasts; None where the command is a single process.

    Args:
        name: of the job, different from those before it in the same command.
        gpu: whether trainings are on GPUs.

    Raises:
        WsssError: not all processes have come.
        Lost: the job has ended elsewhere; raised wherever the main thread is.
    """
    global _group
    where = place()
    if where.world < 2:
        yield None
        return
    _group = Group(where, name, gpu)
    try:
        yield _group
        _group.leave()
    finally:
        _group = None


def lead(work: Callable[[], T]) -> T:
    """Have main do `work`, while the others help with what it shares out; its answer, on all.

    It begins when all have come, so that what each did before is done. Calls inside of one another
    are one. A single process just does it.
    """
    return work() if _group is None else _group.lead(work)


def led(function: Callable[..., T]) -> Callable[..., T]:
    """Decorates what main does alone, as `lead` does."""
    from functools import wraps

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> T:
        return lead(lambda: function(*args, **kwargs))

    return wrapped


def wait_for_all() -> None:
    """Let the processes of a job meet; nothing in a single one."""
    if _group is not None and not _group.leading:
        _group.wait()


def helpers() -> Group | None:
    """The group whose processes wait for something to do, on main; None elsewhere."""
    return _group if _group is not None and _group.leading else None


def current() -> Group | None:
    """The group of the job at work."""
    return _group


_connections: list[Any] = []


def _connect(where: Place, name: str) -> Any:
    """A connection to where the processes leave notes for one another, in the job's own part.

    torchrun's agent keeps the notes, or main does.

    Raises:
        WsssError: they can't be reached.
    """
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        os.environ |= _meeting_point()
    try:
        store, *_ = next(
            dist.rendezvous("env://", where.rank, where.world, timeout=timedelta(seconds=START_S))
        )
    except (RuntimeError, ValueError) as error:
        point = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        first = str(error).splitlines()[0][:150]
        raise WsssError(
            f"process {where.rank} of {where.world}: no connection to the main one at {point} "
            f"({first}); set MASTER_ADDR and MASTER_PORT to where it can be reached"
        ) from error
    _connections.append(store)  # main's ends with the program alone
    return dist.PrefixStore(name, store)


def _meeting_point(environment: dict[str, str] | None = None) -> dict[str, str]:
    """Address and port of main in a step of Slurm: its first node, a port by job and step."""
    from lightning_fabric.plugins.environments import SLURMEnvironment

    e = os.environ if environment is None else environment
    nodes = e.get("SLURM_STEP_NODELIST", "127.0.0.1")
    number = int(e.get("SLURM_JOB_ID", 0)) * 8 + int(e.get("SLURM_STEP_ID", 0))
    # Below the ports that a machine gives to connections that ask for none.
    port = 10_000 + number % 20_000
    return {
        "MASTER_ADDR": e.get("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes)),
        "MASTER_PORT": e.get("MASTER_PORT", str(port)),
    }


def _is_torn(error: BaseException) -> bool:
    """Whether an error may come from another process's end."""
    torn = re.compile("gloo|nccl|connection|peer|socket|broken pipe", re.IGNORECASE)
    return isinstance(error, RuntimeError) and torn.search(str(error)) is not None


@contextmanager
def _deaf() -> Iterator[None]:
    before = signal.signal(WAKE, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(WAKE, before)


def _host() -> str:
    return platform.node()


def _cores() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))
