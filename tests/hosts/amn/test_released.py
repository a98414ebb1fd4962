"""AMN's published checkpoints, here of random numbers, load and compute what they did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from wsss.backbones import ResNet
from wsss.errors import WsssError
from wsss.hosts.amn.host import AMN, AMNSettings
from wsss.hosts.amn.released import from_amn_state_dict
from wsss.hosts.released import read_checkpoint

CLASSES = ("cat", "dog", "cow", "car")


class FourConvs(nn.Module):
    """Their classifier, by its names."""

    def __init__(self) -> None:
        super().__init__()
        for n, dilation in enumerate((6, 12, 18, 24)):
            layer = nn.Conv2d(2048, 5, 3, padding=dilation, dilation=dilation)
            setattr(self, f"c{n}", layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.c0(x) + self.c1(x) + self.c2(x) + self.c3(x)


class Released(nn.Module):
    """A network with the names of AMN's: each layer is registered up to three times."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet50 = torchvision.models.resnet50(weights=None)
        del self.resnet50.fc
        block = self.resnet50.layer4[0]
        block.conv2.stride = block.downsample[0].stride = (1, 1)
        r = self.resnet50
        self.stage1 = nn.Sequential(r.conv1, r.bn1, r.relu, r.maxpool, r.layer1)
        self.stage2, self.stage3, self.stage4 = (
            nn.Sequential(layer) for layer in (r.layer2, r.layer3, r.layer4)
        )
        self.label_enc = nn.Linear(4, 2048)
        self.classifier = nn.Sequential(nn.Dropout(0.1), FourConvs())
        self.backbone = nn.ModuleList([self.stage1, self.stage2, self.stage3, self.stage4])
        self.newly_added = nn.ModuleList([self.classifier, self.label_enc])

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """Logits of background and classes."""
        x = self.stage4(self.stage3(self.stage2(self.stage1(image))))
        return self.classifier(x * self.label_enc(label).unsqueeze(2).unsqueeze(3))


@pytest.fixture(scope="module")
def released() -> Released:
    torch.manual_seed(0)
    network = Released().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
    return network


def of_host(state: dict[str, Tensor]) -> dict[str, Tensor]:
    assert all(name.startswith("host.") for name in state)
    return {name.removeprefix("host."): value for name, value in state.items()}


def test_a_checkpoint_computes_what_it_did(released: Released, tmp_path: Path) -> None:
    path = tmp_path / "res50_amn.pth.pth"
    torch.save(released.state_dict(), path)
    made = AMN(AMNSettings(), CLASSES, ResNet(50)).eval()
    made.load_state_dict(of_host(read_checkpoint(path)[0]))
    image, label = torch.randn(1, 3, 64, 48), torch.tensor([[1.0, 0, 0, 1]])
    with torch.no_grad():
        expected, found = released(image, label), made(image, label).extra["logits"]
    assert found.shape == (1, 5, 4, 3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_every_weight_of_the_file_is_used_once(released: Released) -> None:
    state = released.state_dict()
    assert len(state) > 2.9 * len(from_amn_state_dict(state))  # the label layer stands there twice
    converted = from_amn_state_dict(state)
    made = AMN(AMNSettings(), CLASSES, ResNet(50))
    assert of_host(converted).keys() == made.state_dict().keys()


@pytest.mark.parametrize("prefix", ["resnet50.", "stage", "backbone."])
def test_any_of_the_three_copies_of_the_backbone_is_enough(released: Released, prefix: str) -> None:
    state = released.state_dict()
    copies = ("resnet50.", "stage", "backbone.")
    one = {n: v for n, v in state.items() if n.startswith(prefix) or not n.startswith(copies)}
    expected, found = from_amn_state_dict(state), from_amn_state_dict(one)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "name",
    [
        "stage3.0.2.conv1.weight",
        "backbone.0.4.1.bn2.running_var",
        "stage1.1.bias",
        "newly_added.0.1.c2.bias",
        "newly_added.1.weight",
    ],
)
def test_copies_that_differ_are_named(released: Released, tmp_path: Path, name: str) -> None:
    state = dict(released.state_dict())
    state[name] = state[name] + 1e-3
    path = tmp_path / "res50_amn.pth.pth"
    torch.save(state, path)
    with pytest.raises(WsssError, match="are the same weight and differ") as error:
        read_checkpoint(path)
    assert name in str(error.value) and str(path) in str(error.value)


def test_names_of_parallel_training_and_of_old_versions_are_understood(
    released: Released, tmp_path: Path
) -> None:
    state = released.state_dict()
    old = {f"module.{k}": v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "a.pth")
    torch.save(state, tmp_path / "b.pth")
    found, expected = (read_checkpoint(tmp_path / name)[0] for name in ("a.pth", "b.pth"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["stage1.5.weight", "classifier.1.c4.bias", "head.weight"])
def test_an_unknown_name_is_refused(name: str) -> None:
    state = {"label_enc.weight": torch.ones(1), name: torch.ones(1)}
    with pytest.raises(WsssError, match=f"{name} is not one of its names"):
        from_amn_state_dict(state)


def test_a_file_without_its_classifier_is_refused(released: Released) -> None:
    state = {n: v for n, v in released.state_dict().items() if ".c0." not in n}
    with pytest.raises(WsssError, match=r"stands for classifier\.0\.weight"):
        from_amn_state_dict(state)
