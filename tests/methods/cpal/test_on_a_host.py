"""CPAL on a host: weights of its losses, maps of image and mirror image, the refilled bank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wsss.data.datamodule import WholeSet
from wsss.data.transforms import Pyramid
from wsss.errors import WsssError
from wsss.methods.cpal.branch import CPAL
from wsss.methods.network import SeedNetwork

N = 3
Make = Callable[..., SeedNetwork]


@pytest.fixture
def make(make_network: Make) -> Make:
    """`make(key=value, ...)`: CPAL with an empty bank on the plain CAM host."""

    def make_one(**options: Any) -> SeedNetwork:
        bank = {"size": 12, "clusters": 3}
        settings = {"projection_dim": 8, "side_channels": (3, 4, 5, 6), "neighbors": 2}
        return make_network(CPAL, **{**settings, "bank": bank, **options})

    return make_one


@pytest.fixture
def filled(make: Make) -> Make:
    """As `make`, with a bank of anchors and prototypes of every class."""

    def make_one(**options: Any) -> SeedNetwork:
        network = make(**options)
        bank = network.branch.bank
        generator = torch.Generator().manual_seed(3)
        index = torch.arange(N).repeat(10)
        bank.push(torch.randn(len(index), 8, generator=generator) + 0.5 * index[:, None], index)
        bank.recluster(0)
        bank.clustered_epoch.fill_(1)
        return network

    return make_one


def test_both_losses_have_their_weight(filled: Make, batch: dict[str, Any]) -> None:
    by_weight = {}
    for weight in (1.0, 3.0):
        network = filled(lambda_cls=weight, lambda_self=2 * weight)
        by_weight[weight] = network.training_step(batch, 0)["terms"]
    plain = network.host.losses(network(batch["image"], batch["label"]), batch)["cls"]
    torch.testing.assert_close(by_weight[1.0]["cls"], plain.detach())
    answer = network.branch(
        network(batch["image"], batch["label"]).features,
        network.host.general(network(batch["image"], batch["label"])),
        batch["label"],
        batch["valid"],
    )
    assert answer.loss > 0
    torch.testing.assert_close(by_weight[1.0]["self"], 2 * answer.loss.detach())
    for name, term in by_weight[3.0].items():
        torch.testing.assert_close(term, 3 * by_weight[1.0][name])


def test_without_self_supervision_the_bank_still_fills(make: Make, batch: dict[str, Any]) -> None:
    network = make(lambda_self=0.0)
    answer = network.training_step(batch, 0)
    assert set(answer["terms"]) == {"cls"}
    answer["loss"].backward()
    assert network.branch.projection[0].weight.grad is None
    anchors, _ = network.branch.take_anchors()
    assert len(anchors) > 0 and not anchors.requires_grad


def test_classifier_and_projection_learn_at_the_rate_of_new_layers(make: Make) -> None:
    network = make()
    network._trainer = SimpleNamespace(estimated_stepping_batches=10, max_epochs=1)
    optimizer = network.configure_optimizers()["optimizer"]
    rate = {id(p): g["initial_lr"] for g in optimizer.param_groups for p in g["params"]}
    rates = {name: rate[id(p)] for name, p in network.named_parameters()}
    fast = {name for name, lr in rates.items() if lr == 1.0}
    assert fast == {"host.classifier.weight", "branch.projection.0.weight"}
    assert {rates[name] for name in rates.keys() - fast} == {0.1}


@pytest.mark.parametrize("features", ["layer4", "hierarchical"])
@torch.no_grad()
def test_maps_combine_the_image_and_its_mirror_image(
    filled: Make, make: Make, image: Tensor, features: str
) -> None:
    network = filled() if features == "layer4" else make(features=features)
    label = torch.tensor([1.0, 0, 1])
    maps = network.maps(image, label)
    one, other = (network(x[None], label[None]) for x in (image, image.flip(-1)))
    cam = one.activation.relu() + other.activation.flip(-1).relu()
    torch.testing.assert_close(maps["cam"], cam[0, [0, 2]])

    # For the method raw maps are added before the ReLU, and features are averaged.
    joint = (one.activation + other.activation.flip(-1)).relu()
    joint = joint / (joint.amax((2, 3), keepdim=True) + 1e-5)
    z = [network.branch.project(seen.features) for seen in (one, other)]
    f = [seen.features[-1] for seen in (one, other)]
    z_mean, f_mean = ((a + b.flip(-1)) / 2 for a, b in (z, f))
    answer = network.branch.predict(z_mean, f_mean, joint, label[None])
    torch.testing.assert_close(maps["pacam"], answer.pacam[0, [0, 1, 3]])
    assert maps["pacam"].shape == (3, 5, 7)
    torch.testing.assert_close(maps["pacam"][0], 1 - maps["pacam"][1:].amax(0))


@torch.no_grad()
def test_a_mirrored_image_has_mirrored_maps(filled: Make, image: Tensor) -> None:
    network, label = filled(), torch.ones(N)
    straight, mirrored = (network.maps(x, label) for x in (image, image.flip(-1)))
    assert set(straight) == {"cam", "pacam"}
    for kind, values in straight.items():
        assert values.amax() > 0
        torch.testing.assert_close(values, mirrored[kind].flip(-1))


@pytest.fixture
def photographs(tmp_path: Path) -> WholeSet:
    """Five JPEGs, photo i of class i modulo 3 alone."""
    rng = np.random.default_rng(0)
    names = [f"photo{i}" for i in range(5)]
    for name in names:
        pixels = rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.jpg")
    labels = np.eye(N, dtype=np.uint8)[np.arange(5) % N]
    files = SimpleNamespace(image_path=lambda name: tmp_path / f"{name}.jpg")
    return WholeSet(files, names, Pyramid((0.5,) * 3, (0.5,) * 3), labels)  # type: ignore[arg-type]


@torch.no_grad()
def test_a_refilled_bank_holds_the_training_images_under_the_current_weights(
    filled: Make, photographs: WholeSet, tmp_path: Path
) -> None:
    network = filled(test={"refresh_bank": True}).train()
    bank = network.branch.bank
    network.branch.before_maps(network, photographs)
    assert network.training
    # An independent look at the files: normalize, CAM above tau, mean of z.
    expected: dict[int, list[Tensor]] = {n: [] for n in range(N)}
    for i in range(5):
        pixels = np.asarray(Image.open(tmp_path / f"photo{i}.jpg"), dtype=np.float32) / 255
        image = torch.from_numpy((pixels - 0.5) / 0.5).permute(2, 0, 1)[None]
        seen = network(image, torch.eye(N)[i % N][None])
        cam = seen.activation[0, i % N].relu()
        where = cam / (cam.max() + 1e-5) > network.branch.options.tau
        z = F.conv2d(seen.features[-1], network.branch.projection[0].weight)[0]
        if where.any():
            expected[i % N].append(z[:, where].mean(1))
    assert sum(map(len, expected.values())) > 1
    for n, anchors in expected.items():
        assert len(bank.ordered(n)) == len(anchors)
        for found, anchor in zip(bank.ordered(n), anchors, strict=True):
            torch.testing.assert_close(found, anchor, atol=1e-5, rtol=1e-4)
        assert int(bank.cluster_count[n]) == min(3, len(anchors))


def test_the_bank_is_left_alone_without_refresh(filled: Make, photographs: WholeSet) -> None:
    network = filled()
    before = network.branch.bank.entries.clone()
    network.before_maps(photographs)
    assert torch.equal(network.branch.bank.entries, before)
    notes = network.notes()
    assert notes["refresh_bank"] is False and notes["classes_without_prototypes"] == 0


@torch.no_grad()
def test_a_checkpoint_carries_bank_and_prototypes(
    filled: Make, make: Make, image: Tensor, tmp_path: Path
) -> None:
    network, other = filled(), make()
    label = torch.ones(N)
    before = other.maps(image, label)["pacam"]
    torch.save(network.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    ours, theirs = (one.maps(image, label)["pacam"] for one in (network, other))
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(before, theirs), "an empty bank shows the CAM"


def test_under_bfloat16_the_branch_stays_in_float32(filled: Make, batch: dict[str, Any]) -> None:
    network = filled()
    with torch.autocast("cpu", torch.bfloat16):
        assert network(batch["image"], batch["label"]).activation.dtype == torch.bfloat16
        rough = network.training_step(batch, 0)["terms"]["self"]
    anchors, _ = network.branch.take_anchors()
    assert rough.dtype == anchors.dtype == torch.float32
    exact = network.training_step(batch, 0)["terms"]["self"]
    assert exact > 0
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("anchor", ["hard", "seeds"])
@torch.no_grad()
def test_maps_made_under_bfloat16_are_near_those_in_float32(
    filled: Make, image: Tensor, anchor: str
) -> None:
    network, label = filled(anchor=anchor, test={"alignment": "batch"}), torch.tensor([1.0, 0, 1])
    exact = network.maps(image, label)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(image[None], label[None]).features[-1].dtype == torch.bfloat16
        rough = network.maps(image, label)
    for kind, values in exact.items():
        assert rough[kind].dtype == torch.float32 and rough[kind].shape == values.shape
        # bfloat16 has 8 bits: a step of 1/256 of a value, some of them added up. A position at the
        # border of an anchor may fall on its other side.
        scale = values.amax((1, 2), keepdim=True)
        assert (scale[1:] > 0).all()
        assert float(((rough[kind] - values) / scale.clamp(min=1e-5)).abs().mean()) < 0.02, kind


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"test": {"aligment": "off"}}, r"method\.test\.aligment"),
        ({"lambda_self": -1.0}, r"method\.lambda_self=-1\.0"),
        ({"features": "hierarchical", "side_channels": (3, 4)}, r"method\.side_channels=\[3, 4\]"),
    ],
)
def test_wrong_options_are_named(make: Make, options: dict[str, Any], named: str) -> None:
    with pytest.raises(WsssError, match=named):
        make(**options)
