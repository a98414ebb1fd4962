"""PSA's readings, cell labels, pairs and walk against loops and the dense published form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from wsss.refine.affinity import affinity_labels, pair_loss
from wsss.refine.crf import CrfSettings, crf_from_probabilities
from wsss.refine.paths import path_index
from wsss.refine.psa import (
    PSALabelSettings,
    PSAWalkSettings,
    cell_labels,
    pair_affinity,
    posteriors,
    psa_mask,
    walk_weights,
)
from wsss.refine.random_walk import propagate


def plain_directions(radius: int) -> list[tuple[int, int]]:
    """PSA's own list: (0, 1), (0, 2), ... then row after row."""
    found = [(0, x) for x in range(1, radius)]
    for y in range(1, radius):
        for x in range(-radius + 1, radius):
            if x * x + y * y < radius**2:
                found.append((y, x))
    return found


def features(size: tuple[int, int], channels: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, *size, generator=generator)


def dense_affinity(feature: np.ndarray, radius: int) -> np.ndarray:
    """The published symmetric matrix, by a loop over sources: 1 on the diagonal."""
    _, height, width = feature.shape
    margin = radius - 1
    matrix = np.eye(height * width)
    for i in range(height - margin):
        for j in range(margin, width - margin):
            for dy, dx in plain_directions(radius):
                distance = np.mean(np.abs(feature[:, i, j] - feature[:, i + dy, j + dx]))
                one, two = i * width + j, (i + dy) * width + j + dx
                matrix[one, two] = matrix[two, one] = math.exp(-distance)
    return matrix


def test_published_radius_has_34_directions() -> None:
    assert len(plain_directions(5)) == 34
    assert set(plain_directions(5)) == set(path_index(5).directions)


@pytest.mark.parametrize(
    ("size", "radius"), [((5, 9), 5), ((7, 12), 3), ((13, 11), 5), ((2, 3), 2)]
)
def test_affinities_agree_with_a_loop_over_sources(size: tuple[int, int], radius: int) -> None:
    feature, index = features(size), path_index(radius)
    found = pair_affinity(feature[None], index)[0]
    dense = dense_affinity(feature.double().numpy(), radius)
    for d, (dy, dx) in enumerate(index.directions):
        for row in range(found.shape[1]):
            for column in range(found.shape[2]):
                j = column + radius - 1
                expected = dense[row * size[1] + j, (row + dy) * size[1] + j + dx]
                assert float(found[d, row, column]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [(5, 9), (9, 13), (12, 10)])
@pytest.mark.parametrize(("beta", "log2_steps"), [(8.0, 6), (1.0, 2), (2.5, 0)])
def test_the_walk_is_the_dense_one(size: tuple[int, int], beta: float, log2_steps: int) -> None:
    feature = 0.3 * features(size, seed=2)
    matrix = dense_affinity(feature.double().numpy(), 5) ** beta
    matrix /= matrix.sum(axis=0, keepdims=True)
    for _ in range(log2_steps):
        matrix = matrix @ matrix
    maps = torch.rand(3, *size, generator=torch.Generator().manual_seed(3))
    expected = maps.double().numpy().reshape(3, -1) @ matrix
    found = propagate(maps, walk_weights(feature, 5, beta), log2_steps)
    np.testing.assert_allclose(found.numpy().reshape(3, -1), expected, atol=2e-6)


def test_a_grid_without_sources_keeps_its_maps() -> None:
    maps = torch.rand(2, 4, 20)
    assert walk_weights(features((4, 20)), 5, 8) == {}
    assert walk_weights(features((20, 8)), 5, 8) == {}
    assert torch.equal(propagate(maps, {}, 6), maps)


def test_the_loss_agrees_with_a_loop_over_pairs() -> None:
    index = path_index(5)
    feature = 0.2 * features((11, 14), seed=4)
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.choice([0, 0, 1, 2, 255], size=(11, 14)))
    dense = dense_affinity(feature.double().numpy(), 5)
    terms: dict[str, list[float]] = {"bg": [], "fg": [], "neg": []}
    for i in range(11 - 4):
        for j in range(4, 14 - 4):
            for dy, dx in plain_directions(5):
                one, two = int(labels[i, j]), int(labels[i + dy, j + dx])
                a = dense[i * 14 + j, (i + dy) * 14 + j + dx]
                if 255 in (one, two):
                    continue
                if one != two:
                    terms["neg"].append(-math.log(1 + 1e-5 - a))
                else:
                    terms["fg" if one else "bg"].append(-math.log(a + 1e-5))
    means = {kind: np.mean(values) for kind, values in terms.items()}
    expected = means["bg"] / 4 + means["fg"] / 4 + means["neg"] / 2
    pairs = affinity_labels(labels[None], index)
    found = pair_loss(pair_affinity(feature[None], index), pairs)
    assert float(sum(found.values())) / 2 == pytest.approx(expected, rel=1e-4)


