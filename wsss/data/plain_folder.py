"""A plain folder of photographs, or one of them, seen as a data set without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsss.data.base import ImageSet
from wsss.data.photographs import IMAGE_ENDINGS
from wsss.errors import WsssError


class Photographs(ImageSet):
    """The photographs of a plain folder, without labels or masks; subfolders are not looked into.

    The path of a single photograph stands for a folder with nothing else.

    Names are file names without suffix; where two files share one, both keep their suffix.

    Args:
        root: the folder, or a photograph.
        classes: names of the foreground classes.
        key: what the folder is called in messages.

    Attributes:
        passed_over: what is no picture by its suffix, or no regular file (a pipe).

    Raises:
        WsssError: if there is no such folder or file, or there are no photographs in it.
    """

    unlabeled_splits = ("all",)

    def __init__(self, root: str | Path, classes: Sequence[str], key: str = "input") -> None:
        self.root, self.classes = Path(root).expanduser(), tuple(classes)
        if self.root.is_dir():
            entries = sorted(p for p in self.root.iterdir() if not p.name.startswith("."))
        elif not self.root.is_file():
            raise WsssError(f"{key}={root}: no such folder or file; give photographs")
        elif self.root.suffix.lower() not in IMAGE_ENDINGS:
            raise WsssError(
                f"{key}={root}: no photograph by its ending ({' '.join(IMAGE_ENDINGS)})"
            )
        else:
            entries = [self.root]
        files = [p for p in entries if not p.is_dir()]
        pictures = [p for p in files if p.is_file() and p.suffix.lower() in IMAGE_ENDINGS]
        taken_in = set(pictures)
        self.passed_over = [p.name for p in files if p not in taken_in]
        if not pictures:
            inner = next((p for p in entries if p.is_dir()), None)
            hint = f" (subfolders such as {inner.name} are not looked into)" if inner else ""
            raise WsssError(f"{key}={root}: there are no photographs in this folder{hint}")
        taken = Counter(p.stem for p in pictures) + Counter(p.name for p in pictures)
        self.paths = {p.stem if taken[p.stem] == 1 else p.name: p for p in pictures}

    def names(self, split: str) -> list[str]:
        """Names of all photographs, whatever the split."""
        return list(self.paths)

    def image_path(self, name: str) -> Path:
        """File of a photograph."""
        return self.paths[name]

    def labels(self, names: Sequence[str]) -> np.ndarray:
        """There are none: zeros."""
        return np.zeros((len(names), self.num_classes), dtype=np.uint8)

    def mask(self, name: str) -> np.ndarray | None:
        """There are none."""
        return None

    def listing(self) -> dict[str, list[int]]:
        """Length and time of change of each file, to see later what has changed."""
        stats = {name: path.stat() for name, path in self.paths.items()}
        return {name: [s.st_size, s.st_mtime_ns] for name, s in stats.items()}
