"""Files known by their content: hashes, kept in an index while size and times stay the same."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from wsss.errors import WsssError
from wsss.files import write_json
from wsss.run.progress import track

FEW = 500  # files that are hashed without a word


class Fingerprints:
    """Hashes of files' contents.

    A file is read again only if its size, its time of change or that of its entry is another than
    in the index; the last one also tells a file that was replaced by one of the same time.

    Args:
        index: JSON file that keeps what is known; one that is damaged is made anew.
    """

    def __init__(self, index: Path) -> None:
        self.index = index
        self.known: dict[str, list[int | str]] = {}
        with suppress(OSError, ValueError):
            content = json.loads(index.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                self.known = content

    def of(self, paths: Sequence[Path], description: str = "files") -> list[str]:
        """The hash of each file, in their order; a file that is not there has the hash `-`.

        Raises:
            WsssError: a file can't be read.
        """
        stamps = [_stamp(path) for path in paths]
        fresh = [
            (path, stamp)
            for path, stamp in zip(paths, stamps, strict=True)
            if stamp is not None and self._known(path, stamp) is None
        ]
        if fresh:
            with ThreadPoolExecutor(4) as pool:  # hashing gives up the interpreter's lock
                hashes: Iterable[str] = pool.map(content_hash, [path for path, _ in fresh])
                if len(fresh) > FEW:
                    hashes = track(hashes, f"looking through {description}", len(fresh))
                for (path, stamp), one in zip(fresh, hashes, strict=True):
                    self.known[str(path)] = [*stamp, one]
            with suppress(OSError):  # without an index it is only slower
                write_json(self.index, self.known)
        return [
            "-" if stamp is None else self._known(path, stamp) or "-"
            for path, stamp in zip(paths, stamps, strict=True)
        ]

    def _known(self, path: Path, stamp: list[int]) -> str | None:
        entry = self.known.get(str(path))
        if isinstance(entry, list) and len(entry) == 4 and entry[:3] == stamp:
            return str(entry[3])
        return None


def _stamp(path: Path) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def content_hash(path: Path) -> str:
    """Short hash of what is in a file.

    Raises:
        WsssError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError as error:
        raise WsssError(f"{path}: can't be read ({error.strerror})") from error


def joint(parts: Iterable[str]) -> str:
    """One short hash of many texts in their order."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        total.update(f"{len(part)}:{part}".encode())
    return total.hexdigest()
