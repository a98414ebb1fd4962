"""Multi-scale inputs against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsss.errors import WsssError
from wsss.segmentation.multi_scale import check_scales, maximum, multi_scale_logits, scaled


def bilinear(values: np.ndarray, height: int, width: int, scale: float | None = None) -> np.ndarray:
    """(C, h, w) to (C, height, width); pixel centers on pixel centers, edges repeated.

    Pixels are sampled with the step 1 / scale, or with that of the two sizes.
    """
    _, h, w = values.shape
    down, across = (1 / scale,) * 2 if scale else (h / height, w / width)
    result = np.zeros((len(values), height, width))
    for row in range(height):
        for column in range(width):
            y = min(max((row + 0.5) * down - 0.5, 0), h - 1)
            x = min(max((column + 0.5) * across - 0.5, 0), w - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            a, b = y - top, x - left
            result[:, row, column] = (
                (1 - a) * (1 - b) * values[:, top, left]
                + (1 - a) * b * values[:, top, right]
                + a * (1 - b) * values[:, bottom, left]
                + a * b * values[:, bottom, right]
            )
    return result


def test_images_are_scaled_bilinearly_to_sizes_cut_to_whole_pixels() -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 3, 13, 10)
    for scale, size in ((0.5, (6, 5)), (0.75, (9, 7)), (1.25, (16, 12)), (1.0, (13, 10))):
        for by_size in (False, True):  # as published, and as an exported program must
            got = scaled(image, scale, by_size)
            assert got.shape[-2:] == size
            expected = bilinear(image[0].numpy(), *size, None if by_size else scale)
            np.testing.assert_allclose(got[0], expected, atol=1e-5)
    assert scaled(torch.empty(1, 3, 321, 513), 0.5).shape[-2:] == (160, 256)
    assert scaled(torch.empty(1, 3, 321, 10), 0.7).shape[-2:] == (224, 7)  # 10 * 0.7 is exact


def test_the_maximum_is_that_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    sizes = ((6, 5), (5, 4), (3, 3), (8, 7))
    logits = [torch.randn(2, 3, *size) for size in sizes]
    expected = np.full((2, 3, 6, 5), -np.inf)
    for each in logits:
        for index in range(2):
            enlarged = bilinear(each[index].numpy(), 6, 5)
            for position in np.ndindex(3, 6, 5):
                expected[(index, *position)] = max(expected[(index, *position)], enlarged[position])
    np.testing.assert_allclose(maximum(logits), expected, atol=1e-5)
    assert maximum(logits[:1]) is logits[0]


def test_the_gradient_of_the_maximum_goes_to_the_scale_that_gave_it() -> None:
    first = torch.tensor([[[[1.0, 5.0]]]], requires_grad=True)
    other = torch.tensor([[[[2.0, 3.0]]]], requires_grad=True)
    maximum([first, other]).sum().backward()
    assert first.grad.tolist() == [[[[0, 1]]]] and other.grad.tolist() == [[[[1, 0]]]]


def test_every_scale_is_looked_at_by_the_same_network() -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(3, 2, 3, stride=2, padding=1)
    image = torch.randn(2, 3, 17, 12)
    got = multi_scale_logits(network, image, (1.0, 0.75, 0.5))
    assert [g.shape[-2:] for g in got] == [(9, 6), (6, 5), (4, 3)]
    sizes = {1.0: (17, 12), 0.75: (12, 9), 0.5: (8, 6)}
    for logits, (scale, size) in zip(got, sizes.items(), strict=True):
        pixels = np.stack([bilinear(i.numpy(), *size, scale) for i in image]).astype(np.float32)
        torch.testing.assert_close(logits, network(torch.from_numpy(pixels)), atol=1e-5, rtol=1e-4)


def test_logits_are_float32_whatever_the_network_computes_in() -> None:
    def network(x: Tensor) -> Tensor:
        return x.bfloat16()

    assert {g.dtype for g in multi_scale_logits(network, torch.randn(1, 3, 8, 8))} == {
        torch.float32
    }


def test_scale_1_comes_first_and_must_be_there() -> None:
    assert check_scales((0.5, 1, 0.75)) == (1.0, 0.5, 0.75)
    for wrong in ((0.5, 0.75), (), (1.0, 0.0), (1.0, -1), (1.0, 0.5, 0.5)):
        with pytest.raises(WsssError, match=r"msc_scales=\[.*1 among them"):
            check_scales(wrong)
