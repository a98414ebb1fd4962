"""Backbones against hand-built networks, closed forms and PyTorch's own gradients."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from wsss.backbones import ResNet, SmallResNet, Timm
from wsss.backbones.base import SHIPPED
from wsss.backbones.depthwise import accelerate_depthwise
from wsss.errors import WsssError


def hand_built_resnet50() -> nn.Sequential:
    """ResNet-50 of scratch layers whose last stage keeps stride 1 and dilation 1 everywhere."""

    class Bottleneck(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int, project: bool) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(4 * width)
            self.downsample = None
            if project:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
                )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.bn1(self.conv1(x)))
            y = torch.relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    def stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        first = Bottleneck(inputs, width, stride, True)
        return nn.Sequential(
            first, *(Bottleneck(4 * width, width, 1, False) for _ in range(blocks - 1))
        )

    stem = nn.Sequential()
    stem.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    stem.bn1 = nn.BatchNorm2d(64)
    stem.layer1 = stage(64, 64, 3, 1)
    stem.layer2 = stage(256, 128, 4, 2)
    stem.layer3 = stage(512, 256, 6, 2)
    stem.layer4 = stage(1024, 512, 3, 1)
    return stem


def features_by_hand(network: nn.Sequential, image: torch.Tensor) -> list[torch.Tensor]:
    x = torch.max_pool2d(torch.relu(network.bn1(network.conv1(image))), 3, 2, 1)
    features = []
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = layer(x)
        features.append(x)
    return features


def test_resnet50_is_the_hand_built_network_at_stride_16() -> None:
    reference = hand_built_resnet50().eval()
    backbone = ResNet(50, weights=None).eval()
    backbone.network.load_state_dict(reference.state_dict(), strict=True)
    image = torch.randn(2, 3, 75, 98)
    with torch.no_grad():
        ours, theirs = backbone(image), features_by_hand(reference, image)
    for one, other, channels, stride in zip(
        ours, theirs, backbone.channels, backbone.strides, strict=True
    ):
        assert one.shape[1] == channels
        assert one.shape[2:] == (-(-75 // stride), -(-98 // stride))
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_resnet_has_torchvisions_parameters_and_no_dilation(depth: int) -> None:
    backbone = ResNet(depth, weights=None)
    reference = torchvision.models.get_model(f"resnet{depth}", weights=None)
    shapes = {n: p.shape for n, p in reference.state_dict().items() if not n.startswith("fc.")}
    assert {n: p.shape for n, p in backbone.network.state_dict().items()} == shapes
    assert all(m.dilation == (1, 1) for m in backbone.modules() if isinstance(m, nn.Conv2d))
    assert [f.shape[1] for f in backbone(torch.zeros(1, 3, 64, 64))] == list(backbone.channels)


def test_stem_and_two_stages_get_no_gradient_and_the_rest_all_of_it() -> None:
    backbone = ResNet(18, weights=None)
    sum(f.sum() for f in backbone(torch.randn(1, 3, 64, 64))).backward()
    for name, parameter in backbone.network.named_parameters():
        learns = name.startswith(("layer3", "layer4"))
        assert (parameter.grad is not None) == learns, name


def test_batch_statistics_stay_while_the_affine_weights_of_learning_stages_train() -> None:
    backbone = ResNet(18, weights=None).train()
    before = {n: b.clone() for n, b in backbone.named_buffers()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    scale = backbone.network.layer4[0].bn1.weight.detach().clone()
    backbone(torch.randn(2, 3, 64, 64))[-1].square().mean().backward()
    optimizer.step()
    assert all(torch.equal(b, before[n]) for n, b in backbone.named_buffers())
    assert not torch.equal(backbone.network.layer4[0].bn1.weight, scale)


def test_a_network_from_nothing_takes_the_statistics_of_the_batch() -> None:
    backbone = ResNet(18, weights=None, frozen_stages=0, norm="batch").train()
    before = backbone.network.bn1.running_mean.clone()
    image = torch.randn(2, 3, 64, 64)
    backbone(image)
    assert not torch.equal(backbone.network.bn1.running_mean, before)
    kept = backbone.eval().network.bn1.running_mean.clone()
    backbone(image)
    assert torch.equal(backbone.network.bn1.running_mean, kept)
    with pytest.raises(WsssError, match="frozen_stages=0"):
        ResNet(18, weights=None, norm="batch")


@pytest.mark.parametrize(
    "backbone",
    [
        lambda: ResNet(50, weights=None),
        lambda: Timm("tf_efficientnet_lite0", freeze_depthwise=True),
        lambda: SmallResNet(weights=None),
    ],
)
def test_folding_normalizations_changes_nothing_but_rounding(backbone) -> None:
    network = backbone().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    image = torch.randn(1, 3, 70, 90)
    folded = network.folded()
    norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.forward.__func__ is nn.Sequential.forward for m in norms)
    with torch.no_grad():
        for one, other in zip(network(image), folded(image), strict=True):
            assert (one - other).abs().max() <= 2e-4 * one.abs().max()


@pytest.mark.parametrize(("kernel", "padding", "dilation"), [(3, 1, 1), (5, 4, 2), (5, 2, 1)])
def test_quick_depthwise_has_pytorchs_gradients(kernel: int, padding: int, dilation: int) -> None:
    layer = nn.Conv2d(6, 6, kernel, 1, padding, dilation, groups=6, bias=False).double()
    x = torch.randn(2, 6, 9, 11, dtype=torch.double, requires_grad=True)
    weight = torch.randn(2, 6, *layer(x).shape[2:], dtype=torch.double)
    expected = torch.autograd.grad((layer(x) * weight).sum(), (x, layer.weight))
    holder = nn.Sequential(layer)
    accelerate_depthwise(holder)
    assert type(layer) is not nn.Conv2d
    got = torch.autograd.grad((layer(x) * weight).sum(), (x, layer.weight))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_timm_gives_four_stages_and_its_own_normalization() -> None:
    backbone = Timm("tf_efficientnet_lite0")
    features = backbone.forward_with_stem(torch.zeros(1, 3, 64, 96))
    assert [f.shape[1:] for f in features[1:]] == [
        (24, 16, 24),
        (40, 8, 12),
        (112, 4, 6),
        (320, 4, 6),
    ]
    assert features[0].shape[1] == backbone.stem_channels
    assert backbone.mean == (0.5, 0.5, 0.5)
    learning = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert any("blocks.5" in n for n in learning)
    assert not any("blocks.1." in n or "conv_stem" in n for n in learning)


def test_a_timm_network_of_four_stages_serves_too() -> None:
    backbone = Timm("convnext_atto")
    features = backbone.forward_with_stem(torch.zeros(1, 3, 64, 64))
    assert [f.shape[2] for f in features] == [16, 16, 8, 4, 4]
    assert torch.equal(features[0], features[1])


def small_by_hand(state: dict[str, torch.Tensor], image: torch.Tensor) -> list[torch.Tensor]:
    """The small network written out, in evaluation mode, from its weights alone."""

    def conv(x: torch.Tensor, name: str, norm: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        y = nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, var = (state[f"{norm}.running_{what}"] for what in ("mean", "var"))
        y = (y - mean[:, None, None]) / torch.sqrt(var + 1e-5)[:, None, None]
        return y * state[f"{norm}.weight"][:, None, None] + state[f"{norm}.bias"][:, None, None]

    x = torch.max_pool2d(torch.relu(conv(image, "0.0", "0.1", 2)), 3, 2, 1)
    features = [x]
    for stage, stride in ((1, 1), (2, 2), (3, 1), (4, 1)):
        y = torch.relu(conv(x, f"{stage}.conv1", f"{stage}.bn1", stride))
        y = conv(y, f"{stage}.conv2", f"{stage}.bn2")
        if f"{stage}.downsample.0.weight" in state:
            x = conv(x, f"{stage}.downsample.0", f"{stage}.downsample.1", stride)
        x = torch.relu(x + y)
        features.append(x)
    return features


def test_the_demos_network_is_the_file_that_comes_with_the_package() -> None:
    from safetensors.torch import load_file

    path = SHIPPED["scenes"]
    assert path.stat().st_size < 2e6
    stored = load_file(path)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    backbone = SmallResNet().eval()
    image = torch.randn(2, 3, 75, 98)
    with torch.no_grad():
        ours = backbone.forward_with_stem(image)
        theirs = small_by_hand({k: v.float() for k, v in stored.items()}, image)
    strides, channels = (backbone.stem_stride, *backbone.strides), backbone.channels
    for one, other, stride, width in zip(
        ours, theirs, strides, (backbone.stem_channels, *channels), strict=True
    ):
        assert one.shape[1:] == (width, -(-75 // stride), -(-98 // stride))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    learning = {n.split(".")[1] for n, p in backbone.named_parameters() if p.requires_grad}
    assert learning == {"3", "4"}


@pytest.mark.realdata
def test_real_weights_fill_the_network(lite0_weights) -> None:
    from safetensors.torch import load_file

    backbone = Timm("tf_efficientnet_lite0", weights=str(lite0_weights))
    stored = load_file(lite0_weights)
    for name, value in backbone.network.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, stored[name]), name


def test_wrong_weights_are_told_in_one_line(tmp_path) -> None:
    with pytest.raises(WsssError, match=r"backbone.weights=.*no such file"):
        ResNet(18, weights=str(tmp_path / "none.pth"))
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"nothing")
    with pytest.raises(WsssError, match="can't be read as weights"):
        ResNet(18, weights=str(broken))
    other = tmp_path / "resnet34.pth"
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), other)
    with pytest.raises(WsssError, match="another network"):
        ResNet(18, weights=str(other))
    with pytest.raises(WsssError, match="weights=scenes: .*another network"):
        ResNet(18, weights="scenes")
    with pytest.raises(WsssError, match="no network of this name"):
        Timm("no_such_network")
    with pytest.raises(WsssError, match="depth=19"):
        ResNet(19, weights=None)


def test_a_file_of_torchvision_weights_is_loaded(tmp_path) -> None:
    reference = torchvision.models.resnet18(weights=None)
    path = tmp_path / "resnet18.pth"
    torch.save(reference.state_dict(), path)
    backbone = ResNet(18, weights=str(path))
    assert torch.equal(backbone.network.layer4[1].conv2.weight, reference.layer4[1].conv2.weight)
