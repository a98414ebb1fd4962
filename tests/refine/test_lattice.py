"""The compiled lattice and mean field against a slow one of dictionaries, in double precision."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from wsss.errors import WsssError
from wsss.refine import lattice
from wsss.refine.lattice import build_filter, mean_field


def corners_of(point: np.ndarray) -> dict[tuple[int, ...], float]:
    """Lattice points around a point of d features, with its barycentric coordinates."""
    d = len(point)
    scaled = [
        x * math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2)) for i, x in enumerate(point)
    ]
    spread = np.array([sum(scaled[i:]) - (i * scaled[i - 1] if i else 0) for i in range(d + 1)])
    start = np.rint(spread / (d + 1)).astype(int) * (d + 1)
    while start.sum():  # step by step towards the plane where coordinates sum to 0
        sign = int(np.sign(start.sum()))
        start[(sign * (spread - start)).argmin()] -= sign * (d + 1)
    rest = spread - start
    order = np.argsort(-rest)
    levels = rest[order] / (d + 1)
    corners = {}
    for r in range(d + 1):
        corner = start + r
        corner[order[d + 1 - r :]] -= d + 1
        weight = 1 - (levels[0] - levels[d]) if r == 0 else levels[d - r] - levels[d - r + 1]
        corners[tuple(corner.tolist())] = weight
    return corners


def slow_filter(features: np.ndarray, weight: float) -> np.ndarray:
    """The filter as a matrix (n, n)."""
    d, n = len(features), features[0].size
    splat: dict[tuple[int, ...], np.ndarray] = {}
    for pixel, point in enumerate(features.reshape(d, n).T.astype(float)):
        for corner, share in corners_of(point).items():
            splat.setdefault(corner, np.zeros(n))[pixel] = share
    values = splat
    for axis in range(d + 1):
        step = np.ones(d + 1, dtype=int)
        step[axis] = -d
        none = np.zeros(n)
        values = {
            corner: value
            + sum(values.get(tuple((corner + s * step).tolist()), none) for s in (1, -1)) / 2
            for corner, value in values.items()
        }
    matrix = sum(np.outer(splat[c], values[c]) for c in splat) / (1 + 2.0**-d)
    norm = 1 / np.sqrt(matrix.sum(1))
    return weight * norm[:, None] * matrix * norm[None, :]


def slow_mean_field(kernel: np.ndarray, unary: np.ndarray, quiet: int, steps: int) -> np.ndarray:
    """Marginals (L, n); the last `quiet` labels get no messages."""
    score = -unary
    for step in range(steps + 1):
        q = np.exp(score - score.max(0))
        q /= q.sum(0)
        if step < steps:
            message = q @ kernel.T  # not quite symmetric where neighbors are missing
            message[len(q) - quiet :] = 0
            score = message - unary
    return q


def scene(d: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Features: positions, then smooth noise."""
    rng = np.random.default_rng(seed)
    # Nothing exactly on the border of two simplices, where rounding decides.
    places = np.mgrid[:height, :width] / 3.7 + 0.123
    more = np.cumsum(rng.normal(0, 0.3, (d - 2, height, width)), axis=2)
    return np.concatenate([places, more]).astype(np.float32)


@pytest.mark.parametrize(("d", "size"), [(2, (13, 21)), (5, (9, 17)), (3, (8, 8)), (5, (1, 3))])
def test_ones_and_mean_field_agree_with_the_slow_form(d: int, size: tuple[int, int]) -> None:
    features = scene(d, *size)
    first, second = build_filter(features, 4.0), build_filter(features[:2], 1.5)
    kernels = slow_filter(features, 4.0), slow_filter(features[:2], 1.5)
    kernel = kernels[0] + kernels[1]
    rng = np.random.default_rng(1)
    # Three readings in one pass: 3 + 1 + 6 channels, more than one vector holds.
    unaries = [rng.random((count, *size)).astype(np.float32) * 4 for count in (4, 2, 7)]
    scores = [u[-1] - u[:-1] for u in unaries]
    found = mean_field((first, second), scores, [False] * 3, 4)
    for unary, marginals in zip(unaries, found, strict=True):
        expected = slow_mean_field(kernel, unary.reshape(len(unary), -1), 0, 4)
        assert marginals.shape == unary[:-1].shape
        np.testing.assert_allclose(marginals.reshape(len(marginals), -1), expected[:-1], atol=2e-5)
        # Far from what it starts with.
        start = slow_mean_field(kernel, unary.reshape(len(unary), -1), 0, 0)
        assert size == (1, 3) or np.abs(start - expected).max() > 0.1


