"""Jobs that failed: noted in their own folder, and gathered at the end of a sweep."""

from __future__ import annotations

import os
import secrets
import shutil
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from wsss.files import read_json, write_json
from wsss.run.folder import FAILED

# The sweep's folder of notices. The environment reaches jobs in other processes; what they return
# is for the sweeper alone.
NOTICES = "WSSS_FAILED_JOBS"


@dataclass(frozen=True)
class Failure:
    """Why a job failed.

    Attributes:
        number: of the job in its sweep; 0 for a single one.
        stage: the stage that failed.
        overrides: what the job was given on the command line or by the sweeper.
        reason: the error as one line.
        log: file that ends with the traceback.
    """

    number: int
    stage: str
    overrides: tuple[str, ...]
    reason: str
    log: str

    def lines(self) -> list[str]:
        """The failure as a person reads it at the end of a sweep."""
        stage = () if f"stage={self.stage}" in self.overrides else (f"({self.stage})",)
        called = " ".join((*self.overrides, *stage))
        log = Path(self.log)
        if log.is_relative_to(Path.cwd()):
            log = log.relative_to(Path.cwd())
        return [f"#{self.number} {called}", f"  {self.reason}", f"  log: {log}"]


def note(folder: Path, failure: Failure, main: bool = True) -> None:
    """Tell the sweep of a failure, leave `failed.json` in the stage's folder, log the traceback.

    To be called while the exception is handled.

    Args:
        folder: the stage's folder.
        failure: what to note.
        main: whether this process is the one of several that writes; the others tell their own
            sweep, which is the same one.

    Raises:
        OSError: the sweep can't be told; to go on would end it as if nothing had happened.
    """
    notices = os.environ.get(NOTICES)
    if notices:
        write_json(Path(notices) / f"{failure.number}.json", asdict(failure))
    if not main:
        return
    try:
        write_json(folder / FAILED, asdict(failure))
        with open(failure.log, "a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
    except OSError:  # a full or read-only disk, which may be why the job failed
        traceback.print_exc()


def forget(folder: Path) -> None:
    """Remove the note of an earlier attempt: the stage begins."""
    (folder / FAILED).unlink(missing_ok=True)


def read(folder: Path) -> list[Failure]:
    """Failures of a folder of notices, in the order of the jobs."""
    found = []
    for path in folder.glob("*.json"):
        content: dict[str, Any] = read_json(path)
        found.append(Failure(**{**content, "overrides": tuple(content["overrides"])}))
    return sorted(found, key=lambda failure: failure.number)


def summary(failures: Sequence[Failure]) -> list[str]:
    """What is said at the end of a sweep in which jobs failed."""
    jobs = "1 job" if len(failures) == 1 else f"{len(failures)} jobs"
    head = f"{jobs} failed; the others stand, and the same command does these again:"
    return [head, *(f"  {line}" for failure in failures for line in failure.lines())]


class SweepFailures(Callback):
    """Hydra's callback that gives a sweep its folder of notices."""

    folder: Path | None = None  # of the sweep of this process

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Name the folder before there is a job; the first failure makes it."""
        folder = Path(config.hydra.sweep.dir).absolute()
        SweepFailures.folder = folder / f".failed-{secrets.token_hex(4)}"
        os.environ[NOTICES] = str(SweepFailures.folder)


def collect() -> list[Failure]:
    """Failures of the sweep that has just ended in this process; its folder of notices goes."""
    folder, SweepFailures.folder = SweepFailures.folder, None
    if folder is None:
        return []
    os.environ.pop(NOTICES, None)
    failures = read(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return failures
