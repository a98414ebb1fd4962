"""Losses against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from wsss.segmentation.losses import (
    LOSSES,
    balanced_cross_entropy,
    cross_entropy,
    dsrg_cross_entropy,
    losses_of,
)


def example(seed: int = 0, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, 4, 5, 6, generator=generator)
    target = torch.randint(0, 4, (3, 5, 6), generator=generator)
    target[torch.rand(3, 5, 6, generator=generator) < ignored] = 255
    return logits, target


def probability(logits: Tensor, image: int, row: int, column: int) -> list[float]:
    values = [math.exp(v) for v in logits[image, :, row, column].tolist()]
    return [v / sum(values) for v in values]


def by_loops(logits: Tensor, target: Tensor, form: str) -> float:
    every: list[float] = []
    batch: dict[bool, list[float]] = {True: [], False: []}
    images = []
    for image in range(len(logits)):
        own: dict[bool, list[float]] = {True: [], False: []}
        for row in range(logits.shape[2]):
            for column in range(logits.shape[3]):
                label = int(target[image, row, column])
                if label == 255:
                    continue
                p = probability(logits, image, row, column)
                if form == "balanced_dsrg":
                    p = [v + 1e-4 for v in p]
                    p = [v / sum(p) for v in p]
                loss = -math.log(p[label])
                every.append(loss)
                batch[label == 0].append(loss)
                own[label == 0].append(loss)
        images.append(sum(sum(part) / max(len(part), 1e-4) for part in own.values()))
    if form == "ce":
        return sum(every) / len(every)
    if form == "balanced":
        return sum(sum(part) / len(part) for part in batch.values() if part) / 2
    return sum(images) / len(images)


@pytest.mark.parametrize("form", list(LOSSES))
@pytest.mark.parametrize("case", ["mixed", "no_background", "no_foreground", "one_image_bare"])
def test_losses_are_those_of_plain_loops(form: str, case: str) -> None:
    logits, target = example()
    if case == "no_background":
        target[target == 0] = 255
    elif case == "no_foreground":
        target[target != 255] = 0
    elif case == "one_image_bare":
        target[1] = 255
    assert LOSSES[form](logits, target).item() == pytest.approx(
        by_loops(logits, target, form), rel=1e-5
    )


@pytest.mark.parametrize("form", list(LOSSES))
def test_where_all_is_ignored_the_loss_is_0_with_a_graph(form: str) -> None:
    logits, target = example()
    logits.requires_grad_()
    loss = LOSSES[form](logits, torch.full_like(target, 255))
    assert loss.item() == 0
    loss.backward()
    assert not logits.grad.any() and logits.grad.isfinite().all()


@pytest.mark.parametrize("form", list(LOSSES))
def test_ignored_pixels_have_no_gradient_and_all_others_have(form: str) -> None:
    logits, target = example()
    logits.requires_grad_()
    LOSSES[form](logits, target).backward()
    touched = logits.grad.abs().sum(dim=1) > 0
    assert torch.equal(touched, target != 255)


def test_plain_and_balanced_weights_of_pixels() -> None:
    logits = torch.zeros(1, 2, 1, 5, requires_grad=True)
    target = torch.tensor([[[0, 0, 0, 1, 255]]])
    for loss, expected in (
        (cross_entropy, [1 / 4, 1 / 4, 1 / 4, 1 / 4, 0]),
        (balanced_cross_entropy, [1 / 6, 1 / 6, 1 / 6, 1 / 2, 0]),
        (dsrg_cross_entropy, [1 / 3, 1 / 3, 1 / 3, 1, 0]),
    ):
        (gradient,) = torch.autograd.grad(loss(logits, target), logits)
        weights = 2 * gradient[0, 0, 0].abs()  # |dp| = 1/2 at even odds
        torch.testing.assert_close(weights, torch.tensor(expected), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("form", list(LOSSES))
def test_hopeless_logits_give_finite_losses_and_gradients(form: str) -> None:
    logits = torch.tensor([[[[1e4, 0.0]], [[-1e4, 0.0]]]], dtype=torch.float32).requires_grad_()
    loss = LOSSES[form](logits, torch.tensor([[[1, 0]]]))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()
    if form == "balanced_dsrg":
        assert loss < -math.log(1e-4 / (1 + 2e-4)) + 1


def test_losses_in_half_precision_are_computed_in_float32() -> None:
    logits, target = example()
    logits = logits.bfloat16()
    for form, loss in LOSSES.items():
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(logits, target)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(by_loops(logits.float(), target, form), rel=1e-5)


def test_labels_shrink_to_each_outputs_size_as_pillows_nearest_neighbor() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, (2, 321, 321)).astype(np.uint8)
    seen = []

    def spy(logits: Tensor, target: Tensor) -> Tensor:
        seen.append(target)
        return logits.sum()

    sizes = ((41, 41), (21, 21), (31, 31), (41, 37))
    losses_of([torch.zeros(2, 4, *size) for size in sizes], torch.from_numpy(labels).long(), spy)
    for (height, width), got in zip(sizes, seen, strict=True):
        for index, image in enumerate(labels):
            small = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
            assert got.dtype == torch.int64
            np.testing.assert_array_equal(got[index], np.array(small))
            for row in range(0, height, 7):  # and by the rule: floor((i + 1/2) * old / new)
                for column in range(0, width, 5):
                    y, x = (
                        (2 * row + 1) * 321 // (2 * height),
                        (2 * column + 1) * 321 // (2 * width),
                    )
                    assert got[index, row, column] == image[y, x]
