"""What stages hand to one another: class-map files, masks, manifests. All writes are atomic."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsss import __version__
from wsss.errors import WsssError
from wsss.files import digest, flatten, read_json, write_json

MANIFEST = "manifest.json"
STARTED = "started.json"


def _difference(old: Any, new: Any) -> str:
    a, b = flatten(old), flatten(new)
    keys = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]
    shown = ", ".join(f"{k} was {a.get(k)}, now {b.get(k)}" for k in keys[:3])
    return shown + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


@dataclass
class StageFolder:
    """The folder of one stage of one run, with its manifest.

    A stage opens its folder with what determines its result, works, and closes it by writing
    `manifest.json` last. Opened again with the same settings it is finished; with others it is
    refused; without a manifest it goes on where it was.

    Attributes:
        path: the folder.
        stage: the stage's name.
        settings: everything that the result depends on, as plain content.
        inputs: hashes of the stages that this one reads, by name.
        finished: whether the same work is already done.
        resumed: whether work of the same settings was begun and not ended.
    """

    path: Path
    stage: str
    settings: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    finished: bool = False
    resumed: bool = False

    @property
    def hash(self) -> str:
        """Hash of settings and inputs."""
        return digest({"settings": self.settings, "inputs": self.inputs})

    def open(self, overwrite: bool = False, main: bool = True) -> StageFolder:
        """Look what is there and make the folder ready.

        Args:
            overwrite: throw away what is there and begin anew.
            main: whether this process may change the folder; of several only one may, the others
                just look whether the work is done.

        Raises:
            WsssError: the folder holds results of other settings and `overwrite` is false.
        """
        if not main:
            path = self.path / MANIFEST
            done = path.is_file() and read_json(path).get("hash") == self.hash
            self.finished = done and not overwrite
            return self
        now = {"settings": self.settings, "inputs": self.inputs}
        for name in (MANIFEST, STARTED):
            path = self.path / name
            if not path.is_file():
                continue
            there = read_json(path)
            if there.get("hash") == self.hash:
                self.finished = name == MANIFEST and not overwrite
                self.resumed = name == STARTED
                if self.finished or not overwrite:
                    return self
                break
            if name == STARTED and not self._results():
                break  # it failed before anything was made
            if not overwrite:
                old = {"settings": there.get("settings"), "inputs": there.get("inputs")}
                raise WsssError(
                    f"{self.path}: holds {self.stage} of other settings "
                    f"({_difference(old, now)}); give another run_name=, or overwrite=true"
                )
            break
        if overwrite and self.path.is_dir():
            for entry in self.path.iterdir():
                if entry.name != ".hydra":
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.finished = self.resumed = False
        write_json(self.path / STARTED, {"hash": self.hash, **now})
        return self

    def _results(self) -> list[Path]:
        """What lies in the folder besides notes of its beginning and logs."""
        return [
            path
            for path in self.path.iterdir()
            if path.name not in (STARTED, ".hydra") and path.suffix != ".log"
        ]

    def close(self, **facts: Any) -> None:
        """Write the manifest: settings, hash, inputs, versions, revision, and the given facts."""
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

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest's content."""
        return read_json(self.path / MANIFEST)


def require(folder: Path, stage: str, wanted_by: str) -> dict[str, Any]:
    """The manifest of a stage that another one reads.

    Raises:
        WsssError: the stage has not ended there; the message says what to run.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise WsssError(
            f"stage={wanted_by} needs stage={stage}, which has not ended in {folder}; "
            f"run the same command with stage={stage} first"
        )
    return read_json(path)


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
