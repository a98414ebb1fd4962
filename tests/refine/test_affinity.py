"""Affinity labels, path maxima and the four loss terms against loops over single pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from wsss.data.transforms import resize_labels
from wsss.refine.affinity import affinity_labels, affinity_loss, displacement_loss, path_maximum
from wsss.refine.paths import PathIndex, path_index


def every_pair(index: PathIndex, size: tuple[int, int]):
    """Yields (d, row, column, source cell, destination cell, cells of the path) one by one."""
    margin = index.radius - 1
    for d, (dy, dx) in enumerate(index.directions):
        for row in range(size[0] - margin):
            for column in range(size[1] - 2 * margin):
                i, j = row, column + margin
                cells = [(i + y, j + x) for y, x in index.paths[d]]
                yield d, row, column, (i, j), (i + dy, j + dx), cells


def random_labels(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.choice([0, 0, 1, 2, 2, 79, 255], size=shape).astype(np.uint8))


@pytest.mark.parametrize("radius", [2, 3, 5])
def test_labels_agree_with_a_loop_over_pairs(radius: int) -> None:
    labels, index = random_labels((2, 8, 11)), path_index(radius)
    found = affinity_labels(labels, index)
    seen = torch.zeros_like(found.background)
    for b in range(2):
        for d, row, column, source, destination, _ in every_pair(index, (8, 11)):
            one, two = int(labels[b][source]), int(labels[b][destination])
            known = one != 255 and two != 255
            assert found.background[b, d, row, column] == (known and one == two == 0)
            assert found.foreground[b, d, row, column] == (known and one == two and one > 0)
            assert found.negative[b, d, row, column] == (known and one != two)
            seen[b, d, row, column] = True
    assert seen.all()


def test_labels_work_on_any_integer_type_and_many_classes() -> None:
    labels, index = random_labels((1, 8, 9)), path_index(3)
    for dtype in (torch.int16, torch.int64):
        for one, two in zip(
            affinity_labels(labels, index), affinity_labels(labels.to(dtype), index), strict=True
        ):
            assert torch.equal(one, two)


@pytest.mark.parametrize("radius", [2, 3, 5])
def test_path_maximum_agrees_with_a_loop_over_pairs(radius: int) -> None:
    index = path_index(radius)
    edge = torch.rand(2, 7, 12, generator=torch.Generator().manual_seed(radius))
    found = path_maximum(edge, index)
    assert found.shape == (2, len(index.directions), 8 - radius, 14 - 2 * radius)
    for d, row, column, _, _, cells in every_pair(index, (7, 12)):
        for b in range(2):
            assert found[b, d, row, column] == max(edge[b][cell] for cell in cells)


def test_path_maximum_has_the_right_gradient() -> None:
    edge = torch.rand(2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    edge.requires_grad_()
    assert torch.autograd.gradcheck(lambda e: path_maximum(e, path_index(3)), (edge,))


def test_path_maximum_sends_each_gradient_to_the_strongest_cell() -> None:
    index = path_index(3)
    edge = torch.rand(1, 6, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weight = torch.rand(1, len(index.directions), 4, 4, generator=torch.Generator().manual_seed(2))
    (path_maximum(edge, index) * weight).sum().backward()
    expected = torch.zeros(6, 8)
    for d, row, column, _, _, cells in every_pair(index, (6, 8)):
        expected[max(cells, key=lambda cell: edge[0][cell].item())] += weight[0, d, row, column]
    assert torch.allclose(edge.grad[0], expected, atol=1e-6)


def slow_losses(edge: Tensor, displacement: Tensor, labels: Tensor, index: PathIndex):
    attract: dict[str, list[float]] = {"bg": [], "fg": []}
    repel: list[float] = []
    shift: dict[str, list[float]] = {"bg": [], "fg": []}
    for b in range(len(labels)):
        for d, _, _, source, destination, cells in every_pair(index, tuple(labels.shape[1:])):
            one, two = int(labels[b][source]), int(labels[b][destination])
            if one == 255 or two == 255:
                continue
            affinity = 1 - max(1 / (1 + math.exp(-float(edge[b][cell]))) for cell in cells)
            if one != two:
                repel.append(-math.log(1 + 1e-5 - affinity))
                continue
            kind = "bg" if one == 0 else "fg"
            attract[kind].append(-math.log(affinity + 1e-5))
            for axis in (0, 1):
                difference = float(
                    displacement[b, axis][source] - displacement[b, axis][destination]
                )
                target = 0 if kind == "bg" else index.directions[d][axis]
                shift[kind].append(abs(difference - target))
    return {
        "positive": (np.mean(attract["bg"]) + np.mean(attract["fg"])) / 2,
        "negative": np.mean(repel),
        "foreground": np.mean(shift["fg"]),
        "background": np.mean(shift["bg"]),
    }


@pytest.mark.parametrize("radius", [2, 4])
def test_losses_agree_with_a_loop_over_pairs(radius: int) -> None:
    generator = torch.Generator().manual_seed(radius)
    edge = 3 * torch.randn(2, 9, 10, generator=generator)
    displacement = 2 * torch.randn(2, 2, 9, 10, generator=generator)
    labels, index = random_labels((2, 9, 10), seed=radius), path_index(radius)
    pairs = affinity_labels(labels, index)
    found = affinity_loss(edge, pairs, index) | displacement_loss(displacement, pairs, index)
    expected = slow_losses(edge, displacement, labels, index)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert float(found[key]) == pytest.approx(value, rel=1e-4), key


def test_a_perfect_answer_costs_nothing() -> None:
    """Two regions with an edge line between them; a field that points at each one's center."""
    labels = torch.zeros(1, 12, 20, dtype=torch.int64)
    labels[:, :, 9] = 255
    labels[:, :, 10:] = 3
    edge = torch.full((1, 12, 20), -30.0)
    edge[:, :, 9] = 30.0
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(20.0), indexing="ij")
    field = torch.stack([6 - rows, 15 - columns])[None] * (labels != 0)[:, None]
    index = path_index(4)
    pairs = affinity_labels(labels, index)
    assert pairs.background.any() and pairs.foreground.any() and pairs.negative.any()
    for value in affinity_loss(edge, pairs, index).values():
        assert float(value) == pytest.approx(0, abs=2e-5)
    assert float(displacement_loss(field, pairs, index)["background"]) == pytest.approx(0, abs=1e-6)
    # The difference source - destination of a field that points at a centroid is the direction.
    assert float(displacement_loss(field, pairs, index)["foreground"]) == pytest.approx(0, abs=1e-5)


