"""The folders of stages: what was made, from what, and whether it is finished."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

from wsss.errors import WsssError
from wsss.files import digest, flatten, read_json, remove_parts, write_json
from wsss.version import __version__

MANIFEST = "manifest.json"
STARTED = "started.json"
FAILED = "failed.json"  # why a job failed, see `wsss.run.failures`
LOCK = ".lock"
NOTES = (STARTED, LOCK, FAILED, ".hydra")  # of a stage's beginning and its failure

_held: weakref.WeakSet[TextIO] = weakref.WeakSet()  # the locks of this process


def _let_go() -> None:
    """Let go of the folders in a forked worker, which may outlive its killed parent by seconds."""
    for file in list(_held):
        file.close()


os.register_at_fork(after_in_child=_let_go)


def _difference(old: Any, new: Any) -> str:
    a, b = flatten(old), flatten(new)
    keys = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]

    def told(key: str) -> str:
        what = key.removeprefix("inputs.")  # hashes tell a reader nothing
        return f"{key} was {a.get(key)}, now {b.get(key)}" if what == key else f"{what} changed"

    shown = ", ".join(told(key) for key in keys[:3])
    return shown + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


@dataclass
class StageFolder:
    """The folder of one stage of one run, with its manifest.

    A stage opens its folder with what determines its result, works, and closes it by writing
    `manifest.json` last. Opened again with the same settings it is finished; with others, or with
    files of no known origin in it, it is refused; with a start mark alone it goes on where it was.

    Attributes:
        path: the folder.
        stage: the stage's name.
        settings: everything that the result depends on, as plain content.
        inputs: hashes of what it reads, by name.
        finished: whether the same work is done already.
        resumed: whether work of the same settings was begun and not ended.
        taken: the folder whose finished results this one shows, where that was found just now.
    """

    path: Path
    stage: str
    settings: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    finished: bool = False
    resumed: bool = False
    taken: Path | None = None
    lock: TextIO | None = None

    @property
    def hash(self) -> str:
        """Hash of settings and inputs."""
        return digest({"settings": self.settings, "inputs": self.inputs})

    def open(
        self,
        overwrite: bool = False,
        lacking: Callable[[], Sequence[object]] = tuple,
        others: Sequence[Path] = (),
    ) -> StageFolder:
        """Look what is there and make the folder ready.

        Args:
            overwrite: throw away what is finished, or of other settings, and begin anew. What was
                begun with the same settings goes on all the same.
            lacking: says which files of a finished stage are not there; then it goes on.
            others: folders whose results are taken if they are what this one is to hold.

        Raises:
            WsssError: the folder holds something else and `overwrite` is false, or another process
                works in it.
        """
        self._take_lock()
        remove_parts(self.path)
        if not overwrite:
            self.take(others, lacking)
        note, there = self._state()
        same = there.get("hash") == self.hash
        if note == MANIFEST and same and not overwrite:
            absent = lacking()
            self.finished = not absent
            if absent:
                self._mark()
                (self.path / MANIFEST).unlink()
                self.resumed = True
            else:
                self._release()
            return self
        if note == STARTED and same and not there.get("clearing"):
            self.resumed = True
            return self
        foreign = self._foreign(note, there)
        if foreign and not overwrite:
            raise WsssError(f"{self.path}: {foreign}; give another run_name=, or overwrite=true")
        # From here on the folder says that what is in it is being thrown away: whoever finds it
        # after a kill goes on with that, and takes nothing of it for results.
        self._mark(clearing=True)
        for entry in sorted(self.path.iterdir(), key=lambda e: e.name != MANIFEST):
            if entry.name not in (STARTED, LOCK, ".hydra") and not _is_log(entry):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
        self._mark()
        return self

    def take(
        self, others: Sequence[Path], lacking: Callable[[], Sequence[object]] = tuple
    ) -> Path | None:
        """Show the results of another folder in this one, if nothing was begun here.

        They are links, so that whatever reads this folder finds them. Of links whose results have
        gone or are others nothing stays.

        Args:
            others: folders where the stage may have ended with the same settings and inputs.
            lacking: says which files of this folder are not there.

        Returns:
            The first of them that holds all, or None.
        """
        manifest = self.path / MANIFEST
        if manifest.is_symlink() and (ended_as(self.path) != self.hash or lacking()):
            _drop_links(self.path)
        if self._state()[0] or (self.path.is_dir() and self._results()):
            return None
        for other in others:
            if ended_as(other) == self.hash:
                _link(other, self.path)
                if not lacking():
                    self.taken = other
                    return other
                _drop_links(self.path)
        return None

    def _state(self) -> tuple[str | None, dict[str, Any]]:
        """Which note lies there, and what it says."""
        for name in (STARTED, MANIFEST):
            path = self.path / name
            if path.is_file():
                there = read_json(path)
                if name == MANIFEST or there.get("clearing") or not self._has(MANIFEST):
                    return name, there
        return None, {}

    def _has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def _foreign(self, note: str | None, there: dict[str, Any]) -> str | None:
        """What speaks against beginning in this folder."""
        results = self._results()
        if not results or there.get("clearing"):
            return None
        if note is None:
            return f"holds {results[0].name}, of which nothing says how it was made"
        old = {"settings": there.get("settings"), "inputs": there.get("inputs")}
        now = {"settings": self.settings, "inputs": self.inputs}
        return f"holds {self.stage} of other settings ({_difference(old, now)})"

    def _results(self) -> list[Path]:
        """What lies in the folder besides notes of its beginning and logs."""
        found = [p for p in self.path.iterdir() if p.name not in NOTES and not _is_log(p)]
        # Folders that another process of this run was quick to make are no results.
        return [p for p in found if p.is_symlink() or not p.is_dir() or any(p.iterdir())]

    def _mark(self, **more: Any) -> None:
        now = {"settings": self.settings, "inputs": self.inputs}
        write_json(self.path / STARTED, {"hash": self.hash, **now, **more})

    def _take_lock(self) -> None:
        """Hold the folder as long as this process lives.

        Raises:
            WsssError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise WsssError(
                f"{self.path}: {holder} works on this stage; wait for it, or end it"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        self.lock = file
        _held.add(file)

    def _release(self) -> None:
        if self.lock is not None:
            (self.path / LOCK).unlink(missing_ok=True)
            self.lock.close()
            self.lock = None

    def close(self, **facts: Any) -> None:
        """Write the manifest: settings, hash, inputs, versions, revision, and the given facts."""
        os.sync()  # a power cut after this moment finds whole files, not just their names
        write_json(
            self.path / MANIFEST,
            {
                "stage": self.stage,
                "hash": self.hash,
                "settings": self.settings,
                "inputs": self.inputs,
                "versions": versions(),
                "revision": revision(),
                **facts,
            },
        )
        (self.path / STARTED).unlink(missing_ok=True)
        self._release()

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest's content."""
        return read_json(self.path / MANIFEST)


def ended_as(folder: Path) -> str | None:
    """What the stage that ended in a folder is known by; None where none has."""
    path = folder / MANIFEST
    return read_json(path).get("hash") if path.is_file() else None


def _link(source: Path, folder: Path) -> None:
    """Show what a finished stage has made in another folder, the manifest last."""
    folder.mkdir(parents=True, exist_ok=True)
    here = folder.resolve()
    for entry in sorted(source.iterdir(), key=lambda entry: entry.name == MANIFEST):
        if entry.name not in NOTES and not _is_log(entry):
            (folder / entry.name).symlink_to(os.path.relpath(entry.resolve(), here))


def _drop_links(folder: Path) -> None:
    """Remove what `_link` has made, the manifest first."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name != MANIFEST):
        if entry.is_symlink():
            entry.unlink()


def reopen(folder: Path) -> None:
    """Have a finished stage go on where it was, since there is more to do."""
    if (folder / MANIFEST).is_file():
        made = read_json(folder / MANIFEST)
        write_json(folder / STARTED, {key: made[key] for key in ("hash", "settings", "inputs")})
        (folder / MANIFEST).unlink()


def _is_log(path: Path) -> bool:
    return path.suffix == ".log"


def require(
    folder: Path,
    stage: str,
    wanted_by: str,
    classes: Sequence[str] | None = None,
    instead: str = "",
) -> dict[str, Any]:
    """The manifest of a stage that another one reads.

    Args:
        folder: where it lies.
        stage: the stage.
        wanted_by: the stage that asks.
        classes: foreground class names in the order of their ids; the stage must have had these.
        instead: another way out than to run the stage, for the message.

    Raises:
        WsssError: the stage has not ended there, or knew other classes; the message says what to
            do.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise WsssError(
            f"stage={wanted_by} needs stage={stage}, which has not ended in {folder}; "
            f"run the same command with stage={stage} first{instead and ', or '}{instead}"
        )
    made = read_json(path)
    if classes is not None:
        check_classes(str(folder), made.get("class_names"), classes)
    return made


def check_classes(what: str, had: Sequence[str] | None, now: Sequence[str]) -> None:
    """Check that class ids mean the same where something was made and where it is used.

    Args:
        what: what was made, for the message.
        had: class names in the order of their ids; None: not recorded.
        now: those of the data set.

    Raises:
        WsssError: names or their order differ.
    """
    if had is None or list(had) == list(now):
        return
    pairs = [(a, b) for a, b in zip_longest(had, now, fillvalue="nothing") if a != b]
    order = "the classes in another order" if sorted(had) == sorted(now) else "other classes"
    raise WsssError(
        f"{what}: made for {order} than the data set has now ({len(had)} against {len(now)}; where "
        f"it had '{pairs[0][0]}' there is '{pairs[0][1]}'); put the class list back, or give "
        "another run_name="
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    import platform
    from importlib import metadata

    found = {"python": platform.python_version(), "wsss": __version__}
    for name in (
        "wsss",
        "torch",
        "torchvision",
        "pytorch-lightning",
        "timm",
        "numpy",
        "pydensecrf2",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str:
    """Git revision of the code, with `+` when files were changed; `unknown` outside a checkout."""
    import subprocess

    here = Path(__file__).resolve().parent
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return out.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
