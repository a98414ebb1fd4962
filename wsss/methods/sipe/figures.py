"""Pictures of what SIPE does to an image, as the paper's Fig. 3 and 7."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from wsss.maps.functional import normalize_cam
from wsss.maps.structure import structure_map
from wsss.show.figure import figure, heat_over
from wsss.show.fonts import class_names

COLUMNS = ("image and pixel", "CAM", "seeds", "IS-CAM", "structure of the pixel")


class ExploredPicture(NamedTuple):
    """One image at scale 1 and what SIPE finds in it; N classes on a grid of h x w."""

    name: str
    """Name of the image."""
    picture: np.ndarray
    """(H, W, 3) uint8."""
    label: Tensor
    """Image label (N,), 1 for present classes."""
    maps: Tensor
    """M (N+1, h, w) in [0, 1], background first."""
    seeds: Tensor
    """(N+1, h, w), one-hot or zero."""
    is_cam: Tensor
    """(N+1, h, w), not normalized."""
    structure: Tensor
    """u (C, h, w), the feature whose correlations are the structure."""


def draw(
    images: Iterable[ExploredPicture],
    folder: Path,
    classes: Sequence[str],
    pixel: tuple[int, int] | None = None,
) -> list[Path]:
    """CAM, seeds, IS-CAM and the structure map of a chosen pixel, one PNG per image.

    Each present class and the background has a row. The star marks the pixel whose structure map
    (eq. 3) the last column shows.

    Args:
        images: what was found; drawn one after the other.
        folder: where `<name>.png` goes; made when absent.
        classes: foreground class names.
        pixel: (row, column) of `picture` whose structure every row shows; by default each row
            takes the maximum of its own class map.

    Returns:
        The files, in the order of the images.
    """
    return [_draw_one(one, folder / f"{one.name}.png", classes, pixel) for one in images]


def _draw_one(
    one: ExploredPicture, path: Path, classes: Sequence[str], pixel: tuple[int, int] | None
) -> Path:
    maps, seeds = (values.detach().float().cpu().numpy() for values in (one.maps, one.seeds))
    is_cam = normalize_cam(one.is_cam[None].detach().float())[0].cpu().numpy()
    height, width = maps.shape[-2:]
    structure = structure_map(one.structure[None])[0].cpu().numpy().reshape(-1, height, width)
    picture, names = np.asarray(one.picture), ["background", *class_names(classes)]
    rows = [*(int(n) + 1 for n in one.label.nonzero().flatten()), 0]
    row_height = 2.4 * picture.shape[0] / picture.shape[1]
    size = 2.4 * len(COLUMNS) + 0.3, (row_height + 0.1) * len(rows) + 0.3
    with figure(path, *size) as made:
        axes = made.subplots(len(rows), len(COLUMNS), squeeze=False)
        for title, axis in zip(COLUMNS, axes[0], strict=True):
            axis.set_title(title, fontsize=9)
        for n, line in zip(rows, axes, strict=True):
            if pixel is None:
                y, x = divmod(int(maps[n].argmax()), width)
            else:
                y = min(pixel[0] * height // picture.shape[0], height - 1)
                x = min(pixel[1] * width // picture.shape[1], width - 1)
            line[0].set_ylabel(names[n], fontsize=9)
            heat_over(line[0], picture)
            heat_over(line[1], picture, maps[n])
            heat_over(line[2], picture, seeds[n], smooth=False)
            heat_over(line[3], picture, is_cam[n])
            heat_over(line[4], picture, structure[y * width + x])
            for axis in (line[0], line[4]):
                _star(axis, y, x, picture.shape, (height, width))
    return path


def _star(axis: Axes, y: int, x: int, shape: Sequence[int], grid: tuple[int, int]) -> None:
    """Mark the middle of grid cell (y, x) on the picture."""
    row = (y + 0.5) * shape[0] / grid[0] - 0.5
    column = (x + 0.5) * shape[1] / grid[1] - 0.5
    axis.plot(column, row, marker="*", markersize=11, color="lime", markeredgecolor="black")
