"""Grad-CAM and CAA against loops, per-class autograd and closed forms."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsss.hosts.clip_es.functional import (
    box_mask,
    class_probabilities,
    gradient_maps,
    min_max,
    refine_by_attention,
    resize_positions,
    transition,
)


def bilinear(square: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize (g, g, C) with centers of cells on centers of cells, cell by cell."""
    side = square.shape[0]
    out = np.zeros((*size, square.shape[2]))
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * side / size[0] - 0.5, 0), side - 1)
            x = min(max((j + 0.5) * side / size[1] - 0.5, 0), side - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, side - 1), min(left + 1, side - 1)
            b, a = y - top, x - left
            upper = (1 - a) * square[top, left] + a * square[top, right]
            lower = (1 - a) * square[bottom, left] + a * square[bottom, right]
            out[i, j] = (1 - b) * upper + b * lower
    return out


@pytest.mark.parametrize("grid", [(3, 7), (4, 4), (5, 2), (1, 1)])
def test_position_table_is_resized_but_for_the_class_token(grid: tuple[int, int]) -> None:
    table = torch.randn(1 + 16, 6)
    found = resize_positions(table, grid)
    assert found.dtype == table.dtype and found.shape == (1 + grid[0] * grid[1], 6)
    wanted = bilinear(table[1:].numpy().reshape(4, 4, 6).astype(float), grid).reshape(-1, 6)
    assert np.abs(found[1:].numpy() - wanted).max() < 2e-3  # half precision
    assert torch.equal(found, found.half().float())
    assert torch.equal(found[0], table[0].half().float())


def test_softmax_runs_over_present_classes_and_all_background_words() -> None:
    embedding, texts = torch.randn(2, 5), nn.functional.normalize(torch.randn(7, 5), dim=1)
    label = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0]])
    found = class_probabilities(embedding, texts, 20.0, label, background=3)
    for image in range(2):
        kept = [n for n in range(4) if label[image, n]] + [4, 5, 6]
        vector = embedding[image] / embedding[image].norm()
        powers = {t: math.exp(20.0 * float(vector @ texts[t])) for t in kept}
        for t in range(7):
            wanted = powers[t] / sum(powers.values()) if t in kept else 0.0
            assert float(found[image, t]) == pytest.approx(wanted, abs=1e-5)


