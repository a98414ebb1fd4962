"""Class maps of an earlier run in the CAM's place: what a method learns from on any backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from wsss.backbones.base import Backbone
from wsss.hosts.base import Seen
from wsss.hosts.cam import CAM
from wsss.maps.files import ClassMaps, read_class_maps
from wsss.maps.functional import resize_maps
from wsss.run.compute import at_least_float32
from wsss.settings import settings


@settings
class GivenSettings:
    """Whose maps.

    Attributes:
        maps: folder of class-map files, `make_cam/maps` of a run over the same images.
        kind: which of their kinds; None: the last one.
    """

    maps: str | None = None
    kind: str | None = None


class Given(CAM):
    """A classifier on a backbone, and class maps that others made (CPAL on CLIP-ES, option A).

    The classifier learns image labels as ever; the method is given the others' maps as the CAM,
    in training and when maps are made. Where there are none the classifier's stand in for them.

    Args:
        options: whose maps.
        classes: foreground class names.
        backbone: features of four stages.
    """

    Settings: ClassVar[type] = GivenSettings
    options: GivenSettings
    reads_maps: ClassVar[bool] = True

    def __init__(self, options: GivenSettings, classes: Sequence[str], backbone: Backbone) -> None:
        super().__init__(options, classes, backbone)
        self.folder = Path(options.maps or "").expanduser()

    def read_maps(self, name: str) -> np.ndarray:
        """The given maps of an image, (N, h, w) float32 in [0, 1]; 0 for absent classes."""
        return self.dense(read_class_maps(self.folder / f"{name}.npz", self.options.kind))

    def dense(self, stored: ClassMaps) -> np.ndarray:
        """Maps of the last kind, (N, h, w) float32 in [0, 1]; 0 for absent classes."""
        maps = list(stored.maps.values())[-1]
        dense = np.zeros((self.num_classes, *maps.shape[1:]), dtype=np.float32)
        dense[stored.classes - 1] = maps[len(maps) - len(stored.classes) :]
        return dense

    def general(self, seen: Seen) -> Tensor:
        """The given maps on the grid of the feature, (B, N, h, w) in [0, 1]."""
        if "given" not in seen.extra:
            return super().general(seen)
        return _on_grid(seen)

    def general_pair(self, seen: Seen) -> Tensor:
        """Those of the image, (1, N, h, w)."""
        if "given" not in seen.extra:
            return super().general_pair(seen)
        return _on_grid(seen)[:1]


def _on_grid(seen: Seen) -> Tensor:
    height, width = seen.activation.shape[-2:]
    return resize_maps(at_least_float32(seen.extra["given"]), (height, width), align_corners=False)
