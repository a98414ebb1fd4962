"""The image tower against open_clip's own, its attention against a softmax by hand."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsss.errors import WsssError
from wsss.hosts.clip_es.functional import resize_positions
from wsss.hosts.clip_es.network import (
    ImageTower,
    TowerSettings,
    build_clip,
    load_clip,
    without_parameters,
)

SIZES = TowerSettings(
    image_size=32, patch_size=8, width=128, layers=3, text_width=64, text_layers=2, embedding=16
)


def tower(attention_layers: int = 2) -> tuple[Any, ImageTower]:
    torch.manual_seed(0)
    visual = build_clip(SIZES, True, vocab_size=40).visual.eval().requires_grad_(False)
    return visual, ImageTower(visual, attention_layers)


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def slow_tower(visual: Any, images: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """Mean patch embedding, attention of each block averaged over heads, last block's ln_1."""
    grid = (images.shape[2] // 8, images.shape[3] // 8)
    patches = [
        visual.conv1.weight.flatten(1)
        @ images[0, :, y * 8 : y * 8 + 8, x * 8 : x * 8 + 8].flatten()
        for y in range(grid[0])
        for x in range(grid[1])
    ]
    tokens = torch.stack([visual.class_embedding, *patches])
    tokens = visual.ln_pre(tokens + resize_positions(visual.positional_embedding, grid))
    attention = []
    for block in visual.transformer.resblocks:
        normed = block.ln_1(tokens)
        qkv = normed @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        mixed, weights = [], []
        for head in range(2):
            q, k, v = (part[:, head * 64 : head * 64 + 64] for part in qkv.split(128, dim=1))
            weights.append((q @ k.T / math.sqrt(64)).softmax(dim=1))
            mixed.append(weights[-1] @ v)
        attention.append((weights[0] + weights[1]) / 2)
        tokens = tokens + block.attn.out_proj(torch.cat(mixed, dim=1))
        hidden = block.mlp.c_fc(block.ln_2(tokens))
        tokens = tokens + block.mlp.c_proj(quick_gelu(hidden))
    return visual.ln_post(tokens)[1:].mean(dim=0) @ visual.proj, attention, normed


@pytest.mark.parametrize("size", [(32, 32), (24, 56), (8, 40)])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_embedding_and_attention(size: tuple[int, int], layers: int) -> None:
    visual, found = tower(layers)
    images = torch.randn(1, 3, *size)
    embedding, attention, normed = slow_tower(visual, images)
    trunk = found.trunk(images, look=True)
    tokens = found.last_norm(trunk)
    answer, mean = found.last_block(trunk, tokens, look=True)
    assert trunk.grid == (size[0] // 8, size[1] // 8)
    assert torch.allclose(tokens[0], normed, atol=1e-4)
    assert torch.allclose(answer[0], embedding, atol=1e-4)
    wanted = sum(attention[-layers:])[1:, 1:] / layers  # type: ignore[index]
    assert mean is not None and torch.allclose(mean[0], wanted, atol=1e-5)


def test_class_token_of_the_same_blocks_is_open_clips_own_answer() -> None:
    visual, found = tower()
    images = torch.randn(2, 3, 32, 32)
    table = visual.positional_embedding
    visual.positional_embedding = nn.Parameter(table.half().float(), requires_grad=False)
    trunk = found.trunk(images, look=False)
    block, tokens = visual.transformer.resblocks[-1], trunk.tokens
    assert trunk.attention is None
    tokens = block(tokens)
    assert torch.allclose(visual.ln_post(tokens)[:, 0] @ visual.proj, visual(images), atol=1e-5)


def test_images_do_not_see_each_other() -> None:
    _, found = tower()
    images = torch.randn(3, 3, 24, 40)
    together = found.trunk(images, look=True)
    alone = found.trunk(images[1:2], look=True)
    assert torch.allclose(together.tokens[1], alone.tokens[0], atol=1e-5)
    assert together.attention is not None and alone.attention is not None
    assert torch.allclose(together.attention[1], alone.attention[0], atol=1e-5)


def test_attention_is_asked_for_only_of_the_blocks_looked_at(monkeypatch: Any) -> None:
    visual, found = tower(2)
    asked = []
    for block in visual.transformer.resblocks:
        inner = block.attn.forward
        monkeypatch.setattr(
            block.attn,
            "forward",
            lambda *a, inner=inner, **k: asked.append(k["need_weights"]) or inner(*a, **k),
        )
    trunk = found.trunk(torch.randn(1, 3, 32, 32), look=True)
    found.last_block(trunk, found.last_norm(trunk), look=True)
    assert asked == [False, True, True]


def test_too_few_blocks_and_odd_widths_are_refused() -> None:
    with pytest.raises(WsssError, match=r"host\.attention_layers=8: the tower has 3 blocks"):
        tower(8)
    with pytest.raises(WsssError, match=r"host\.sizes\.width=100: take a multiple of 64"):
        build_clip(TowerSettings(width=100), True)


def test_frozen_tower_is_in_no_state_dict_and_answers_as_before() -> None:
    _, found = tower()
    images = torch.randn(1, 3, 32, 32)
    before = found.trunk(images, look=False).tokens
    without_parameters(found)
    assert not found.state_dict() and not list(found.parameters())
    assert torch.equal(found.trunk(images, look=False).tokens, before)
    assert found.double().trunk(images.double(), look=False).tokens.dtype == torch.float64


def test_default_sizes_are_those_of_vit_b_16() -> None:
    """149.62 million weights, 86.19 of them for images, as open_clip lists the model."""
    network = build_clip(TowerSettings(), True)
    whole, images = (
        sum(p.numel() for p in part.parameters()) for part in (network, network.visual)
    )
    assert (round(whole / 1e6, 2), round(images / 1e6, 2)) == (149.62, 86.19)


def test_texts_are_unit_vectors_that_depend_on_the_words() -> None:
    torch.manual_seed(0)
    clip = load_clip(None, SIZES, True, ["a clean origami cat.", "a clean origami sofa."])
    assert clip.texts.shape == (2, 16)
    assert torch.allclose(clip.texts.norm(dim=1), torch.ones(2), atol=1e-6)
    assert not torch.allclose(clip.texts[0], clip.texts[1])
    assert clip.scale == pytest.approx(1 / 0.07, rel=1e-4)


def test_without_open_clip_one_line_says_how_to_get_it(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(WsssError, match=r"pip install -c constraints\.txt -e '\.\[clip\]'"):
        load_clip(None, SIZES, True, ["a cat"])
