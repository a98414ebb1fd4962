"""Pseudo masks against the steps written out with the dense walk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsss.refine.paths import path_index
from wsss.refine.pseudo_mask import WalkSettings, pseudo_mask

CLASSES = torch.tensor([3, 80])


def dense_walk(start: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
    """(C, h, w) after 256 steps with the full matrix, as the published code: pad, square, cut."""
    radius, (h, w) = 5, edge.shape
    padded = F.pad(edge, (radius, radius, 0, radius), value=1.0)
    index = path_index(radius)
    rows, columns = index.sources(*padded.shape)
    cells = torch.arange(padded.numel()).view(padded.shape)
    matrix = torch.eye(padded.numel(), dtype=torch.float64)
    for direction, path in zip(index.directions, index.paths, strict=True):
        strongest = torch.stack([index.window(padded, offset) for offset in path]).amax(0)
        one = index.window(cells, (0, 0)).flatten()
        two = index.window(cells, direction).flatten()
        matrix[one, two] = matrix[two, one] = 1 - strongest.flatten().double()
    inside = cells[:h, radius : radius + w].flatten()
    matrix = matrix[inside][:, inside] ** 10
    matrix = matrix / matrix.sum(0, keepdim=True)
    assert rows >= h and columns >= w
    for _ in range(8):
        matrix = matrix @ matrix
    x = (start * (1 - edge)).double().flatten(1) @ matrix
    return x.view(len(start), h, w)


@pytest.mark.parametrize("own_background", [False, True])
@pytest.mark.parametrize("size", [(40, 61), (29, 33)])
def test_agrees_with_the_dense_chain(own_background: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(size[0])
    grid = ((size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1)
    edge = torch.sigmoid(3 * torch.randn(grid))
    maps = F.interpolate(torch.rand(1, 2 + own_background, 4, 5), grid, mode="bicubic")[0]
    maps = maps.clamp(0, 1)
    found = pseudo_mask(maps, CLASSES, edge, size, WalkSettings())
    walked = dense_walk(maps**1.5 if own_background else maps, edge)
    large = F.interpolate(walked[None], scale_factor=4, mode="bilinear", align_corners=False)
    large = large[0, :, : size[0], : size[1]]
    large = large / large.max()
    if not own_background:
        large = torch.cat([torch.full((1, *size), 0.25), large])
    expected = np.array([0, 3, 80])[large.argmax(0).numpy()]
    assert found.shape == size and found.dtype == torch.uint8
    assert (found.numpy() == expected).mean() > 0.999
    assert len(np.unique(expected)) > 1


def test_maps_of_another_resolution_are_brought_to_the_grid() -> None:
    edge, maps = torch.zeros(10, 12), torch.zeros(2, 5, 6)
    maps[0, :, :3], maps[1, :, 3:] = 1, 1
    edge[:, 6] = 1
    mask = pseudo_mask(maps, CLASSES, edge, (40, 48), WalkSettings())
    assert (mask[:, :22] == 3).all() and (mask[:, 30:] == 80).all()


def test_an_image_without_classes_is_background() -> None:
    mask = pseudo_mask(
        torch.zeros(0, 3, 3), torch.zeros(0), torch.rand(3, 3), (9, 9), WalkSettings()
    )
    assert mask.shape == (9, 9) and not mask.any()


def test_empty_maps_are_background() -> None:
    mask = pseudo_mask(torch.zeros(2, 3, 3), CLASSES, torch.rand(3, 3), (9, 9), WalkSettings())
    assert not mask.any()
