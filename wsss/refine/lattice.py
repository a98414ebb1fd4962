"""Gaussian filters of many features and mean field on them, compiled.

The filter is that of the permutohedral lattice (Adams, Baek & Davis, Fast High-Dimensional
Filtering Using the Permutohedral Lattice, Eurographics 2010): a pixel's features are a point in a
simplex of d + 1 lattice points, among which its value is divided (splat); the lattice is blurred by
[1 2 1] / 2 along its d + 1 directions; a pixel takes its value back from the same points (slice).

What it costs is memory that is far apart. So pixels stand in tiles of 8 x 8 everywhere in here,
lattice points in the order in which the tiles meet them, and the channels of a pixel or point side
by side: one vector of 2, 4 or 8 floats. More channels are groups of 8, one filtered after the
other, so that the lattice stays in the cache.

Everything compiled stands in this file, as the compiler's cache looks at no other when it asks
whether something has changed. Functions hold no lock and no state: any number of threads and
processes may call them at once; a call works in one thread, and its result is the same each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import event
from numba.extending import intrinsic, models, register_model

from wsss.errors import WsssError
from wsss.run.process import say

Array = np.ndarray

SIDE = 8  # of a tile, pixels
TILE = SIDE * SIDE
LANES = 16  # pixels side by side in a vector; a tile is a multiple
WIDTHS = (2, 4, 8)  # channels side by side


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, and keep the result on disk where a folder can be written."""
    try:
        return numba.njit(function, nogil=True, error_model="numpy", cache=True)
    except RuntimeError:  # no folder for the cache
        return numba.njit(function, nogil=True, error_model="numpy")


class _Told(event.Listener):
    """Says once that something is compiled: it takes a while, and nobody knows why."""

    told = False

    def on_start(self, event: Any) -> None:
        if event.data["dispatcher"].py_func.__module__ == __name__ and not self.told:
            self.told = True
            say("compiling the dense CRF for this processor, once: some 15 seconds")

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Told())


# --- vectors of floats ----------------------------------------------------------------------------
# Loops over a handful of channels are too short for the compiler to make vectors of them by itself.
# `lanes` is a tuple whose length is the vector's: a type of its own, so known when compiling.


class Vector(types.Type):
    """Some float32 in one register."""

    def __init__(self, length: int) -> None:
        self.length = length
        super().__init__(f"Vector({length})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, ir.VectorType(ir.FloatType(), kind.length))


_INT = ir.IntType(32)


def _at(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset], inbounds=True)


def _same(builder: Any, number: Any, kind: Any) -> Any:
    """A number in all lanes."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), number, _INT(0))
    zeros = ir.Constant(ir.VectorType(_INT, kind.count), [0] * kind.count)
    return builder.shuffle_vector(one, one, zeros)


def _constant(number: float, kind: Any) -> Any:
    return ir.Constant(kind, [float(np.float32(number))] * kind.count)


def _unary(builder: Any, name: str, value: Any) -> Any:
    kind = value.type
    function = ir.FunctionType(kind, [kind])
    name = f"llvm.{name}.v{kind.count}f32"
    known = builder.module.globals.get(name)
    return builder.call(known or ir.Function(builder.module, function, name), [value])


@intrinsic
def load(typing: Any, lanes: Any, array: Any, offset: Any) -> Any:
    """Floats of a flat array from `offset` on."""
    vector = Vector(len(lanes))

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _at(context, builder, array, args[1], args[2])
        kind = context.get_value_type(vector)
        value = builder.load(builder.bitcast(place, kind.as_pointer()))
        value.align = 4
        return value

    return vector(lanes, array, types.intp), code


@intrinsic
def store(typing: Any, vector: Any, array: Any, offset: Any) -> Any:
    """Write a vector into a flat array from `offset` on."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _at(context, builder, array, args[1], args[2])
        done = builder.store(args[0], builder.bitcast(place, args[0].type.as_pointer()))
        done.align = 4
        return context.get_dummy_value()

    return types.void(vector, array, types.intp), code


@intrinsic
def load_every(typing: Any, lanes: Any, array: Any, offset: Any, step: Any) -> Any:
    """Floats of a flat array at `offset`, `offset` + `step`, ..."""
    vector = Vector(len(lanes))

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = ir.Constant(context.get_value_type(vector), ir.Undefined)
        place = args[2]
        for lane in range(vector.length):
            number = builder.load(_at(context, builder, array, args[1], place))
            value = builder.insert_element(value, number, _INT(lane))
            place = builder.add(place, args[3])
        return value

    return vector(lanes, array, types.intp, types.intp), code