class Toy(nn.Module):
    """Scores of images from their tokens, by a layer of attention."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed, _ = self.attention(tokens, tokens, tokens)
        return self.head(torch.tanh(mixed[:, 1:]).mean(dim=1)).softmax(dim=1)


def test_grad_cam_equals_one_backward_pass_per_class() -> None:
    torch.manual_seed(0)
    net, width = Toy(8, 6), 8
    tokens = torch.randn(3, 1 + 10, width, requires_grad=True)
    label = torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    found = gradient_maps(net(tokens), tokens, label)
    assert found.shape == (3, 4, 10)
    for image in range(3):
        for n in range(4):
            wanted = torch.zeros(10)
            if label[image, n]:
                alone = tokens[image : image + 1].detach().requires_grad_()
                (gradient,) = torch.autograd.grad(net(alone)[0, n], alone)
                alone = alone.detach()
                weights = [float(gradient[0, 1:, c].sum()) / 10 for c in range(width)]
                for p in range(10):
                    value = sum(w * float(alone[0, 1 + p, c]) for c, w in enumerate(weights))
                    wanted[p] = max(value, 0.0)
            assert torch.allclose(found[image, n], wanted, atol=1e-6), (image, n)
    assert float(found[0].abs().sum()) > 0


def test_grad_cam_without_any_class_is_zero() -> None:
    tokens = torch.randn(2, 5, 8, requires_grad=True)
    found = gradient_maps(Toy(8, 6)(tokens), tokens, torch.zeros(2, 4))
    assert found.shape == (2, 4, 4) and not found.any()


def test_grad_cam_in_half_precision_is_near_that_in_float32() -> None:
    torch.manual_seed(1)
    net = Toy(8, 6)
    tokens = torch.randn(2, 10, 8)
    label = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    half, low = copy.deepcopy(net).bfloat16(), tokens.bfloat16().requires_grad_()
    tokens.requires_grad_()
    exact = gradient_maps(net(tokens), tokens, label)
    rough = gradient_maps(half(low), low, label).float()
    assert torch.allclose(rough, exact, atol=0.05 * float(exact.max()))


def test_min_max() -> None:
    maps = torch.tensor([[[1.0, 3], [2, 5]], [[2, 2], [2, 2]]])
    found = min_max(maps)
    assert torch.allclose(found[0], torch.tensor([[0.0, 0.5], [0.25, 1.0]]), atol=1e-6)
    assert not found[1].any()
    assert min_max(torch.zeros(0, 3, 4)).shape == (0, 3, 4)


def slow_transition(attention: np.ndarray) -> np.ndarray:
    size = len(attention)
    t = attention.astype(float).copy()
    for _ in range(3):
        for j in range(size):
            total = sum(t[i, j] for i in range(size))
            for i in range(size):
                t[i, j] /= total
        for i in range(size):
            total = sum(t[i, j] for j in range(size))
            for j in range(size):
                t[i, j] /= total
    half = np.zeros_like(t)
    for i in range(size):
        for j in range(size):
            half[i, j] = (t[i, j] + t[j, i]) / 2
    return np.array([[sum(half[i] * half[:, j]) for j in range(size)] for i in range(size)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_transition_matrix(dtype: torch.dtype) -> None:
    attention = torch.rand(12, 12).softmax(dim=1).to(dtype)
    found = transition(attention)
    assert found.dtype == torch.float32
    assert np.allclose(found.numpy(), slow_transition(attention.float().numpy()), atol=1e-6)


def slow_boxes(cam: np.ndarray, threshold: float) -> np.ndarray:
    """Flood fill over 8 neighbors, then a box for each part."""
    height, width = cam.shape
    steps = [[int(255 * cam[y, x]) for x in range(width)] for y in range(height)]
    limit = int(threshold * max(max(row) for row in steps))
    todo = {(y, x) for y in range(height) for x in range(width) if steps[y][x] > limit}
    mask = np.zeros((height, width), dtype=bool)
    while todo:
        part, edge = set(), [todo.pop()]
        while edge:
            y, x = edge.pop()
            part.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & todo
            todo -= near
            edge += near
        ys, xs = [y for y, _ in part], [x for _, x in part]
        for y in range(min(ys), min(max(ys) + 1, height - 1)):
            for x in range(min(xs), min(max(xs) + 1, width - 1)):
                mask[y, x] = True
    return mask


@pytest.mark.parametrize("size", [(9, 12), (1, 7), (5, 1), (16, 11)])
@pytest.mark.parametrize("threshold", [0.4, 0.7])
def test_boxes(size: tuple[int, int], threshold: float) -> None:
    rng = np.random.default_rng(0)
    for power in (1, 4, 12):
        cam = (rng.random(size) ** power).astype(np.float32)
        assert np.array_equal(box_mask(cam, threshold), slow_boxes(cam, threshold))


def test_boxes_of_known_maps() -> None:
    cam = np.zeros((5, 6), dtype=np.float32)
    assert not box_mask(cam, 0.4).any()
    cam[1, 1] = cam[2, 2] = 1  # touch by a corner: one box
    mask = box_mask(cam, 0.4)
    assert mask.sum() == 4 and mask[1:3, 1:3].all()
    cam[:] = 0
    cam[4, 5] = 1  # nothing but the corner that no box takes in
    assert not box_mask(cam, 0.4).any()


def test_refinement_sums_over_sources_inside_the_boxes() -> None:
    torch.manual_seed(0)
    height, width = 4, 5
    maps = min_max(torch.rand(3, height, width) ** 3)
    maps[1] = 0
    maps[2] = 0
    maps[2, -1, -1] = 1
    attention = torch.rand(20, 20)
    found = refine_by_attention(maps, attention, 0.4)
    matrix = slow_transition(attention.numpy())
    mask = slow_boxes(maps[0].numpy(), 0.4).reshape(-1)
    source = maps[0].numpy().reshape(-1)
    raw = np.array([sum(matrix[i, j] * mask[j] * source[j] for j in range(20)) for i in range(20)])
    wanted = (raw - raw.min()) / (raw.max() - raw.min())
    assert np.allclose(found[0].numpy().reshape(-1), wanted, atol=1e-4)
    assert (found[0].numpy().reshape(-1)[~mask] > 0).any(), "targets may lie outside"
    assert not found[1:].any(), "without a box there is nothing to carry"
    assert refine_by_attention(maps[:0], attention, 0.4).shape == (0, height, width)