def test_all_unsure_gives_zero_loss_and_no_nan() -> None:
    labels, index = torch.full((2, 8, 8), 255), path_index(3)
    pairs = affinity_labels(labels, index)
    edge = torch.randn(2, 8, 8, requires_grad=True)
    field = torch.randn(2, 2, 8, 8, requires_grad=True)
    losses = affinity_loss(edge, pairs, index) | displacement_loss(field, pairs, index)
    assert all(value.item() == 0 for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert edge.grad is not None and torch.isfinite(edge.grad).all()


def test_extreme_edges_keep_finite_gradients() -> None:
    labels, index = random_labels((1, 8, 9)), path_index(3)
    pairs = affinity_labels(labels, index)
    for value in (-200.0, 200.0):
        edge = torch.full((1, 8, 9), value, requires_grad=True)
        loss = affinity_loss(edge, pairs, index)
        (loss["positive"] + loss["negative"]).backward()
        assert edge.grad is not None and torch.isfinite(edge.grad).all()


@pytest.mark.parametrize("size", [(512, 512), (320, 256), (64, 100)])
def test_resized_labels_are_pillows_nearest(size: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 255, size=size, dtype=np.uint8)
    grid = (size[0] // 4, size[1] // 4)
    expected = Image.fromarray(labels).resize(grid[::-1], Image.Resampling.NEAREST)
    found = resize_labels(torch.from_numpy(labels)[None], grid)[0]
    assert np.array_equal(found.numpy(), np.asarray(expected))
    assert np.array_equal(found.numpy(), labels[2::4, 2::4])


@pytest.mark.parametrize("size", [(7, 13), (80, 55), (33, 60)])
def test_resizing_labels_to_any_size_is_pillows_nearest(size: tuple[int, int]) -> None:
    labels = np.random.default_rng(1).integers(0, 255, size=(40, 31), dtype=np.uint8)
    expected = Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST)
    assert np.array_equal(resize_labels(torch.from_numpy(labels), size), np.asarray(expected))