def test_cell_labels_agree_with_a_loop_over_cells() -> None:
    rng = np.random.default_rng(5)
    cautious, generous = rng.random((2, 3, 40, 40)).astype(np.float32)
    for reading in (cautious, generous):
        reading[:, :8] = 0  # beside the image
        reading[0, 8:24] *= 0.9
        reading /= reading.sum(axis=0, keepdims=True).clip(1e-6)
    found = cell_labels(torch.from_numpy(cautious), torch.from_numpy(generous))
    seen = set()
    for i in range(5):
        for j in range(5):
            a, b = (
                [float(m[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].mean()) for m in reading]
                for reading in (cautious, generous)
            )
            expected = a.index(max(a)) or 255
            if b.index(max(b)) == 0:
                expected = 0
            if max(a + b) < 1e-5:
                expected = 255
            seen.add(expected)
            assert int(found[i, j]) == expected
    assert (found[0] == 255).all() and len(seen) > 2


@pytest.mark.parametrize("own_background", [False, True])
def test_readings_take_the_background_to_two_powers(own_background: bool) -> None:
    rng = np.random.default_rng(6)
    image = rng.integers(0, 255, (13, 17, 3), dtype=np.uint8)
    maps = rng.random((2, 13, 17)).astype(np.float32)
    background = rng.random((1, 13, 17)).astype(np.float32)
    given = np.concatenate([background, maps]) if own_background else maps
    options = PSALabelSettings(crf=CrfSettings(iterations=2))
    found = posteriors(image, given, np.array([3, 7]), options)
    assert list(found) == ["cautious", "generous"]
    for power, reading in ((1, found["cautious"]), (12, found["generous"])):
        base = background[0] if own_background else 1 - np.maximum(maps[0], maps[1])
        stack = np.stack([base**power, maps[0], maps[1]])
        expected = crf_from_probabilities(image, stack, options.crf)
        np.testing.assert_allclose(reading, expected, atol=1e-5)
    assert (found["cautious"][0] - found["generous"][0]).mean() > 0.01
    crf = PSALabelSettings().crf
    assert (crf.gaussian_sxy, crf.gaussian_compat, crf.iterations) == (3, 3, 10)
    assert (crf.bilateral_sxy, crf.bilateral_srgb, crf.bilateral_compat) == (80, 13, 10)


def test_an_image_without_classes_is_all_background() -> None:
    image = np.zeros((9, 9, 3), dtype=np.uint8)
    none = np.zeros(0, dtype=np.int64)
    found = posteriors(image, np.zeros((0, 9, 9), np.float32), none, PSALabelSettings())
    assert all(reading.shape == (1, 9, 9) for reading in found.values())
    empty = torch.zeros(0, 9, 9)
    mask = psa_mask(empty, torch.zeros(0), features((2, 2)), (9, 9), PSAWalkSettings())
    assert mask.dtype == torch.uint8 and not mask.any()


@pytest.mark.parametrize("size", [(72, 90), (61, 83), (9, 7)])
@pytest.mark.parametrize("own_background", [False, True])
def test_masks_agree_with_the_published_steps(size: tuple[int, int], own_background: bool) -> None:
    """All 21 channels, a constant 0.39, padding, pooling, the dense walk, enlarging, arg max."""
    grid = (math.ceil(size[0] / 8), math.ceil(size[1] / 8))
    feature = 0.3 * features(grid, seed=7)
    generator = torch.Generator().manual_seed(8)
    small = torch.rand(1, 3, 4, 5, generator=generator)
    maps = torch.nn.functional.interpolate(small, size, mode="bilinear")[0]
    classes = torch.tensor([2, 9])
    channels = torch.zeros(21, grid[0] * 8, grid[1] * 8, dtype=torch.float64)
    channels[0, : size[0], : size[1]] = maps[0] if own_background else 0.39
    channels[2, : size[0], : size[1]] = maps[1]
    channels[9, : size[0], : size[1]] = maps[2]
    cells = channels.reshape(21, grid[0], 8, grid[1], 8).mean(dim=(2, 4))
    walked = cells
    if grid[0] > 4 and grid[1] > 8:
        matrix = torch.from_numpy(dense_affinity(feature.double().numpy(), 5)) ** 8
        matrix = matrix / matrix.sum(dim=0, keepdim=True)
        for _ in range(6):
            matrix = matrix @ matrix
        walked = (cells.flatten(1) @ matrix).view(cells.shape)
    large = torch.nn.functional.interpolate(walked[None], channels.shape[1:], mode="bilinear")[0]
    expected = large[:, : size[0], : size[1]].argmax(dim=0)
    given = maps if own_background else maps[1:]
    found = psa_mask(given, classes, feature, size, PSAWalkSettings())
    assert found.shape == size
    assert float((found == expected).double().mean()) > 0.999
    assert len(found.unique()) > 1 or max(size) < 10
