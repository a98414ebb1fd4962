"""CLIP's towers, frozen: the text side answers once, the image side shows its attention.

Both are open_clip's (the extra `clip`), their sizes read off the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wsss.errors import WsssError
from wsss.hosts.clip_es.functional import resize_positions
from wsss.hosts.clip_es.weights import read_weights
from wsss.run.compute import at_least_float32
from wsss.settings import Count, settings

OPENAI = "openai"  # the weights that open_clip fetches
HEAD = 64  # channels of an attention head, in every CLIP


@settings
class TowerSettings:
    """Sizes of both towers, for one that is drawn at random; the defaults are ViT-B/16's.

    Attributes:
        image_size: side of the squares that the position table is made for, pixels.
        patch_size: side of a patch, pixels.
        width: channels of an image token.
        layers: blocks of the image tower.
        text_width: channels of a text token.
        text_layers: blocks of the text tower.
        embedding: dimensions that images and texts share.
    """

    image_size: Count = 224
    patch_size: Count = 16
    width: Count = 768
    layers: Count = 12
    text_width: Count = 512
    text_layers: Count = 12
    embedding: Count = 512


class Trunk(NamedTuple):
    """What all blocks but the last one make of images."""

    tokens: Tensor
    """(B, 1 + h * w, C), the input of the last block; the class token first."""
    attention: Tensor | None
    """Sum of the attention of the blocks looked at, (B, 1 + h * w, 1 + h * w), or None."""
    grid: tuple[int, int]
    """(h, w)."""


def require_open_clip() -> Any:
    """The module `open_clip`.

    Raises:
        WsssError: it is not installed; the message says how to get it.
    """
    try:
        import open_clip
    except ImportError as error:
        raise WsssError(
            f"host=clip_es needs open_clip, which can't be imported here ({error}): run "
            f"pip install -c constraints.txt -e '.[clip]'"
        ) from error
    return open_clip


class ImageTower(nn.Module):
    """CLIP's image transformer, cut before the last block so that a gradient has a short way.

    Args:
        visual: open_clip's image tower.
        attention_layers: how many of the last blocks' attention is wanted.

    Raises:
        WsssError: there are fewer blocks.
    """

    def __init__(self, visual: nn.Module, attention_layers: int) -> None:
        super().__init__()
        self.visual: Any = visual
        self.attention_layers = attention_layers
        if attention_layers > len(self.blocks):
            raise WsssError(
                f"host.attention_layers={attention_layers}: the tower has {len(self.blocks)} blocks"
            )

    @property
    def blocks(self) -> Any:
        """All blocks, in order."""
        visual: Any = self.visual
        return visual.transformer.resblocks

    @property
    def patch_size(self) -> int:
        """Side of a patch, pixels."""
        return int(self.visual.patch_size[0])

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.visual.conv1.out_channels)

    def sizes(self) -> TowerSettings:
        """Its own sizes; those of the text side are the defaults."""
        positions, proj = self.visual.positional_embedding, self.visual.proj
        side = math.isqrt(len(positions) - 1)
        return TowerSettings(
            image_size=side * self.patch_size,
            patch_size=self.patch_size,
            width=self.width,
            layers=len(self.blocks),
            embedding=proj.shape[1],
        )

    @torch.no_grad()
    def trunk(self, images: Tensor, look: bool) -> Trunk:
        """Run all blocks but the last.

        Args:
            images: (B, 3, H, W), normalized; H and W multiples of the patch.
            look: whether the attention is wanted.
        """
        patches = self.visual.conv1(images)
        grid = (patches.shape[2], patches.shape[3])
        tokens = patches.flatten(2).transpose(1, 2)
        first = self.visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        positions = resize_positions(self.visual.positional_embedding, grid)
        tokens = torch.cat([first, tokens], dim=1) + positions.to(tokens.dtype)
        tokens = self.visual.ln_pre(tokens)
        begin = len(self.blocks) - self.attention_layers
        attention: Tensor | None = None
        for number, block in enumerate(self.blocks[:-1]):
            seen = look and number >= begin
            mixed, weights = attend(block, block.ln_1(tokens), seen)
            if weights is not None:  # summed in float32 or more, whatever the blocks compute in
                weights = at_least_float32(weights)
                attention = weights if attention is None else attention + weights
            tokens = tokens + mixed
            tokens = tokens + block.mlp(block.ln_2(tokens))
        return Trunk(tokens, attention, grid)

    def last_block(self, trunk: Trunk, normed: Tensor, look: bool) -> tuple[Tensor, Tensor | None]:
        """Image embeddings from the last block's normalized input.

        Args:
            trunk: what came before.
            normed: `last_norm` of its tokens; a gradient reaches it through attention and MLP
                alone, as the residual goes around it.
            look: whether the attention is wanted.

        Returns:
            Mean of the patch tokens after the last normalization (not the class token), projected,
            (B, D); and the attention between patches, the mean of the blocks looked at,
            (B, h * w, h * w), or None.
        """
        block = self.blocks[-1]
        mixed, weights = attend(block, normed, look)
        tokens = at_least_float32(trunk.tokens) + mixed
        tokens = tokens + block.mlp(block.ln_2(tokens))
        embedding = self.visual.ln_post(tokens)[:, 1:].mean(dim=1) @ self.visual.proj
        if weights is None:
            return embedding, None
        total = weights.detach() if trunk.attention is None else trunk.attention + weights.detach()
        return embedding, at_least_float32(total[:, 1:, 1:]) / self.attention_layers

    def last_norm(self, trunk: Trunk) -> Tensor:
        """The last block's first normalization of its input tokens, in float32 or more."""
        return self.blocks[-1].ln_1(at_least_float32(trunk.tokens))


