"""SIPE's published checkpoints, here of random numbers, load and compute what they did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from wsss import cli
from wsss.build.objects import load_network
from wsss.build.settings import Settings
from wsss.errors import WsssError
from wsss.hosts.released import from_sipe_state_dict, read_checkpoint
from wsss.maps.structure import hierarchical_feature

CLASSES = ("a", "b", "c", "d")


class Released(nn.Module):
    """A network with the names of SIPE's: each layer is registered up to three times."""

    def __init__(self, sides: bool = True) -> None:
        super().__init__()
        self.resnet50 = torchvision.models.resnet50(weights=None)
        del self.resnet50.fc
        block = self.resnet50.layer4[0]
        block.conv2.stride = block.downsample[0].stride = (1, 1)
        r = self.resnet50
        self.stage0 = nn.Sequential(r.conv1, r.bn1, r.relu, r.maxpool)
        for n in range(1, 5):
            setattr(self, f"stage{n}", nn.Sequential(getattr(r, f"layer{n}")))
        added = []
        if sides:
            for n, (c, d) in enumerate([(256, 128), (512, 128), (1024, 256), (2048, 256)], 1):
                setattr(self, f"side{n}", nn.Conv2d(c, d, 1, bias=False))
                added.append(getattr(self, f"side{n}"))
        self.classifier = nn.Conv2d(2048, len(CLASSES), 1, bias=False)
        self.backbone = nn.ModuleList([getattr(self, f"stage{n}") for n in range(5)])
        self.newly_added = nn.ModuleList([self.classifier, *added])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Raw class maps, and the hierarchical feature on the third stage's grid."""
        x = self.stage0(image)
        features, parts = [], []
        for n in range(1, 5):
            x = getattr(self, f"stage{n}")(x)
            features.append(x)
        for n, feature in enumerate(features, 1):
            side = getattr(self, f"side{n}")(feature)
            side = side / (side.norm(dim=1, keepdim=True) + 1e-5)
            parts.append(F.interpolate(side, features[2].shape[2:], mode="bilinear"))
        return self.classifier(x), torch.cat(parts, dim=1)


def released(sides: bool = True) -> Released:
    torch.manual_seed(0)
    network = Released(sides).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
    return network


def settings(method: str) -> Settings:
    overrides = [f"method={method}", "backbone=resnet50", "backbone.weights=null"]
    return cli.compose_for_doctor(overrides)


def test_a_checkpoint_of_sipe_computes_what_it_did(tmp_path: Path) -> None:
    network = released()
    torch.save({"net": network.state_dict()}, tmp_path / "final.pth")
    ours = load_network(settings("sipe"), tmp_path / "final.pth", CLASSES)
    image = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        cam, hierarchical = network(image)
        seen = ours(image, torch.ones(1, 4))
        sides = [side(x) for side, x in zip(ours.branch.sides, seen.features, strict=True)]
    assert seen.activation.shape == (1, 4, 6, 4)
    torch.testing.assert_close(seen.activation, cam, rtol=1e-4, atol=1e-5)
    g = hierarchical_feature(sides, seen.features[2].shape[-2:])
    torch.testing.assert_close(g, hierarchical, rtol=1e-4, atol=1e-5)


def test_a_cam_network_of_irn_loads_into_the_plain_method(tmp_path: Path) -> None:
    network = released(sides=False)
    torch.save(network.state_dict(), tmp_path / "res50_cam.pth")
    host = load_network(settings("cam"), tmp_path / "res50_cam.pth", CLASSES).host
    torch.testing.assert_close(host.classifier.weight, network.classifier.weight)
    own = host.backbone.network.state_dict()
    theirs = network.resnet50.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)


def test_names_of_parallel_training_and_of_old_versions_are_understood() -> None:
    state = released().state_dict()
    expected = from_sipe_state_dict(state)
    old = {f"module.{k}": v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    found = from_sipe_state_dict(old)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"net": {"resnet50.conv1.weight": torch.ones(1)}}, "classifier.weight is missing"),
        ({"resnet50.conv1.weight": torch.ones(1), "head.w": torch.ones(1)}, "head.w is not one"),
        ({"model": {"conv1.weight": torch.ones(1)}}, "neither a checkpoint of stage=train nor"),
        (torch.ones(3), "neither a checkpoint"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(WsssError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


def test_a_checkpoint_of_another_method_or_class_count_is_refused(tmp_path: Path) -> None:
    torch.save({"net": released().state_dict()}, tmp_path / "final.pth")
    for method, classes in (("cam", CLASSES), ("sipe", (*CLASSES, "e"))):
        with pytest.raises(WsssError, match=f"not a checkpoint of host=cam method={method}"):
            load_network(settings(method), tmp_path / "final.pth", classes)


def test_nothing_that_a_file_pickles_is_run(tmp_path: Path) -> None:
    torch.save({"net": Path("anything")}, tmp_path / "a.pth")
    with pytest.raises(WsssError, match="can't be read as a checkpoint"):
        read_checkpoint(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"broken")
    with pytest.raises(WsssError, match="can't be read as a checkpoint"):
        read_checkpoint(tmp_path / "b.pth")
    with pytest.raises(WsssError, match="no checkpoint"):
        read_checkpoint(tmp_path / "c.pth")
