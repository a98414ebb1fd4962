"""The sparse walk against the dense matrix power, over sizes, radii, exponents and steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from wsss.errors import WsssError
from wsss.refine.paths import path_index
from wsss.refine.random_walk import (
    _scipy_product,
    _torch_product,
    affinity_weights,
    chebyshev_power,
    column_sums,
    random_walk,
)


def dense_matrix(edge: np.ndarray, radius: int, beta: float) -> np.ndarray:
    """T of (n, n) by a loop over pairs of pixels, in double precision."""
    height, width = edge.shape
    index = path_index(radius)
    affinity = np.eye(height * width)
    for (dy, dx), path in zip(index.directions, index.paths, strict=True):
        for i in range(height):
            for j in range(width):
                if i + dy < height and 0 <= j + dx < width:
                    value = 1 - max(edge[i + y, j + x] for y, x in path)
                    one, two = i * width + j, (i + dy) * width + j + dx
                    affinity[one, two] = affinity[two, one] = value
    power = affinity**beta
    return power / power.sum(axis=0, keepdims=True)


def dense_walk(maps: Tensor, edge: Tensor, radius: int, beta: float, log2_steps: int) -> np.ndarray:
    """The published form: square the dense matrix t times, then one product."""
    matrix = dense_matrix(edge.double().numpy(), radius, beta)
    for _ in range(log2_steps):
        matrix = matrix @ matrix
    return ((maps * (1 - edge)).double().numpy().reshape(len(maps), -1) @ matrix).reshape(
        maps.shape
    )


def random_grid(
    size: tuple[int, int], channels: int = 3, seed: int = 0, sharp: float = 4.0
) -> tuple[Tensor, Tensor]:
    """Maps and edges; `sharp` pushes edges towards 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    edge = torch.sigmoid(sharp * torch.randn(size, generator=generator, dtype=torch.float64))
    return torch.rand(channels, *size, generator=generator, dtype=torch.float64), edge


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (3, 4), (9, 5), (4, 11), (13, 12)])
@pytest.mark.parametrize("radius", [2, 3, 5, 10])
def test_equals_the_dense_form_at_any_size_and_radius(size: tuple[int, int], radius: int) -> None:
    maps, edge = random_grid(size, seed=radius)
    assert np.allclose(
        random_walk(maps, edge, radius), dense_walk(maps, edge, radius, 10, 8), atol=1e-6
    )


@pytest.mark.parametrize("beta", [1.0, 2.5, 10.0, 20.0])
@pytest.mark.parametrize("log2_steps", [0, 1, 2, 5, 8, 10])
@pytest.mark.parametrize("sharp", [0.3, 4.0, 40.0])
def test_equals_the_dense_form_at_any_exponent_and_number_of_steps(
    beta: float, log2_steps: int, sharp: float
) -> None:
    maps, edge = random_grid((8, 9), sharp=sharp)
    expected = dense_walk(maps, edge, 5, beta, log2_steps)
    assert np.allclose(random_walk(maps, edge, 5, beta, log2_steps), expected, atol=1e-6)


def test_single_precision_input_keeps_the_accuracy() -> None:
    maps, edge = random_grid((10, 12), sharp=20.0)
    found = random_walk(maps.float(), edge.float())
    assert found.dtype == torch.float32
    expected = dense_walk(maps.float().double(), edge.float().double(), 5, 10, 8)
    assert np.abs(found.numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-8])
def test_the_error_stays_below_the_tolerance(tolerance: float) -> None:
    maps, edge = random_grid((11, 10))
    found = random_walk(maps, edge, tolerance=tolerance).numpy()
    assert np.abs(found - dense_walk(maps, edge, 5, 10, 8)).max() < tolerance * float(maps.max())


def test_both_products_are_the_same() -> None:
    """That of the CPU and that of the other devices, tried on the CPU."""
    for size in [(1, 1), (3, 4), (12, 9)]:
        maps, edge = random_grid(size)
        weights = affinity_weights(edge, 5, 10)
        root = column_sums(weights, size).sqrt()
        rows = maps.flatten(1)
        one = _scipy_product(weights, root, size)(rows.numpy())
        assert np.allclose(one, _torch_product(weights, root, size)(rows), atol=1e-14)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gives_the_same() -> None:
    maps, edge = random_grid((40, 31))
    found = random_walk(maps.cuda(), edge.cuda())
    assert found.is_cuda
    assert torch.allclose(found.cpu(), random_walk(maps, edge), atol=1e-9)


def test_a_constant_map_without_edges_stays() -> None:
    maps = torch.full((2, 9, 7), 0.4)
    assert torch.allclose(random_walk(maps, torch.zeros(9, 7)), maps, atol=1e-6)


def test_a_closed_edge_is_not_crossed() -> None:
    maps = torch.zeros(1, 12, 13)
    maps[0, 5, 2] = 1
    edge = torch.zeros(12, 13)
    edge[:, 6] = 1
    walked = random_walk(maps, edge)[0]
    assert (walked[:, :6] > 1e-3).all()
    assert (walked[:, 6:].abs() < 1e-6).all()


def test_maps_between_strided_views_and_gradients_are_accepted() -> None:
    maps, edge = random_grid((9, 8))
    strided = maps.permute(0, 2, 1).contiguous().permute(0, 2, 1)
    assert torch.equal(random_walk(strided, edge), random_walk(maps, edge))


def test_no_classes_give_no_maps() -> None:
    _, edge = random_grid((5, 6))
    assert random_walk(torch.zeros(0, 5, 6), edge).shape == (0, 5, 6)


@pytest.mark.parametrize("exponent", [1, 2, 3, 16, 256])
def test_chebyshev_power_is_the_power(exponent: int) -> None:
    points = np.linspace(-1, 1, 501)
    for tolerance in (0.0, 1e-9, 1e-3):
        coefficients = chebyshev_power(exponent, tolerance)
        value = np.polynomial.chebyshev.chebval(points, coefficients)
        assert np.abs(value - points**exponent).max() <= tolerance + 1e-12
        assert min(coefficients) >= 0
        assert 1 - tolerance - 1e-12 <= math.fsum(coefficients) <= 1 + 1e-12
    assert len(chebyshev_power(256, 1e-9)) < 100


def test_bad_input_is_refused() -> None:
    maps, edge = random_grid((5, 6))
    with pytest.raises(WsssError, match="one grid"):
        random_walk(maps, edge[:4])
    for bad in (-0.1, 1.5, float("nan")):
        wrong = edge.clone()
        wrong[1, 1] = bad
        with pytest.raises(WsssError, match="probabilities"):
            random_walk(maps, wrong)
