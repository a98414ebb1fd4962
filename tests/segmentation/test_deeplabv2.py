"""DeepLabV2: names, sizes, groups, and weights from files, against independent descriptions."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from wsss.backbones import ResNet
from wsss.errors import WsssError
from wsss.segmentation.base import SegmentationNetwork, fill
from wsss.segmentation.deeplabv2 import ASPP, build_network


def meta(name: str, num_classes: int = 21, **options) -> SegmentationNetwork:
    with torch.device("meta"):
        return build_network(name, num_classes, **options)


@pytest.fixture
def uninitialized(monkeypatch) -> None:
    """Large networks are built quickly: what a file is to fill has no random numbers before."""
    monkeypatch.setattr(nn.Conv2d, "reset_parameters", lambda self: None)
    monkeypatch.setattr("wsss.segmentation.deeplabv2.he_init", lambda module: None)
    monkeypatch.setattr("wsss.backbones.resnet38.he_init", lambda module: None)
    monkeypatch.setattr(nn.init, "kaiming_normal_", lambda tensor, **options: tensor)


def numbered_file(path: Path, shapes: dict[str, torch.Size]) -> Path:
    """A small file of weights of these shapes: tensor i is all i."""
    torch.save(
        {n: torch.tensor(float(i)).expand(s) for i, (n, s) in enumerate(shapes.items())}, path
    )
    return path


@pytest.mark.parametrize(
    ("num_classes", "parameters", "digest"),
    [(21, 44_048_532, "1ef353e328e09d9d"), (81, 48_472_452, "a2aa5272a07bafa2")],
)
def test_names_and_shapes_are_the_released_ones(
    num_classes: int, parameters: int, digest: str
) -> None:
    network = meta("resnet101_msra", num_classes)
    assert sum(p.numel() for p in network.parameters()) == parameters
    lines = sorted(f"base.{n} {tuple(v.shape)}" for n, v in network.state_dict().items())
    assert len(lines) == 632
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest
    assert "base.layer1.conv1.conv.weight (64, 3, 7, 7)" in lines
    assert "base.layer4.block23.conv3x3.conv.weight (256, 256, 3, 3)" in lines
    assert "base.layer5.block1.shortcut.bn.running_var (2048,)" in lines
    assert f"base.aspp.c3.weight ({num_classes}, 2048, 3, 3)" in lines


def test_logits_have_deeplabs_sizes() -> None:
    network = meta("resnet101_msra")
    for side, cells in ((321, 41), (513, 65), (160, 21), (240, 31)):
        assert network(torch.empty(1, 3, side, 321, device="meta")).shape == (1, 21, cells, 41)
    assert network.output_stride == 8
    other = meta("resnet101_torchvision", 5)
    assert other(torch.empty(2, 3, 321, 513, device="meta")).shape == (2, 5, 41, 65)


def test_the_aspp_is_the_sum_of_dilated_convolutions() -> None:
    torch.manual_seed(0)
    head = ASPP(4, 3, (1, 2, 5))
    for index in range(3):
        nn.init.normal_(getattr(head, f"c{index}").bias)
    x = torch.randn(1, 4, 7, 6)
    expected = np.zeros((3, 7, 6))
    for index, rate in enumerate((1, 2, 5)):
        weight = getattr(head, f"c{index}").weight.detach().numpy()
        bias = getattr(head, f"c{index}").bias.detach().numpy()
        for row in range(7):
            for column in range(6):
                expected[:, row, column] += bias
                for i in range(3):
                    for j in range(3):
                        y, z = row + (i - 1) * rate, column + (j - 1) * rate
                        if 0 <= y < 7 and 0 <= z < 6:
                            expected[:, row, column] += weight[:, :, i, j] @ x[0, :, y, z].numpy()
    np.testing.assert_allclose(head(x)[0].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_aspp_has_deeplabs_rates_and_begins_near_zero() -> None:
    torch.manual_seed(0)
    network = build_network("backbone", 21, backbone=ResNet(50, None, 0))
    assert [c.dilation[0] for c in network.aspp.children()] == [3, 6, 9, 12]  # at stride 16
    for layer in network.aspp.children():
        assert layer.padding == layer.dilation and not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
    rates = [c.dilation[0] for c in meta("resnet101_msra").aspp.children()]
    assert rates == [6, 12, 18, 24]
    network = meta("resnet101_msra", rates=[2, 4])
    assert [c.dilation[0] for c in network.aspp.children()] == [2, 4]


def test_msra_weights_see_bgr_in_0_to_255_less_the_mean() -> None:
    network = build_network("resnet101_msra", 2).eval()
    seen = []
    network.layer1.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    photograph = torch.randint(0, 256, (1, 3, 8, 9)).float()  # RGB
    mean, std = (torch.tensor(v)[:, None, None] for v in (network.mean, network.std))
    with torch.no_grad():
        network((photograph / 255 - mean) / std)
    blue_green_red = torch.stack([photograph[:, 2], photograph[:, 1], photograph[:, 0]], dim=1)
    expected = blue_green_red - torch.tensor([104.008, 116.669, 122.675])[:, None, None]
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-3)


def test_torchvisions_dilated_body_gives_the_classifiers_features_on_a_finer_grid(
    request,
) -> None:
    torch.manual_seed(0)
    reference = torchvision.models.resnet101(weights=None).eval()
    request.getfixturevalue("uninitialized")
    network = build_network("resnet101_torchvision", 3).eval()
    with_head = fill(network, reference.state_dict(), "torchvision")
    assert not with_head
    image = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        x = image
        for name, layer in reference.named_children():
            x = x if name in ("avgpool", "fc") else layer(x)
        fine = network.features(image)
    assert x.shape[-2:] == (2, 1) and fine.shape[-2:] == (8, 4)
    assert (fine[..., ::4, ::4] - x).abs().max() <= 1e-4 * x.abs().max()


@pytest.mark.parametrize("name", ["resnet101_msra", "resnet101_torchvision"])
def test_groups_are_deeplabs_and_leave_batch_normalization_out(name: str) -> None:
    network = meta(name)
    body, weights, biases = network.parameter_groups(2.5e-4, 5e-4)
    assert [len(g["params"]) for g in (body, weights, biases)] == [104, 4, 4]
    assert [g["lr"] for g in (body, weights, biases)] == pytest.approx([2.5e-4, 2.5e-3, 5e-3])
    assert [g["weight_decay"] for g in (body, weights, biases)] == [5e-4, 5e-4, 0]
    assert all(p.dim() == 4 for p in body["params"]) and all(p.dim() == 1 for p in biases["params"])
    members = [id(p) for g in (body, weights, biases) for p in g["params"]]
    learning = {id(p) for p in network.parameters() if p.requires_grad}
    assert len(members) == len(learning) and set(members) == learning
    assert len(list(network.parameters())) - len(learning) == 208
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    network.train()
    assert len(norms) == 104 and not any(m.training for m in norms) and network.training


def test_a_backbones_own_frozen_stages_and_batch_statistics_stay() -> None:
    network = build_network("backbone", 3, backbone=ResNet(18, None, 2))
    assert network.output_stride == 16
    assert network(torch.zeros(1, 3, 70, 64)).shape == (1, 3, 5, 4)
    body = network.parameter_groups(1.0, 0.0)[0]["params"]
    layers = network.backbone.network
    expected = [
        m.weight
        for part in (layers.layer3, layers.layer4)
        for m in part.modules()
        if isinstance(m, nn.Conv2d)
    ]
    assert {id(p) for p in body} == {id(p) for p in expected}
    assert not network.train().backbone.network.bn1.training

    network = build_network("backbone", 3, backbone=ResNet(18, None, 0, norm="batch"))
    assert network.train().backbone.network.bn1.training
    assert not network.eval().backbone.network.bn1.training
    body = network.parameter_groups(1.0, 0.0)[0]["params"]
    assert len(body) == len(list(network.backbone.parameters()))


def test_gradients_reach_all_that_learns() -> None:
    torch.manual_seed(0)
    network = build_network("backbone", 3, backbone=ResNet(18, None, 0))
    network(torch.randn(1, 3, 96, 96)).square().mean().backward()
    for name, parameter in network.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.ne(0).any())
        assert reached == parameter.requires_grad, name


def filled_with(network: SegmentationNetwork, names: list[str], state: dict[str, Tensor]) -> None:
    for index, name in enumerate(names):
        assert (state[name] == index).all(), name


@pytest.mark.parametrize("prefix", ["base.", "module.scales.", "network."])
@pytest.mark.usefixtures("uninitialized")
def test_released_files_load_whole(tmp_path: Path, prefix: str) -> None:
    shapes = {prefix + n: v.shape for n, v in meta("resnet101_msra").state_dict().items()}
    path = numbered_file(tmp_path / "voc.pth", shapes)
    network = build_network("resnet101_msra", 21, weights=path)
    assert network.initial_weights == "voc.pth (head included)"
    filled_with(network, [n.removeprefix(prefix) for n in shapes], network.state_dict())


@pytest.mark.parametrize("other_head", ["aspp", "fc", None])
@pytest.mark.usefixtures("uninitialized")
def test_weights_trained_for_something_else_leave_the_head_fresh(tmp_path, other_head) -> None:
    own = meta("resnet101_msra", 21).state_dict()
    shapes = {n: v.shape for n, v in own.items() if not n.startswith("aspp")}
    body = list(shapes)
    if other_head == "aspp":
        coco = meta("resnet101_msra", 81).state_dict()
        shapes |= {n: v.shape for n, v in coco.items() if n.startswith("aspp")}
    elif other_head == "fc":
        shapes |= {"fc.weight": torch.Size([91, 2048, 1, 1]), "fc.bias": torch.Size([91])}
    path = numbered_file(tmp_path / "deeplabv1_coco.pth", shapes)
    network = build_network("resnet101_msra", 21, weights=str(path), trained_on="coco")
    assert network.initial_weights == "coco"
    filled_with(network, body, network.state_dict())
    for layer in network.aspp.children():
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05) and not layer.bias.any()


@pytest.mark.usefixtures("uninitialized")
def test_files_of_torchvision_and_psa_load_without_their_classifiers(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {n: v.shape for n, v in torchvision.models.resnet101().state_dict().items()}
    path = numbered_file(tmp_path / "resnet101.pth", shapes)
    network = build_network("resnet101_torchvision", 4, weights=path, trained_on="imagenet")
    assert network.initial_weights == "imagenet"
    filled_with(network, [n for n in shapes if not n.startswith("fc.")], network.state_dict())

    own = meta("resnet38d").state_dict()
    shapes = {n: v.shape for n, v in own.items() if not n.startswith("fc8_seg")}
    body = list(shapes)
    shapes["fc8.weight"] = torch.Size([20, 4096, 1, 1])
    path = numbered_file(tmp_path / "res38_cls.pth", shapes)
    network = build_network("resnet38d", 21, weights=path)
    assert network.initial_weights == "res38_cls.pth"
    filled_with(network, body, network.state_dict())


@pytest.mark.usefixtures("uninitialized")
def test_torchvisions_own_weights_can_be_downloaded(monkeypatch) -> None:
    shapes = {n: v.shape for n, v in meta("resnet101_torchvision").state_dict().items()}
    shapes = {n: s for n, s in shapes.items() if not n.startswith("aspp")}
    state = {n: torch.tensor(float(i)).expand(s) for i, (n, s) in enumerate(shapes.items())}
    state["fc.weight"] = torch.zeros(1000, 2048)
    asked = []

    def get_state_dict(self, *args, **kwargs):
        asked.append(self)
        return state

    enum = torchvision.models.ResNet101_Weights
    monkeypatch.setattr(enum, "get_state_dict", get_state_dict)
    network = build_network("resnet101_torchvision", 21, weights="imagenet")
    assert asked == [enum.IMAGENET1K_V1] and network.initial_weights == "imagenet"
    filled_with(network, list(shapes), network.state_dict())

    def fail(self, *args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(enum, "get_state_dict", fail)
    with pytest.raises(WsssError, match=r"can't be downloaded \(OSError\); give the path"):
        build_network("resnet101_torchvision", 21, weights="imagenet")


def test_what_the_weights_were_is_said() -> None:
    assert meta("resnet101_msra").initial_weights == "none"
    backbone = ResNet(18, None, 0)
    assert (
        build_network("backbone", 2, backbone=backbone).initial_weights == "those of the backbone"
    )
    network = build_network("backbone", 2, backbone=backbone, trained_on="imagenet")
    assert network.initial_weights == "imagenet"


def test_weights_of_another_network_are_told_in_one_line(tmp_path: Path) -> None:
    def message(state: object) -> str:
        path = tmp_path / "other.pth"
        torch.save(state, path)
        with pytest.raises(WsssError) as error:
            build_network("backbone", 3, weights=path, backbone=ResNet(18, None, 0))
        text = str(error.value)
        assert text.startswith(f"segmentation.network.weights={path}: ") and "\n" not in text
        return text

    shapes = build_network("backbone", 3, backbone=ResNet(18, None, 0)).state_dict()
    own = {n: torch.zeros(()).expand(v.shape) for n, v in shapes.items()}
    short = {n: v for n, v in own.items() if ".layer1.0." not in n}
    text = message(short)
    assert "10 missing (backbone.network.layer1.0.conv1.weight, " in text and ", ...)" in text
    assert "1 unknown (stranger)" in message({**own, "stranger": torch.zeros(1)})
    name = "backbone.network.conv1.weight"
    text = message({**own, name: torch.zeros(64, 1, 7, 7)})
    assert f"1 of another shape ({name} (64, 1, 7, 7), not (64, 3, 7, 7))" in text
    assert "epoch is no tensor" in message({"epoch": 3, **own})
    assert "no dictionary of weights" in message([torch.zeros(2)])
    with pytest.raises(WsssError, match=r"segmentation.network.weights=.*no such file"):
        build_network("resnet38d", 2, weights=tmp_path / "none.pth")
    with pytest.raises(WsssError, match="a file of MXNet"):
        build_network("resnet38d", 2, weights="ilsvrc-cls_rna-a1_cls1000_ep-0001.params")


def test_wrong_keys_are_told_in_one_line() -> None:
    with pytest.raises(WsssError, match=r"network.name=resnet7: choose resnet101_msra, "):
        build_network("resnet7", 2)
    with pytest.raises(WsssError, match=r"network.rate: unknown key; there are rates, trained_on"):
        build_network("resnet101_msra", 2, rate=3)
    with pytest.raises(WsssError, match="name=backbone: needs a backbone"):
        build_network("backbone", 2)
    with pytest.raises(WsssError, match="has a body of its own"):
        build_network("resnet38d", 2, backbone=ResNet(18, None, 0))
    with pytest.raises(WsssError, match="resnet38d has no ASPP"):
        build_network("resnet38d", 2, rates=[6])
    with pytest.raises(WsssError, match=r"rates=\[0, 6\]: give dilations"):
        build_network("resnet101_msra", 2, rates=[0, 6])
    with pytest.raises(WsssError, match="only resnet101_torchvision has weights to download"):
        meta("resnet101_msra", weights="imagenet")
