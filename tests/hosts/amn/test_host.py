"""AMN as a host: network, what it answers to training and map making, gradients, parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsss.backbones import ResNet
from wsss.errors import WsssError
from wsss.hosts.amn.host import AMN, AMNSettings
from wsss.hosts.amn.network import LabelConditioning, PixelClassifier
from wsss.hosts.base import Seen

CLASSES = ("cat", "dog", "cow")
LABEL = torch.tensor([1.0, 0.0, 1.0])


def host(frozen_stages: int = 0, norm: str = "fixed", **given) -> AMN:
    torch.manual_seed(0)
    backbone = ResNet(18, frozen_stages=frozen_stages, norm=norm)
    return AMN(AMNSettings(**given), CLASSES, backbone).eval()


def pair(made: AMN) -> Seen:
    image = torch.randn(3, 70, 49, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return made(torch.stack([image, image.flip(-1)]), LABEL.expand(2, -1))


def test_parameters_are_those_published() -> None:
    made = AMN(AMNSettings(), [f"class {n}" for n in range(20)], ResNet(50, frozen_stages=0))
    assert sum(p.numel() for p in made.parameters()) == 25_099_412
    assert sum(p.numel() for p in made.parameters() if p.requires_grad) == 25_089_876
    frozen = {n for n, p in made.named_parameters() if not p.requires_grad}
    names = ("conv1.weight", "bn1.weight", "bn1.bias")
    assert frozen == {f"backbone.network.{name}" for name in names}


def test_a_stem_without_weights_to_keep_learns() -> None:
    made = host(norm="batch")
    assert all(p.requires_grad for p in made.parameters())


def test_frozen_stages_of_the_backbone_stay_frozen() -> None:
    made = host(frozen_stages=2)
    learning = {n.split(".")[2] for n, p in made.backbone.named_parameters("b") if p.requires_grad}
    assert learning == {"layer3", "layer4"}


def test_the_classifier_is_four_dilated_convolutions_by_loops() -> None:
    layer = PixelClassifier(2, 3, dropout=0.0)
    with torch.no_grad():
        for convolution in layer:
            convolution.weight.normal_()
            convolution.bias.normal_()
    feature = torch.randn(1, 2, 30, 27)
    found = layer(feature)[0].detach().numpy()
    x = feature[0].numpy()
    for c, i, j in [(0, 0, 0), (1, 13, 13), (2, 29, 26), (0, 7, 25)]:
        total = 0.0
        for convolution, dilation in zip(layer, (6, 12, 18, 24), strict=True):
            weight = convolution.weight.detach().numpy()
            total += convolution.bias[c].item()
            for k, u, v in np.ndindex(2, 3, 3):
                y, z = i + (u - 1) * dilation, j + (v - 1) * dilation
                if 0 <= y < 30 and 0 <= z < 27:
                    total += weight[c, k, u, v] * x[k, y, z]
        assert found[c, i, j] == pytest.approx(total, rel=1e-4, abs=1e-5)


def test_the_classifier_begins_near_0_and_without_bias() -> None:
    torch.manual_seed(0)
    for convolution in PixelClassifier(128, 21, dropout=0.1):
        assert convolution.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert convolution.weight.mean().abs() < 2e-4
        assert (convolution.bias == 0).all()


def test_a_label_weighs_channels_by_the_sum_of_its_classes() -> None:
    layer = LabelConditioning(3, 4)
    feature = torch.randn(2, 4, 2, 3)
    found = layer(feature, torch.tensor([[1, 0, 1], [0, 0, 0]]))
    for channel in range(4):
        two = layer.weight[channel, 0] + layer.weight[channel, 2] + layer.bias[channel]
        torch.testing.assert_close(found[0, channel], feature[0, channel] * two)
        torch.testing.assert_close(found[1, channel], feature[1, channel] * layer.bias[channel])


def test_dropout_works_in_training_and_only_there() -> None:
    made = host(dropout=0.5)
    images, label = torch.randn(1, 3, 48, 48), LABEL[None]
    assert torch.equal(made(images, label).activation, made(images, label).activation)
    made.train()
    assert not torch.equal(made(images, label).activation, made(images, label).activation)


def test_the_last_feature_is_the_conditioned_one_and_the_logits_come_from_it() -> None:
    made = host()
    images = torch.randn(2, 3, 48, 64)
    label = torch.stack([LABEL, 1 - LABEL])
    with torch.no_grad():
        seen = made(images, label)
        plain = made.backbone(images)
        weights = label @ made.conditioning.weight.T + made.conditioning.bias
        last = plain[-1] * weights[:, :, None, None]
        logits = sum(c(last) for c in made.classifier)
    for found, expected in zip(seen.features, [*plain[:-1], last], strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(seen.extra["logits"], logits)
    torch.testing.assert_close(seen.activation, logits[:, 1:])
    assert tuple(f.shape[1] for f in seen.features) == made.channels


def test_a_method_is_given_probabilities_with_their_gradient() -> None:
    made = host().train()
    seen = made(torch.randn(2, 3, 48, 48), LABEL.expand(2, -1))
    cam = made.general(seen)
    torch.testing.assert_close(cam, seen.extra["logits"].softmax(1)[:, 1:])
    cam[:, 0].sum().backward()
    assert made.conditioning.weight.grad.abs().sum() > 0
    assert made.backbone.network.layer1[0].conv1.weight.grad.abs().sum() > 0
    assert made.backbone.network.conv1.weight.grad is None


def test_a_pairs_probabilities_come_from_its_mean_logits() -> None:
    made = host()
    seen = pair(made)
    image, mirrored = seen.extra["logits"].double()
    mean = (image + mirrored.flip(-1)) / 2
    expected = (mean.exp() / mean.exp().sum(0))[1:].float()[None]
    torch.testing.assert_close(made.general_pair(seen), expected)
    torch.testing.assert_close(made.maps(seen, LABEL)["amn_cam"], mean.float())


def test_maps_are_fused_over_all_classes_and_kept_of_the_present_ones() -> None:
    made = host()
    scales = [5 * torch.randn(4, 5, 4), 5 * torch.randn(4, 9, 7)]
    target = torch.zeros(36, 30, dtype=torch.uint8)
    target[10:20, 5:25] = 1
    target[25:, :] = 255
    sample = {"label": LABEL, "target": target}
    found = made.fuse("amn_cam", scales, (9, 8), sample)
    enlarged = [F.interpolate(s[None], size=(9, 8), mode="bilinear")[0] for s in scales]
    p = (sum(enlarged) / 2).softmax(0)[[1, 3]]
    columns = [int((j + 0.5) * 30 / 8) for j in range(8)]
    small = torch.stack([target[4 * i + 2, columns] for i in range(9)])
    low, high = p.amin((1, 2), keepdim=True), p.amax((1, 2), keepdim=True)
    expected = torch.where(small == 0, p, (p - low) / (high - low + 1e-5))
    torch.testing.assert_close(found, expected)
    absent = {"label": torch.zeros(3), "target": target}
    assert made.fuse("amn_cam", scales, (9, 8), absent).shape == (0, 9, 8)


def test_a_methods_maps_are_fused_as_everywhere() -> None:
    made = host()
    scales = [torch.rand(3, 5, 4), torch.rand(3, 9, 7)]
    total = sum(F.interpolate(s[None], size=(9, 8), mode="bilinear")[0] for s in scales)
    expected = total / (total.amax((1, 2), keepdim=True) + 1e-5)
    torch.testing.assert_close(made.fuse("pacam", scales, (9, 8), {}), expected)


def test_a_batch_without_foreground_moves_the_weights_to_finite_places() -> None:
    made = host().train()
    images = torch.randn(2, 3, 48, 48)
    for target in (torch.zeros(2, 48, 48), torch.full((2, 48, 48), 255)):
        made.zero_grad()
        seen = made(images, LABEL.expand(2, -1))
        made.losses(seen, {"target": target.long()})["pixel"].backward()
        grads = [p.grad for p in made.parameters() if p.grad is not None]
        assert grads and all(g.isfinite().all() for g in grads)


def test_half_precision_stays_near_single() -> None:
    made = host()
    images, label = torch.randn(1, 3, 48, 48), LABEL[None]
    with torch.no_grad():
        full = made.general(made(images, label))
        with torch.autocast("cpu", torch.bfloat16):
            half = made.general(made(images, label))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.02, rtol=0.05)


def test_new_layers_learn_at_their_own_rate() -> None:
    made = host()
    backbone, head = made.parameter_groups(5e-6, 1e-4)
    assert (backbone["lr"], head["lr"]) == (5e-6, 1e-4)
    assert len(head["params"]) == 2 + 4 * 2
    everything = {id(p) for group in (backbone, head) for p in group["params"]}
    assert everything == {id(p) for p in made.parameters() if p.requires_grad}


def test_folding_keeps_the_maps() -> None:
    made = host()
    for module in made.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    before = pair(made)
    made.folded()
    torch.testing.assert_close(pair(made).activation, before.activation, rtol=1e-3, atol=1e-4)


def test_the_crop_moves_image_and_label_map_alike() -> None:
    made = host(scale=(1.0, 1.0))
    labels = np.zeros((40, 56), np.uint8)
    labels[5:20, 30:50] = 2
    image = np.repeat((labels * 100)[..., None], 3, axis=2)
    crop = made.crop(48, (10, 20))
    for seed in range(6):
        cropped = crop(image, np.random.default_rng(seed), labels)
        red = cropped.image[0] * made.std[0] + made.mean[0]
        inside = cropped.target != 255
        assert torch.equal(inside, cropped.valid.bool())
        torch.testing.assert_close(red[inside], cropped.target[inside] * 100 / 255)


def test_a_range_of_scales_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(WsssError, match=r"host\.scale=\[1\.5, 0\.5\]"):
        AMNSettings(scale=(1.5, 0.5))