@intrinsic
def store_every(typing: Any, vector: Any, array: Any, offset: Any, step: Any) -> Any:
    """Write a vector into a flat array at `offset`, `offset` + `step`, ..."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = args[2]
        for lane in range(vector.length):
            number = builder.extract_element(args[0], _INT(lane))
            builder.store(number, _at(context, builder, array, args[1], place))
            place = builder.add(place, args[3])
        return context.get_dummy_value()

    return types.void(vector, array, types.intp, types.intp), code


@intrinsic
def fill(typing: Any, lanes: Any, number: Any) -> Any:
    """A number in all lanes."""
    vector = Vector(len(lanes))

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _same(builder, args[1], context.get_value_type(vector))

    return vector(lanes, types.float32), code


@intrinsic
def times_plus(typing: Any, number: Any, x: Any, y: Any) -> Any:
    """The sum number * x + y, rounded once where the processor can."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        product = builder.fmul(_same(builder, args[0], args[1].type), args[1], flags=["contract"])
        return builder.fadd(product, args[2], flags=["contract"])

    return x(types.float32, x, x), code


def _binary(make: Callable[[Any, Any, Any], Any], text: str) -> Any:
    def operation(typing: Any, x: Any, y: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return make(builder, *args)

        return x(x, x), code

    operation.__doc__ = text
    return intrinsic(operation)


add = _binary(lambda builder, x, y: builder.fadd(x, y), "x + y.")
subtract = _binary(lambda builder, x, y: builder.fsub(x, y), "x - y.")
multiply = _binary(lambda builder, x, y: builder.fmul(x, y), "x * y.")
divide = _binary(lambda builder, x, y: builder.fdiv(x, y), "x / y.")
larger = _binary(
    lambda builder, x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y), "The larger one."
)
less = _binary(
    lambda builder, x, y: builder.uitofp(builder.fcmp_ordered("<", x, y), x.type),
    "1 where x < y, else 0.",
)


@intrinsic
def nearest(typing: Any, x: Any) -> Any:
    """The nearest whole number, of two the even one."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _unary(builder, "rint", args[0])

    return x(x), code


# 2^x on [0, 1] to 2e-7, a polynomial of least largest relative error.
_POWER_OF_2 = (1.8775767e-3, 8.9893397e-3, 5.5826318e-2, 2.4015361e-1, 6.9315308e-1, 9.9999994e-1)


@intrinsic
def exponential(typing: Any, x: Any) -> Any:
    """e^x for x <= 0, to 6e-6 of it; below -87 about 1e-38."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        power = builder.fmul(args[0], _constant(math.log2(math.e), kind))
        lowest = _constant(-126, kind)
        power = builder.select(builder.fcmp_ordered(">", power, lowest), power, lowest)
        whole = _unary(builder, "floor", power)
        part = builder.fsub(power, whole)
        value = _constant(_POWER_OF_2[0], kind)
        for number in _POWER_OF_2[1:]:
            product = builder.fmul(value, part, flags=["contract"])
            value = builder.fadd(product, _constant(number, kind), flags=["contract"])
        # A float's exponent stands from bit 23 on.
        bits = ir.VectorType(_INT, kind.count)
        place = ir.Constant(bits, [23] * kind.count)
        raised = builder.shl(builder.fptosi(whole, bits), place)
        return builder.bitcast(builder.add(builder.bitcast(value, bits), raised), kind)

    return x(x), code


_PIXELS = (0,) * LANES


# --- the lattice ----------------------------------------------------------------------------------


