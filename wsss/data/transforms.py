"""From pictures to network inputs: sizes, resampling, the random crop, the test-time pyramid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from wsss.data.masks import VOID
from wsss.errors import WsssError
from wsss.settings import Color

Size = tuple[int, int]  # height, width
MAP_STRIDE = 16  # of class maps that a training crop comes with


def scaled_size(size: Size, scale: float) -> Size:
    """(height, width) times `scale`, rounded half to even, at least 1."""
    height, width = size
    return max(1, round(height * scale)), max(1, round(width * scale))


def long_side_size(size: Size, long_side: int | None, at_most: bool = False) -> Size:
    """(height, width) of the same shape whose longer side is `long_side`.

    Args:
        size: (height, width) of the picture.
        long_side: its longer side, pixels; None: as it is.
        at_most: only make smaller, never larger.
    """
    if long_side is None or (at_most and max(size) <= long_side):
        return size
    return scaled_size(size, long_side / max(size))


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 array to a (3, H, W) uint8 tensor; the memory is shared."""
    return torch.from_numpy(image).permute(2, 0, 1)


def resize_bicubic(image: Tensor, size: Size) -> Tensor:
    """Bicubic antialiased resize of an image, (3, H, W) uint8, to `size`; uint8."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.resize(image, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)


def resize_bilinear(image: Tensor, size: Size) -> Tensor:
    """Bilinear resize without antialiasing of an image, (3, H, W) uint8, to `size`; uint8."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=False)


