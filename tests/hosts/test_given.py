"""Class maps of an earlier run in the CAM's place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from wsss.backbones import ResNet
from wsss.errors import WsssError
from wsss.hosts.cam import CAM
from wsss.hosts.given import Given, GivenSettings
from wsss.hosts.optimizer import OptimizerSettings
from wsss.maps.files import ClassMaps, write_class_maps
from wsss.methods.cpal.branch import CPAL
from wsss.methods.cpal.settings import CPALSettings
from wsss.methods.network import SeedNetwork

CLASSES = ("a", "b", "c")


@pytest.fixture
def make_host() -> Callable[..., Given]:
    def make(host_type: type[CAM] = Given, **options: object) -> Given:
        torch.manual_seed(0)
        backbone = ResNet(18, weights=None, norm="batch", frozen_stages=0)
        return host_type(GivenSettings(**options), CLASSES, backbone).eval()  # type: ignore[arg-type, return-value]

    return make


def test_stored_maps_are_read_for_all_classes(
    make_host: Callable[..., Given], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    own, first = rng.random((2, 4, 5)), rng.random((2, 4, 5))
    with_background = np.concatenate([1 - own.max(0, keepdims=True), own])
    maps = {"cam": first.astype(np.float32), "pacam": with_background.astype(np.float32)}
    write_class_maps(tmp_path / "x.npz", ClassMaps(np.array([1, 3]), (16, 20), maps), "float16")
    for kind, wanted in ((None, own), ("pacam", own), ("cam", first)):
        found = make_host(maps=str(tmp_path), kind=kind).read_maps("x")
        assert found.shape == (3, 4, 5) and found.dtype == np.float32
        assert np.allclose(found[[0, 2]], wanted, atol=1e-3) and not found[1].any()
    with pytest.raises(WsssError, match="holds no map of kind caa"):
        make_host(maps=str(tmp_path), kind="caa").read_maps("x")
    with pytest.raises(WsssError, match="no class maps"):
        make_host(maps=str(tmp_path)).read_maps("y")


def test_a_method_is_given_the_maps_in_training_and_when_maps_are_made(
    make_host: Callable[..., Given],
) -> None:
    host = make_host(maps="somewhere")
    network = SeedNetwork(host, None, OptimizerSettings(lr=0.1, head_lr=0.1))
    images, label = torch.randn(2, 3, 64, 96), torch.ones(2, 3)
    given = torch.rand(2, 3, 4, 6)
    seen = network(images, label, given)
    assert torch.equal(host.general(seen), given), "stride 16 is the feature's"
    fine = given.repeat_interleave(4, 2).repeat_interleave(4, 3)
    pair, cam = network.see_pair(images[0], label[0], fine[0])
    assert torch.allclose(cam, given[:1], atol=1e-6) and cam.shape == (1, 3, 4, 6)
    assert torch.equal(pair.extra["given"][1], fine[0].flip(-1))


def test_without_maps_it_is_plain_cam(make_host: Callable[..., Given]) -> None:
    host, plain = make_host(), make_host(CAM)
    image, label = torch.randn(1, 3, 64, 64), torch.ones(1, 3)
    assert torch.equal(host.general(host(image, label)), plain.general(plain(image, label)))
    assert list(host.state_dict()) == list(plain.state_dict())


def test_cpal_holds_its_maps_against_the_given_ones(make_host: Callable[..., Given]) -> None:
    torch.manual_seed(0)
    host = make_host(maps="somewhere").train()
    options = CPALSettings(prototypes="anchor", warmup_epochs=0, projection_dim=8)
    branch = CPAL(options, host.channels, 3)
    branch.bank.clustered_epoch.fill_(0)
    network = SeedNetwork(host, branch, OptimizerSettings(lr=0.1, head_lr=0.1))
    label = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    given = torch.rand(2, 3, 4, 4) * label[:, :, None, None]
    batch = {"image": torch.randn(2, 3, 64, 64), "label": label, "valid": torch.ones(2, 64, 64)}
    seen = network(batch["image"], label, given)
    branch.losses(seen, host.general(seen), batch)["self"].backward()
    learning = {name for name, p in network.named_parameters() if p.grad is not None}
    assert learning == {"branch.projection.0.weight"}, "given maps carry no gradient"
    anchors, classes = branch.take_anchors()
    z = branch.project(seen.features)
    mask = (given[0, 2] > options.tau).float()
    wanted = (z[0] * mask).sum(dim=(1, 2)) / mask.sum()
    assert torch.allclose(anchors[classes == 2][0], wanted, atol=1e-5)
