"""Paths between near pixels of the stride-4 grid, along which IRN looks for a class boundary."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from wsss.errors import WsssError

Offset = tuple[int, int]


@dataclass(frozen=True)
class PathIndex:
    """All directions within a radius and, for each, the cells between its two ends.

    A pair of pixels is (source, source + direction). Every pair closer than the radius occurs once,
    because only one of each two opposite directions is listed.

    Attributes:
        radius: pairs are at a distance of less than this many cells.
        directions: (dy, dx) with dy >= 0, ordered by the length of their paths; this is the
            order of the channel "direction" everywhere.
        paths: for each direction the offsets (y, x) of its path's cells from the source, both
            ends included, the destination first.
    """

    radius: int
    directions: tuple[Offset, ...]
    paths: tuple[tuple[Offset, ...], ...]

    @property
    def margin(self) -> int:
        """Largest component of a direction: cells lost at the left, right and bottom side."""
        return self.radius - 1

    def sources(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the sources that have all their destinations inside a grid.

        Raises:
            WsssError: if the grid is too small for the radius.
        """
        rows, columns = height - self.margin, width - 2 * self.margin
        if rows < 1 or columns < 1:
            raise WsssError(
                f"a grid of {height} x {width} cells is too small for path radius "
                f"{self.radius}; use a larger crop or a smaller radius"
            )
        return rows, columns

    def window(self, grid: Tensor, offset: Offset) -> Tensor:
        """The grid as seen from each source at an offset.

        Args:
            grid: (..., H, W).
            offset: (y, x) with 0 <= y <= margin and |x| <= margin.

        Returns:
            (..., rows, columns) view: `grid[..., i + y, margin + j + x]` at source (i, j).
        """
        rows, columns = self.sources(grid.shape[-2], grid.shape[-1])
        top, left = offset[0], self.margin + offset[1]
        return grid[..., top : top + rows, left : left + columns]


@lru_cache(maxsize=8)
def path_index(radius: int) -> PathIndex:
    """The directions and paths of a radius (all pairs of pixels closer than it).

    A path is made of the cells of the rectangle spanned by its ends whose distance from the
    straight line between the ends is below 1.

    Args:
        radius: in cells of the grid; 10 in training and 5 in the random walk as published.

    Raises:
        WsssError: if the radius is below 2, which leaves no pair.
    """
    if radius < 2:
        raise WsssError(f"path radius {radius} leaves no pair of pixels; it must be 2 or more")
    reach = range(1 - radius, radius)
    directions = [(0, x) for x in range(1, radius)]
    directions += [(y, x) for y in range(1, radius) for x in reach if y * y + x * x < radius**2]
    pairs = [(direction, _path(*direction)) for direction in directions]
    pairs.sort(key=lambda pair: len(pair[1]))  # stable: the order inside a length stays
    return PathIndex(radius, tuple(d for d, _ in pairs), tuple(p for _, p in pairs))


def _path(dy: int, dx: int) -> tuple[Offset, ...]:
    """Cells of the path from (0, 0) to (dy, dx), the farthest (in steps) first."""
    rows, columns = range(dy + 1), range(min(dx, 0), max(dx, 0) + 1)
    squared_length = dy * dy + dx * dx
    cells = [(y, x) for y in rows for x in columns if (dy * x - dx * y) ** 2 < squared_length]
    return tuple(sorted(cells, key=lambda cell: -(abs(cell[0]) + abs(cell[1]))))
