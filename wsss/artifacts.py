"""What stages hand to one another: class-map files, masks, manifests. All writes are atomic."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsss import __version__
from wsss.errors import WsssError

MANIFEST = "manifest.json"
STARTED = "started.json"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that is renamed to it when the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all. Keys keep their order: that of classes is their ids'."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a file that is not JSON is a `WsssError`."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WsssError(f"{path}: can't be read as JSON ({error})") from error


@dataclass(frozen=True)
class ClassMaps:
    """The class maps of one image.

    Attributes:
        classes: ids of the image's foreground classes, ascending, 1-based, (K,).
        size: height and width of the photograph.
        maps: by kind (`cam`, `is_cam`, `pacam`, ...), float32 in [0, 1], (K, h, w); a kind with a
            background map of its own has it first, (K+1, h, w).
    """

    classes: np.ndarray
    size: tuple[int, int]
    maps: dict[str, np.ndarray]

    def has_background(self, kind: str) -> bool:
        """Whether maps of this kind carry their own background channel."""
        return len(self.maps[kind]) == len(self.classes) + 1


def write_class_maps(path: Path, maps: ClassMaps, dtype: str = "uint8") -> None:
    """Write class maps as a compressed `.npz` that is read without pickle.

    Args:
        path: file to write.
        maps: values in [0, 1].
        dtype: `uint8` (steps of 1/255) or `float16`.

    Raises:
        WsssError: another dtype.
        ValueError: a map has neither K nor K+1 channels.
    """
    if dtype not in ("uint8", "float16"):
        raise WsssError(f"make_cam.dtype={dtype}: choose uint8 or float16")
    arrays: dict[str, np.ndarray] = {
        "classes": np.asarray(maps.classes, dtype=np.int16),
        "size": np.asarray(maps.size, dtype=np.int32),
    }
    for kind, values in maps.maps.items():
        if len(values) - len(maps.classes) not in (0, 1):
            raise ValueError(f"{kind}: {len(values)} channels for {len(maps.classes)} classes")
        if dtype == "uint8":
            arrays[f"map_{kind}"] = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
        else:
            arrays[f"map_{kind}"] = values.astype(np.float16)
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_class_maps(path: Path, kind: str | None = None) -> ClassMaps:
    """Read a class-map file, all kinds or one of them.

    Raises:
        WsssError: the file is missing or broken, or does not hold `kind`.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = [name for name in stored.files if name.startswith("map_")]
            if kind is not None:
                if f"map_{kind}" not in names:
                    there = ", ".join(name[4:] for name in names)
                    raise WsssError(f"{path}: holds no map of kind {kind} (it has {there})")
                names = [f"map_{kind}"]
            maps = {}
            for name in names:
                values = stored[name]
                scale = 255 if values.dtype == np.uint8 else 1
                maps[name[4:]] = values.astype(np.float32) / scale
            height, width = stored["size"].tolist()
            return ClassMaps(stored["classes"].astype(np.int64), (height, width), maps)
    except FileNotFoundError as error:
        raise WsssError(f"{path}: no class maps; run stage=make_cam first") from error
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise WsssError(
            f"{path}: broken class-map file ({error}); delete it and run stage=make_cam again"
        ) from error


def digest(content: Any) -> str:
    """Short hash of plain content, the same for equal content in any order of keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, its keys joined by dots; `prefix` goes before them."""
    if not isinstance(content, Mapping):
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


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
