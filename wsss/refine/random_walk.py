"""Random walk of class maps on the pixel grid along affinities of pairs: exact, sparse and fast.

IRN and PSA propagate class maps x by x T^n with n = 2^t steps, where T is the affinity matrix A to
the power beta, divided by its column sums. The published codes square the dense T of n_pixels^2
numbers t times. Here nothing dense is made, and n products are replaced by about
sqrt(n ln(1/tolerance)):

1. Only pixels closer than the radius are joined, so T has 69 entries per column at radius 5: a
   product costs 69 multiplications per pixel and class.
2. W = A^beta is symmetric and T = W / d with the column sums d. So T^n = d^(1/2) S^n d^(-1/2) with
   the symmetric S = d^(-1/2) W d^(-1/2), whose eigenvalues lie in [-1, 1].
3. On [-1, 1], s^n is a sum of Chebyshev polynomials with binomial weights 2^(1-n) C(n, (n-k)/2),
   of which those of degree k beyond a few sqrt(n) weigh next to nothing. Leaving them out changes
   x T^n by less than their sum times sqrt(sum d / min d) max|x|: the degree is chosen such that
   this bound is the tolerance. For 256 steps on 125 x 94 pixels it is 86 at 1e-6.

Sums are in double precision. In single precision columns of T sum to one only within 1e-7, which
256 steps make an error of 1e-4 where edges leave pixels alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from wsss.errors import WsssError
from wsss.refine.paths import path_index

# Affinities of pairs of pixels to the power beta: for each direction (dy, dx), dy >= 0, a tensor
# (h - dy, w - |dx|) with the weight of the pair whose upper pixel is at (i, j + max(-dx, 0)).
PairWeights = dict[tuple[int, int], Tensor]

# Entries of W below this are dropped: they change x T^n by less than n * 69 * 1e-14 of max|x|, and
# would otherwise make denormal numbers, which are slow.
NEGLIGIBLE = 1e-14


def random_walk(
    maps: Tensor,
    edge: Tensor,
    radius: int = 5,
    beta: float = 10.0,
    log2_steps: int = 8,
    tolerance: float = 1e-6,
) -> Tensor:
    """Class maps after 2^log2_steps steps of the random walk that edges hold back.

    The maps are multiplied by (1 - edge) first. The affinity of two pixels closer than `radius` is
    1 - the strongest edge on the path between them; that of a pixel with itself is 1.

    Args:
        maps: (C, h, w) class maps, any number of channels, float.
        edge: (h, w) edge probabilities in [0, 1], on the same device.
        radius: path radius in cells of the grid.
        beta: exponent of the affinities.
        log2_steps: t of the 2^t steps.
        tolerance: largest error allowed, as a fraction of max|maps|.

    Returns:
        (C, h, w) in the maps' dtype. Every value is a weighted mean of the channel's input.

    Raises:
        WsssError: if the shapes disagree or an edge is outside [0, 1] or not a number.
    """
    if maps.ndim != 3 or maps.shape[-2:] != edge.shape:
        raise WsssError(
            f"class maps of shape {tuple(maps.shape)} and edges of shape {tuple(edge.shape)} "
            f"must be (C, h, w) and (h, w) of one grid"
        )
    if not bool(((edge >= 0) & (edge <= 1)).all()):
        raise WsssError("edges must be probabilities in [0, 1]; apply the sigmoid first")
    weights = affinity_weights(edge.double(), radius, beta)
    return propagate(maps.double() * (1 - edge.double()), weights, log2_steps, tolerance).to(
        maps.dtype
    )


def propagate(
    maps: Tensor, weights: PairWeights, log2_steps: int = 8, tolerance: float = 1e-6
) -> Tensor:
    """Class maps after 2^log2_steps steps of the random walk along the weights of pairs.

    Args:
        maps: (C, h, w) class maps, any number of channels, float.
        weights: of the pairs, in [0, 1], double precision, on the same device; a pixel's weight
            with itself is 1, a pair that is in none has 0.
        log2_steps: t of the 2^t steps.
        tolerance: largest error allowed, as a fraction of max|maps|.

    Returns:
        (C, h, w) in the maps' dtype. Every value is a weighted mean of the channel's input.
    """
    if not weights:
        return maps.clone()
    size = (maps.shape[1], maps.shape[2])
    degree = column_sums(weights, size)
    root = degree.sqrt()
    bound = math.sqrt(float(degree.sum() / degree.min()))
    coefficients = chebyshev_power(2**log2_steps, tolerance / bound)
    rows = maps.double().flatten(1) * root
    if maps.device.type == "cpu":
        # numpy throughout: at this size the threads of torch cost more than they win.
        product = _scipy_product(weights, root, size)
        walked = torch.from_numpy(_polynomial(rows.numpy(), product, coefficients))
    else:
        walked = _polynomial(rows, _torch_product(weights, root, size), coefficients)
    return (walked / root).view(maps.shape).to(maps.dtype)


def affinity_weights(edge: Tensor, radius: int, beta: float) -> PairWeights:
    """Affinity to the power beta of all pairs of pixels closer than the radius (IRN).

    A path lies in the rectangle spanned by its ends, so pairs inside the grid have theirs inside.

    Args:
        edge: (h, w) edge probabilities.
        radius: path radius.
        beta: exponent.

    Returns:
        The weights; directions that leave the grid are absent.
    """
    height, width = edge.shape
    index = path_index(radius)
    result = {}
    for (dy, dx), path in zip(index.directions, index.paths, strict=True):
        rows, columns = height - dy, width - abs(dx)
        if rows < 1 or columns < 1:
            continue
        left = max(-dx, 0)
        strongest = edge.new_zeros(rows, columns)
        for y, x in path:
            cell = edge[y : y + rows, left + x : left + x + columns]
            torch.maximum(strongest, cell, out=strongest)
        weight = (1 - strongest).pow_(beta)
        result[dy, dx] = weight.masked_fill_(weight < NEGLIGIBLE, 0)
    return result


def column_sums(weights: PairWeights, size: tuple[int, int]) -> Tensor:
    """Column sums of the symmetric W with ones on its diagonal, (h * w,)."""
    height, width = size
    some = next(iter(weights.values()), torch.ones(1, dtype=torch.float64))
    total = torch.ones(height, width, dtype=some.dtype, device=some.device)
    for (dy, dx), weight in weights.items():
        total[: height - dy, max(-dx, 0) : width - max(dx, 0)] += weight
        total[dy:, max(dx, 0) : width - max(-dx, 0)] += weight
    return total.flatten()


def chebyshev_power(exponent: int, tolerance: float) -> list[float]:
    """Coefficients c_k of s^exponent = sum_k c_k T_k(s) on [-1, 1], cut at `tolerance`.

    The coefficients are binomial probabilities, so they are positive and sum to 1; what is left out
    sums to at most `tolerance`, which bounds the error everywhere on [-1, 1].

    Args:
        exponent: 1 or more.
        tolerance: largest sum of the coefficients that are left out.

    Returns:
        c_0 .. c_K; every second one is zero.
    """
    coefficients = [0.0] * (exponent + 1)
    for k in range(exponent % 2, exponent + 1, 2):
        ways = math.comb(exponent, (exponent - k) // 2) * (2 if k else 1)
        coefficients[k] = ways / 2**exponent
    left_out = 0.0
    while len(coefficients) > 1 and left_out + coefficients[-1] <= tolerance:
        left_out += coefficients.pop()
    return coefficients


def _polynomial(rows: Any, product: Callable[[Any], Any], coefficients: list[float]) -> Any:
    """sum_k c_k T_k(S) applied to each row, by the three-term recurrence T_k+1 = 2 S T_k - T_k-1.

    Args:
        rows: (C, n) array or tensor.
        product: multiplies (C, n) by the symmetric S, giving a new one of the same type.
        coefficients: c_0 .. c_K.
    """
    result = coefficients[0] * rows
    previous = current = rows
    for k, coefficient in enumerate(coefficients[1:], start=1):
        following = product(current)
        if k > 1:
            following *= 2
            following -= previous
        previous, current = current, following
        if coefficient:
            result += coefficient * current
    return result


def _scipy_product(
    weights: PairWeights, root: Tensor, size: tuple[int, int]
) -> Callable[[np.ndarray], np.ndarray]:
    """The product with S on the CPU, S stored by diagonals.

    On a grid numbered row by row, a direction is one diagonal of S. This form needs no column
    numbers and its inner loop runs over contiguous memory, one row of maps at a time: 4 times as
    fast as compressed rows, which take all rows of maps in one pass.
    """
    height, width = size
    scale = (1 / root).numpy().reshape(height, width)
    # In a grid narrower than twice the radius two directions can share a diagonal, in other places.
    upwards = {dy * width + dx for dy, dx in weights}
    offsets = sorted(upwards | {-offset for offset in upwards} | {0})
    place = {offset: k for k, offset in enumerate(offsets)}
    data = np.zeros((len(offsets), height, width))  # data[k, j] = S[j - offset, j]
    data[place[0]] = scale * scale
    for (dy, dx), weight in weights.items():
        upper = np.s_[: height - dy, max(-dx, 0) : width - max(dx, 0)]
        lower = np.s_[dy:, max(dx, 0) : width - max(-dx, 0)]
        value = weight.numpy() * scale[upper] * scale[lower]
        data[place[dy * width + dx]][lower] += value
        data[place[-dy * width - dx]][upper] += value
    number = height * width
    matrix = scipy.sparse.dia_array((data.reshape(-1, number), offsets), shape=(number, number))

    def product(rows: np.ndarray) -> np.ndarray:
        result = np.empty_like(rows)
        for channel, row in enumerate(rows):
            result[channel] = matrix @ row
        return result

    return product


def _torch_product(
    weights: PairWeights, root: Tensor, size: tuple[int, int]
) -> Callable[[Tensor], Tensor]:
    """The product with S on any device, S stored by compressed rows."""
    height, width = size
    number = height * width
    cells = torch.arange(number, device=root.device).view(height, width)
    ones, others = [cells.flatten()], [cells.flatten()]
    values = [root.new_ones(number)]
    for (dy, dx), weight in weights.items():
        upper = cells[: height - dy, max(-dx, 0) : width - max(dx, 0)].flatten()
        lower = cells[dy:, max(dx, 0) : width - max(-dx, 0)].flatten()
        ones += [upper, lower]
        others += [lower, upper]
        values += [weight.flatten(), weight.flatten()]
    where = torch.stack([torch.cat(ones), torch.cat(others)])
    value = torch.cat(values) / (root[where[0]] * root[where[1]])
    matrix = torch.sparse_coo_tensor(where, value, (number, number), check_invariants=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        matrix = matrix.to_sparse_csr()

    def product(rows: Tensor) -> Tensor:
        return (matrix @ rows.T).T.contiguous()

    return product
