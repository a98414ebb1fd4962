"""MCTformer as a host: maps of a pair, refinement of a method's maps, losses, groups, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.errors import WsssError
from wsss.hosts.base import Seen
from wsss.hosts.mctformer.host import (
    MCTformerSettings,
    MCTformerV1,
    MCTformerV2,
    MCTformerV2Settings,
)
from wsss.hosts.optimizer import OptimizerSettings
from wsss.hosts.released import read_checkpoint
from wsss.methods.network import SeedNetwork
from wsss.settings import resolve

SMALL = {"image_size": 32, "patch_size": 8, "width": 12, "depth": 4, "heads": 3}
CLASSES = ("cat", "dog", "cow")


def host(version: int = 2, **given) -> MCTformerV1:
    torch.manual_seed(0)
    kinds = {1: (MCTformerV1, MCTformerSettings), 2: (MCTformerV2, MCTformerV2Settings)}
    make, options = kinds[version]
    made = make(options(**SMALL, **given), CLASSES).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


@torch.no_grad()
def see_pair(made: MCTformerV1, size: tuple[int, int] = (40, 27)) -> tuple[Seen, Tensor]:
    image = torch.randn(3, *size, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([1.0, 0.0, 1.0])
    return made(torch.stack([image, image.flip(-1)]), label.expand(2, -1)), label


def by_loops(affinity: Tensor, maps: np.ndarray) -> np.ndarray:
    """(N, h, w) maps, each patch's the sum over all patches of affinity times map."""
    count, height, width = maps.shape
    flat, result = maps.reshape(count, -1), np.zeros((count, height * width))
    for n in range(count):
        for i in range(height * width):
            result[n, i] = sum(float(affinity[i, j]) * flat[n, j] for j in range(height * width))
    return result.reshape(maps.shape)


