"""Files written whole or not at all, JSON, and short hashes of plain content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wsss.errors import WsssError


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
