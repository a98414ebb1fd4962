"""ResNet38d against functional calls and the published table of its layers."""

from __future__ import annotations

import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.backbones.resnet38 import Block, BottleneckBlock
from wsss.segmentation.resnet38 import ResNet38d


def shuffled(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


def normalize(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{key}"][:, None, None]
        for key in ("running_mean", "running_var", "weight", "bias")
    )
    return torch.relu((x - mean) / (var + 1e-5).sqrt() * weight + bias)


@pytest.mark.parametrize(
    ("inputs", "outputs", "stride", "first", "dilation"),
    [(6, 10, 2, 1, 1), (6, 6, 1, 1, 1), (6, 10, 1, 1, 2), (10, 10, 1, 2, 2), (8, 8, 2, 1, 1)],
)
def test_a_block_is_two_convolutions_and_a_shortcut(
    inputs: int, outputs: int, stride: int, first: int, dilation: int
) -> None:
    torch.manual_seed(0)
    block = shuffled(Block(inputs, 4, outputs, stride, dilation, first)).eval()
    s, x = block.state_dict(), torch.randn(2, inputs, 12, 11)
    a = normalize(x, s, "bn_branch2a")
    plain = inputs == outputs and stride == 1
    shortcut = x if plain else F.conv2d(a, s["conv_branch1.weight"], None, stride)
    y = F.conv2d(a, s["conv_branch2a.weight"], None, stride, first, first)
    y = F.conv2d(
        normalize(y, s, "bn_branch2b1"), s["conv_branch2b1.weight"], None, 1, dilation, dilation
    )
    torch.testing.assert_close(block(x), y + shortcut, rtol=1e-4, atol=1e-4)


def test_a_bottleneck_block_is_three_convolutions_and_a_projection() -> None:
    torch.manual_seed(0)
    block = shuffled(BottleneckBlock(6, 8, 4, 0.5)).eval()
    s, x = block.state_dict(), torch.randn(2, 6, 12, 11)
    a = normalize(x, s, "bn_branch2a")
    y = normalize(F.conv2d(a, s["conv_branch2a.weight"]), s, "bn_branch2b1")
    y = F.conv2d(y, s["conv_branch2b1.weight"], None, 1, 4, 4)
    y = F.conv2d(normalize(y, s, "bn_branch2b2"), s["conv_branch2b2.weight"])
    expected = y + F.conv2d(a, s["conv_branch1.weight"])
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


def test_dropout_drops_whole_channels_in_training_only() -> None:
    torch.manual_seed(0)
    block = BottleneckBlock(8, 256, 1, 0.5)
    for norm in (block.bn_branch2a, block.bn_branch2b1, block.bn_branch2b2):
        norm.eval()
    inner = {}
    for name in ("dropout_2b1", "dropout_2b2"):
        getattr(block, name).register_forward_hook(
            lambda m, i, o, name=name: inner.__setitem__(name, (i[0], o))
        )
    x = torch.rand(3, 8, 5, 5)
    block(x)
    for before, after in inner.values():
        dropped = (after == 0).all(dim=(2, 3)) & (before != 0).any(dim=(2, 3))
        rest = ~dropped
        assert 0.35 < dropped.sum() / (before != 0).any(dim=(2, 3)).sum() < 0.65
        torch.testing.assert_close(after[rest], 2 * before[rest])
    block.eval()
    torch.testing.assert_close(block(x), block(x), rtol=0, atol=0)
    with torch.device("meta"):
        whole = ResNet38d(2)
    rates = {n: m.p for n, m in whole.named_modules() if isinstance(m, nn.Dropout2d)}
    assert rates == {
        "b6.dropout_2b1": 0.3,
        "b6.dropout_2b2": 0.3,
        "b7.dropout_2b1": 0.5,
        "b7.dropout_2b2": 0.5,
    }


@pytest.mark.parametrize(
    ("num_classes", "parameters", "digest"),
    [(21, 124_042_581, "8980a10ed573eb4d"), (81, 124_319_121, "a8169bc30b088add")],
)
def test_names_and_shapes_are_the_released_ones(
    num_classes: int, parameters: int, digest: str
) -> None:
    with torch.device("meta"):
        network = ResNet38d(num_classes)
    assert sum(p.numel() for p in network.parameters()) == parameters
    lines = sorted(f"{name} {tuple(v.shape)}" for name, v in network.state_dict().items())
    assert len(lines) == 232
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest
    body = [line for line in lines if not line.startswith("fc8_seg")]
    assert len(body) == 228
    assert hashlib.sha256("\n".join(body).encode()).hexdigest()[:16] == "b6caec04949ed407"
    assert "b5.conv_branch2b1.weight (1024, 512, 3, 3)" in lines
    assert f"fc8_seg_conv2.weight ({num_classes}, 512, 3, 3)" in lines


def test_strides_and_dilations_are_the_published_ones() -> None:
    with torch.device("meta"):
        network = ResNet38d(21)
        image = torch.empty(1, 3, 321, 321)
    assert network(image).shape == (1, 21, 41, 41)
    assert network.output_stride == 8
    strided, dilated = {}, {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.padding == (layer.dilation if layer.kernel_size == (3, 3) else (0, 0))
            if layer.stride != (1, 1):
                strided[name] = layer.stride[0]
            if layer.dilation != (1, 1):
                dilated[name] = layer.dilation[0]
    assert strided == {
        f"b{n}.conv_{part}": 2 for n in (2, 3, 4) for part in ("branch1", "branch2a")
    }
    assert dilated == {
        "b5.conv_branch2b1": 2,
        "b5_1.conv_branch2a": 2,
        "b5_1.conv_branch2b1": 2,
        "b5_2.conv_branch2a": 2,
        "b5_2.conv_branch2b1": 2,
        "b6.conv_branch2b1": 4,
        "b7.conv_branch2b1": 4,
        "fc8_seg_conv1": 12,
        "fc8_seg_conv2": 12,
    }


def test_the_first_convolution_and_all_norms_are_frozen() -> None:
    with torch.device("meta"):
        network = ResNet38d(21)
    network.train()
    learning = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in learning.values()) == 123_993_109
    assert "conv1a.weight" not in learning and not any(".bn" in n or "bn7" in n for n in learning)
    assert not any(m.training for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert network.b6.dropout_2b1.training
    body, head = network.parameter_groups(0.001, 0.0005)
    assert (body["lr"], body["weight_decay"], head["weight_decay"]) == (0.001, 0.0005, 0.0005)
    assert head["lr"] == pytest.approx(0.01)
    assert [p.shape for p in head["params"]] == [(512, 4096, 3, 3), (512,), (21, 512, 3, 3), (21,)]
    members = [id(p) for group in (body, head) for p in group["params"]]
    assert len(members) == len(set(members)) and set(members) == {id(p) for p in learning.values()}


def test_gradients_reach_all_that_learns_and_the_head_begins_as_xavier_says(monkeypatch) -> None:
    # PyTorch's own random weights take seconds; all but these biases are drawn anew.
    monkeypatch.setattr(
        nn.Conv2d, "reset_parameters", lambda m: None if m.bias is None else m.bias.data.zero_()
    )
    torch.manual_seed(0)
    network = ResNet38d(4)
    for layer, fans in ((network.fc8_seg_conv1, 4096 + 512), (network.fc8_seg_conv2, 512 + 4)):
        bound = (6 / (9 * fans)) ** 0.5
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    network(torch.randn(1, 3, 32, 32)).square().mean().backward()
    for name, parameter in network.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.ne(0).any())
        assert reached == parameter.requires_grad, name
        assert not reached or bool(parameter.grad.isfinite().all()), name