@pytest.mark.parametrize("version", [1, 2])
def test_maps_are_refined_in_each_image_then_un_mirrored_and_added(version: int) -> None:
    made = host(version)
    seen, label = see_pair(made)
    attention = seen.extra["attention"].double().numpy()
    cam = np.maximum(seen.activation.double().numpy(), 0)
    expected = {"attention": attention}
    if version == 2:
        expected = {"cam": cam, "attention": attention, "fused": attention * cam}
    best = list(expected.values())[-1]
    pairs = zip(seen.extra["affinity"], best, strict=True)
    expected["refined"] = np.stack([by_loops(s, m) for s, m in pairs])
    found = made.maps(seen, label)
    assert list(found) == list(made.kinds) == list(expected)
    for kind, (image, mirrored) in expected.items():
        both = (image + mirrored[..., ::-1])[[0, 2]]
        np.testing.assert_allclose(found[kind].numpy(), both, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("background", [False, True])
def test_a_methods_maps_take_the_patch_cams_place(background: bool) -> None:
    made = host()
    seen, label = see_pair(made)
    grid = seen.activation.shape[-2:]
    maps = torch.rand(2 + background, *grid, generator=torch.Generator().manual_seed(2))
    found = made.refine(seen, maps, label)
    expected = np.zeros(maps.shape)
    for side in (0, 1):
        given = maps.double().numpy()
        given = given[..., ::-1] if side else given
        weight = np.ones(maps.shape)
        weight[-2:] = seen.extra["attention"][side][[0, 2]].double().numpy()
        refined = by_loops(seen.extra["affinity"][side], weight * given)
        expected += refined[..., ::-1] if side else refined
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("general", ["fused", "cam", "attention"])
def test_what_a_method_is_given_is_normalized_and_has_a_gradient(general: str) -> None:
    made = host(general=general).train()
    images, label = torch.randn(2, 3, 32, 32), torch.ones(2, 3)
    seen = made(images, label)
    assert "affinity" not in seen.extra
    cam, attention = F.relu(seen.activation), seen.extra["attention"]
    raw = {"fused": cam * attention, "cam": cam, "attention": attention}[general]
    expected = raw / (raw.amax(dim=(2, 3), keepdim=True) + 1e-5)
    torch.testing.assert_close(made.general(seen), expected)
    both = raw[:1] + raw[1:].flip(-1)
    expected = both / (both.amax(dim=(2, 3), keepdim=True) + 1e-5)
    torch.testing.assert_close(made.general_pair(seen), expected)
    made.general(seen).sum().backward()
    assert made.network.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("version", [1, 2])
def test_losses_are_the_soft_margin_of_tokens_and_of_patches(version: int) -> None:
    made = host(version)
    label = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    seen = made(torch.randn(2, 3, 32, 48), label)
    found = made.losses(seen, {"label": label})
    margin = torch.nn.functional.multilabel_soft_margin_loss
    torch.testing.assert_close(found.pop("cls"), margin(seen.extra["logits"], label))
    if version == 2:
        patches = seen.activation.mean(dim=(2, 3))
        torch.testing.assert_close(found.pop("patch"), margin(patches, label))
    assert not found


def test_groups_hold_all_that_learns_once_and_decay_matrices_alone() -> None:
    made = host()
    groups = {group["name"]: group for group in made.parameter_groups(0.1, 0.7)}
    assert {n: (g["lr"], g.get("weight_decay")) for n, g in groups.items()} == {
        "body": (0.1, None),
        "body_bias": (0.1, 0.0),
        "head": (0.7, None),
        "head_bias": (0.7, 0.0),
    }
    members = [id(p) for group in groups.values() for p in group["params"]]
    learning = [id(p) for p in made.parameters() if p.requires_grad]
    assert sorted(members) == sorted(learning)
    assert [tuple(p.shape) for p in groups["head"]["params"]] == [(3, 12, 3, 3)]
    tokens = [made.network.cls_token, made.network.pos_embed]
    assert all(any(p is token for p in groups["body_bias"]["params"]) for token in tokens)
    assert all(p.ndim > 1 for p in groups["body"]["params"])
    assert "head" not in [g["name"] for g in host(1).parameter_groups(0.1, 0.7)]


def test_a_picture_without_classes_gives_no_maps() -> None:
    made = host()
    seen, _ = see_pair(made)
    none = torch.zeros(3)
    grid = seen.activation.shape[-2:]
    assert all(m.shape == (0, *grid) for m in made.maps(seen, none).values())
    assert made.refine(seen, torch.rand(1, *grid), none).shape == (1, *grid)
    assert made.fuse("cam", [torch.zeros(0, *grid)], (9, 9), {}).shape == (0, 9, 9)


@pytest.mark.parametrize("version", [1, 2])
def test_published_checkpoints_are_the_whole_network(tmp_path: Path, version: int) -> None:
    published = host(version)
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": published.network.state_dict()}, path)
    optimizer = OptimizerSettings(lr=0.1, head_lr=0.1)
    made = type(published)(published.options, CLASSES)
    network = SeedNetwork(made, None, optimizer)
    network.load_state_dict(read_checkpoint(path)[0])
    for name, value in published.state_dict().items():
        assert torch.equal(made.state_dict()[name], value), name


def test_initial_weights_are_loaded_where_they_are_wanted(tmp_path: Path) -> None:
    path = tmp_path / "deit.pth"
    torch.save({"model": host().network.state_dict()}, path)
    options = MCTformerV2Settings(**SMALL, weights=str(path))
    made = MCTformerV2(options, CLASSES)
    assert torch.equal(made.network.pos_embed, host().network.pos_embed)
    skipped = MCTformerV2(options, CLASSES, pretrained=False)
    assert not torch.equal(skipped.network.pos_embed, host().network.pos_embed)


def test_settings_are_checked() -> None:
    with pytest.raises(WsssError, match=r"host\.general=patch"):
        resolve(MCTformerV2Settings, {"general": "patch"}, "host")
    with pytest.raises(WsssError, match=r"host\.general: unknown key"):
        resolve(MCTformerSettings, {"general": "fused"}, "host")
