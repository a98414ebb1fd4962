"""Plain class activation maps."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from wsss.hosts.base import SeedMethod


class CAM(SeedMethod):
    """Classifier whose class maps are the seeds (Zhou et al., CVPR 2016; as trained by IRN)."""

    kinds: ClassVar[dict[str, bool]] = {"cam": False}

    def maps_at_scale(self, images: Tensor, label: Tensor) -> dict[str, Tensor]:
        """ReLU of the class maps of image and un-mirrored mirror, added (K, h, w)."""
        _, activation = self(images)
        positive = F.relu(activation)
        both = positive[0] + positive[1].flip(-1)
        return {"cam": both[label.bool()]}
