"""SIPE's figure, read off Matplotlib's own objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from wsss.methods.sipe import figures
from wsss.methods.sipe.figures import COLUMNS, ExploredPicture, draw

CLASSES = ("cat", "dog", "cow")
GRID = (4, 5)


@pytest.fixture
def explored() -> ExploredPicture:
    """Two of three classes on a grid of 4 x 5 cells under a picture of 40 x 60 pixels."""
    generator = torch.Generator().manual_seed(0)
    maps, is_cam = torch.rand(2, 4, *GRID, generator=generator)
    best = maps.argmax(0)
    return ExploredPicture(
        "one",
        np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8),
        torch.tensor([1.0, 0, 1]),
        maps,
        F.one_hot(best, 4).permute(2, 0, 1).float(),
        3 * is_cam,
        torch.randn(6, *GRID, generator=generator),
    )


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were made."""
    made: list[Figure] = []
    original = figures.figure

    @contextmanager
    def keep(path: Path, width: float, height: float) -> Iterator[Figure]:
        with original(path, width, height) as one:
            made.append(one)
            yield one

    monkeypatch.setattr(figures, "figure", keep)
    return made


@pytest.mark.parametrize("pixel", [None, (25, 50)])
def test_rows_are_the_present_classes_and_the_background(
    tmp_path: Path, explored: ExploredPicture, drawn: list[Figure], pixel
) -> None:
    (file,) = draw([explored], tmp_path / "new", CLASSES, pixel)
    assert file == tmp_path / "new" / "one.png" and file.is_file()
    axes = np.array(drawn[0].axes).reshape(3, 5)
    assert [axis.get_title() for axis in axes[0]] == list(COLUMNS)
    assert [line[0].get_ylabel() for line in axes] == ["cat", "cow", "background"]
    for n, line in zip((1, 3, 0), axes, strict=True):
        photograph, *others = [axis.images for axis in line]
        assert (np.asarray(photograph[0].get_array()) == explored.picture).all()
        cam, seeds, is_cam, structure = (np.asarray(images[1].get_array()) for images in others)
        np.testing.assert_array_equal(cam, explored.maps[n].numpy())
        np.testing.assert_array_equal(seeds, explored.seeds[n].numpy())
        most = float(explored.is_cam[n].max()) + 1e-5
        np.testing.assert_allclose(is_cam, explored.is_cam[n].numpy() / most, rtol=1e-5)
        # The pixel of the last column: of its own maximum, or 25/40 down and 50/60 right.
        y, x = divmod(int(explored.maps[n].argmax()), GRID[1]) if pixel is None else (2, 4)
        unit = F.normalize(explored.structure.flatten(1), dim=0)
        expected = (unit.T @ unit[:, y * GRID[1] + x]).clamp(min=0).view(GRID)
        np.testing.assert_allclose(structure, expected.numpy(), atol=1e-4)
        for axis in (line[0], line[4]):
            (star,) = axis.lines
            assert star.get_xydata().tolist() == [[(x + 0.5) * 12 - 0.5, (y + 0.5) * 10 - 0.5]]
        for images in others:
            assert images[1].get_extent() == [-0.5, 59.5, 39.5, -0.5]
            assert images[1].get_clim() == (0, 1)
