"""What the segmentation network is trained on and applied to: crops, whole photographs.

Its labels are files of pseudo masks; nothing here asks a data set for its masks.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from wsss.data.base import ImageSet
from wsss.data.datamodule import EpochSampler, loader_workers, single_sample
from wsss.data.masks import VOID, read_mask
from wsss.data.photographs import load_image
from wsss.data.transforms import long_side_size, normalize, resize_labels, to_tensor
from wsss.errors import WsssError

Colour = tuple[float, float, float]


def resize_bilinear(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize without antialiasing of an image, (3, H, W) uint8, to `size`; uint8."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=False)


def base_size(
    size: tuple[int, int], long_side: int | None, at_most: bool = False
) -> tuple[int, int]:
    """Size that counts as scale 1.

    Args:
        size: (height, width) of the photograph.
        long_side: Its longer side at scale 1; None: the photograph's own.
        at_most: Only make smaller, never larger.
    """
    if long_side is None or (at_most and max(size) <= long_side):
        return size
    return long_side_size(size, long_side)


@dataclass(frozen=True)
class SegmentationCrop:
    """The training crop of DeepLab: random scale, padding right and below, random crop, mirror.

    The image is enlarged by a factor drawn from `scales` or from the range `scale_range`, sizes
    cut to whole pixels, bilinear, its labels by nearest neighbour. Where it is then smaller than
    the crop, the mean colour (0 after normalization) and `pad_label` follow to the right and below.

    Attributes:
        crop_size: Side of the square, pixels.
        mean: Mean per RGB channel in [0, 1].
        std: Standard deviation per RGB channel in [0, 1].
        scales: Factors, each as likely as the others (deeplab-pytorch: 0.5, 0.75, ... 1.5).
        scale_range: Smallest and largest factor, instead of `scales` (MCTformer: 0.7, 1.3).
        long_side: Longer side of the photograph at scale 1, pixels; None: its own.
        mirror: Whether half of the crops are mirrored.
        pad_label: Label of the padding: 255, ignored; 0 as MCTformer has it.
    """

    crop_size: int
    mean: Colour
    std: Colour
    scales: tuple[float, ...] | None = (0.5, 0.75, 1.0, 1.25, 1.5)
    scale_range: tuple[float, float] | None = None
    long_side: int | None = None
    mirror: bool = True
    pad_label: int = VOID

    def __post_init__(self) -> None:
        key = "segmentation.train"
        if self.crop_size < 1:
            raise WsssError(f"{key}.crop_size={self.crop_size} must be at least 1")
        if (self.scales is None) == (self.scale_range is None):
            raise WsssError(f"{key}: give scales or scale_range, and null for the other")
        if self.scales is not None and (not self.scales or min(self.scales) <= 0):
            raise WsssError(f"{key}.scales={list(self.scales)} must be positive numbers")
        limits = self.scale_range
        if limits is not None and (len(limits) != 2 or not 0 < limits[0] <= limits[1]):
            raise WsssError(f"{key}.scale_range={list(limits)} must be [smallest, largest]")
        if self.pad_label not in (0, VOID):
            raise WsssError(f"{key}.pad_label={self.pad_label}: choose 255 (ignored) or 0")

    def __call__(
        self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Crop an image and its labels alike.

        Args:
            image: (H, W, 3) uint8 RGB.
            labels: (H, W) uint8 class ids, 255 ignored.
            rng: Where all of the crop's randomness comes from.

        Returns:
            The normalized crop, (3, S, S) float32, and its labels, (S, S) int64.
        """
        if self.scales is not None:
            scale = self.scales[int(rng.integers(len(self.scales)))]
        else:
            assert self.scale_range is not None
            scale = float(rng.uniform(*self.scale_range))
        height, width = base_size(image.shape[:2], self.long_side)
        size = max(1, int(height * scale)), max(1, int(width * scale))
        pixels = resize_bilinear(to_tensor(image), size)
        ids = resize_labels(torch.from_numpy(labels), size)
        side = self.crop_size
        top, left = (int(rng.integers(max(n - side, 0), endpoint=True)) for n in size)
        window = (slice(top, top + side), slice(left, left + side))
        inside = normalize(pixels[(slice(None), *window)], self.mean, self.std)
        crop = torch.zeros(3, side, side)
        target = torch.full((side, side), self.pad_label, dtype=torch.int64)
        crop[:, : inside.shape[1], : inside.shape[2]] = inside
        target[: inside.shape[1], : inside.shape[2]] = ids[window]
        if self.mirror and rng.random() < 0.5:
            crop, target = crop.flip(-1), target.flip(-1)
        return crop, target


