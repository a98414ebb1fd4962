"""Pseudo masks looked at before anything is trained on them: faults, and what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsss.data.base import ImageSet
from wsss.data.masks import VOID, read_mask
from wsss.data.photographs import photograph_size
from wsss.errors import WsssError
from wsss.run.pool import parallel

NAMED = 3  # faulty files that a message names; the others are counted


@dataclass(frozen=True)
class _Check:
    """Reads one pseudo mask; runs in a worker process."""

    image_set: ImageSet
    masks: Path

    def __call__(self, name: str) -> tuple[str | None, np.ndarray]:
        """What is wrong with it, and its pixels by label, (256,) int64."""
        path, none = self.masks / f"{name}.png", np.zeros(256, dtype=np.int64)
        if not path.is_file():
            return f"{path.name} is missing", none
        try:
            mask = read_mask(path, self.image_set.num_classes)
            size = photograph_size(self.image_set.image_path(name))
        except WsssError as error:
            return str(error), none
        if mask.shape != size:
            return (
                f"{path.name} is {mask.shape[0]} x {mask.shape[1]}, its photograph "
                f"{size[0]} x {size[1]}",
                none,
            )
        return None, np.bincount(mask.ravel(), minlength=256)


@dataclass(frozen=True)
class MaskCounts:
    """What the pseudo masks of a training hold.

    Attributes:
        pixels: pixels by label, (256,) int64; 255 ignored.
        images: images in which the label occurs, (256,) int64.
        bare: images that are ignored as a whole.
        total: number of images.
    """

    pixels: np.ndarray
    images: np.ndarray
    bare: int
    total: int

    @property
    def ignored(self) -> float:
        """Share of pixels that are ignored."""
        return float(self.pixels[VOID] / max(self.pixels.sum(), 1))

    @property
    def background(self) -> float:
        """Share of background among the pixels that count."""
        return float(self.pixels[0] / max(self.pixels[:VOID].sum(), 1))

    def warnings(self, classes: Sequence[str], limit: float = 0.98) -> list[str]:
        """What is odd, a line each: nearly all background or ignored, classes that never occur."""
        lines = []
        if self.background > limit:
            lines.append(
                f"{100 * self.background:.1f} % of the pseudo masks' labeled pixels are "
                f"background: the network may learn nothing else; look at the masks"
            )
        if self.ignored > limit:
            lines.append(
                f"{100 * self.ignored:.1f} % of the pseudo masks' pixels are 255 (ignored): there "
                f"is next to nothing to learn from"
            )
        if self.bare:
            lines.append(f"{self.bare} of {self.total} pseudo masks are 255 (ignored) everywhere")
        absent = [name for n, name in enumerate(classes, 1) if not self.images[n]]
        if absent:
            shown = ", ".join(absent[:NAMED]) + (", ..." if len(absent) > NAMED else "")
            lines.append(f"{len(absent)} of {len(classes)} classes are in no pseudo mask: {shown}")
        return lines

    def as_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """Plain numbers for a manifest."""
        names = ("background", *classes)
        return {
            "images": self.total,
            "ignored": self.ignored,
            "background": self.background,
            "images_with": {name: int(self.images[n]) for n, name in enumerate(names)},
        }


def check_masks(
    image_set: ImageSet, names: Sequence[str], masks: Path, way_out: str, workers: int = 0
) -> MaskCounts:
    """Read every pseudo mask once, before anything is trained on them.

    Args:
        image_set: gives photographs and the number of classes.
        names: the images.
        masks: folder with NAME.png.
        way_out: what to do about faulty masks, for the message.
        workers: number of processes; -1: one per core.

    Raises:
        WsssError: if masks are missing, broken, of another size than their photograph or hold
            labels that are no class, or all are ignored everywhere; all are counted, the first
            named.
    """
    results = parallel(_Check(image_set, masks), names, "seg_train: check masks", workers)
    problems = [problem for problem, _ in results if problem]
    if problems:
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise WsssError(
            f"{len(problems)} of {len(names)} pseudo masks in {masks} can't be used: "
            f"{'; '.join(problems[:NAMED])}{more}; {way_out}"
        )
    counts = np.array([found for _, found in results], dtype=np.int64).reshape(-1, 256)
    bare = int((counts[:, :VOID].sum(1) == 0).sum())
    if bare == len(names):
        raise WsssError(
            f"all {len(names)} pseudo masks in {masks} are 255 (ignored) everywhere: there is "
            f"nothing to learn from; {way_out}"
        )
    return MaskCounts(counts.sum(0), (counts > 0).sum(0), bare, len(names))
