"""The one way to draw a Matplotlib figure: without pyplot's state, any alphabet, whole files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wsss.files import atomic
from wsss.show.colors import HEAT
from wsss.show.fonts import faces

DPI = 100


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure that is written when the block ends without error.

    Text is taken as it is, `$` included; names come through `wsss.show.fonts.readable` or
    `class_names` before the block, where fonts are found for what DejaVu Sans lacks.

    Args:
        path: PNG to write.
        width: in inches of 100 pixels.
        height: likewise.
    """
    with matplotlib.rc_context({"font.family": faces().families, "text.parse_math": False}):
        made = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(made)
        yield made
        with atomic(path) as temporary:
            made.savefig(temporary, format="png")


def heat_over(
    axis: Axes, picture: np.ndarray, values: np.ndarray | None = None, smooth: bool = True
) -> None:
    """A photograph, under a map where there is one.

    Args:
        axis: loses its ticks.
        picture: (H, W, 3) uint8.
        values: (h, w) in [0, 1], on any grid over the whole picture.
        smooth: enlarge it bilinearly; else its cells are squares.
    """
    axis.imshow(picture)
    if values is not None:
        height, width = picture.shape[:2]
        axis.imshow(
            values,
            cmap=HEAT,
            vmin=0,
            vmax=1,
            alpha=0.55,
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation="bilinear" if smooth else "nearest",
        )
    axis.set(xticks=[], yticks=[])
