"""MSRA's ResNet-101 against functional calls, and its dilation against strides."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.segmentation.msra_resnet import Bottleneck, ConvBN, Stem, resnet101_stages, stage


def shuffle_norms(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


def conv_bn(x: Tensor, state: dict[str, Tensor], name: str, stride=1, padding=0, dilation=1):
    def get(key: str) -> Tensor:
        return state[f"{name}.{key}"][:, None, None]

    x = F.conv2d(x, state[f"{name}.conv.weight"], None, stride, padding, dilation)
    return (x - get("bn.running_mean")) / (get("bn.running_var") + 1e-5).sqrt() * get(
        "bn.weight"
    ) + get("bn.bias")


@pytest.mark.parametrize(("stride", "dilation", "project"), [(2, 1, True), (1, 4, False)])
def test_a_block_has_its_stride_in_the_first_convolution(
    stride: int, dilation: int, project: bool
) -> None:
    torch.manual_seed(0)
    inputs = 6 if project else 16
    block = shuffle_norms(Bottleneck(inputs, 16, stride, dilation, project))
    state = block.state_dict()
    x = torch.randn(2, inputs, 13, 12)
    y = torch.relu(conv_bn(x, state, "reduce", stride))
    y = torch.relu(conv_bn(y, state, "conv3x3", 1, dilation, dilation))
    y = conv_bn(y, state, "increase")
    y = torch.relu(y + (conv_bn(x, state, "shortcut", stride) if project else x))
    torch.testing.assert_close(block(x), y, rtol=1e-4, atol=1e-4)


def test_pooling_of_the_stem_rounds_up() -> None:
    torch.manual_seed(0)
    stem = shuffle_norms(Stem())
    image = torch.randn(1, 3, 20, 24)
    x = torch.relu(conv_bn(image, stem.state_dict(), "conv1", 2, 3))  # 10 x 12
    padded = F.pad(x, (1, 2, 1, 2), value=-float("inf"))
    expected = padded.unfold(2, 3, 2).unfold(3, 3, 2).amax((-1, -2))
    assert expected.shape[-2:] == (6, 7)  # without ceil mode 5 x 6
    torch.testing.assert_close(stem(image), expected, rtol=1e-4, atol=1e-4)


def test_dilated_stages_give_the_strided_networks_features_on_a_finer_grid() -> None:
    torch.manual_seed(0)
    strided = nn.Sequential(stage(3, 8, 16, 2, 1), stage(2, 16, 32, 2, 1))
    dilated = nn.Sequential(stage(3, 8, 16, 1, 2), stage(2, 16, 32, 1, 4))
    shuffle_norms(strided)
    dilated.load_state_dict(strided.state_dict())
    dilated.eval()
    x = torch.randn(1, 8, 16, 20)
    fine, coarse = dilated(x), strided(x)
    assert fine.shape[-2:] == (16, 20) and coarse.shape[-2:] == (4, 5)
    torch.testing.assert_close(fine[..., ::4, ::4], coarse, rtol=1e-4, atol=1e-4)


def test_stages_have_the_published_depths_strides_and_dilations() -> None:
    with torch.device("meta"):
        stages = resnet101_stages()
        x = torch.empty(1, 3, 321, 513)
    shapes = []
    for layer in stages.values():
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [
        (64, 81, 129),
        (256, 81, 129),
        (512, 41, 65),
        (1024, 41, 65),
        (2048, 41, 65),
    ]
    blocks = {name: list(layer) for name, layer in stages.items() if name != "layer1"}
    assert [len(b) for b in blocks.values()] == [3, 4, 23, 3]
    dilations = {n: {b.conv3x3.conv.dilation for b in bs} for n, bs in blocks.items()}
    assert list(dilations.values()) == [{(1, 1)}, {(1, 1)}, {(2, 2)}, {(4, 4)}]
    assert all(
        (b.shortcut is not None) == (i == 0) for bs in blocks.values() for i, b in enumerate(bs)
    )
    norms = [m for layer in stages.values() for m in layer.modules() if isinstance(m, ConvBN)]
    assert {(m.bn.eps, m.bn.momentum, m.conv.bias) for m in norms} == {(1e-5, 0.001, None)}
