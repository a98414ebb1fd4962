"""The transformer against timm's own, its attention, sizes and the forms of published files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.errors import WsssError
from wsss.hosts.mctformer.network import ClassTokenTransformer, load_transformer

SMALL = {"image_size": 32, "patch_size": 8, "width": 12, "depth": 4, "heads": 3, "drop_path": 0.1}


def small(num_classes: int = 3, **given) -> ClassTokenTransformer:
    torch.manual_seed(0)
    network = ClassTokenTransformer(num_classes, **{**SMALL, "attention_layers": 2, **given}).eval()
    with torch.no_grad():  # what begins at 0 or 1 would hide a missing bias or norm
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize(
    ("patch_head", "parameters", "digest"),
    [(False, 21_687_956, "0b3326c63cc73a9d"), (True, 21_749_396, "9f5df52deec125c4")],
)
def test_names_and_shapes_are_the_released_ones(
    patch_head: bool, parameters: int, digest: str
) -> None:
    with torch.device("meta"):
        network = ClassTokenTransformer(20, patch_head)
    assert sum(p.numel() for p in network.parameters()) == parameters
    lines = sorted(f"{name} {tuple(v.shape)}" for name, v in network.state_dict().items())
    assert len(lines) == 152
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest
    assert "pos_embed (1, 216, 384)" in lines


def own_attention(network: ClassTokenTransformer, image: Tensor) -> tuple[list[Tensor], Tensor]:
    """Every layer's attention (B, heads, T, T) and the last tokens, by timm's own blocks."""
    found: list[Tensor] = []
    x = network.patch_embed["proj"](image).flatten(2).transpose(1, 2)
    x = torch.cat([network.cls_token.expand(len(image), -1, -1), x], 1) + network.pos_embed
    for block in network.blocks:
        qkv = block.attn.qkv(block.norm1(x))
        query, key, _ = qkv.reshape(*x.shape[:2], 3, 3, 4).permute(2, 0, 3, 1, 4)
        found.append((query @ key.transpose(-1, -2) / 2).softmax(-1))
        x = block(x)
    return found, x


@pytest.mark.parametrize("affinity", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 4])
@torch.no_grad()
def test_blocks_are_timms_and_attention_is_summed_over_the_layers(
    affinity: bool, layers: int
) -> None:
    network = small(attention_layers=layers)
    image = torch.randn(2, 3, 32, 32)
    every, last = own_attention(network, image)
    tokens = network(image, affinity=affinity)
    torch.testing.assert_close(tokens.classes, last[:, :3], rtol=1e-4, atol=1e-4)
    patches = last[:, 3:].transpose(1, 2).reshape(2, 12, 4, 4)
    torch.testing.assert_close(tokens.patches[-1], patches, rtol=1e-4, atol=1e-4)
    assert len(tokens.patches) == 4
    expected = sum(a.mean(1)[:, :3, 3:] for a in every[-layers:]).reshape(2, 3, 4, 4)
    torch.testing.assert_close(tokens.attention, expected, rtol=1e-4, atol=1e-5)
    if affinity:
        expected = sum(a.mean(1)[:, 3:, 3:] for a in every)
        torch.testing.assert_close(tokens.affinity, expected, rtol=1e-4, atol=1e-5)
    else:
        assert tokens.affinity is None


@pytest.mark.parametrize("size", [(8, 8), (47, 33), (64, 32), (41, 90)])
@torch.no_grad()
def test_any_size_is_cut_to_whole_patches(size: tuple[int, int]) -> None:
    network = small()
    image = torch.randn(1, 3, *size)
    grid = (size[0] // 8, size[1] // 8)
    tokens = network(image, affinity=True)
    assert tokens.attention.shape == (1, 3, *grid)
    assert network.patch_cam(tokens).shape == (1, 3, *grid)
    assert tokens.affinity.shape == (1, grid[0] * grid[1], grid[0] * grid[1])
    cut = network(image[..., : grid[0] * 8, : grid[1] * 8])
    torch.testing.assert_close(cut.patches[-1], tokens.patches[-1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_features_are_those_after_each_quarter_of_the_blocks() -> None:
    network, image = small(depth=6, attention_layers=1), torch.randn(1, 3, 32, 32)
    seen = []
    for block in network.blocks:
        block.norm1.register_forward_hook(lambda module, given, made: seen.append(given[0]))
    tokens = network(image)
    for number, feature in zip((1, 3, 4), tokens.patches, strict=False):
        entering = seen[number][:, 3:].transpose(1, 2).reshape(1, 12, 4, 4)
        torch.testing.assert_close(feature, entering)
    assert len(tokens.patches) == 4


def test_an_image_below_a_patch_is_told() -> None:
    with pytest.raises(WsssError, match="smaller than a patch"):
        small()(torch.zeros(1, 3, 7, 20))


@torch.no_grad()
def test_the_patch_head_is_a_convolution_of_the_last_tokens() -> None:
    network = small()
    tokens = network(torch.randn(1, 3, 24, 40))
    expected = F.conv2d(tokens.patches[-1], network.head.weight, network.head.bias, padding=1)
    torch.testing.assert_close(network.patch_cam(tokens), expected)


@torch.no_grad()
def test_half_precision_gives_the_same_maps() -> None:
    network, image = small(), torch.randn(2, 3, 40, 32)
    tokens = network(image, affinity=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(image, affinity=True)
    assert half.attention.dtype == half.affinity.dtype == torch.float32
    torch.testing.assert_close(half.attention, tokens.attention, rtol=0.1, atol=0.02)
    torch.testing.assert_close(half.affinity, tokens.affinity, rtol=0.1, atol=0.05)


def test_everything_but_the_unused_layers_learns() -> None:
    network = small().train()
    tokens = network(torch.randn(2, 3, 32, 32))
    (network.patch_cam(tokens).mean((2, 3)) + tokens.classes.mean(2)).square().sum().backward()
    unused = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert unused == {"norm.weight", "norm.bias"}
    assert all(p.grad is not None for n, p in network.named_parameters() if n not in unused)
    frozen = {n for n, p in small(patch_head=False).named_parameters() if not p.requires_grad}
    assert frozen == unused | {"head.weight", "head.bias"}


def test_drop_path_rises_linearly_and_acts_in_training_alone() -> None:
    with torch.device("meta"):
        network = ClassTokenTransformer(2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in network.blocks]
    assert rates == pytest.approx([0.1 * number / 11 for number in range(12)])
    assert rates == [getattr(block.drop_path2, "drop_prob", 0.0) for block in network.blocks]
    dropping = small(drop_path=0.9)
    image = torch.randn(8, 3, 32, 32)
    assert torch.equal(dropping(image).classes, dropping(image).classes)
    dropping.train()
    assert not torch.equal(dropping(image).classes, dropping(image).classes)


def test_a_local_start_attends_to_near_patches_first() -> None:
    torch.manual_seed(0)
    network = ClassTokenTransformer(3, image_size=64, patch_size=8, width=48, depth=4, locality=2.0)
    tokens = network(torch.randn(2, 3, 64, 64), affinity=True)
    places = torch.cartesian_prod(torch.arange(8), torch.arange(8)).float()
    distance = torch.cdist(places, places).round()
    mean = tokens.affinity.mean(0)
    near, middle, far = (mean[distance == d].mean() for d in (1, 3, 7))
    assert near > 2 * middle > 4 * far
    plain = ClassTokenTransformer(3, image_size=64, patch_size=8, width=48, depth=4)
    mean = plain(torch.randn(2, 3, 64, 64), affinity=True).affinity.mean(0)
    assert mean[distance == 1].mean() < 1.1 * mean[distance == 7].mean()


def deit(side: int = 4, classes: int = 1) -> dict[str, Tensor]:
    """A file as DeiT's, of the small form."""
    torch.manual_seed(1)
    network = timm.create_model(
        "deit_small_patch16_224", img_size=8 * side, patch_size=8, embed_dim=12, depth=4,
        num_heads=3, num_classes=10,
    )  # fmt: skip
    state = network.state_dict()
    return {n: v + 0.1 * torch.randn_like(v) for n, v in state.items()}


