"""Pictures of what SIPE does to an image, as the paper's Fig. 3 and 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from wsss.maps.functional import normalize_cam
from wsss.maps.structure import structure_map

if TYPE_CHECKING:
    SIPE = Any

COLUMNS = ("image and pixel", "CAM", "seeds", "IS-CAM", "structure of the pixel")


def draw(
    method: SIPE,
    samples: Sequence[Mapping[str, Any]],
    folder: Path,
    class_names: Sequence[str] = (),
    pixel: tuple[int, int] | None = None,
) -> list[Path]:
    """CAM, seeds, IS-CAM and the structure map of a chosen pixel, one PNG per image.

    Each present class and the background has a row. The star marks the pixel whose structure map
    (eq. 3) the last column shows.

    Args:
        method: The trained method; used in its current mode and on its device.
        samples: Prediction samples: `images` (scale 1.0 first, (3, h, w) each), `label` (N,),
            `name`, and `picture`, uint8 (H, W, 3).
        folder: Where `<name>.png` goes; made when absent.
        class_names: Names of the foreground classes; without them rows have class ids.
        pixel: (row, column) of `picture` whose structure every row shows; by default each row
            takes the maximum of its own class map.

    Returns:
        The files, in the order of the samples.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for sample in samples:
        path = folder / f"{sample['name']}.png"
        _draw_one(method, sample, class_names, pixel).savefig(path, dpi=100)
        written.append(path)
    return written


def _draw_one(
    method: SIPE,
    sample: Mapping[str, Any],
    class_names: Sequence[str],
    pixel: tuple[int, int] | None,
) -> Figure:
    image = sample["images"][0].to(method.device)
    label = torch.as_tensor(sample["label"], device=method.device)
    picture = np.asarray(sample["picture"])
    explored = method.explore_image(image, label)
    is_cam = normalize_cam(explored.found.is_cam)[0]
    maps, seeds = explored.maps[0], explored.found.seeds[0]
    structure = structure_map(explored.structure)[0]
    height, width = maps.shape[-2:]

    rows = [*(int(n) + 1 for n in label.nonzero().flatten()), 0]
    row_height = 2.4 * picture.shape[0] / picture.shape[1]
    size = (2.4 * len(COLUMNS) + 0.3, (row_height + 0.1) * len(rows) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(COLUMNS), squeeze=False)
    for title, axis in zip(COLUMNS, axes[0], strict=True):
        axis.set_title(title, fontsize=9)
    for n, line in zip(rows, axes, strict=True):
        if pixel is None:
            y, x = divmod(int(maps[n].argmax()), width)
        else:
            y = min(pixel[0] * height // picture.shape[0], height - 1)
            x = min(pixel[1] * width // picture.shape[1], width - 1)
        line[0].set_ylabel(_row_name(n, class_names), fontsize=9)
        _show(line[0], picture)
        _star(line[0], y, x, picture.shape, (height, width))
        _show(line[1], picture, maps[n])
        _show(line[2], picture, seeds[n], smooth=False)
        _show(line[3], picture, is_cam[n])
        _show(line[4], picture, structure[y * width + x].view(height, width))
        _star(line[4], y, x, picture.shape, (height, width))
    return figure


def _row_name(class_id: int, class_names: Sequence[str]) -> str:
    if class_id == 0:
        return "background"
    return class_names[class_id - 1] if class_names else f"class {class_id}"


def _show(axis: Axes, picture: np.ndarray, heat: Tensor | None = None, smooth: bool = True) -> None:
    """The picture, under a heat map in [0, 1] where one is given."""
    axis.imshow(picture)
    axis.set_xticks([])
    axis.set_yticks([])
    if heat is not None:
        enlarged = F.interpolate(
            heat[None, None].float().cpu(),
            size=picture.shape[:2],
            mode="bilinear" if smooth else "nearest",
        )
        axis.imshow(enlarged[0, 0].numpy(), cmap="jet", vmin=0, vmax=1, alpha=0.55)


def _star(axis: Axes, y: int, x: int, shape: Sequence[int], grid: tuple[int, int]) -> None:
    """Mark the middle of grid cell (y, x) on the picture."""
    row = (y + 0.5) * shape[0] / grid[0] - 0.5
    column = (x + 0.5) * shape[1] / grid[1] - 0.5
    axis.plot(column, row, marker="*", markersize=11, color="lime", markeredgecolor="black")
