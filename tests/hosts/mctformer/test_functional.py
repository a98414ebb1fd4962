"""Position vectors, attention, refinement and merging against loops over single numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from wsss.hosts.mctformer.functional import (
    attend_and_add,
    class_to_patch,
    fuse_attention,
    merge_scales,
    refine_by_affinity,
    resize_positions,
    token_logits,
)


def cubic(x: float) -> float:
    """The kernel of bicubic interpolation with a = -0.75."""
    x, a = abs(x), -0.75
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0


def resample(line: np.ndarray, length: int) -> np.ndarray:
    """A line of values at `length` places that lie (side / (length + 0.1)) apart."""
    side, result = len(line), []
    for place in range(length):
        where = (place + 0.5) * side / (length + 0.1) - 0.5
        first = math.floor(where)
        taps = range(first - 1, first + 3)
        result.append(sum(cubic(where - t) * line[min(max(t, 0), side - 1)] for t in taps))
    return np.array(result)


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (7, 4), (4, 4), (5, 5), (11, 9)])
def test_positions_are_resampled_with_a_tenth_of_a_patch_added(grid: tuple[int, int]) -> None:
    side, classes, dim = 4, 3, 2
    table = torch.randn(1, classes + side * side, dim, generator=torch.Generator().manual_seed(1))
    found = resize_positions(table, classes, grid)
    assert torch.equal(found[:, :classes], table[:, :classes])
    for channel in range(dim):
        patches = table[0, classes:, channel].view(side, side).double().numpy()
        rows = np.stack([resample(column, grid[0]) for column in patches.T], axis=1)
        expected = np.stack([resample(row, grid[1]) for row in rows])
        if grid == (side, side):
            expected = patches  # the tenth is not added where nothing is to be done
        got = found[0, classes:, channel].view(grid).numpy()
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_positions_of_an_unchanged_number_of_patches_in_another_shape_are_resampled() -> None:
    table = torch.randn(1, 2 + 16, 3)
    assert resize_positions(table, 2, (2, 8)).shape == table.shape
    assert not torch.allclose(resize_positions(table, 2, (2, 8)), table)


def heads_and_tokens(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 3, 7, 5, generator=generator).to(dtype) for _ in range(3))


def attention_by_loops(query: Tensor, key: Tensor) -> np.ndarray:
    """(B, heads, T, T) softmaxed attention, one pair of tokens at a time."""
    images, heads, count, dim = query.shape
    result = np.zeros((images, heads, count, count))
    for b in range(images):
        for h in range(heads):
            for i in range(count):
                scores = [
                    sum(float(query[b, h, i, d]) * float(key[b, h, j, d]) for d in range(dim))
                    / math.sqrt(dim)
                    for j in range(count)
                ]
                largest = max(scores)
                powers = [math.exp(score - largest) for score in scores]
                result[b, h, i] = [power / sum(powers) for power in powers]
    return result


@pytest.mark.parametrize("classes", [1, 2, 6])
def test_both_parts_of_the_attention_are_means_over_heads(classes: int) -> None:
    query, key, value = heads_and_tokens()
    expected = attention_by_loops(query, key)
    mean = expected.mean(axis=1)
    found = class_to_patch(query, key, classes)
    np.testing.assert_allclose(found.numpy(), mean[:, :classes, classes:], atol=1e-6)
    total = torch.full((2, 7 - classes, 7 - classes), 0.25)
    answer = attend_and_add(query, key, value, classes, total)
    np.testing.assert_allclose(total.numpy() - 0.25, mean[:, classes:, classes:], atol=1e-6)
    np.testing.assert_allclose(answer.numpy(), expected @ value.double().numpy(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_single_precision(dtype: torch.dtype) -> None:
    query, key, value = heads_and_tokens(dtype=dtype)
    mean = attention_by_loops(query, key).mean(axis=1)
    found = class_to_patch(query, key, 2)
    total = torch.zeros(2, 5, 5)
    answer = attend_and_add(query, key, value, 2, total)
    assert found.dtype == total.dtype == torch.float32 and answer.dtype == dtype
    np.testing.assert_allclose(found.numpy(), mean[:, :2, 2:], atol=0.02)
    np.testing.assert_allclose(total.numpy(), mean[:, 2:, 2:], atol=0.02)


def test_the_class_attention_has_a_gradient_and_the_patches_sum_has_none() -> None:
    query, key, value = (x.requires_grad_() for x in heads_and_tokens())
    class_to_patch(query, key, 2)[:, 0, 0].sum().backward()
    assert query.grad is not None and query.grad[:, :, 0].abs().sum() > 0
    total = torch.zeros(2, 5, 5)
    assert attend_and_add(query, key, value, 2, total).requires_grad
    assert not total.requires_grad


def test_logits_are_means_of_tokens() -> None:
    tokens = torch.randn(2, 3, 4)
    for b in range(2):
        for c in range(3):
            expected = sum(float(v) for v in tokens[b, c]) / 4
            assert float(token_logits(tokens)[b, c]) == pytest.approx(expected, abs=1e-6)


def test_fused_and_refined_maps_agree_with_loops() -> None:
    generator = torch.Generator().manual_seed(4)
    attention = torch.rand(2, 3, 2, 4, generator=generator)
    cam = torch.randn(2, 3, 2, 4, generator=generator)
    affinity = torch.rand(2, 8, 8, generator=generator)
    fused = fuse_attention(attention, cam)
    refined = refine_by_affinity(affinity, fused)
    for b in range(2):
        for n in range(3):
            flat = [
                float(attention[b, n, i // 4, i % 4]) * max(float(cam[b, n, i // 4, i % 4]), 0.0)
                for i in range(8)
            ]
            assert fused[b, n].flatten().tolist() == pytest.approx(flat, abs=1e-6)
            for i in range(8):
                expected = sum(float(affinity[b, i, j]) * flat[j] for j in range(8))
                assert float(refined[b, n, i // 4, i % 4]) == pytest.approx(expected, abs=1e-5)


def test_scales_are_summed_and_stretched_from_0_to_1() -> None:
    generator = torch.Generator().manual_seed(5)
    scales = [
        torch.rand(2, 4, 6, generator=generator) + 3,
        torch.rand(2, 2, 3, generator=generator),
    ]
    merged = merge_scales(scales, (4, 6))
    for n in range(2):
        total = np.zeros((4, 6))
        for i in range(4):
            for j in range(6):
                total[i, j] = float(scales[0][n, i, j])
                # a grid of half the size: its cell centers lie at 0.5, 2.5, ... of the fine one
                y, x = (min(max((p + 0.5) / 2 - 0.5, 0), n) for p, n in ((i, 1), (j, 2)))
                for a in (0, 1):
                    for b in (0, 1):
                        row, column = min(int(y) + a, 1), min(int(x) + b, 2)
                        weight = (1 - abs(y - int(y) - a)) * (1 - abs(x - int(x) - b))
                        total[i, j] += weight * float(scales[1][n, row, column])
        expected = (total - total.min()) / (total.max() - total.min() + 1e-8)
        np.testing.assert_allclose(merged[n].numpy(), expected, atol=1e-5)
    assert merged.amin() == 0 and merged.amax() <= 1


def test_merging_takes_empty_maps_and_none_at_all() -> None:
    assert torch.equal(merge_scales([torch.zeros(1, 2, 2)], (5, 3)), torch.zeros(1, 5, 3))
    assert merge_scales([torch.zeros(0, 2, 2), torch.zeros(0, 1, 1)], (5, 3)).shape == (0, 5, 3)
