"""Signals that end the program: Ctrl-C, SIGTERM, and SIGUSR1, which Slurm sends before time is up.

A training that is asked to end saves where it is, first; every other work ends at once, since what
it has made so far is kept anyway.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Signalled(SystemExit):
    """A signal has come; `code` is 128 + its number.

    (A KeyboardInterrupt Lightning ends with code 1, mute.)
    """

    @property
    def line(self) -> str:
        """What is said of it."""
        word = {130: "stopped", 143: "terminated"}.get(int(str(self.code)), "out of time")
        return f"{word}; the same command goes on where it was"


class _State:
    listening = False
    saving = False  # whether a training saves before it ends
    asked = 0  # the signal that it was asked with


def listen() -> None:
    """Have signals end the program with a line and 128 + their number."""
    _State.listening, _State.saving, _State.asked = True, False, 0
    for one in ENDING:
        signal.signal(one, _on_signal)


def listen_again() -> None:
    """Do as `listen`, where the program did before a library took the signals over."""
    if _State.listening:
        listen()


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _State.saving and number != signal.SIGINT:
        _State.asked = _State.asked or number
        return
    for one in ENDING:
        signal.signal(one, signal.SIG_IGN)  # once is enough; what is open is being closed
    raise Signalled(128 + number)


def asked() -> int:
    """The signal that a training was asked to end with; 0: none."""
    return _State.asked


def save_first(saves: bool) -> None:
    """Whether from now on the work asks for signals (`asked`) and ends by itself."""
    _State.saving = saves


def outlive(worker: int) -> None:
    """Have a loader's process go on at the first SIGTERM, which a whole job gets at once.

    It is still needed for the step after which the training saves. A `worker_init_fn`.
    """

    def once(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, once)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def behind(error: BaseException | None) -> Signalled | None:
    """The signal that an error came after: the loader's processes had it too and are gone first."""
    while error is not None and not isinstance(error, Signalled):
        error = error.__cause__ or error.__context__
    return error


def requeue() -> None:
    """Have Slurm start this job again; nothing outside of one."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    number = (
        f"{job}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if job else os.environ.get("SLURM_JOB_ID")
    )
    if number and re.fullmatch(r"[0-9_]+", number):
        subprocess.run(["scontrol", "requeue", number], check=False)
