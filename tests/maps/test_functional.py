"""CAM's equations against loops."""

from __future__ import annotations

import math

import torch

from wsss.maps.functional import (
    add_background,
    class_valid_mask,
    classification_loss,
    normalize_cam,
)
from wsss.maps.fuse import fuse_scales


def test_classification_loss_is_the_multi_label_soft_margin_loss() -> None:
    activation = torch.randn(3, 4, 5, 6, dtype=torch.double)
    label = (torch.rand(3, 4) > 0.5).double()
    total = 0.0
    for b in range(3):
        for n in range(4):
            logit = sum(activation[b, n].flatten().tolist()) / 30
            p = 1 / (1 + math.exp(-logit))
            total -= math.log(p) if label[b, n] else math.log(1 - p)
    loss = classification_loss(activation, label)
    assert math.isclose(float(loss), total / 12, rel_tol=1e-5)


def test_normalized_maps_and_background() -> None:
    activation = torch.tensor([[[[-1.0, 2.0], [4.0, 0.0]], [[-3.0, -1.0], [-2.0, -5.0]]]])
    cam = normalize_cam(activation)
    torch.testing.assert_close(cam[0, 0], torch.tensor([[0, 0.5], [1, 0.0]]), atol=1e-5, rtol=0)
    assert not cam[0, 1].any()  # no activation: a zero map, not a division by zero
    full = add_background(cam)
    torch.testing.assert_close(full[0, 0], 1 - cam[0].max(0).values)
    assert torch.equal(full[:, 1:], cam)


def test_valid_mask_is_window_times_label() -> None:
    valid = torch.zeros(2, 8, 8)
    valid[0, :4] = 1
    valid[1] = 1
    label = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    mask = class_valid_mask(valid, label, (4, 4))
    assert mask.shape == (2, 3, 4, 4)
    for b in range(2):
        for i in range(4):
            inside = float(valid[b, 2 * i, 0])
            assert mask[b, 0, i, 0] == inside
            for n in range(2):
                assert mask[b, n + 1, i, 0] == inside * float(label[b, n])


def test_fusion_sums_enlarged_scales_and_divides_by_the_maximum() -> None:
    constant = torch.full((1, 2, 3), 2.0)
    ramp = torch.arange(24.0).view(1, 4, 6)
    fused = fuse_scales([constant, ramp], (4, 6))
    expected = (ramp + 2) / (25 + 1e-5)
    torch.testing.assert_close(fused, expected)
    assert fuse_scales([torch.zeros(0, 2, 2)], (4, 4)).shape == (0, 4, 4)
    assert not fuse_scales([torch.zeros(1, 2, 2)], (4, 4)).any()