@compiled
def _slot(key: int, keys: Array, table: Array) -> np.uint64:
    """Where the number of a key stands in the hash table, or would stand (there it is -1)."""
    last = np.uint64(len(table) - 2)  # the last entry is no slot: it says how far to shift
    slot = (np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(table[len(table) - 1])
    number = table[slot]
    while number >= 0 and keys[np.uint32(number)] != key:
        slot = (slot + np.uint64(1)) & last
        number = table[slot]
    return slot


@compiled
def _table(keys: Array, count: int, bits: int) -> Array:
    """A hash table of the first `count` keys with 2^bits slots: their numbers, elsewhere -1."""
    table = np.full((1 << bits) + 1, -1, np.int32)
    table[1 << bits] = 64 - bits
    for number in range(count):
        table[_slot(keys[number], keys, table)] = number
    return table


@compiled
def _build(
    features: Array, axes: tuple, steps: Array, low: Array
) -> tuple[Array, Array, Array, Array]:
    """Lattice points of all pixels.

    The points of a simplex differ in their remainder r = 0..d modulo d + 1, so a point is packed as
    r + sum over axes of (quotient - low) * step, `step` being a multiple of d + 1.

    Args:
        features: (d, H, W) float32.
        axes: a tuple of d anything.
        steps: (d + 1,) int64, the last one 0.
        low: (d,) int64, smallest quotients.

    Returns:
        (N, d + 1) int32 and float32: points and weights of N pixels in tiles, weights 0 beyond the
        image; (M,) int64 packed points; the hash table.
    """
    d = len(axes)
    corners = d + 1
    height, width = features.shape[1:]
    rows, columns = (height + SIDE - 1) // SIDE, (width + SIDE - 1) // SIDE
    pixels = rows * columns * TILE
    points = np.zeros((pixels, corners), np.int32)
    weights = np.zeros((pixels, corners), np.float32)
    keys = np.empty(height * width * corners, np.int64)
    count = 0
    bits = 14
    table = _table(keys, 0, bits)

    # In single precision and in this order of operations, as others do it: a pixel on the border of
    # two simplices must fall on the same side, since points of weight 0 carry the blur on, too.
    scale = np.empty(d, np.float32)
    for i in range(d):
        deviation = np.float64(np.float32(math.sqrt(2.0 / 3.0)) * np.float32(corners))
        scale[i] = np.float32(1.0 / math.sqrt((i + 2.0) * (i + 1.0)) * deviation)
    inverse, whole = np.float32(1.0 / corners), np.float32(corners)
    seen = np.empty(d * TILE, np.float32)
    elevated = np.empty(corners * TILE, np.float32)
    quotient = np.empty(corners * TILE, np.float32)
    rank = np.empty(corners * TILE, np.float32)
    rest_by_rank, step_by_rank = np.zeros(corners, np.float32), np.zeros(corners, np.int64)
    wanted = np.empty((TILE, corners), np.int64)

    for tile in range(rows * columns):
        top, left = tile // columns * SIDE, tile % columns * SIDE
        for i in range(d):
            for p in range(TILE):
                y, x = min(top + p // SIDE, height - 1), min(left + p % SIDE, width - 1)
                seen[i * TILE + p] = features[i, y, x]
        for p in range(0, TILE, LANES):
            total = fill(_PIXELS, np.float32(0))
            for i in range(d, 0, -1):
                # The plane of points whose coordinates sum to 0, in d + 1 dimensions.
                part = multiply(
                    load(_PIXELS, seen, (i - 1) * TILE + p), fill(_PIXELS, scale[i - 1])
                )
                away = multiply(fill(_PIXELS, np.float32(i)), part)
                store(subtract(total, away), elevated, i * TILE + p)
                total = add(total, part)
            store(total, elevated, p)
            total = fill(_PIXELS, np.float32(0))
            for i in range(corners):
                value = load(_PIXELS, elevated, i * TILE + p)
                near = nearest(multiply(value, fill(_PIXELS, inverse)))
                total = add(total, near)
                store(near, quotient, i * TILE + p)
                rest = subtract(value, multiply(near, fill(_PIXELS, whole)))
                store(rest, elevated, i * TILE + p)
            # The nearest point's coordinates need not sum to 0: its rank says which ones to move.
            for i in range(corners):
                store(total, rank, i * TILE + p)
            one = fill(_PIXELS, np.float32(1))
            for i in range(corners):
                mine = load(_PIXELS, elevated, i * TILE + p)
                below = load(_PIXELS, rank, i * TILE + p)
                for j in range(i + 1, corners):
                    smaller = less(mine, load(_PIXELS, elevated, j * TILE + p))
                    below = add(below, smaller)
                    other = load(_PIXELS, rank, j * TILE + p)
                    store(add(other, subtract(one, smaller)), rank, j * TILE + p)
                under = less(below, fill(_PIXELS, np.float32(0)))
                move = subtract(under, less(fill(_PIXELS, np.float32(d)), below))
                step = multiply(move, fill(_PIXELS, whole))
                store(add(below, step), rank, i * TILE + p)
                store(subtract(mine, step), elevated, i * TILE + p)
                store(add(load(_PIXELS, quotient, i * TILE + p), move), quotient, i * TILE + p)
        for p in range(TILE):
            if top + p // SIDE >= height or left + p % SIDE >= width:
                continue
            key = np.int64(0)
            for i in range(corners):
                place = np.uint32(rank[i * TILE + p])
                rest_by_rank[place] = elevated[i * TILE + p]
                step_by_rank[place] = steps[i]
                if i < d:
                    key += (np.int64(quotient[i * TILE + p]) - low[i]) * steps[i]
            for r in range(corners):
                if r == 0:
                    weight = np.float32(1) + (rest_by_rank[d] - rest_by_rank[0]) * inverse
                else:
                    weight = (rest_by_rank[d - r] - rest_by_rank[d - r + 1]) * inverse
                    key += 1 - step_by_rank[d - r + 1]
                wanted[p, r] = key
                weights[tile * TILE + p, r] = weight
        # By itself, so that the processor looks up many at the same time.
        for p in range(TILE):
            if top + p // SIDE >= height or left + p % SIDE >= width:
                continue
            for r in range(corners):
                slot = _slot(wanted[p, r], keys, table)
                if table[slot] < 0:
                    table[slot] = count
                    keys[count] = wanted[p, r]
                    count += 1
                points[tile * TILE + p, r] = table[slot]
        if 3 * (count + TILE * corners) > len(table):
            bits += 1
            table = _table(keys, count, bits)
    return points, weights, keys[:count].copy(), table


@compiled
def _neighbors(keys: Array, table: Array, steps: Array) -> Array:
    """(d + 1, M + 1, 2) int32: the points before and after each one in each direction; M: none."""
    corners, count = len(steps), len(keys)
    near = np.full((corners, count + 1, 2), count, np.int32)
    # All coordinates grow by 1, but for one that shrinks by d. Beyond remainder d the quotients
    # grow instead.
    ahead = 1 - steps
    beyond = steps.sum() - steps - (corners - 1)
    for number in range(count):
        key = keys[number]
        ways = beyond if key % corners == corners - 1 else ahead
        for direction in range(corners):
            other = table[_slot(key + ways[direction], keys, table)]
            # Without a branch, which nobody could predict: entry M takes what has no place.
            other = other if other >= 0 else count
            near[direction, number, 1] = other
            near[direction, other, 0] = number
    return near


@compiled
def _filter(values: Array, one: tuple, two: tuple, lanes: tuple) -> None:
    """Replace values (N, V), flat, by the sum of two filters' answers to them.

    Args:
        values: flat.
        one, two: points, weights and neighbors of a filter, and twice room for its lattice:
            (M + 1, V), flat, the last row 0.
        lanes: v of anything.
    """
    points_1, weights_1, near_1, lattice_1, spare_1 = one
    points_2, weights_2, near_2, lattice_2, spare_2 = two
    width = len(lanes)
    lattice_1[:] = 0
    lattice_2[:] = 0
    for pixel in range(len(points_1)):
        value = load(lanes, values, pixel * width)
        for k in range(points_1.shape[1]):
            place = np.intp(points_1[pixel, k]) * width
            more = times_plus(weights_1[pixel, k], value, load(lanes, lattice_1, place))
            store(more, lattice_1, place)
        for k in range(points_2.shape[1]):
            place = np.intp(points_2[pixel, k]) * width
            more = times_plus(weights_2[pixel, k], value, load(lanes, lattice_2, place))
            store(more, lattice_2, place)
    lattice_1 = _blurred(lattice_1, spare_1, near_1, lanes)
    lattice_2 = _blurred(lattice_2, spare_2, near_2, lanes)
    for pixel in range(len(points_1)):
        value = fill(lanes, np.float32(0))
        for k in range(points_1.shape[1]):
            place = np.intp(points_1[pixel, k]) * width
            value = times_plus(weights_1[pixel, k], load(lanes, lattice_1, place), value)
        for k in range(points_2.shape[1]):
            place = np.intp(points_2[pixel, k]) * width
            value = times_plus(weights_2[pixel, k], load(lanes, lattice_2, place), value)
        store(value, values, pixel * width)


@compiled
def _blurred(lattice: Array, spare: Array, near: Array, lanes: tuple) -> Array:
    """The lattice after all directions, which lies in one of the two rooms."""
    width, half = len(lanes), np.float32(0.5)
    for direction in range(near.shape[0]):
        for number in range(near.shape[1] - 1):
            before = load(lanes, lattice, np.intp(near[direction, number, 0]) * width)
            after = load(lanes, lattice, np.intp(near[direction, number, 1]) * width)
            here = load(lanes, lattice, number * width)
            store(times_plus(half, add(before, after), here), spare, number * width)
        lattice, spare = spare, lattice
    return lattice


@dataclass(frozen=True)
class Filter:
    """A Gaussian filter of an image's features, symmetrically normalized, times a weight.

    Attributes:
        points: (N, d + 1) int32 lattice points of each pixel, in tiles.
        weights: (N, d + 1) float32 with which a pixel gives to them and takes from them;
            normalization and the filter's weight are in it.
        near: (d + 1, M + 1, 2) int32 neighbors of M lattice points and of none, M.
        ones: (N,) float32, what the filter makes of ones: the weight times about 1.
    """

    points: np.ndarray
    weights: np.ndarray
    near: np.ndarray
    ones: np.ndarray


def build_filter(features: np.ndarray, weight: float) -> Filter:
    """The filter exp(-|f_i - f_j|^2 / 2) over all pairs of pixels, normalized, times `weight`.

    Normalized symmetrically: with k(1) for the answer to ones, k_ij / sqrt(k(1)_i k(1)_j).

    Args:
        features: (d, H, W) float32, in standard deviations.
        weight: factor, 0 or more.

    Raises:
        WsssError: if the features have so wide a range that lattice points can't be numbered.
    """
    d = len(features)
    corners = d + 1
    smallest, largest = (f((1, 2)).astype(np.float64) for f in (features.min, features.max))
    matrix = np.zeros((corners, d))
    for i in range(d):
        matrix[: i + 1, i] = math.sqrt(2 / 3) / math.sqrt((i + 2) * (i + 1))
        matrix[i + 1, i] = -(i + 1) * matrix[i, i]
    low = (
        np.minimum(matrix * smallest, matrix * largest).sum(1)[:d] - 4
    )  # rounding, rank, neighbors
    high = np.maximum(matrix * smallest, matrix * largest).sum(1)[:d] + 4
    spans = [math.ceil(b) - math.floor(a) + 1 for a, b in zip(low, high, strict=True)]
    steps = [corners * math.prod(spans[:i]) for i in range(d)]
    if corners * math.prod(spans) >= 2**62:
        raise WsssError(
            "CRF: a standard deviation (sxy, srgb) is too small for the lattice to be numbered: "
            "take 0.1 or more"
        )
    axes, numbers = (0,) * d, np.array([*steps, 0], dtype=np.int64)
    points, weights, keys, table = _build(features, axes, numbers, np.floor(low).astype(np.int64))
    near = _neighbors(keys, table, numbers)
    # What a blur of [1 2 1] / 2 adds up to on its way back through the lattice.
    gain = 1 / (1 + 2.0**-d)
    norm = gain * _filtered_ones(points, weights, near) + 1e-20
    weights *= np.sqrt(gain * weight / norm).astype(np.float32)[:, None]
    return Filter(points, weights, near, _filtered_ones(points, weights, near))


def _filtered_ones(points: np.ndarray, weights: np.ndarray, near: np.ndarray) -> np.ndarray:
    """(N,) float32: the filter's answer to ones."""
    width = WIDTHS[0]
    values = np.ones(len(points) * width, np.float32)
    nothing = np.zeros((0, 1, 2), np.int32)
    empty = _room(points[:, :0], weights[:, :0], nothing, width)
    _filter(values, _room(points, weights, near, width), empty, (0,) * width)
    return values[::width].copy()


def _room(points: np.ndarray, weights: np.ndarray, near: np.ndarray, width: int) -> tuple:
    """What `_filter` takes."""
    lattice, spare = (np.zeros(near.shape[1] * width, np.float32) for _ in range(2))
    return np.ascontiguousarray(points), np.ascontiguousarray(weights), near, lattice, spare


# --- mean field -----------------------------------------------------------------------------------


@compiled
def _softmax(
    scores: Array,
    answers: Array,
    ones: Array,
    bounds: Array,
    heard: Array,
    lane: Array,
    first: bool,
    width: int,
    shares: Array,
) -> None:
    """Shares of the labels, each reading's by themselves, in the places of the filters' answers.

    Args:
        scores: (tiles, C, 64), flat: energy of the reading's last label less that of each other.
        answers: (groups, N, V), flat: the filters' answers to the shares.
        ones: (N,), the filters' answers to ones.
        bounds: (R + 1,) the readings' channels.
        heard: (C,) bool: whether a channel's answer is a message to it.
        lane: (C,) where a channel begins in `answers`.
        first: whether there are no answers yet.
        width: V.
        shares: (C, 16), flat: room.
    """
    zero = fill(_PIXELS, np.float32(0))
    for pixel in range(0, len(ones), LANES):
        start = pixel // TILE * len(lane) * TILE + pixel % TILE
        place = pixel * width
        for reading in range(len(bounds) - 1):
            channels = range(bounds[reading], bounds[reading + 1])
            # The last label's message is that to ones less all others'.
            last = zero
            if not first:
                last = subtract(zero, load(_PIXELS, ones, pixel))
                for c in channels:
                    message = load_every(_PIXELS, answers, lane[c] + place, width)
                    store(message, shares, c * LANES)
                    last = add(last, message)
            top = zero
            for c in channels:
                score = add(load(_PIXELS, scores, start + c * TILE), last)
                if not first and heard[c]:
                    score = add(score, load(_PIXELS, shares, c * LANES))
                store(score, shares, c * LANES)
                top = larger(top, score)
            total = exponential(subtract(zero, top))
            for c in channels:
                value = exponential(subtract(load(_PIXELS, shares, c * LANES), top))
                store(value, shares, c * LANES)
                total = add(total, value)
            for c in channels:
                share = divide(load(_PIXELS, shares, c * LANES), total)
                store_every(share, answers, lane[c] + place, width)


@compiled
def _mean_field(
    scores: Array,
    ones: Array,
    bounds: Array,
    heard: Array,
    lane: Array,
    state: Array,
    iterations: int,
    one: tuple,
    two: tuple,
    lanes: tuple,
) -> None:
    """Marginals in the places of channels.

    Args:
        scores, ones, bounds, heard, lane: as in `_softmax`.
        state: (groups, N * V): the marginals, in the end.
        iterations: how many.
        one, two, lanes: as in `_filter`.
    """
    shares = np.empty(len(lane) * LANES, np.float32)
    flat = state.reshape(-1)
    _softmax(scores, flat, ones, bounds, heard, lane, True, len(lanes), shares)
    for _ in range(iterations):
        for group in range(len(state)):
            _filter(state[group], one, two, lanes)
        _softmax(scores, flat, ones, bounds, heard, lane, False, len(lanes), shares)


def mean_field(
    filters: tuple[Filter, Filter],
    scores: Sequence[np.ndarray],
    quiet: Sequence[bool],
    iterations: int,
) -> list[np.ndarray]:
    """Mean field with Potts compatibility, for several readings of an image at once.

    A reading's last label has no channel: as the shares sum to 1, so do the filters' answers to
    what they answer to ones.

    Args:
        filters: both pairwise terms.
        scores: (C, H, W) float32 for each reading: unary energy of its last label less that of
            each other label.
        quiet: for each reading, whether its last channel takes part in the softmax but gets no
            message.
        iterations: how many.

    Returns:
        (C, H, W) float32 marginals for each reading.
    """
    bounds = np.cumsum([0, *map(len, scores)])
    channels = bounds[-1]
    heard = np.ones(channels, dtype=bool)
    heard[[end - 1 for end, still in zip(bounds[1:], quiet, strict=True) if still]] = False
    width = next((w for w in WIDTHS if w >= channels), WIDTHS[-1])
    one, two = (_room(f.points, f.weights, f.near, width) for f in filters)
    ones = filters[0].ones + filters[1].ones
    state = np.zeros((-(-channels // width), len(ones) * width), np.float32)
    number = np.arange(channels)
    lane = number // width * state.shape[1] + number % width
    tiles = _to_tiles(scores)
    lanes = (0,) * width
    _mean_field(tiles.reshape(-1), ones, bounds, heard, lane, state, iterations, one, two, lanes)
    height, length = scores[0].shape[1:]
    pixels = state.reshape(len(state), *tiles.shape[:2], SIDE, SIDE, width)
    pixels = pixels.transpose(0, 5, 1, 3, 2, 4).reshape(
        -1, tiles.shape[0] * SIDE, tiles.shape[1] * SIDE
    )
    pixels = pixels[:, :height, :length]
    return [pixels[a:b] for a, b in pairwise(bounds)]


def _to_tiles(maps: Sequence[np.ndarray]) -> np.ndarray:
    """(rows, columns, C, 8, 8) of maps (C, H, W), with zeros beyond."""
    height, width = maps[0].shape[1:]
    rows, columns = -(-height // SIDE), -(-width // SIDE)
    whole = np.zeros((sum(map(len, maps)), rows * SIDE, columns * SIDE), np.float32)
    np.concatenate(maps, out=whole[:, :height, :width])
    tiles = whole.reshape(-1, rows, SIDE, columns, SIDE).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(tiles)