class PseudoMaskSet(Dataset):
    """Training samples of the segmentation network, addressed by (epoch, index).

    A sample's randomness comes from (seed, epoch, name) alone: it is the same in any process, after
    a resume, and whatever other images there are.

    Args:
        image_set: Gives the image files; its masks are never read.
        names: The images.
        masks: Folder of their pseudo masks, NAME.png.
        crop: The training crop.
        seed: Seed of the crops.
    """

    def __init__(
        self,
        image_set: ImageSet,
        names: Sequence[str],
        masks: Path,
        crop: SegmentationCrop,
        seed: int,
    ) -> None:
        self.image_set, self.names, self.masks = image_set, list(names), masks
        self.crop, self.seed = crop, seed

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """`image` (3, S, S), `target` (S, S) and `name` of image `index` as `epoch` sees it."""
        epoch, index = key
        name = self.names[index]
        image = load_image(self.image_set.image_path(name))
        path = self.masks / f"{name}.png"
        labels = read_mask(path, self.image_set.num_classes)
        if labels.shape != image.shape[:2]:
            raise WsssError(
                f"pseudo mask {path} has size {labels.shape}, its photograph {image.shape[:2]}"
            )
        rng = np.random.default_rng([self.seed, epoch, zlib.crc32(name.encode())])
        pixels, target = self.crop(image, labels, rng)
        return {"image": pixels, "target": target, "name": name}


class WholePhotographs(Dataset):
    """Test samples: photographs at their own size, and normalized at scale 1.

    A sample has `name`, `picture` (H, W, 3) uint8, `image` (3, h, w) float32 and `size` (H, W). A
    photograph that can't be read has `picture` None if `lenient`, else it is an error.

    Args:
        image_set: Gives the image files.
        names: The images.
        mean: Mean per RGB channel in [0, 1].
        std: Standard deviation per RGB channel in [0, 1].
        long_side: Longer side at scale 1, pixels; None: the photograph's own.
        max_side: Larger photographs are brought to this longer side; None: no limit.
        lenient: Pass over what can't be read.
    """

    def __init__(
        self,
        image_set: ImageSet,
        names: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        long_side: int | None = None,
        max_side: int | None = None,
        lenient: bool = False,
    ) -> None:
        self.image_set, self.names, self.mean, self.std = image_set, list(names), mean, std
        self.long_side, self.max_side, self.lenient = long_side, max_side, lenient

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample `index`."""
        name = self.names[index]
        try:
            picture = load_image(self.image_set.image_path(name))
        except WsssError:
            if not self.lenient:
                raise
            return {"name": name, "picture": None}
        size = (picture.shape[0], picture.shape[1])
        base = base_size(base_size(size, self.long_side), self.max_side, at_most=True)
        pixels = resize_bilinear(to_tensor(picture), base)
        return {
            "name": name,
            "picture": torch.from_numpy(picture),
            "image": normalize(pixels, self.mean, self.std),
            "size": torch.tensor(size),
        }

    def share(self, rank: int, world: int) -> WholePhotographs:
        """Each `world`-th photograph from `rank` on: disjoint shares that miss none."""
        return WholePhotographs(
            self.image_set,
            self.names[rank::world],
            self.mean,
            self.std,
            self.long_side,
            self.max_side,
            self.lenient,
        )


class SegmentationData(pl.LightningDataModule):
    """Loaders for training the segmentation network (`fit`) and applying it (`predict`).

    Args:
        train_set: Crops with pseudo masks; None if only predictions are wanted.
        whole: Photographs to predict; None if only training is wanted.
        batch_size: Images of one forward pass over all processes together.
        accumulate: Forward passes of one optimizer step.
        num_workers: Loader processes per process; -1 chooses.
    """

    def __init__(
        self,
        train_set: PseudoMaskSet | None = None,
        whole: WholePhotographs | None = None,
        batch_size: int = 1,
        accumulate: int = 1,
        num_workers: int = -1,
    ) -> None:
        super().__init__()
        if batch_size < 1 or accumulate < 1:
            raise WsssError(
                f"segmentation.train: batch_size={batch_size} and accumulate={accumulate} must be "
                f"at least 1"
            )
        self.train_set, self.whole = train_set, whole
        self.batch_size, self.accumulate = int(batch_size), int(accumulate)
        self.num_workers = loader_workers() if num_workers < 0 else int(num_workers)
        if train_set is not None and len(train_set) < self.batch_size * self.accumulate:
            raise WsssError(
                f"segmentation.train: batch_size {batch_size} x accumulate {accumulate} is more "
                f"than the {len(train_set)} images: not one step can be filled"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch; images that fill no step are left to other epochs."""
        assert self.train_set is not None
        return len(self.train_set) // (self.batch_size * self.accumulate)

    def train_dataloader(self) -> DataLoader:
        """Shuffled crops; an epoch ends with a whole optimizer step."""
        assert self.train_set is not None
        rank, world = self._rank_and_world()
        if self.batch_size % world:
            raise WsssError(
                f"segmentation.train.batch_size={self.batch_size} is the global batch and must be "
                f"divisible by the {world} processes"
            )
        # Lightning has not told the epoch yet when loader processes draw their first batches.
        epoch = self.trainer.fit_loop.epoch_progress.current.processed if self.trainer else 0  # type: ignore[attr-defined]
        sampler = EpochSampler(
            len(self.train_set),
            self.batch_size * self.accumulate,
            self.train_set.seed,
            epoch,
            rank,
            world,
        )
        return DataLoader(
            self.train_set,
            batch_size=self.batch_size // world,
            sampler=sampler,
            drop_last=True,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def predict_dataloader(self) -> DataLoader:
        """Each photograph once over all processes; a batch is one plain sample."""
        assert self.whole is not None
        return DataLoader(
            self.whole.share(*self._rank_and_world()),
            batch_size=1,
            collate_fn=single_sample,
            num_workers=self.num_workers,
        )

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