def attend(block: Any, tokens: Tensor, look: bool) -> tuple[Tensor, Tensor | None]:
    """Self-attention of a block, and its weights averaged over the heads where they are wanted."""
    return block.attn(tokens, tokens, tokens, need_weights=look)


class Clip(NamedTuple):
    """What is kept of CLIP once the texts are known."""

    visual: nn.Module
    """open_clip's image tower."""
    texts: Tensor
    """Unit vectors of the sentences, (T, D)."""
    scale: float
    """Factor on cosines."""


def load_clip(
    weights: str | None, sizes: TowerSettings, quick_gelu: bool, sentences: Sequence[str]
) -> Clip:
    """CLIP's image tower, and its answer to some sentences.

    Args:
        weights: `openai` (open_clip's download of ViT-B/16), a file, or None: drawn at random.
        sizes: of a tower drawn at random.
        quick_gelu: whether the activation is OpenAI's x * sigmoid(1.702 x).
        sentences: texts.

    Raises:
        WsssError: open_clip is missing, or the weights can't be had or don't fit.
    """
    open_clip = require_open_clip()
    if weights is None:
        network = build_clip(sizes, quick_gelu)
    else:
        path = _download(open_clip) if weights == OPENAI else Path(weights).expanduser()
        network = fill_clip(read_weights(path), quick_gelu, str(path))
    network.eval().requires_grad_(False)
    with torch.no_grad():
        texts = network.encode_text(open_clip.tokenize(list(sentences)), normalize=True)
        scale = float(network.logit_scale.exp())
    return Clip(network.visual, texts, scale)


def build_clip(sizes: TowerSettings, quick_gelu: bool, **text: Any) -> Any:
    """open_clip's network of some sizes, drawn at random.

    Args:
        sizes: of the towers; widths are multiples of an attention head's.
        quick_gelu: see `load_clip`.
        text: `context_length` and `vocab_size`, where they are not CLIP's own.

    Raises:
        WsssError: a width is no multiple of a head's.
    """
    for name in ("width", "text_width"):
        if getattr(sizes, name) % HEAD:
            raise WsssError(f"host.sizes.{name}={getattr(sizes, name)}: take a multiple of {HEAD}")
    model = require_open_clip().model
    return model.CLIP(
        sizes.embedding,
        model.CLIPVisionCfg(
            layers=sizes.layers,
            width=sizes.width,
            patch_size=sizes.patch_size,
            image_size=sizes.image_size,
        ),
        model.CLIPTextCfg(
            width=sizes.text_width,
            layers=sizes.text_layers,
            heads=sizes.text_width // HEAD,
            **text,
        ),
        quick_gelu=quick_gelu,
    )


def fill_clip(state: dict[str, Tensor], quick_gelu: bool, source: str) -> Any:
    """open_clip's network with these weights and of their sizes.

    Args:
        state: weights by OpenAI's names; more than the network has are left aside
            (`input_resolution`, `context_length`, `vocab_size`).
        quick_gelu: see `load_clip`.
        source: the file, for messages.

    Raises:
        WsssError: weights are missing or of another shape.
    """
    try:
        patches, embedding = state["visual.conv1.weight"], state["visual.proj"].shape[1]
        side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
        sizes = TowerSettings(
            image_size=side * patches.shape[-1],
            patch_size=patches.shape[-1],
            width=patches.shape[0],
            layers=_blocks(state, "visual.transformer.resblocks."),
            text_width=state["ln_final.weight"].shape[0],
            text_layers=_blocks(state, "transformer.resblocks."),
            embedding=embedding,
        )
        vocabulary, context = state["token_embedding.weight"], state["positional_embedding"]
        lengths = {"vocab_size": len(vocabulary), "context_length": len(context)}
    except KeyError as error:
        raise WsssError(f"{source}: no weights of a CLIP with a ViT, {error} is missing") from error
    network = build_clip(sizes, quick_gelu, **lengths)
    own = network.state_dict()
    wrong = [k for k in own if k not in state or state[k].numel() != own[k].numel()]
    if wrong:
        raise WsssError(f"{source}: {wrong[0]} is missing or of another shape")
    network.load_state_dict({name: state[name].view_as(own[name]) for name in own})
    return network


def _blocks(state: dict[str, Tensor], start: str) -> int:
    """How many blocks the names have that begin with `start`."""
    return len({name[len(start) :].partition(".")[0] for name in state if name.startswith(start)})


def _download(open_clip: Any) -> Path:
    """The file of OpenAI's ViT-B/16 as open_clip keeps it, fetched the first time."""
    try:
        found = open_clip.pretrained.get_pretrained_cfg("ViT-B-16-quickgelu", OPENAI)
        return Path(open_clip.pretrained.download_pretrained(found))
    except Exception as error:  # any fault of the network
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WsssError(
            f"host.weights=openai: can't be fetched ({first[:200]}); give a file instead"
        ) from error


def without_parameters(module: nn.Module) -> None:
    """Make all weights buffers that no state dict has.

    A frozen tower comes from its own file each time: a checkpoint beside it need not hold it too,
    and an optimizer or DDP has nothing to do with it.
    """
    for part in module.modules():
        for name, value in list(part._parameters.items()):
            if value is not None:
                del part._parameters[name]
                part.register_buffer(name, value.detach(), persistent=False)
