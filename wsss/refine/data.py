"""What IRN is trained on and applied to: crops with confident labels, and whole images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

from wsss.data.base import ImageSet
from wsss.data.datamodule import EpochSampler, loader_workers, single_sample
from wsss.data.masks import read_mask
from wsss.data.photographs import load_image
from wsss.data.transforms import normalize, resize_bicubic, resize_labels, scaled_size, to_tensor
from wsss.errors import WsssError
from wsss.refine.affinity import VOID
from wsss.refine.irn import MULTIPLE

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class AffinityCrop:
    """The training crop of IRN: random scale, flip, random padded square, of image and labels.

    Attributes:
        crop_size: Side of the square, pixels; a multiple of 16.
        scale: Range that the scale is drawn from, uniformly.
        mean: Mean per channel in [0, 1].
        std: Standard deviation per channel in [0, 1].
    """

    crop_size: int
    scale: tuple[float, float]
    mean: Colour
    std: Colour

    def __post_init__(self) -> None:
        if self.crop_size < MULTIPLE or self.crop_size % MULTIPLE:
            raise WsssError(
                f"refine.irn.crop_size={self.crop_size} must be a multiple of {MULTIPLE}"
            )
        if not 0 < self.scale[0] <= self.scale[1]:
            raise WsssError(f"refine.irn.scale={list(self.scale)} must be [smallest, largest]")

    def __call__(
        self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Crop an image and its labels alike.

        Args:
            image: (H, W, 3) uint8 RGB.
            labels: (H, W) uint8 class ids, 255 unsure.
            rng: Where all of the crop's randomness comes from.

        Returns:
            The normalized crop, (3, S, S) float32 with zeros where there is no image, and its
            labels, (S, S) uint8, 255 there.
        """
        size = scaled_size(image.shape[:2], rng.uniform(*self.scale))
        mirrored = rng.random() < 0.5
        pixels = resize_bicubic(to_tensor(image), size)
        ids = resize_labels(torch.from_numpy(labels), size)
        if mirrored:
            pixels, ids = F.horizontal_flip(pixels), ids.flip(-1)
        side = self.crop_size
        crop = torch.zeros(3, side, side)
        crop_ids = torch.full((side, side), VOID, dtype=torch.uint8)
        offsets = [int(rng.integers(0, abs(length - side), endpoint=True)) for length in size]
        # An axis longer than the crop is cut at its offset; a shorter one is placed there.
        source = tuple(
            slice(o, o + side) if length > side else slice(None)
            for o, length in zip(offsets, size, strict=True)
        )
        target = tuple(
            slice(None) if length > side else slice(o, o + length)
            for o, length in zip(offsets, size, strict=True)
        )
        crop[(slice(None), *target)] = normalize(
            pixels[(slice(None), *source)], self.mean, self.std
        )
        crop_ids[target] = ids[source]
        return crop, crop_ids


class AffinitySet(Dataset):
    """Training samples of IRN, addressed by (epoch, index); random by (seed, epoch, index) alone.

    Args:
        image_set: Gives the image files; its masks are never read.
        names: The images.
        labels: Folder of their confident labels, NAME.png.
        crop: The training crop.
        seed: Seed of the crops.
    """

    def __init__(
        self, image_set: ImageSet, names: Sequence[str], labels: Path, crop: AffinityCrop, seed: int
    ) -> None:
        self.image_set, self.names, self.labels = image_set, list(names), labels
        self.crop, self.seed = crop, seed

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """`image` (3, S, S) and `label` (S, S) of image `index` as `epoch` sees it."""
        epoch, index = key
        name = self.names[index]
        image = load_image(self.image_set.image_path(name))
        labels = read_mask(self.labels / f"{name}.png", self.image_set.num_classes)
        if labels.shape != image.shape[:2]:
            raise WsssError(
                f"image {name}: confident labels {labels.shape} and image {image.shape[:2]} differ "
                f"in size; delete {self.labels / name}.png and run stage=irn_labels again"
            )
        rng = np.random.default_rng([self.seed, epoch, index])
        image_crop, label_crop = self.crop(image, labels, rng)
        return {"image": image_crop, "label": label_crop}


class WholeImages(Dataset):
    """Normalized images of their own size, `image` (3, H, W) and `name`.

    Args:
        image_set: Gives the image files.
        names: The images.
        mean: Mean per channel in [0, 1].
        std: Standard deviation per channel in [0, 1].
        top_left: Cut or zero-pad each to a square of this side at its upper left corner.
    """

    def __init__(
        self,
        image_set: ImageSet,
        names: Sequence[str],
        mean: Colour,
        std: Colour,
        top_left: int | None = None,
    ) -> None:
        self.image_set, self.names = image_set, list(names)
        self.mean, self.std, self.top_left = mean, std, top_left

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, object]:
        """Sample `index`."""
        name = self.names[index]
        image = to_tensor(load_image(self.image_set.image_path(name)))
        pixels = normalize(image, self.mean, self.std)
        if self.top_left is not None:
            square = torch.zeros(3, self.top_left, self.top_left)
            part = pixels[:, : self.top_left, : self.top_left]
            square[:, : part.shape[1], : part.shape[2]] = part
            pixels = square
        return {"image": pixels, "name": name}


class AffinityData(pl.LightningDataModule):
    """Loaders of IRN's training (`fit`) and of whole images (`predict`).

    Args:
        train: Training samples.
        batch_size: Over all processes together.
        whole: Samples of `predict`.
        num_workers: Loader processes per process; -1 chooses.

    Raises:
        WsssError: From `train_dataloader`, if the batch can't be filled or split.
    """

    def __init__(
        self,
        train: AffinitySet | None = None,
        batch_size: int = 32,
        whole: WholeImages | None = None,
        num_workers: int = -1,
    ) -> None:
        super().__init__()
        self.train_set, self.whole = train, whole
        self.batch_size = int(batch_size)
        self.num_workers = loader_workers() if num_workers < 0 else int(num_workers)

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches; the last incomplete one is dropped."""
        assert self.train_set is not None
        rank, world = self._rank_and_world()
        if self.batch_size % world or self.batch_size < world:
            raise WsssError(
                f"refine.irn.batch_size={self.batch_size} is the global batch and must be "
                f"divisible by the {world} processes"
            )
        if len(self.train_set) < self.batch_size:
            raise WsssError(
                f"refine.irn.batch_size={self.batch_size} is larger than the "
                f"{len(self.train_set)} images with confident labels: not one batch can be filled"
            )
        # Lightning has not told the epoch yet when loader processes draw their first batches.
        epoch = self.trainer.fit_loop.epoch_progress.current.processed if self.trainer else 0  # type: ignore[attr-defined]
        sampler = EpochSampler(
            len(self.train_set), self.batch_size, self.train_set.seed, epoch, rank, world
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
        """Each image once over all processes; a batch is one plain sample."""
        assert self.whole is not None
        rank, world = self._rank_and_world()
        whole = self.whole
        mine = WholeImages(
            whole.image_set, whole.names[rank::world], whole.mean, whole.std, whole.top_left
        )
        return DataLoader(
            mine, batch_size=1, collate_fn=single_sample, num_workers=self.num_workers
        )

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
