"""The loaders of every training and of every prediction; none of them ever reads a truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from wsss.data.base import ImageSet
from wsss.data.masks import read_mask
from wsss.data.photographs import load_image
from wsss.data.transforms import TakeCrop
from wsss.errors import WsssError
from wsss.run.pool import cores
from wsss.run.signals import outlive

Sample = dict[str, Any]
ReadMaps = Callable[[str], np.ndarray]  # (N, h, w) float32 class maps of an image


def labels_of(image_set: ImageSet, split: str, names: Sequence[str]) -> np.ndarray:
    """Image labels, (len(names), N) uint8; zeros for a split without labels."""
    if split in image_set.unlabeled_splits:
        return np.zeros((len(names), image_set.num_classes), dtype=np.uint8)
    return image_set.labels(names)


class EpochSet(Dataset):
    """Training samples, addressed by (epoch, index).

    A sample's randomness comes from (seed, epoch, index) alone: it is the same in any worker, in
    any process and after a resume. A sample has `image` (3, S, S), `valid` (S, S), `name` and
    `size` (2,), with image labels `label` (N,), with label maps `target` (S, S), with class maps
    `maps` (N, S / 16, S / 16).
    """

    def __init__(
        self,
        image_set: ImageSet,
        names: Sequence[str],
        crop: TakeCrop,
        seed: int,
        labels: np.ndarray | None = None,
        targets: Path | None = None,
        maps: ReadMaps | None = None,
    ) -> None:
        """Keep what a sample is made of.

        Args:
            image_set: gives the image files; its masks are never read.
            names: the images.
            crop: the training crop.
            seed: seed of the crops.
            labels: image labels (len(names), N).
            targets: folder of label maps NAME.png, made by an earlier stage.
            maps: class maps of an earlier run.
        """
        self.image_set, self.names, self.crop, self.seed = image_set, list(names), crop, seed
        self.labels = None if labels is None else torch.from_numpy(labels).float()
        self.targets, self.maps = targets, maps

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Sample `index` as `epoch` sees it, for key = (epoch, index)."""
        epoch, index = key
        name = self.names[index]
        image = load_image(self.image_set.image_path(name))
        ids = None if self.targets is None else read_target(self.image_set, self.targets, name)
        if ids is not None and ids.shape != image.shape[:2]:
            raise WsssError(
                f"label map {self.targets}/{name}.png is {ids.shape[0]} x {ids.shape[1]}, its "
                f"image {image.shape[0]} x {image.shape[1]}; run the stage that makes it again"
            )
        maps = None if self.maps is None else self.maps(name)
        cropped = self.crop(image, np.random.default_rng([self.seed, epoch, index]), ids, maps)
        sample: Sample = {
            "image": cropped.image,
            "valid": cropped.valid,
            "name": name,
            "size": torch.tensor(image.shape[:2]),
        }
        if self.labels is not None:
            sample["label"] = self.labels[index]
        if cropped.target is not None:
            sample["target"] = cropped.target
        if cropped.maps is not None:
            sample["maps"] = cropped.maps
        return sample


def read_target(image_set: ImageSet, folder: Path, name: str) -> np.ndarray:
    """A label map of an earlier stage, (H, W) uint8, 255 unsure."""
    return read_mask(folder / f"{name}.png", image_set.num_classes)