def test_deits_file_is_repeated_over_the_classes(tmp_path: Path) -> None:
    state = deit()
    torch.save({"model": state}, tmp_path / "deit.pth")
    network = small(num_classes=5)
    head = network.head.weight.clone()
    load_transformer(network, tmp_path / "deit.pth")
    assert torch.equal(network.cls_token, state["cls_token"].repeat(1, 5, 1))
    assert torch.equal(network.pos_embed[:, :5], state["pos_embed"][:, :1].repeat(1, 5, 1))
    assert torch.equal(network.pos_embed[:, 5:], state["pos_embed"][:, 1:])
    assert torch.equal(network.blocks[3].mlp.fc2.weight, state["blocks.3.mlp.fc2.weight"])
    assert torch.equal(network.head.weight, head)
    assert torch.equal(network.norm.weight, state["norm.weight"])
    # class tokens that are all the same see the same: one class is DeiT itself
    single = small(num_classes=1)
    load_transformer(single, tmp_path / "deit.pth")
    whole = timm.create_model(
        "deit_small_patch16_224", img_size=32, patch_size=8, embed_dim=12, depth=4, num_heads=3,
        num_classes=10,
    ).eval()  # fmt: skip
    whole.load_state_dict(state)
    image = torch.randn(2, 3, 32, 32)
    tokens = single(image)
    theirs = whole.forward_features(image)
    own = torch.cat([tokens.classes, tokens.patches[-1].flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(single.norm(own), theirs, rtol=1e-4, atol=1e-4)


def test_positions_of_another_grid_are_resized(tmp_path: Path) -> None:
    state = deit(side=6)
    torch.save(state, tmp_path / "deit.pth")
    network = small(num_classes=2)
    load_transformer(network, tmp_path / "deit.pth")
    square = state["pos_embed"][:, 1:].reshape(1, 6, 6, 12).permute(0, 3, 1, 2)
    expected = F.interpolate(square, (4, 4), mode="bicubic", align_corners=False)
    found = network.pos_embed[:, 2:].reshape(1, 4, 4, 12).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("patch_head", [False, True])
def test_mctformers_own_file_comes_back_whole(tmp_path: Path, patch_head: bool) -> None:
    saved = small(patch_head=patch_head)
    torch.save({"model": saved.state_dict()}, tmp_path / "checkpoint.pth")
    network = ClassTokenTransformer(3, patch_head, **SMALL)
    load_transformer(network, tmp_path / "checkpoint.pth")
    for name, value in network.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name]), name


def test_a_file_of_another_network_is_told(tmp_path: Path) -> None:
    state = deit()
    network = small()
    for change, words in (
        ({"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, "qkv.weight has shape"),
        ({"cls_token": torch.zeros(1, 4, 12)}, "has shape"),
        ({"dist_token": torch.zeros(1)}, "dist_token, unknown"),
    ):
        torch.save({"model": {**state, **change}}, tmp_path / "wrong.pth")
        with pytest.raises(WsssError, match=rf"host\.weights=.*{words}"):
            load_transformer(network, tmp_path / "wrong.pth")
    with pytest.raises(WsssError, match="no such file"):
        load_transformer(network, tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image_size": 30}, "image_size=30"),
        ({"heads": 5}, "width=12"),
        ({"depth": 3}, "depth=3"),
        ({"attention_layers": 5}, "attention_layers=5"),
    ],
)
def test_sizes_that_do_not_fit_are_told(given: dict[str, int], words: str) -> None:
    with pytest.raises(WsssError, match=words):
        small(**given)
