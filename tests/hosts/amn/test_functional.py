"""AMN's loss and maps against loops over pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from wsss.hosts.amn.functional import (
    balanced_loss,
    conditional_min_max,
    fuse_logits,
    smoothed_cross_entropy,
)


def nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest neighbor by the centers of the cells."""
    result = np.zeros(size, labels.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            y = math.floor((i + 0.5) * labels.shape[0] / size[0])
            x = math.floor((j + 0.5) * labels.shape[1] / size[1])
            result[i, j] = labels[y, x]
    return result


def pixel_loss(logits: np.ndarray, label: int, smoothing: float) -> float:
    count = len(logits)
    total = sum(math.exp(x) for x in logits)
    result = 0.0
    for c in range(count):
        wanted = 1 - smoothing if c == label else smoothing / (count - 1)
        result -= wanted * math.log(math.exp(logits[c]) / total)
    return result


def slow_loss(logits: Tensor, target: Tensor, smoothing: float) -> float:
    background, foreground = [], []
    for image, labels in zip(logits.double().numpy(), target.numpy(), strict=True):
        small = nearest(labels, image.shape[1:])
        for i, j in np.ndindex(small.shape):
            if small[i, j] == 255:
                continue
            part = background if small[i, j] == 0 else foreground
            part.append(pixel_loss(image[:, i, j], int(small[i, j]), smoothing))
    return sum(sum(part) / len(part) if part else 0.0 for part in (background, foreground)) / 2


def random_labels(shape: tuple[int, ...], ids: list[int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(ids)[torch.randint(len(ids), shape, generator=generator)]


@pytest.mark.parametrize("ids", [[0, 2, 3, 255], [0], [0, 255], [1, 3], [2, 255]])
@pytest.mark.parametrize("smoothing", [0.4, 0.0])
def test_the_loss_is_that_of_loops_with_and_without_each_kind_of_pixel(
    ids: list[int], smoothing: float
) -> None:
    logits = (3 * torch.randn(2, 4, 5, 3)).requires_grad_()
    target = random_labels((2, 37, 50), ids)
    loss = balanced_loss(logits, target, smoothing)
    expected = slow_loss(logits.detach(), target, smoothing)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


def test_where_nothing_is_sure_the_loss_is_0_and_its_gradient_too() -> None:
    logits = torch.randn(2, 4, 5, 3, requires_grad=True)
    loss = balanced_loss(logits, torch.full((2, 20, 12), 255), 0.4)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_both_means_are_over_the_batch_not_over_images() -> None:
    logits = torch.zeros(2, 3, 1, 4)
    logits[0, 1] = 2.0
    target = torch.tensor([[[1, 255, 255, 255]], [[2, 2, 2, 0]]])
    per_pixel = smoothed_cross_entropy(logits, target, 0.4)
    foreground = (per_pixel[0, 0, 0] + per_pixel[1, 0, :3].sum()) / 4
    expected = (foreground + per_pixel[1, 0, 3]) / 2
    torch.testing.assert_close(balanced_loss(logits, target, 0.4), expected)


def test_with_the_published_smoothing_a_label_is_worth_0_6_and_another_class_0_02() -> None:
    # The loss is linear in the log-probabilities; its weights are the targets.
    logits = torch.randn(1, 21, 1, 1)
    target = torch.tensor([[[7]]])
    weights = torch.full((21,), 0.02)
    weights[7] = 0.6
    expected = -(weights * logits[0, :, 0, 0].log_softmax(0)).sum()
    torch.testing.assert_close(smoothed_cross_entropy(logits, target, 0.4)[0, 0, 0], expected)


def test_the_loss_is_least_where_the_network_is_as_sure_as_the_smoothing() -> None:
    best = torch.tensor([0.2, 0.6, 0.2]).log().view(1, 3, 1, 1).requires_grad_()
    smoothed_cross_entropy(best, torch.tensor([[[1]]]), 0.4).sum().backward()
    torch.testing.assert_close(best.grad, torch.zeros_like(best), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_costs_no_more_than_the_rounding_of_the_logits(dtype: torch.dtype) -> None:
    logits = 40 * torch.randn(2, 4, 5, 3)  # softmax of such logits underflows in float16
    target = random_labels((2, 5, 3), [0, 1, 2, 3, 255])
    found = balanced_loss(logits.to(dtype), target, 0.4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, balanced_loss(logits.to(dtype).float(), target, 0.4))
    fused = fuse_logits(list(logits.to(dtype)), (9, 7))
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused, fuse_logits(list(logits.to(dtype).float()), (9, 7)))


def enlarged(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, pixel centers at (i + 1/2), the border repeated."""
    result = np.zeros((len(image), *size))
    height, width = image.shape[1:]
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * height / size[0] - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / size[1] - 0.5, 0), width - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            top = image[:, y0, x0] * (1 - x + x0) + image[:, y0, x1] * (x - x0)
            bottom = image[:, y1, x0] * (1 - x + x0) + image[:, y1, x1] * (x - x0)
            result[:, i, j] = top * (1 - y + y0) + bottom * (y - y0)
    return result


def test_scales_are_averaged_as_logits_before_the_softmax() -> None:
    scales = [4 * torch.randn(3, 4, 5), 4 * torch.randn(3, 2, 3), 4 * torch.randn(3, 7, 9)]
    size = (11, 13)
    mean = sum(enlarged(x.double().numpy(), size) for x in scales) / 3
    expected = np.exp(mean) / np.exp(mean).sum(0)
    found = fuse_logits(scales, size)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_maps_are_stretched_but_where_the_label_says_background() -> None:
    maps = torch.rand(2, 5, 7) * torch.tensor([0.5, 0.01]).view(2, 1, 1) + 0.1
    target = random_labels((23, 31), [0, 4, 255])
    small = nearest(target.numpy(), (5, 7))
    found = conditional_min_max(maps, target)
    p = maps.double().numpy()
    for k, i, j in np.ndindex(p.shape):
        low, high = p[k].min(), p[k].max()
        expected = p[k, i, j]
        if small[i, j] != 0:
            expected = (p[k, i, j] - low) / (high - low + 1e-5)
        assert found[k, i, j].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_flat_map_and_an_image_without_classes_give_finite_maps() -> None:
    flat = conditional_min_max(torch.full((1, 4, 4), 0.3), torch.full((4, 4), 255))
    assert (flat == 0).all()
    assert conditional_min_max(torch.zeros(0, 4, 4), torch.zeros(4, 4)).shape == (0, 4, 4)