class WholeSet(Dataset):
    """Whole pictures for prediction.

    A sample has `images` (list of (3, h_s, w_s)), `name` and `size` (2,), with image labels
    `label` (N,), with label maps `target` (H, W), with class maps `maps` (N, h, w), if wanted the
    `picture` (H, W, 3) uint8. One that can't be read has `images` None if `lenient`, else it is an
    error.
    """

    def __init__(
        self,
        image_set: ImageSet,
        names: Sequence[str],
        inputs: Callable[[np.ndarray], list[Tensor]],
        labels: np.ndarray | None = None,
        targets: Path | None = None,
        picture: bool = False,
        lenient: bool = False,
        maps: ReadMaps | None = None,
    ) -> None:
        """Keep what a sample is made of.

        Args:
            image_set: gives the image files.
            names: the images.
            inputs: network inputs of a picture (H, W, 3) uint8, see `wsss.data.transforms.Pyramid`.
            labels: image labels (len(names), N).
            targets: folder of label maps NAME.png.
            picture: whether samples hold the picture itself.
            lenient: pass over what can't be read.
            maps: class maps of an earlier run.
        """
        self.image_set, self.names, self.inputs = image_set, list(names), inputs
        self.labels, self.targets, self.picture, self.lenient = labels, targets, picture, lenient
        self.maps = maps

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`."""
        name = self.names[index]
        try:
            picture = load_image(self.image_set.image_path(name))
        except WsssError:
            if not self.lenient:
                raise
            return {"name": name, "images": None}
        sample: Sample = {
            "images": self.inputs(picture),
            "name": name,
            "size": torch.tensor(picture.shape[:2]),
        }
        if self.labels is not None:
            sample["label"] = torch.from_numpy(self.labels[index]).float()
        if self.targets is not None:
            ids = read_target(self.image_set, self.targets, name)
            sample["target"] = torch.from_numpy(ids)
        if self.maps is not None:
            sample["maps"] = torch.from_numpy(self.maps(name))
        if self.picture:
            sample["picture"] = torch.from_numpy(picture)
        return sample

    def select(self, rows: Sequence[int]) -> WholeSet:
        """Some of the samples, in the order of `rows`."""
        return WholeSet(
            self.image_set,
            [self.names[row] for row in rows],
            self.inputs,
            None if self.labels is None else self.labels[list(rows)],
            self.targets,
            self.picture,
            self.lenient,
            self.maps,
        )

    def only(self, names: Sequence[str]) -> WholeSet:
        """The samples of these images, in their own order."""
        wanted = set(names)
        return self.select([row for row, name in enumerate(self.names) if name in wanted])

    def share(self, rank: int, world: int) -> WholeSet:
        """Each `world`-th sample from `rank` on: disjoint shares that miss and repeat none."""
        return self.select(range(rank, len(self), world))

    def loader(self, num_workers: int = 0) -> DataLoader:
        """The samples one by one, as they are."""
        return DataLoader(
            self,
            batch_size=1,
            collate_fn=single_sample,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
        )


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
        done: int = 0,
    ) -> None:
        """See the class.

        `length` is the number of images, `epoch` the one to begin with, and `done` how many images
        of it have been trained on before, over all processes.
        """
        self.length, self.global_batch, self.seed = length, global_batch, seed
        self.epoch, self.rank, self.world = epoch, rank, world
        self.begun, self.done = epoch, done

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch; it holds for iterators begun afterwards."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.global_batch * self.global_batch // self.world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
        used = order[self.done * (epoch == self.begun) : len(self) * self.world]
        return ((epoch, int(index)) for index in used[self.rank :: self.world])


def check_batch(key: str, batch_size: int, accumulate: int, images: int, world: int = 1) -> None:
    """Check that batches can be filled, and split over the processes.

    Args:
        key: the setting that holds the batch size.
        batch_size: images of one forward pass over all processes together.
        accumulate: forward passes of one optimizer step.
        images: to train on.
        world: number of processes.

    Raises:
        WsssError: they can't.
    """
    if images < batch_size * accumulate:
        times = f" x {accumulate} accumulated" if accumulate > 1 else ""
        raise WsssError(
            f"{key}={batch_size}{times} is more than the {images} images to train on: not one step "
            "can be filled"
        )
    if batch_size % world:
        below, above = batch_size // world * world, -(-batch_size // world) * world
        raise WsssError(
            f"{key}={batch_size} is the global batch and must be divisible by the {world} "
            f"processes: take {f'{below} or ' if below else ''}{above}, or another number of "
            "processes"
        )


class EpochData(pl.LightningDataModule):
    """Loaders for training (`fit`) and prediction (`predict`), the same for all stages."""

    def __init__(
        self,
        train: EpochSet | None = None,
        whole: WholeSet | None = None,
        batch_size: int = 1,
        accumulate: int = 1,
        num_workers: int = -1,
        key: str = "data.batch_size",
    ) -> None:
        """Keep the samples.

        Args:
            train: samples of a training; None if only predictions are wanted.
            whole: samples of a prediction; in a training those that a method may look through
                between epochs, in the order of its list.
            batch_size: images of one forward pass over all processes together.
            accumulate: forward passes of one optimizer step.
            num_workers: loader processes per training process; -1 chooses (`loader_workers`).
            key: the setting that `batch_size` comes from, for messages.

        Raises:
            WsssError: not one step can be filled.
        """
        super().__init__()
        self.train_set, self.whole = train, whole
        self.batch_size, self.accumulate, self.key = batch_size, accumulate, key
        self.num_workers = loader_workers() if num_workers < 0 else num_workers
        self.resumed_epoch = self.resumed_batch = 0
        if train is not None:
            check_batch(key, batch_size, accumulate, len(train))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch; images that fill no step are left to other epochs."""
        assert self.train_set is not None
        return len(self.train_set) // (self.batch_size * self.accumulate)

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches; an epoch ends with a whole optimizer step.

        Raises:
            WsssError: the batch can't be split over the processes.
        """
        assert self.train_set is not None
        rank, world = self._rank_and_world()
        check_batch(self.key, self.batch_size, self.accumulate, len(self.train_set), world)
        sampler = EpochSampler(
            len(self.train_set),
            self.batch_size * self.accumulate,
            self.train_set.seed,
            self._first_epoch(),
            rank,
            world,
            self.resumed_batch * self.batch_size,
        )
        return DataLoader(
            self.train_set,
            batch_size=self.batch_size // world,
            sampler=sampler,
            drop_last=True,
            # Its own: an iterator draws a number, which would shift the model's dropout where
            # training begins (before epochs are seeded) but not in later epochs.
            generator=torch.Generator(),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=outlive,
        )

    def predict_dataloader(self) -> DataLoader:
        """Each picture once over all processes; a batch is one plain sample."""
        assert self.whole is not None
        return self.whole.share(*self._rank_and_world()).loader(self.num_workers)

    def _rank_and_world(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _first_epoch(self) -> int:
        """Epoch that training begins with: 0, or the next one of a resumed run.

        Loader processes draw their first batches before Lightning calls `set_epoch`, and where the
        schedule asks for the number of steps even before it has restored its own progress.
        """
        return max(self.resumed_epoch, self._epochs_done())

    def _epochs_done(self) -> int:
        # `trainer.current_epoch` is one behind while an epoch's checkpoint is written.
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]

    def _batches_done(self) -> int:
        """Batches of the present epoch that have been trained on; 0 between two epochs."""
        if self.trainer is None:
            return 0
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        if epochs.processed == epochs.started:
            return 0
        return loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps of it: the epoch and the batch that a training goes on with."""
        return {"epoch": self._epochs_done(), "batch": self._batches_done()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take in what a checkpoint kept."""
        self.resumed_epoch, self.resumed_batch = state["epoch"], state.get("batch", 0)


def single_sample(samples: list[Sample]) -> Sample:
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