def test_a_quiet_label_takes_part_in_the_softmax_alone() -> None:
    features = scene(3, 9, 11)
    filters = build_filter(features, 3.0), build_filter(features[:2], 1.0)
    kernel = slow_filter(features, 3.0) + slow_filter(features[:2], 1.0)
    unary = np.random.default_rng(2).random((4, 9, 11)).astype(np.float32) * 3
    # Order of the slow form: the quiet label last; of the fast one: the label without channel.
    scores = np.stack([unary[2] - unary[0], unary[2] - unary[1], unary[2] - unary[3]])
    found = mean_field(filters, [scores], [True], 3)[0].reshape(3, -1)
    expected = slow_mean_field(kernel, unary.reshape(4, -1), 1, 3)
    np.testing.assert_allclose(found, expected[[0, 1, 3]], atol=2e-5)


def test_readings_do_not_touch_each_other() -> None:
    """One pass gives each what it gets alone, whatever the width of the vectors."""
    features = scene(5, 19, 26)
    filters = build_filter(features, 5.0), build_filter(features[:2], 2.0)
    rng = np.random.default_rng(3)
    scores = [rng.normal(0, 2, (count, 19, 26)).astype(np.float32) for count in (1, 3, 9)]
    together = mean_field(filters, scores, [False] * 3, 5)
    for one, found in zip(scores, together, strict=True):
        alone = mean_field(filters, [one], [False], 5)[0]
        np.testing.assert_allclose(found, alone, atol=1e-6)


def test_scores_far_apart_neither_overflow_nor_vanish() -> None:
    features = scene(2, 8, 9)
    filters = build_filter(features, 1.0), build_filter(features, 1.0)
    scores = np.zeros((2, 8, 9), np.float32)
    scores[0], scores[1] = 3e4, 3e4 - 1
    found = mean_field(filters, [scores], [False], 2)[0]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-6)
    assert (found[0] > 0.7).all() and (found[1] > 0).all()


def test_neighbors_are_mutual_and_the_filter_is_symmetric() -> None:
    filter_ = build_filter(scene(5, 16, 24), 1.0)
    none = filter_.near.shape[1] - 1
    assert filter_.points.max() == none - 1
    for before, after in filter_.near[:, :-1].transpose(0, 2, 1):
        real = np.flatnonzero(after < none)
        assert real.size and np.array_equal(before[after[real]], real)
        assert (before < none).sum() == real.size


@pytest.mark.parametrize("d", [2, 5])
def test_features_of_any_range(d: int) -> None:
    """The table grows; features may be far from 0 and negative."""
    features = scene(d, 40, 48, seed=4) * 40
    moved = features - np.float32(2**12)
    filter_ = build_filter(features, 1.0)
    assert filter_.near.shape[1] > 2**13 or d == 2
    np.testing.assert_allclose(build_filter(moved, 1.0).ones.mean(), filter_.ones.mean(), rtol=0.02)


def test_too_small_a_deviation_is_refused() -> None:
    with pytest.raises(WsssError, match="too small"):
        build_filter(scene(5, 8, 8) * np.float32(1e6), 1.0)


def test_the_exponential() -> None:
    x = np.concatenate([np.linspace(-87, 0, 5000), [-1e9, -1e-9]]).astype(np.float32)
    x = np.resize(x, (len(x) // 16 + 1) * 16)
    y = np.empty_like(x)

    def each(x, y):  # type: ignore[no-untyped-def]
        for start in range(0, len(x), 16):
            lattice.store(lattice.exponential(lattice.load(lattice._PIXELS, x, start)), y, start)

    lattice.compiled(each)(x, y)
    np.testing.assert_allclose(y, np.exp(x.astype(float)), rtol=6e-6, atol=3e-38)


def test_functions_without_a_folder_for_the_cache_are_compiled_all_the_same() -> None:
    space: dict = {}
    exec("def twice(x):\n    return 2 * x", space)  # no file, so no place beside it
    assert lattice.compiled(space["twice"])(21) == 42


def test_compilation_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    told = lattice._Told()
    foreign = SimpleNamespace(py_func=corners_of)
    told.on_start(SimpleNamespace(data={"dispatcher": foreign}))
    assert capsys.readouterr().out == ""
    for _ in range(2):
        told.on_start(SimpleNamespace(data={"dispatcher": lattice._slot}))
    assert capsys.readouterr().out.count("compiling the dense CRF") == 1
