"""MCTformer as a host: class tokens and attention give class maps (Xu et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from wsss.data.transforms import Size, TakeCrop
from wsss.hosts.base import Host, Seen, add_mirror, groups
from wsss.hosts.mctformer.functional import (
    fuse_attention,
    merge_scales,
    refine_by_affinity,
    token_logits,
)
from wsss.hosts.mctformer.network import QUARTERS, ClassTokenTransformer, load_transformer
from wsss.hosts.mctformer.transform import AugmentSettings, RandomSquare
from wsss.maps.functional import classification_loss, normalize_cam
from wsss.run.compute import at_least_float32
from wsss.settings import Below1, Count, NotNegative, settings


@settings
class MCTformerSettings:
    """The transformer; defaults are DeiT-small's.

    Attributes:
        weights: file of DeiT's or MCTformer's weights, `imagenet` for timm's download of
            DeiT-small, or None to start from nothing.
        image_size: side of the squares that the position vectors are made for, pixels.
        patch_size: side of a patch, pixels.
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads of a block.
        drop_path: chance that a branch of the last block is left out in training.
        attention_layers: the class tokens' attention is summed over so many of the last blocks.
        locality: above 0 a network from nothing begins with attention to near patches; how
            strongly, see `ClassTokenTransformer.begin_local`.
        augment: the training transform.
    """

    weights: str | None = None
    image_size: Count = 224
    patch_size: Count = 16
    width: Count = 384
    depth: Count = 12
    heads: Count = 6
    drop_path: Below1 = 0.1
    attention_layers: Count = 3
    locality: NotNegative = 0.0
    augment: AugmentSettings = AugmentSettings()


@settings
class MCTformerV2Settings(MCTformerSettings):
    """With the patch head.

    Attributes:
        general: what a method is given as the CAM: class-token attention times patch CAM
            (`fused`), or one of both.
    """

    general: Literal["fused", "cam", "attention"] = "fused"


class MCTformerV1(Host):
    """Class tokens alone: their attention to the patches are the class maps.

    Args:
        options: the network and its training transform.
        classes: foreground class names.
        pretrained: whether to load the initial weights.
    """

    Settings: ClassVar[type] = MCTformerSettings
    kinds: ClassVar[dict[str, bool]] = {"attention": False, "refined": False}
    on_backbone: ClassVar[bool] = False
    patch_head: ClassVar[bool] = False

    def __init__(self, options: Any, classes: Sequence[str], pretrained: bool = True) -> None:
        super().__init__(options, classes)
        self.network = ClassTokenTransformer(
            len(self.classes),
            self.patch_head,
            image_size=options.image_size,
            patch_size=options.patch_size,
            width=options.width,
            depth=options.depth,
            heads=options.heads,
            drop_path=options.drop_path,
            attention_layers=options.attention_layers,
            locality=options.locality,
        )
        if pretrained and options.weights is not None:
            load_transformer(self.network, options.weights)
        self.channels = (options.width,) * QUARTERS
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD

    def forward(self, images: Tensor, label: Tensor) -> Seen:
        """Patch tokens of four depths as features, class maps, attention.

        `extra` has `attention` K (B, N, h, w), `logits` of the class tokens (B, N) and, where maps
        are made, `affinity` S (B, h * w, h * w).
        """
        making_maps = not self.training and not torch.is_grad_enabled()
        tokens = self.network(images, affinity=making_maps)
        extra = {"attention": tokens.attention, "logits": token_logits(tokens.classes)}
        if tokens.affinity is not None:
            extra["affinity"] = tokens.affinity
        cam = self.network.patch_cam(tokens) if self.patch_head else tokens.attention
        return Seen(tokens.patches, cam, extra)

    def losses(self, seen: Seen, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Binary cross-entropy of the class tokens' logits."""
        logits = seen.extra["logits"]
        label = batch["label"].to(logits.dtype)
        return {"cls": F.binary_cross_entropy_with_logits(logits, label)}

    def image_scores(self, seen: Seen) -> Tensor:
        """Sigmoid of the class tokens' logits."""
        return seen.extra["logits"].float().sigmoid()

    def own_maps(self, seen: Seen) -> dict[str, Tensor]:
        """Class maps of each kind but the refined one, (B, N, h, w), 0 or above."""
        return {"attention": seen.extra["attention"]}

    def chosen_map(self, seen: Seen) -> Tensor:
        """The one that a method is given as the CAM, not normalized."""
        return self.own_maps(seen)["attention"]

    def general(self, seen: Seen) -> Tensor:
        """The chosen map divided by its maximum."""
        return normalize_cam(self.chosen_map(seen))

    def general_pair(self, seen: Seen) -> Tensor:
        """The chosen maps of image and mirror image added, divided by their maximum."""
        return normalize_cam(add_mirror(self.chosen_map(seen)))

    def maps(self, seen: Seen, label: Tensor) -> dict[str, Tensor]:
        """Each kind for image and mirror image, added; the last one refined in each of them."""
        found = self.own_maps(seen)
        best = list(found.values())[-1]
        found["refined"] = refine_by_affinity(seen.extra["affinity"], best)
        return {kind: add_mirror(values)[0, label.bool()] for kind, values in found.items()}

    def refine(self, seen: Seen, maps: Tensor, label: Tensor) -> Tensor:
        """A method's maps in the place of the patch CAM: times the attention, then refined.

        A background channel has no class token; it is refined by the patches alone.
        """
        attention = seen.extra["attention"][:, label.bool()]
        extra = maps.shape[0] - attention.shape[1]
        weight = torch.cat([torch.ones_like(maps[:extra]).expand(2, -1, -1, -1), attention], dim=1)
        both = at_least_float32(torch.stack([maps, maps.flip(-1)]))
        return add_mirror(refine_by_affinity(seen.extra["affinity"], weight * both))[0]

    def fuse(
        self, kind: str, scales: Sequence[Tensor], grid: Size, sample: Mapping[str, Any]
    ) -> Tensor:
        """The scales' sum, stretched from 0 to 1 in each channel."""
        return merge_scales(scales, grid)

    def parameter_groups(self, lr: float, head_lr: float) -> list[dict[str, Any]]:
        """Transformer at `lr`, patch head at `head_lr`; biases, norms and tokens do not decay."""
        undecayed = self.network.undecayed()
        found: list[dict[str, Any]] = []
        for part, rate in (("body", lr), ("head", head_lr)):
            own = {
                name: parameter
                for name, parameter in self.network.named_parameters()
                if name.startswith("head.") == (part == "head")
            }
            found += groups((part, (p for n, p in own.items() if n not in undecayed), rate))
            rest = groups((f"{part}_bias", (p for n, p in own.items() if n in undecayed), rate))
            found += [{**group, "weight_decay": 0.0} for group in rest]
        return found

    def crop(self, side: int, long_side: tuple[int, int]) -> TakeCrop:
        """DeiT's training transform; `data.long_side` has no part in it."""
        return RandomSquare(side, self.mean, self.std, self.options.augment)


class MCTformerV2(MCTformerV1):
    """Class tokens and a head over the patches, which learn from the same labels."""

    Settings: ClassVar[type] = MCTformerV2Settings
    kinds: ClassVar[dict[str, bool]] = {
        "cam": False,
        "attention": False,
        "fused": False,
        "refined": False,
    }
    patch_head: ClassVar[bool] = True

    def losses(self, seen: Seen, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The same loss for the class tokens and for the average of the patches' class maps."""
        patch = classification_loss(seen.activation, batch["label"])
        return {**super().losses(seen, batch), "patch": patch}

    def own_maps(self, seen: Seen) -> dict[str, Tensor]:
        """Patch CAM, class-token attention, and both multiplied."""
        attention = seen.extra["attention"]
        cam = F.relu(at_least_float32(seen.activation))
        return {"cam": cam, "attention": attention, "fused": fuse_attention(attention, cam)}

    def chosen_map(self, seen: Seen) -> Tensor:
        """What `host.general` names."""
        return self.own_maps(seen)[self.options.general]
