"""CLIP-ES as a host: class maps of a frozen CLIP (Lin et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from wsss.data.transforms import Size, TakeCrop
from wsss.errors import WsssError
from wsss.hosts.base import Host, Seen
from wsss.hosts.clip_es.functional import (
    class_probabilities,
    gradient_maps,
    min_max,
    refine_by_attention,
)
from wsss.hosts.clip_es.network import (
    HEAD,
    OPENAI,
    ImageTower,
    TowerSettings,
    load_clip,
    require_open_clip,
    without_parameters,
)
from wsss.hosts.clip_es.weights import read_weights
from wsss.maps.functional import resize_maps
from wsss.settings import Count, Share, settings

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@settings
class CLIPESSettings:
    """What is asked of CLIP; the defaults are the released code's for VOC.

    Attributes:
        weights: a file of CLIP's weights, `openai` for open_clip's download of ViT-B/16, or None
            for a tower drawn at random.
        sizes: of a tower drawn at random.
        quick_gelu: whether the activation is that of OpenAI's weights.
        prompt: the sentence, with {} in the words' place.
        words: for a class, by its name, the words in the sentence (synonyms, separated by commas);
            by default its name.
        background: words for what is no class.
        attention_layers: CAA takes the mean attention of so many of the last blocks.
        box_threshold: λ of CAA's boxes, share of a map's maximum.
    """

    weights: str | None = OPENAI
    sizes: TowerSettings = TowerSettings()
    quick_gelu: bool = True
    prompt: str = "a clean origami {}."
    words: dict[str, str] = field(default_factory=dict)
    background: tuple[str, ...]
    attention_layers: Count = 8
    box_threshold: Share = 0.4

    def __post_init__(self) -> None:
        if "{}" not in self.prompt:
            raise WsssError(f"host.prompt={self.prompt}: needs {{}} in the words' place")
        if not self.background:
            raise WsssError("host.background=[]: give at least one word")


class CLIPES(Host):
    """Softmax Grad-CAM of CLIP's image tower (`cam`), refined by its attention (`caa`).

    Nothing learns here. A method's maps take the place of the Grad-CAM before CAA.

    Args:
        options: which CLIP, and what it is asked.
        classes: foreground class names.

    Raises:
        WsssError: open_clip is missing, the weights can't be had, or `words` has an unknown class.
    """

    Settings: ClassVar[type] = CLIPESSettings
    options: CLIPESSettings
    kinds: ClassVar[dict[str, bool]] = {"cam": False, "caa": False}
    on_backbone: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    needs_grad: ClassVar[bool] = True
    mirrors: ClassVar[bool] = False

    texts: Tensor
    scale: Tensor

    def __init__(self, options: CLIPESSettings, classes: Sequence[str]) -> None:
        super().__init__(options, classes)
        clip = load_clip(
            options.weights, options.sizes, options.quick_gelu, sentences(options, classes)
        )
        self.tower = ImageTower(clip.visual, options.attention_layers)
        without_parameters(self.tower)
        self.register_buffer("texts", clip.texts, persistent=False)
        self.register_buffer("scale", torch.tensor(clip.scale), persistent=False)
        self.channels = (self.tower.width,)
        self.mean, self.std = CLIP_MEAN, CLIP_STD

    @classmethod
    def foresee(cls, options: CLIPESSettings) -> str:
        """Whether open_clip and CLIP's weights are there.

        Raises:
            WsssError: they are not.
        """
        require_open_clip()
        if options.weights is None:
            return "null: a tower drawn at random"
        if options.weights == OPENAI:
            return "openai, fetched by open_clip when it is first used"
        return f"{options.weights}, {len(read_weights(Path(options.weights).expanduser()))} tensors"

    def forward(self, images: Tensor, label: Tensor) -> Seen:
        """Tokens of the last block as the feature, Grad-CAM of the classes of each image.

        `extra` has `attention` (B, h * w, h * w) where maps are made.
        """
        look = not self.training
        trunk = self.tower.trunk(images, look)
        # In float32, as a softmax over cosines times 100 needs it.
        with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            tokens = self.tower.last_norm(trunk).detach().requires_grad_()
            embedding, attention = self.tower.last_block(trunk, tokens, look)
            background = len(self.options.background)
            scores = class_probabilities(embedding, self.texts, self.scale, label, background)
            maps = gradient_maps(scores, tokens, label).detach()
        feature = tokens.detach()[:, 1:].transpose(1, 2).unflatten(2, trunk.grid)
        extra = {} if attention is None else {"attention": attention.detach()}
        return Seen((feature,), maps.unflatten(2, trunk.grid), extra)

    def general(self, seen: Seen) -> Tensor:
        """Grad-CAM from its minimum to its maximum, (B, N, h, w) in [0, 1)."""
        return min_max(seen.activation)

    def general_pair(self, seen: Seen) -> Tensor:
        """That of the image, (1, N, h, w); there is no mirror image."""
        return min_max(seen.activation[:1])

    def maps(self, seen: Seen, label: Tensor) -> dict[str, Tensor]:
        """Grad-CAM, and the same after CAA."""
        cam = min_max(seen.activation[0, label.bool()])
        return {"cam": cam, "caa": self.carry(seen, cam)}

    def refine(self, seen: Seen, maps: Tensor, label: Tensor) -> Tensor:
        """A method's maps in the Grad-CAM's place; a background channel is 1 - max of them."""
        count = int(label.sum())
        foreground = maps[len(maps) - count :].float()[None]
        grid = seen.grid
        refined = self.carry(seen, min_max(resize_maps(foreground, grid, align_corners=False)[0]))
        if len(maps) == count:
            return refined
        if not count:
            return refined.new_ones(1, *grid)
        return torch.cat([1 - refined.amax(dim=0, keepdim=True), refined])

    def carry(self, seen: Seen, maps: Tensor) -> Tensor:
        """CAA of maps (K, h, w) in [0, 1]."""
        return refine_by_attention(maps, seen.extra["attention"][0], self.options.box_threshold)

    def fuse(
        self, kind: str, scales: Sequence[Tensor], grid: Size, sample: Mapping[str, Any]
    ) -> Tensor:
        """Mean over the scales of maps that are in [0, 1] already."""
        resized = [resize_maps(maps[None].float(), grid, align_corners=False) for maps in scales]
        return torch.stack(resized).mean(dim=0)[0]

    def without_files(self) -> CLIPESSettings:
        """A tower of the same sizes drawn at random; the text side, which is not kept, is small."""
        sizes = replace(self.tower.sizes(), text_width=HEAD, text_layers=1)
        return replace(self.options, weights=None, sizes=sizes)

    def crop(self, side: int, long_side: tuple[int, int]) -> TakeCrop:
        """The default, of whole patches.

        Raises:
            WsssError: they are not whole.
        """
        if side % self.tower.patch_size:
            raise WsssError(
                f"data.crop_size={side}: take a multiple of the patch, {self.tower.patch_size}"
            )
        return super().crop(side, long_side)

    def test_size(self, size: Size, scale: float) -> Size:
        """Each side rounded up to whole patches."""
        patch = self.tower.patch_size
        height, width = (-int(-side * scale // patch) * patch for side in size)
        return height, width


def sentences(options: CLIPESSettings, classes: Sequence[str]) -> list[str]:
    """The texts of all classes, then those of the background.

    Raises:
        WsssError: `words` has a class that the data set has not.
    """
    unknown = sorted(set(options.words) - set(classes))
    if unknown:
        raise WsssError(
            f"host.words.{unknown[0]}: no such class; there are {', '.join(classes)} (host=clip_es "
            f"takes the class names as they are)"
        )
    words = [options.words.get(name, name) for name in classes]
    return [options.prompt.replace("{}", word) for word in (*words, *options.background)]
