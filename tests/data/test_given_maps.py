"""Class maps of an earlier run take the same way into a training crop as their image."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.data.datamodule import EpochSet, WholeSet
from wsss.data.transforms import Crop, LongSide, Pyramid

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def ramps(height: int, width: int) -> np.ndarray:
    """Two maps that tell their place: from left to right, from top to bottom."""
    x = (np.arange(width) + 0.5) / width
    y = (np.arange(height) + 0.5) / height
    return np.stack(np.broadcast_arrays(x[None, :], y[:, None])).astype(np.float32)


@pytest.mark.parametrize("size", [(90, 130), (40, 50), (50, 200)])
@pytest.mark.parametrize("side", [64, 72])
def test_maps_lie_where_their_image_lies(size: tuple[int, int], side: int) -> None:
    """The image's own colors are the same ramps as the maps, so cells must agree with pixels."""
    image = np.zeros((*size, 3), dtype=np.uint8)
    image[..., :2] = np.rint(255 * ramps(*size)).transpose(1, 2, 0)
    crop = Crop(side, **PLAIN, draw_size=LongSide(60, 150))
    maps = ramps(25, 31)  # a grid of their own
    mirrored = 0
    for seed in range(12):
        found = crop(image, np.random.default_rng(seed), maps=maps)
        assert found.maps is not None
        cells = -(-side // 16)
        assert found.maps.shape == (2, cells, cells) and found.maps.dtype == torch.float32
        for i in range(cells):
            for j in range(cells):
                y, x = i * 16 + 8, j * 16 + 8  # the cell's center is the corner of four pixels
                if y >= side or x >= side or not found.valid[y - 1 : y + 1, x - 1 : x + 1].all():
                    continue
                pixels = found.image[:2, y - 1 : y + 1, x - 1 : x + 1].mean(dim=(1, 2))
                # A ramp is flat in the half cell at its ends.
                assert torch.allclose(found.maps[:, i, j], pixels, atol=0.03), (seed, i, j)
        outside = torch.tensor(
            [
                [not found.valid[min(i * 16 + 8, side - 1), min(j * 16 + 8, side - 1)]
                 and not found.valid[min(i * 16 + 7, side - 1), min(j * 16 + 7, side - 1)]
                 for j in range(side // 16)]
                for i in range(side // 16)
            ]
        )  # fmt: skip
        assert not found.maps[:, : side // 16, : side // 16][:, outside].any()
        row = found.image[0][:, found.valid.any(dim=0)][found.valid.any(dim=1)]
        mirrored += bool(row[0, 0] > row[0, -1])
    assert 0 < mirrored < 12


def test_without_maps_there_are_none_and_the_crop_is_the_same() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    crop = Crop(48, **PLAIN, draw_size=LongSide(60, 90))
    bare = crop(image, np.random.default_rng(3))
    with_maps = crop(image, np.random.default_rng(3), maps=ramps(9, 9))
    assert bare.maps is None and torch.equal(bare.image, with_maps.image)


def test_samples_have_the_maps(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name}.png")
    images: Any = SimpleNamespace(image_path=lambda name: tmp_path / f"{name}.png")
    given = {"a": ramps(8, 10), "b": 1 - ramps(8, 10)}
    crop = Crop(32, **PLAIN, draw_size=LongSide(40, 40))
    train = EpochSet(images, ["a", "b"], crop, seed=0, maps=given.__getitem__)
    assert train[0, 1]["maps"].shape == (2, 2, 2)
    assert not torch.equal(train[0, 0]["maps"], train[0, 1]["maps"])
    whole = WholeSet(images, ["a", "b"], Pyramid(**PLAIN), maps=given.__getitem__)
    for part in (whole.only(["b"])[0], whole.share(1, 2)[0]):
        assert torch.equal(part["maps"], torch.from_numpy(given["b"]))
    assert "maps" not in WholeSet(images, ["a"], Pyramid(**PLAIN))[0]
