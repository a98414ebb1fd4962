"""The seam: a host is a network that turns images into class maps.

Plain CAM, AMN, MCTformer and CLIP-ES are hosts. A method (`wsss.methods`) supervises or replaces
the maps of any of them: it is asked with what the host has seen and knows nothing else of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.data.transforms import Crop, LongSide, Size, TakeCrop, scaled_size
from wsss.maps.functional import normalize_cam
from wsss.maps.fuse import fuse_scales
from wsss.run.compute import at_least_float32
from wsss.settings import Color, settings


@settings
class HostSettings:
    """The options of a host that has none."""


@dataclass(frozen=True)
class Seen:
    """What a host sees in a batch of images.

    Attributes:
        features: feature maps (B, C_s, h_s, w_s), the finest first; the last one is f, which the
            class maps are made of.
        activation: raw class maps (B, N, h, w).
        extra: what the host's own later steps need, by name: attention, logits, ...
    """

    features: tuple[Tensor, ...]
    activation: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def grid(self) -> Size:
        """The working grid of methods: that of the feature before the last, where there is one."""
        shape = self.features[max(len(self.features) - 2, 0)].shape
        return shape[-2], shape[-1]

    def with_extra(self, **more: Tensor) -> Seen:
        """The same with more in `extra`."""
        return replace(self, extra={**self.extra, **more})

    def with_mirror(self) -> Seen:
        """As if the mirror image of a single image showed the mirror image of what is seen."""
        features = tuple(torch.cat([one, one.flip(-1)]) for one in self.features)
        maps = torch.cat([self.activation, self.activation.flip(-1)])
        return Seen(features, maps, self.extra)


def add_mirror(pair: Tensor) -> Tensor:
    """Maps or features of an image and of its mirror image (2, C, h, w), added, (1, C, h, w)."""
    return pair[:1] + pair[1:].flip(-1)


class Host(nn.Module):
    """A network from images to class maps, and all that a stage must know of it.

    Subclasses set `channels`, `mean` and `std` and implement `forward` and, where the defaults
    (those of plain CAM) do not hold, the rest. `classes` are the foreground class names.

    Attributes:
        Settings: type of the options in the group `host`.
        kinds: the kinds of map that `maps` gives, in order, the host's own last; the value says
            whether the kind has a background channel of its own, which stands first.
        on_backbone: whether it stands on a network of the group `backbone`.
        trains: whether it has anything to learn; without, and without a method that has,
            stage=train has nothing to do.
        needs_grad: whether map making computes gradients.
        mirrors: whether maps are made of an image and its mirror image, instead of the image.
        reads_labels: whether it needs a label map of each image, `target` in batches and samples.
        reads_maps: whether it needs class maps of an earlier run, `maps` in batches and samples,
            which `read_maps` gives.
        channels: channels of `Seen.features`.
        mean: channel means that input images in [0, 1] are normalized with.
        std: their standard deviations.
    """

    Settings: ClassVar[type] = HostSettings
    kinds: ClassVar[dict[str, bool]] = {"cam": False}
    on_backbone: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    needs_grad: ClassVar[bool] = False
    mirrors: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = False
    reads_maps: ClassVar[bool] = False

    channels: tuple[int, ...]
    mean: Color
    std: Color

    def __init__(self, options: Any, classes: Sequence[str]) -> None:
        """Keep options (an instance of `Settings`) and class names."""
        super().__init__()
        self.options, self.classes = options, tuple(classes)

    @classmethod
    def foresee(cls, options: Any) -> str | None:
        """What can be said of the host's own weights before it is built; None: it has none.

        Raises:
            WsssError: it can't be built.
        """
        return None

    @property
    def num_classes(self) -> int:
        """Number N of foreground classes."""
        return len(self.classes)

    def forward(self, images: Tensor, label: Tensor) -> Seen:
        """What is seen in normalized images (B, 3, H, W) with image labels (B, N)."""
        raise RuntimeError(f"{type(self).__name__} must implement forward")

    def losses(self, seen: Seen, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Its own loss terms by name, already weighted; the batch as `EpochSet` makes it."""
        raise RuntimeError(f"{type(self).__name__} must implement losses")

    def image_scores(self, seen: Seen) -> Tensor | None:
        """How sure it is of each class being in each image, (B, N) in [0, 1].

        None: it does not tell, as it is given the image's labels.
        """
        return None

    def general(self, seen: Seen) -> Tensor:
        """Normalized class maps M (B, N, h, w) in [0, 1], with gradient (SIPE eq. 1).

        What a method is given as the CAM in training.
        """
        # Before the division by the maximum: bfloat16 maps would tie in an arg max.
        return normalize_cam(at_least_float32(seen.activation))

    def general_pair(self, seen: Seen) -> Tensor:
        """M of an image and its mirror image (a batch of 2) together, (1, N, h, w).

        What a method is given as the CAM when maps are made. Raw class maps are added before the
        ReLU.
        """
        return normalize_cam(add_mirror(at_least_float32(seen.activation)))

    def maps(self, seen: Seen, label: Tensor) -> dict[str, Tensor]:
        """Class maps of one image at one scale, before fusion over scales.

        Args:
            seen: the image and its mirror image, a batch of 2.
            label: image label (N,), 1 for present classes.

        Returns:
            For each of `kinds`: un-normalized maps (K, h, w) of the K present classes in ascending
            order, or (K+1, h, w) with the background first where the kind has one; or what its own
            `fuse` makes that of.
        """
        raise RuntimeError(f"{type(self).__name__} must implement maps")

    def refine(self, seen: Seen, maps: Tensor, label: Tensor) -> Tensor:
        """A method's maps at one scale (K[+1], h, w), refined by what the host knows of pixels."""
        return maps

    def fuse(
        self, kind: str, scales: Sequence[Tensor], grid: Size, sample: Mapping[str, Any]
    ) -> Tensor:
        """Maps of one kind at all scales (K[+1], h_s, w_s) in one, (K[+1], *grid) in [0, 1]."""
        return fuse_scales(scales, grid)

    def parameter_groups(self, lr: float, head_lr: float) -> list[dict[str, Any]]:
        """What learns, in groups for an optimizer: `params`, `lr` and `name`; none is empty.

        Args:
            lr: rate of pretrained layers.
            head_lr: rate of new ones.
        """
        return groups(("host", self.parameters(), lr))

    def crop(self, side: int, long_side: tuple[int, int]) -> TakeCrop:
        """Its training crop, of `data.crop_size` and `data.long_side`."""
        return Crop(side, self.mean, self.std, LongSide(*long_side))

    def test_size(self, size: Size, scale: float) -> Size:
        """Size of the network's input for a picture of `size` at a scale."""
        return scaled_size(size, scale)

    def read_maps(self, name: str) -> np.ndarray:
        """Class maps of an earlier run, (N, h, w) float32, of the image `name`."""
        raise RuntimeError(f"{type(self).__name__} must implement read_maps")

    def without_files(self) -> Any:
        """Its options without the files that they name, for a copy that is filled from weights."""
        named = [f.name for f in fields(self.options)]
        files = [n for n in named if n.endswith("weights") or n in ("labels", "maps")]
        return replace(self.options, **dict.fromkeys(files))

    def folded(self) -> None:
        """Called once before map making: fold what needs not stay apart in inference."""

    def notes(self) -> dict[str, Any]:
        """What the manifest of the maps should say about how they were made."""
        return {}


def groups(*described: tuple[str, Iterable[nn.Parameter], float]) -> list[dict[str, Any]]:
    """Optimizer groups of (name, parameters, lr), without what is frozen and empty groups."""
    learning = [
        (name, [p for p in params if p.requires_grad], lr) for name, params, lr in described
    ]
    return [{"params": params, "lr": lr, "name": name} for name, params, lr in learning if params]


def relu_pair(seen: Seen) -> Tensor:
    """ReLU of the raw class maps of image and mirror image, then added, (N, h, w) (IRN)."""
    return add_mirror(F.relu(at_least_float32(seen.activation)))[0]
