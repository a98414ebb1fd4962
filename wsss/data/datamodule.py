"""The loaders of seed training and map making; neither ever reads a mask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from wsss.data.base import ImageSet
from wsss.data.photographs import load_image
from wsss.data.transforms import TrainingCrop, scaled_images
from wsss.errors import WsssError
from wsss.run.pool import cores


class TrainingSet(Dataset):
    """Training samples, addressed by (epoch, index).

    A sample's randomness comes from (seed, epoch, index) alone: it is the same in any worker, in
    any process and after a resume.
    """

    def __init__(
        self,
        image_set: ImageSet,
        names: Sequence[str],
        labels: np.ndarray,
        crop: TrainingCrop,
        seed: int,
    ) -> None:
        """Keep what a sample is made of; `labels` is (len(names), N)."""
        self.image_set = image_set
        self.names = list(names)
        self.labels = torch.from_numpy(labels).float()
        self.crop = crop
        self.seed = seed

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, object]:
        """Sample `index` as `epoch` sees it, for key = (epoch, index)."""
        epoch, index = key
        name = self.names[index]
        image = load_image(self.image_set.image_path(name))
        crop, valid = self.crop(image, np.random.default_rng([self.seed, epoch, index]))
        return {
            "image": crop,
            "label": self.labels[index],
            "name": name,
            "size": torch.tensor(image.shape[:2]),
            "valid": valid,
        }


class PyramidSet(Dataset):
    """Test-time samples: each image at every scale."""

    def __init__(
        self,
        image_set: ImageSet,
        names: Sequence[str],
        labels: np.ndarray,
        scales: Sequence[float],
        mean: Sequence[float],
        std: Sequence[float],
        long_side: int | None,
    ) -> None:
        """Keep what a sample is made of; `labels` is (len(names), N)."""
        self.image_set = image_set
        self.names = list(names)
        self.labels = torch.from_numpy(labels).float()
        self.scales, self.mean, self.std, self.long_side = scales, mean, std, long_side

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, object]:
        """Sample `index`: images (list of (3, h_s, w_s)), label (N,), name, size (2,)."""
        name = self.names[index]
        image = load_image(self.image_set.image_path(name))
        return {
            "images": scaled_images(image, self.scales, self.mean, self.std, self.long_side),
            "label": self.labels[index],
            "name": name,
            "size": torch.tensor(image.shape[:2]),
        }


class EpochSampler(Sampler[tuple[int, int]]):
    """This process's share of each epoch, as (epoch, index) keys.

    The order of epoch e is a permutation drawn from (seed, e). Its last incomplete global batch is
    dropped; of every other one each of the `world` processes takes each `world`-th image, so that
    global batches are the same sets under any number of processes.
    """

    def __init__(
        self,
        length: int,
        global_batch: int,
        seed: int,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """See the class; `length` is the number of images, `epoch` the one to begin with."""
        self.length, self.global_batch, self.seed = length, global_batch, seed
        self.epoch, self.rank, self.world = epoch, rank, world

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch; it holds for iterators begun afterwards."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.global_batch * self.global_batch // self.world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
        used = order[: len(self) * self.world]
        return ((epoch, int(index)) for index in used[self.rank :: self.world])


class WSSSDataModule(pl.LightningDataModule):
    """Loaders for training (`fit`) and for making class maps (`predict`)."""

    def __init__(
        self,
        image_set: ImageSet,
        train_split: str = "trainaug",
        infer_split: str = "train",
        eval_split: str = "train",
        crop_size: int = 512,
        long_side: Sequence[int] = (320, 640),
        batch_size: int = 16,
        num_workers: int = -1,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        scales: Sequence[float] = (1.0, 0.5, 1.5, 2.0),
        infer_long_side: int | None = None,
        seed: int = 0,
    ) -> None:
        """Keep the settings; files are looked at by `setup`.

        Args:
            image_set: The data set.
            train_split: Split to train on, with image labels only.
            infer_split: Split that `predict` makes class maps of.
            eval_split: Split with masks that evaluation stages score; no loader here reads it.
            crop_size: Side of the square training crop, pixels.
            long_side: Smallest and largest length of a training image's longer side, pixels.
            batch_size: Images per optimizer step over all processes together.
            num_workers: Loader processes per training process; -1 chooses (`loader_workers`).
            mean: Mean per RGB channel, in [0, 1], that the backbone was trained with.
            std: Standard deviation per RGB channel, likewise.
            scales: Test-time scales, first to last.
            infer_long_side: Longer side in pixels that counts as scale 1 at test time; None: the
                image's own size.
            seed: Seed of order and crops.

        Raises:
            WsssError: If a value makes no sense; the message names its key.
        """
        super().__init__()
        self.image_set = image_set
        self.train_split, self.infer_split, self.eval_split = train_split, infer_split, eval_split
        self.crop_size, self.batch_size, self.seed = int(crop_size), int(batch_size), int(seed)
        self.num_workers = int(num_workers)
        self.scales = tuple(float(scale) for scale in scales)
        self.infer_long_side = None if infer_long_side is None else int(infer_long_side)
        self._only: frozenset[str] | None = None

        sides = tuple(int(side) for side in long_side)
        colours = [tuple(float(value) for value in values) for values in (mean, std)]
        if self.crop_size < 1:
            raise WsssError(f"data.crop_size must be at least 1, got {crop_size}")
        if self.batch_size < 1:
            raise WsssError(f"data.batch_size must be at least 1, got {batch_size}")
        if self.num_workers < -1:
            raise WsssError(f"data.num_workers must be -1 (choose) or more, got {num_workers}")
        if self.seed < 0:
            raise WsssError(f"seed must be 0 or more, got {seed}")
        if len(sides) != 2 or not 1 <= sides[0] <= sides[1]:
            raise WsssError(f"data.long_side must be [smallest, largest], got {list(sides)}")
        if not self.scales or min(self.scales) <= 0:
            raise WsssError(f"data.scales must be positive numbers, got {list(self.scales)}")
        if self.infer_long_side is not None and self.infer_long_side < 1:
            raise WsssError(
                f"data.infer_long_side must be null or 1 or more, got {infer_long_side}"
            )
        if any(len(values) != 3 for values in colours) or min(colours[1]) <= 0:
            raise WsssError(
                "data.mean and data.std must be three numbers each, std above 0; "
                f"got {list(mean)} and {list(std)}"
            )
        (red, green, blue), (red_std, green_std, blue_std) = colours
        self.crop = TrainingCrop(
            crop_size=self.crop_size,
            long_side=(sides[0], sides[1]),
            mean=(red, green, blue),
            std=(red_std, green_std, blue_std),
        )

    @property
    def num_classes(self) -> int:
        """Number N of foreground classes."""
        return self.image_set.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the foreground classes; entry n is class id n + 1."""
        return self.image_set.classes

    def only(self, names: Iterable[str] | None) -> WSSSDataModule:
        """Restrict prediction to these images of the infer split (a resumed run); None: all."""
        self._only = None if names is None else frozenset(names)
        return self

    def prepare_data(self) -> None:
        """Check the files once per machine, before the other processes look."""
        split = self.train_split if self._is_fitting() else self.infer_split
        self.image_set.check(split)
        self._labels(split, self.image_set.names(split))  # fills the cache, if there is one

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches: image, label, name, size, valid.

        Raises:
            WsssError: If the batch can't be split over the processes or exceeds the data set.
        """
        rank, world = self._rank_and_world()
        if self.batch_size % world:
            raise WsssError(
                f"data.batch_size={self.batch_size} is the global batch and must be divisible by "
                f"the {world} processes"
            )
        names = self.image_set.names(self.train_split)
        if len(names) < self.batch_size:
            raise WsssError(
                f"data.batch_size={self.batch_size} is larger than the {len(names)} images of "
                f"split '{self.train_split}': not one batch can be filled"
            )
        dataset = TrainingSet(
            self.image_set, names, self._labels(self.train_split, names), self.crop, self.seed
        )
        sampler = EpochSampler(
            len(names), self.batch_size, self.seed, self._first_epoch(), rank, world
        )
        workers = self._workers()
        return DataLoader(
            dataset,
            batch_size=self.batch_size // world,
            sampler=sampler,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def predict_dataloader(self) -> DataLoader:
        """Each image of the infer split once over all processes, whole, at every scale.

        A batch is one plain sample: images (list of (3, h_s, w_s)), label (N,), name, size (2,).
        Images of an unlabelled split get a label of zeros.
        """
        names = self.image_set.names(self.infer_split)
        if self._only is not None:
            names = [name for name in names if name in self._only]
        rank, world = self._rank_and_world()
        mine = names[rank::world]  # nothing is repeated to fill up: shares may differ by one
        dataset = PyramidSet(
            self.image_set,
            mine,
            self._labels(self.infer_split, mine),
            self.scales,
            self.crop.mean,
            self.crop.std,
            self.infer_long_side,
        )
        return DataLoader(
            dataset,
            batch_size=1,
            shuffle=False,
            collate_fn=single_sample,
            num_workers=self._workers(),
            pin_memory=torch.cuda.is_available(),
        )

    def _labels(self, split: str, names: Sequence[str]) -> np.ndarray:
        if split in self.image_set.unlabelled_splits:
            return np.zeros((len(names), self.num_classes), dtype=np.uint8)
        return self.image_set.labels(names)

    def _rank_and_world(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _first_epoch(self) -> int:
        """Epoch that training begins with: 0, or the next one of a resumed run.

        Loader processes draw their first batches before Lightning calls `set_epoch`. What it will
        call it with is `processed`; `trainer.current_epoch` is one behind at this moment, as
        checkpoints are written before an epoch counts as completed.
        """
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]

    def _is_fitting(self) -> bool:
        return self.trainer is None or self.trainer.state.fn == "fit"

    def _workers(self) -> int:
        return self.num_workers if self.num_workers >= 0 else loader_workers()


def single_sample(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collate a batch of one: the sample itself."""
    (sample,) = samples
    return sample


def loader_workers() -> int:
    """Loader processes that suit this machine.

    With a GPU four per process, or fewer where there are fewer cores: the cores have nothing else
    to do. Without one the model's threads use every core and images are decoded far quicker than
    they are trained on.
    """
    if torch.cuda.is_available():
        return min(4, max(1, cores() - 1))
    return 0 if cores() < 4 else 2
