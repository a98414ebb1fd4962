"""PSA's network against functional calls and the published table; its training crop."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.backbones.resnet import ResNet
from wsss.backbones.resnet38 import ResNet38Body
from wsss.data.scenes import Scenes
from wsss.errors import WsssError
from wsss.maps.files import ClassMaps, write_class_maps
from wsss.refine.affinity import affinity_labels
from wsss.refine.paths import path_index
from wsss.refine.psa import pair_affinity
from wsss.refine.psa_network import (
    BackboneBody,
    PosteriorSet,
    PSACrop,
    PSAModule,
    PSANetwork,
    PSAOptimizer,
    jitter,
    load_published,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class TinyBody(nn.Module):
    """Three features of an image, without any network."""

    tap_channels = (3, 4, 5)
    mean, std = MEAN, STD

    def taps(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled = F.avg_pool2d(image, 8)
        return pooled, torch.cat([pooled, pooled[:, :1]], 1), torch.cat([pooled, pooled[:, :2]], 1)


def published() -> PSANetwork:
    with torch.device("meta"):
        return PSANetwork(ResNet38Body())


def test_names_shapes_and_what_learns_are_the_released_ones() -> None:
    network = published()
    assert sum(p.numel() for p in network.parameters()) == 106_484_032
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 105_615_360
    state = network.state_dict().items()
    lines = sorted(f"{name.removeprefix('body.')} {tuple(v.shape)}" for name, v in state)
    assert len(lines) == 232
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == "de0dd2e484f15388"
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert all(".bn" in n or n.startswith(("body.conv1a", "body.b2")) for n in frozen)
    assert not any(m.training for m in network.train().modules() if isinstance(m, nn.BatchNorm2d))
    assert sum(p.numel() for p in network.head_parameters()) == 106_484_032 - 105_070_912
    learning = [*network.head_parameters(), *network.body_parameters()]
    assert sum(p.numel() for p in learning) == 105_615_360
    with torch.device("meta"):
        assert network(torch.empty(2, 3, 448, 448)).shape == (2, 448, 56, 56)


def test_the_head_is_1x1_convolutions_and_elu() -> None:
    torch.manual_seed(0)
    network = PSANetwork(TinyBody())
    image = torch.randn(2, 3, 24, 32)
    narrow = []
    for layer, tap in zip("345", network.body.taps(image), strict=True):
        weight = network.state_dict()[f"f8_{layer}.weight"][:, :, 0, 0]
        y = torch.einsum("oc,bchw->bohw", weight, tap)
        narrow.append(torch.where(y > 0, y, y.exp() - 1))
    y = torch.einsum("oc,bchw->bohw", network.f9.weight[:, :, 0, 0], torch.cat(narrow, 1))
    expected = torch.where(y > 0, y, y.exp() - 1)
    torch.testing.assert_close(network(image), expected, rtol=1e-4, atol=1e-4)
    bound = 4 * (6 / 896) ** 0.5
    assert 0.98 * bound < network.f9.weight.abs().max() <= bound
    assert network.f8_5.weight.std().item() == pytest.approx((2 / 5) ** 0.5, rel=0.1)


def test_any_backbone_can_be_the_body() -> None:
    backbone = ResNet(18, weights=None, frozen_stages=0)
    network = PSANetwork(BackboneBody(backbone)).eval()
    image = torch.randn(1, 3, 64, 48)
    taps = network.body.taps(image)
    stages = backbone(image)
    assert [tuple(t.shape[-2:]) for t in taps] == [(8, 6)] * 3
    torch.testing.assert_close(taps[0], stages[1])
    torch.testing.assert_close(taps[2], F.interpolate(stages[3], (8, 6), mode="bilinear"))
    assert network(image).shape == (1, 448, 8, 6)
    backbone.strides = (4, 16, 16, 16)
    with pytest.raises(WsssError, match="stride 8"):
        BackboneBody(backbone)


def test_published_files_load_as_they_are(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nn.Conv2d, "reset_parameters", lambda self: None)
    monkeypatch.setattr("wsss.backbones.resnet38.he_init", lambda module: None)
    monkeypatch.setattr(nn.init, "kaiming_normal_", lambda tensor, **options: tensor)
    network = PSANetwork(ResNet38Body())
    head = network.f8_3.weight.clone()
    names = [name.removeprefix("body.") for name in network.state_dict()]
    shapes = [value.shape for value in network.state_dict().values()]
    file = {
        name: torch.tensor(float(i)).expand(shape)
        for i, (name, shape) in enumerate(zip(names, shapes, strict=True))
    }
    classifier = {n: v for n, v in file.items() if not n.startswith("f")}
    classifier["fc8.weight"] = torch.zeros(20, 4096, 1, 1)
    torch.save(classifier, tmp_path / "cls.pth")
    load_published(network, tmp_path / "cls.pth")
    assert torch.equal(network.f8_3.weight, head)
    torch.save(file, tmp_path / "aff.pth")
    load_published(network, tmp_path / "aff.pth")
    for i, value in enumerate(network.state_dict().values()):
        assert float(value.flatten()[0]) == i
    del file["b4_3.conv_branch2a.weight"]
    torch.save(file, tmp_path / "aff.pth")
    with pytest.raises(WsssError, match=r"refine\.psa\.weights=.*aff\.pth.*b4_3"):
        load_published(network, tmp_path / "aff.pth")


@pytest.mark.parametrize("size", [(30, 70), (64, 48), (48, 48), (100, 90)])
def test_image_and_readings_are_cropped_alike(size: tuple[int, int], monkeypatch) -> None:
    monkeypatch.setattr("wsss.refine.psa_network.jitter", lambda image, rng: image)
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.stack([rows, columns, 0 * rows + 200], axis=2).astype(np.uint8)
    # the left half is class 1 in both readings, the right half is background in both
    left = (columns < size[1] // 2).astype(np.float32)
    reading = np.stack([1 - left, left])
    crop = PSACrop(48, MEAN, STD)
    rng = np.random.default_rng(0)
    mirrored = set()
    for _ in range(6):
        pixels, labels = crop(image, reading, reading, rng)
        assert pixels.shape == (3, 48, 48) and labels.shape == (6, 6)
        values = pixels * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        values = (values * 255).round()
        inside = values[2] == 200
        assert inside.sum() == min(size[0], 48) * min(size[1], 48)
        assert bool((pixels[:, ~inside] == 0).all())
        for i in range(6):
            for j in range(6):
                cell = inside[8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
                x = values[1, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8][cell]
                ones = int((x < size[1] // 2).sum())
                if not len(x):
                    assert labels[i, j] == 255
                elif 2 * ones != len(x):
                    assert labels[i, j] == (1 if 2 * ones > len(x) else 0)
        across = values[1][:, 1:] - values[1][:, :-1]
        mirrored.add(float(across[inside[:, 1:] & inside[:, :-1]].unique()))
    assert mirrored == {1.0, -1.0}


def test_colors_change_by_the_given_generator_alone() -> None:
    image = torch.randint(0, 255, (3, 16, 16), dtype=torch.uint8)
    one, two, other = (jitter(image, np.random.default_rng(s)) for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert one.dtype == torch.uint8 and not torch.equal(one, image)
    assert (one.float().mean() - image.float().mean()).abs() < 90


def test_samples_are_random_by_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    image_set = Scenes(tmp_path / "scenes", n_train=2, n_val=1, size=64)
    names = image_set.names("train")
    for name in names:
        noise = np.random.default_rng(len(name)).random((2, 64, 64)).astype(np.float32)
        readings = {kind: noise / noise.sum(0) for kind in ("cautious", "generous")}
        write_class_maps(tmp_path / f"{name}.npz", ClassMaps(np.array([3]), (64, 64), readings))
    crop = PSACrop(48, MEAN, STD)
    one, two = (PosteriorSet(image_set, names, tmp_path, crop, seed) for seed in (0, 0))
    for key in [(0, 0), (0, 1), (3, 1)]:
        first, second = one[key], two[key]
        assert first["name"] == names[key[1]]
        assert first["image"].shape == (3, 48, 48) and first["target"].shape == (6, 6)
        assert torch.equal(first["image"], second["image"])
        assert torch.equal(first["target"], second["target"])
    assert not torch.equal(one[0, 1]["image"], one[3, 1]["image"])
    other = ClassMaps(np.array([3]), (32, 64), {k: v[:, :32] for k, v in readings.items()})
    write_class_maps(tmp_path / f"{names[0]}.npz", other)
    with pytest.raises(WsssError, match="another image size"):
        one[0, 0]


def test_the_module_weighs_pairs_and_rates_as_published() -> None:
    torch.manual_seed(0)
    network = PSANetwork(BackboneBody(ResNet(18, weights=None, frozen_stages=0)))
    module = PSAModule(network, 3, PSAOptimizer())
    module.log = lambda *given, **more: None  # type: ignore[method-assign]
    batch = {"image": torch.randn(2, 3, 64, 64), "target": torch.randint(0, 3, (2, 8, 8))}
    loss = module.training_step(batch, 0)["loss"]
    pairs = affinity_labels(batch["target"], path_index(3))
    affinity = pair_affinity(network(batch["image"]), path_index(3))
    attract, repel = -torch.log(affinity + 1e-5), -torch.log(1 + 1e-5 - affinity)
    means = [attract[pairs.background].mean(), attract[pairs.foreground].mean()]
    expected = means[0] / 4 + means[1] / 4 + repel[pairs.negative].mean() / 2
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    module._trainer = SimpleNamespace(estimated_stepping_batches=10)  # type: ignore[assignment]
    body, head = module.configure_optimizers()["optimizer"].param_groups
    assert (body["lr"], head["lr"]) == (0.01, pytest.approx(0.1))
    assert body["momentum"] == body["weight_decay"] == 5e-4
    assert len(head["params"]) == 4
