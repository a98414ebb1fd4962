"""The training transform of DeiT, which MCTformer keeps: strong augmentation of one square."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Len
from PIL import Image
from timm.data import create_transform

from wsss.data.transforms import Cropped, check_range
from wsss.settings import Color, Positive, Share, settings


@settings
class AugmentSettings:
    """How strongly training images are changed.

    Attributes:
        scale: share of the image's area that is cut out, [smallest, largest].
        ratio: its width by its height, [smallest, largest].
        policy: timm's name of a policy of changes (RandAugment); None: color jitter alone.
        erasing: chance that a rectangle is replaced by noise.
    """

    scale: tuple[Positive, Positive] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    policy: Annotated[str, Len(1)] | None = "rand-m9-mstd0.5-inc1"
    erasing: Share = 0.25

    def __post_init__(self) -> None:
        check_range("host.augment.scale", self.scale)
        check_range("host.augment.ratio", self.ratio)


@dataclass(frozen=True)
class RandomSquare:
    """A random part of an image as a square, changed in color and form (timm's transform).

    Attributes:
        side: side of the square, pixels.
        mean: mean per RGB channel in [0, 1].
        std: standard deviation per RGB channel in [0, 1].
        options: how strong it is.
    """

    side: int
    mean: Color
    std: Color
    options: AugmentSettings

    def __call__(
        self,
        image: np.ndarray,
        rng: np.random.Generator,
        labels: np.ndarray | None = None,
        maps: np.ndarray | None = None,
    ) -> Cropped:
        """Cut out and change; no label maps and no class maps.

        Args:
            image: (H, W, 3) uint8 RGB.
            rng: where all of its randomness comes from.
            labels: none can be taken.
            maps: likewise.
        """
        assert labels is None and maps is None
        transform: Any = create_transform(
            self.side,
            is_training=True,
            scale=self.options.scale,
            ratio=self.options.ratio,
            hflip=0.5,
            auto_augment=self.options.policy,
            interpolation="bicubic",
            re_prob=self.options.erasing,
            re_mode="pixel",
            mean=self.mean,
            std=self.std,
        )
        with drawing_from(rng):
            crop = transform(Image.fromarray(image))
        return Cropped(crop, torch.ones(self.side, self.side), None)


@contextmanager
def drawing_from(rng: np.random.Generator) -> Iterator[None]:
    """Let the global generators of Python, NumPy and PyTorch draw what `rng` says, for a while."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seeds = rng.integers(2**32, size=3).tolist()
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(seeds[2])
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
