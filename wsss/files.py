"""Files written whole or not at all, JSON, and short hashes of plain content."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wsss.errors import WsssError

PART = re.compile(r"\..+\.(?P<host>[^.]*)\.(?P<pid>\d+)\.part")  # temporary files of `atomic`


@contextmanager
def atomic(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` that is renamed to it when the block ends without error.

    Args:
        path: the file that appears whole or not at all; its folder is made.
        durable: have the disk hold it before it has its name, so that a power cut leaves no empty
            file. That costs milliseconds; what is made by thousands waits for `os.sync` instead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{part_ending()}")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def part_ending() -> str:
    """How hidden temporary files and folders of this process end, by which `remove_parts` knows."""
    return f".{_host()}.{os.getpid()}.part"


def _host() -> str:
    """Name of this machine, without dots."""
    return platform.node().partition(".")[0]


def remove_parts(folder: Path) -> None:
    """Remove what killed processes of this machine have left half written below a folder."""
    for path in list(folder.rglob(".*.part")):
        found = PART.fullmatch(path.name)
        if found and found["host"] == _host() and not alive(int(found["pid"])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether a process of that number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all. Keys keep their order: that of classes is their ids'.

    What is no number (NaN, infinity), for which JSON has no word, becomes null.
    """
    with atomic(path, durable=True) as temporary:
        text = json.dumps(_finite(content), indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


def read_json(path: Path) -> Any:
    """Read JSON; a file that is not JSON is a `WsssError`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WsssError(
            f"{path}: can't be read as JSON ({error}); delete it, and the command that made it "
            "makes it again"
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


def missing_files_of(folder: Path, names: Sequence[str], suffix: str) -> list[str]:
    """Names whose file is not in the folder yet; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in folder.glob(f"*{suffix}")}
    return [name for name in names if name + suffix not in there]
