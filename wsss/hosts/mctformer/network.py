"""MCTformer's network: a vision transformer with one class token for each class.

Names of parameters are those of the published files, so that these load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from wsss.backbones.base import downloading, load_weights, read_state_dict
from wsss.errors import WsssError
from wsss.hosts.mctformer.functional import attend_and_add, class_to_patch, resize_positions
from wsss.run.compute import at_least_float32

WAVES = 8.0  # ratio of the longest to the shortest wavelength of positions
GAIN = 1.4  # of queries and keys that are alike: patches attend to about those within two cells
QUARTERS = 4  # patch tokens are given after each quarter of the blocks


class Tokens(NamedTuple):
    """What comes out of the transformer."""

    classes: Tensor
    """Class tokens (B, C, D) of the last block; there is no normalization after it."""
    patches: tuple[Tensor, ...]
    """Patch tokens as maps (B, D, h, w) after each quarter of the blocks, the last ones last."""
    attention: Tensor
    """K (B, C, h, w) float32: class-to-patch attention, summed over the last layers."""
    affinity: Tensor | None
    """S (B, P, P) float32: patch-to-patch attention, summed over all layers; where asked for."""


class ClassTokenTransformer(nn.Module):
    """A ViT with C class tokens, and over its patches a 3x3 convolution (V2).

    DeiT-small's form with 20 classes has 21,687,956 parameters without the patch head (V1) and
    21,749,396 with it (V2).
    """

    def __init__(
        self,
        num_classes: int,
        patch_head: bool = True,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        drop_path: float = 0.1,
        attention_layers: int = 3,
        locality: float = 0.0,
    ) -> None:
        """Build the network; defaults are DeiT-small's and MCTformer's.

        Args:
            num_classes: foreground classes C.
            patch_head: whether there is a head over the patches.
            image_size: side of the square images that the position vectors are made for, pixels.
            patch_size: side of a patch, pixels.
            width: channels D of a token.
            depth: number of blocks.
            heads: attention heads of a block.
            drop_path: chance that a branch of the last block is left out in training; it rises
                linearly from 0.
            attention_layers: how many of the last blocks the class-to-patch attention is summed
                over.
            locality: see `begin_local`; 0: initialized as DeiT is.

        Raises:
            WsssError: the sizes don't fit each other.
        """
        super().__init__()
        if image_size % patch_size:
            raise WsssError(
                f"host.image_size={image_size}: must be a multiple of host.patch_size={patch_size}"
            )
        if width % heads:
            raise WsssError(f"host.width={width}: must be a multiple of host.heads={heads}")
        if depth < max(QUARTERS, attention_layers):
            raise WsssError(
                f"host.depth={depth}: must be at least {QUARTERS} and "
                f"host.attention_layers={attention_layers}"
            )
        self.num_classes, self.patch_size = num_classes, patch_size
        self.attention_layers = attention_layers
        patches = (image_size // patch_size) ** 2
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.cls_token = nn.Parameter(torch.zeros(1, num_classes, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_classes + patches, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch_size, patch_size)})
        rates = [drop_path * number / (depth - 1) for number in range(depth)]
        self.blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True, drop_path=rate, norm_layer=norm) for rate in rates
        )
        # Part of the published files, in no use: a norm after the last block, and V1's linear head.
        self.norm = norm(width).requires_grad_(False)
        self.patch_head = patch_head
        self.head: nn.Module = (
            nn.Conv2d(width, num_classes, 3, padding=1)
            if patch_head
            else nn.Linear(width, num_classes).requires_grad_(False)
        )
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if locality > 0:
            self.begin_local(locality)

    @torch.no_grad()
    def begin_local(self, strength: float) -> None:
        """Let patches attend to near and similar ones before anything is learned.

        Queries equal keys, and position vectors are waves whose products fall with the distance,
        as trained transformers have them (Trockman and Kolter, "Mimetic Initialization of
        Self-Attention Layers", ICML 2023). For networks that start from nothing on few images:
        their patches would else all come to see the same.

        Args:
            strength: height of the waves; the patches' own content is about 1.
        """
        width, classes = self.pos_embed.shape[2], self.num_classes
        side, count = math.isqrt(self.pos_embed.shape[1] - classes), width // 4
        steps = torch.arange(side, dtype=torch.float32)
        waves = steps[:, None] * WAVES ** -(torch.arange(count) / count)
        waves = strength * torch.cat([waves.sin(), waves.cos()], dim=1)
        down, across = waves[:, None].expand(-1, side, -1), waves.expand(side, -1, -1)
        both = torch.cat([down, across], dim=2).flatten(0, 1)
        self.pos_embed[0, classes:, : both.shape[1]] = both
        blocks: Iterable[Any] = self.blocks
        for block in blocks:
            query, key, _ = block.attn.qkv.weight.chunk(3)
            nn.init.normal_(query, std=GAIN * width**-0.5)
            key.copy_(query)

    def grid(self, image: Tensor) -> tuple[int, int]:
        """(h, w) patches of images (..., H, W); what is left over at the right and below is cut.

        Raises:
            WsssError: the image is smaller than a patch.
        """
        height, width = (length // self.patch_size for length in image.shape[-2:])
        if not height or not width:
            raise WsssError(
                f"an image of {image.shape[-2]} x {image.shape[-1]} pixels is smaller than a patch "
                f"of {self.patch_size}; take it larger (data.infer_long_side, data.scales)"
            )
        return height, width

    def forward(self, image: Tensor, affinity: bool = False) -> Tokens:
        """Tokens and attention of normalized images.

        Args:
            image: (B, 3, H, W).
            affinity: whether to sum up the patch-to-patch attention, which carries no gradient.

        Returns:
            The tokens; of the attention nothing but the sums over layers is ever kept.
        """
        grid, classes = self.grid(image), self.num_classes
        patches = self.patch_embed["proj"](image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(image), -1, -1), patches], dim=1)
        tokens = tokens + resize_positions(self.pos_embed, classes, grid)
        count = patches.shape[1]
        zeros = at_least_float32(patches[:1, :1]).new_zeros
        total = zeros(len(image), count, count) if affinity else None
        attention = zeros(len(image), classes, count)
        maps, depth = [], len(self.blocks)
        ends = {depth * quarter // QUARTERS for quarter in range(1, QUARTERS + 1)}
        blocks: Iterable[Any] = self.blocks
        for number, block in enumerate(blocks):
            query, key, value = _heads(block.attn, block.norm1(tokens))
            if number >= depth - self.attention_layers:
                attention = attention + class_to_patch(query, key, classes)
            if total is None:
                answer = F.scaled_dot_product_attention(query, key, value)
            else:
                answer = attend_and_add(query, key, value, classes, total)
            answer = block.attn.proj(answer.transpose(1, 2).flatten(2))
            tokens = tokens + block.drop_path1(answer)
            tokens = tokens + block.drop_path2(block.mlp(block.norm2(tokens)))
            if number + 1 in ends:
                maps.append(tokens[:, classes:].transpose(1, 2).unflatten(2, grid))
        return Tokens(tokens[:, :classes], tuple(maps), attention.unflatten(2, grid), total)

    def patch_cam(self, tokens: Tokens) -> Tensor:
        """Class maps of the patch head (B, C, h, w) before the ReLU; their mean is the logit."""
        cam: Tensor = self.head(tokens.patches[-1])
        return cam

    def undecayed(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone: biases, norms, tokens."""
        own = {"cls_token", "pos_embed"}
        return own | {name for name, value in self.named_parameters() if value.ndim < 2}


def _heads(attention: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (B, heads, C + P, d) of timm's attention layer."""
    joint = attention.qkv(tokens).unflatten(2, (3, attention.num_heads, -1))
    query, key, value = joint.permute(2, 0, 3, 1, 4)
    return query, key, value


def load_transformer(network: ClassTokenTransformer, weights: str | Path) -> None:
    """Fill a network with DeiT's weights, or MCTformer's own.

    Args:
        network: the network to fill.
        weights: file with the names of DeiT (`{"model": ...}`, timm's, bare) or MCTformer, or
            `imagenet` for timm's download of DeiT-small. One class token, and its position, is
            repeated for each class; position vectors of another grid are resized (bicubic). A head
            that does not fit, as that of DeiT's 1000 classes, stays as it was initialized.

    Raises:
        WsssError: the file is missing, broken, or of another network.
    """
    if weights == "imagenet":
        with downloading("deit_small_patch16_224"):
            state = timm.create_model("deit_small_patch16_224", pretrained=True).state_dict()
    else:
        state = read_state_dict(weights)
        state = dict(state.get("model", state))  # type: ignore[arg-type]
    own = network.state_dict()
    try:
        load_weights(network, _fitted(state, own), str(weights), ignore=())
    except WsssError as error:
        raise WsssError(str(error).replace("backbone", "host")) from error


def _fitted(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a file with as many class tokens and positions as `own`, and a head that fits."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    state = {n: v for n, v in state.items() if not n.startswith("head.")} | {
        n: state[n] if n in state and state[n].shape == v.shape else v
        for n, v in own.items()
        if n.startswith(("head.", "norm."))
    }
    token, table = state.get("cls_token"), state.get("pos_embed")
    if token is None or table is None or token.ndim != 3 or table.ndim != 3:
        return state  # the check of names and shapes will say so
    classes = own["cls_token"].shape[1]
    known = token.shape[1]
    heads, patches = table[:, :known], table[:, known:]
    if known == 1:
        token, heads = (v.expand(-1, classes, -1).clone() for v in (token, heads))
    side, wanted = math.isqrt(patches.shape[1]), math.isqrt(own["pos_embed"].shape[1] - classes)
    if side != wanted and side * side == patches.shape[1]:
        square = patches.transpose(1, 2).unflatten(2, (side, side))
        square = F.interpolate(square, (wanted, wanted), mode="bicubic", align_corners=False)
        patches = square.flatten(2).transpose(1, 2)
    return state | {"cls_token": token, "pos_embed": torch.cat([heads, patches], dim=1)}
