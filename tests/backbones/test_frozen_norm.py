"""Frozen batch normalization against PyTorch's own layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from wsss.backbones.frozen_norm import FrozenBatchNorm2d, freeze_norms


def layers() -> nn.Sequential:
    network = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(True))
    norm = network[1]
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return network.eval()


@pytest.mark.parametrize("autocast", [False, True])
def test_numbers_and_gradients_are_those_of_pytorchs_layer(autocast: bool) -> None:
    torch.manual_seed(0)
    plain = layers()
    frozen = copy.deepcopy(plain)
    freeze_norms(frozen)
    assert type(frozen[1]) is FrozenBatchNorm2d
    assert not any(p.requires_grad for p in frozen[1].parameters())
    assert frozen.state_dict().keys() == plain.state_dict().keys()
    image = torch.randn(2, 3, 9, 8)
    weight = torch.randn(2, 5, 7, 6)
    results = []
    for network in (plain, frozen):
        x = image.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = network(x)
        grads = torch.autograd.grad((out.float() * weight).sum(), (x, network[0].weight))
        results.append((out.float(), *grads))
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= (2e-2 if autocast else 1e-6) * one.abs().max()
    torch.testing.assert_close(results[0][0], results[1][0])  # forward: exactly the same layer


def test_the_input_is_not_kept_for_the_backward_pass() -> None:
    def kept(network: nn.Sequential) -> set[int]:
        found = set()
        convolved: list[int] = []
        hook = network[0].register_forward_hook(lambda m, i, o: convolved.append(o.data_ptr()))
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (found.add(t.data_ptr()), t)[1], lambda t: t
        ):
            alive = network(torch.randn(2, 3, 9, 8))
        hook.remove()
        assert alive.requires_grad
        return found & set(convolved)

    network = layers()
    assert kept(network)
    freeze_norms(network)
    assert not kept(network)


def test_a_layer_in_training_takes_the_statistics_of_the_batch() -> None:
    network = layers()
    freeze_norms(network)
    network.train()
    x = torch.randn(4, 5, 6, 6, requires_grad=True) * 3 + 1
    norm = network[1]
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)
    out = norm(x)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(5), atol=1e-5, rtol=0)