def resize_labels(labels: Tensor, size: Size) -> Tensor:
    """Nearest-neighbor resize of class ids: cell i takes sample floor((i + 1/2) * scale).

    In whole numbers, so exact: `F.interpolate(mode="nearest-exact")` multiplies in float32 and is a
    sample off for some sizes (634 pixels to 75), and takes no int64.

    Args:
        labels: (..., H, W) class ids of any integer type.
        size: (h, w) of the result.

    Returns:
        (..., h, w); on a grid of stride 4 the samples are 4i + 2.
    """
    rows, columns = (
        ((2 * torch.arange(new, device=labels.device) + 1) * old) // (2 * new)
        for new, old in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[..., rows[:, None], columns[None, :]]


def normalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(image / 255 - mean) / std per channel: (3, H, W) uint8 to float32."""
    # One fused multiply and add: a third of the time of the three steps.
    scale = 1.0 / (255.0 * torch.tensor(std, dtype=torch.float32))
    shift = torch.tensor(mean, dtype=torch.float32) / torch.tensor(std, dtype=torch.float32)
    result = image.to(torch.float32, memory_format=torch.contiguous_format)
    return result.mul_(scale[:, None, None]).sub_(shift[:, None, None])


# How the size of a training image is drawn, from its own.
DrawSize = Callable[[Size, np.random.Generator], Size]


@dataclass(frozen=True)
class LongSide:
    """The longer side gets a length drawn from a range, both ends included (CAM, SIPE, CPAL)."""

    smallest: int
    largest: int

    def __call__(self, size: Size, rng: np.random.Generator) -> Size:
        """Draw a size; it is rounded half to even."""
        return long_side_size(size, int(rng.integers(self.smallest, self.largest, endpoint=True)))


@dataclass(frozen=True)
class ScaleRange:
    """A factor drawn uniformly from a range (IRN: 0.5 to 1.5; MCTformer's segmenter: 0.7 to 1.3).

    Attributes:
        smallest: least factor.
        largest: greatest factor.
        long_side: longer side of the picture at factor 1, pixels; None: its own.
        cut: sizes are cut to whole pixels instead of rounded.
    """

    smallest: float
    largest: float
    long_side: int | None = None
    cut: bool = False

    def __call__(self, size: Size, rng: np.random.Generator) -> Size:
        """Draw a size."""
        factor = float(rng.uniform(self.smallest, self.largest))
        return _times(long_side_size(size, self.long_side), factor, self.cut)


@dataclass(frozen=True)
class Scales:
    """One of some factors, each as likely as the others; sizes are cut (deeplab-pytorch).

    Attributes:
        factors: the factors.
        long_side: longer side of the picture at factor 1, pixels; None: its own.
    """

    factors: tuple[float, ...]
    long_side: int | None = None

    def __call__(self, size: Size, rng: np.random.Generator) -> Size:
        """Draw a size."""
        factor = self.factors[int(rng.integers(len(self.factors)))]
        return _times(long_side_size(size, self.long_side), factor, cut=True)


def _times(size: Size, factor: float, cut: bool) -> Size:
    if not cut:
        return scaled_size(size, factor)
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))


class Cropped(NamedTuple):
    """A training crop."""

    image: Tensor
    """(3, S, S) float32, normalized; 0, the mean color, where there is no image."""
    valid: Tensor
    """(S, S) float32: 1 on the image, 0 beside it."""
    target: Tensor | None
    """(S, S) int64 class ids of the label map, `pad_label` beside it; None without one."""
    maps: Tensor | None = None
    """(N, S / 16, S / 16) float32, rounded up: class maps, 0 beside the image; or None."""


class TakeCrop(Protocol):
    """What makes a training crop of an image and, where there is one, of its label map."""

    @property
    def mean(self) -> Color:
        """Mean per RGB channel in [0, 1] that it normalizes with."""
        ...

    @property
    def std(self) -> Color:
        """Standard deviation, likewise."""
        ...

    def __call__(
        self,
        image: np.ndarray,
        rng: np.random.Generator,
        labels: np.ndarray | None = None,
        maps: np.ndarray | None = None,
    ) -> Cropped:
        """Crop (H, W, 3) uint8 RGB with its label map and class maps; random by `rng` alone."""
        ...


@dataclass(frozen=True)
class Crop:
    """A random square of an image, and of its label map where there is one.

    The image gets a size drawn by `draw_size`, is mirrored with probability 0.5, then a random
    square is taken. Where the image is smaller than the square it lies at a random place in it,
    or in its upper left corner. No color jitter.

    Attributes:
        side: side of the square, pixels.
        mean: mean per RGB channel in [0, 1].
        std: standard deviation per RGB channel in [0, 1].
        draw_size: how the image's size is drawn.
        resize: how its pixels are resampled; class ids are by nearest neighbor.
        corner: smaller images lie in the upper left corner (DeepLab).
        mirror: whether half of the crops are mirrored.
        pad_label: label beside the image.
    """

    side: int
    mean: Color
    std: Color
    draw_size: DrawSize
    resize: Callable[[Tensor, Size], Tensor] = field(default=resize_bicubic)
    corner: bool = False
    mirror: bool = True
    pad_label: int = VOID

    def __call__(
        self,
        image: np.ndarray,
        rng: np.random.Generator,
        labels: np.ndarray | None = None,
        maps: np.ndarray | None = None,
    ) -> Cropped:
        """Crop one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            rng: where all of the crop's randomness comes from.
            labels: (H, W) uint8 class ids.
            maps: (N, h, w) float32 class maps of the whole image, of any resolution.
        """
        size = self.draw_size((image.shape[0], image.shape[1]), rng)
        mirrored = self.mirror and bool(rng.random() < 0.5)
        pixels = self.resize(to_tensor(image), size)
        if mirrored:
            pixels = pixels.flip(-1)
        parts = [self._overlap(length, rng) for length in size]
        source, target = (tuple(part[i] for part in parts) for i in (0, 1))
        crop = torch.zeros(3, self.side, self.side)
        valid = torch.zeros(self.side, self.side)
        window = pixels[:, source[0], source[1]]
        crop[:, target[0], target[1]] = normalize(window, self.mean, self.std)
        valid[target] = 1
        given = None if maps is None else self._sampled(maps, size, mirrored, parts)
        if labels is None:
            return Cropped(crop, valid, None, given)
        ids = resize_labels(torch.from_numpy(labels), size)
        ids = ids.flip(-1) if mirrored else ids
        cropped_ids = torch.full((self.side, self.side), self.pad_label, dtype=torch.int64)
        cropped_ids[target] = ids[source].long()
        return Cropped(crop, valid, cropped_ids, given)

    def _sampled(
        self, maps: np.ndarray, size: Size, mirrored: bool, parts: list[tuple[slice, slice]]
    ) -> Tensor:
        """Class maps of the whole image at the centers of the square's cells of 16 pixels."""
        cells = (torch.arange(-(-self.side // MAP_STRIDE)) + 0.5) * MAP_STRIDE
        rows, columns = (
            # -1 and 1 are the image's two edges
            2 * (cells + (source.start or 0) - (target.start or 0)) / length - 1
            for (source, target), length in zip(parts, size, strict=True)
        )
        places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        inside = (places.abs() <= 1).all(dim=-1)
        if mirrored:
            places[..., 0].neg_()
        sampled = torch.nn.functional.grid_sample(
            torch.from_numpy(maps)[None], places[None], padding_mode="border", align_corners=False
        )
        return sampled[0] * inside

    def _overlap(self, length: int, rng: np.random.Generator) -> tuple[slice, slice]:
        """Along one axis: the part of the image that is seen, and its place in the square."""
        room = max(length - self.side, 0) if self.corner else abs(length - self.side)
        offset = int(rng.integers(0, room, endpoint=True))
        if length > self.side:
            return slice(offset, offset + self.side), slice(None)
        return slice(None), slice(offset, offset + length)


@dataclass(frozen=True)
class Pyramid:
    """The inputs of a picture at test time: at each scale, resampled once from the file's pixels.

    Attributes:
        mean: mean per RGB channel in [0, 1].
        std: standard deviation per RGB channel in [0, 1].
        scales: factors.
        long_side: longer side that counts as scale 1, pixels; None: the picture's own.
        max_side: larger pictures count as if they had this longer side; None: no limit.
        resize: how pixels are resampled.
        size: network input for the size at scale 1 and a factor; default: rounded half to even.
    """

    mean: Color
    std: Color
    scales: tuple[float, ...] = (1.0,)
    long_side: int | None = None
    max_side: int | None = None
    resize: Callable[[Tensor, Size], Tensor] = field(default=resize_bicubic)
    size: Callable[[Size, float], Size] = field(default=scaled_size)

    def __call__(self, picture: np.ndarray) -> list[Tensor]:
        """One (3, h_s, w_s) float32 tensor per scale of a picture (H, W, 3) uint8 RGB."""
        base = long_side_size((picture.shape[0], picture.shape[1]), self.long_side)
        base = long_side_size(base, self.max_side, at_most=True)
        pixels = to_tensor(picture)
        return [
            normalize(self.resize(pixels, self.size(base, scale)), self.mean, self.std)
            for scale in self.scales
        ]


def check_range(key: str, limits: Sequence[float]) -> None:
    """Check that a setting is [smallest, largest], both above 0.

    Raises:
        WsssError: it is not.
    """
    if not 0 < limits[0] <= limits[1]:
        raise WsssError(f"{key}={list(limits)}: must be [smallest, largest], above 0")
