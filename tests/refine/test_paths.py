"""The path index: published counts, geometry against a slow version."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from wsss.errors import WsssError
from wsss.refine.paths import path_index


def test_counts_of_the_two_published_radii() -> None:
    small, large = path_index(5), path_index(10)
    assert len(small.directions) == 34
    assert len(large.directions) == 152
    lengths = Counter(len(path) for path in small.paths)
    assert lengths == {2: 2, 3: 2, 4: 4, 5: 2, 6: 4, 7: 2, 8: 8, 10: 6, 11: 4}
    counts = [2, 2, 4, 2, 6, 4, 10, 2, 12, 4, 12, 2, 8, 8, 22, 16, 6, 20, 4, 6]
    expected = dict(zip([*range(2, 17), *range(18, 23)], counts, strict=True))
    assert Counter(len(path) for path in large.paths) == expected


def test_source_grid_of_the_training_crop() -> None:
    assert path_index(5).sources(128, 128) == (124, 120)
    assert path_index(10).sources(128, 128) == (119, 110)


@pytest.mark.parametrize("radius", [2, 3, 5, 7, 10])
def test_every_near_pair_occurs_once(radius: int) -> None:
    directions = path_index(radius).directions
    both = [*directions, *((-y, -x) for y, x in directions)]
    near = {
        (y, x)
        for y in range(-radius, radius + 1)
        for x in range(-radius, radius + 1)
        if 0 < math.hypot(y, x) < radius
    }
    assert len(both) == len(set(both))
    assert set(both) == near


@pytest.mark.parametrize("radius", [2, 3, 5, 7, 10])
def test_directions_are_ordered_by_path_length_and_keep_their_order_inside_one(radius: int) -> None:
    index = path_index(radius)
    lengths = [len(path) for path in index.paths]
    assert lengths == sorted(lengths)
    raster = [(0, x) for x in range(1, radius)]
    raster += [(y, x) for y in range(1, radius) for x in range(-radius, radius + 1)]
    for length in set(lengths):
        group = [
            d for d, path in zip(index.directions, index.paths, strict=True) if len(path) == length
        ]
        assert group == [d for d in raster if d in group]


def test_paths_hold_the_cells_near_the_line() -> None:
    index = path_index(10)
    for (dy, dx), path in zip(index.directions, index.paths, strict=True):
        assert path[0] == (dy, dx) and path[-1] == (0, 0)
        steps = [abs(y) + abs(x) for y, x in path]
        assert steps == sorted(steps, reverse=True)
        length = math.hypot(dy, dx)
        for y in range(-10, 11):
            for x in range(-10, 11):
                along = (y * dy + x * dx) / length
                distance = math.sqrt(max(y * y + x * x - along * along, 0.0))
                inside = 0 <= y <= dy and min(0, dx) <= x <= max(0, dx)
                if abs(distance - 1) > 1e-9:
                    assert ((y, x) in path) == (inside and distance < 1)
                else:
                    assert (y, x) not in path


def test_a_known_path() -> None:
    index = path_index(5)
    diagonal = ((1, 2), (0, 2), (1, 1), (0, 1), (1, 0), (0, 0))
    assert index.paths[index.directions.index((1, 2))] == diagonal
    assert index.paths[index.directions.index((0, 3))] == ((0, 3), (0, 2), (0, 1), (0, 0))


def test_window_shows_the_grid_from_each_source() -> None:
    index = path_index(3)
    grid = torch.arange(2 * 6 * 9).reshape(2, 6, 9)
    seen = index.window(grid, (1, -2))
    assert seen.shape == (2, 4, 5)
    for i in range(4):
        for j in range(5):
            assert torch.equal(seen[:, i, j], grid[:, i + 1, 2 + j - 2])


def test_bad_radius_and_small_grid_are_refused() -> None:
    with pytest.raises(WsssError, match="radius 1"):
        path_index(1)
    with pytest.raises(WsssError, match="too small"):
        path_index(5).sources(10, 8)
