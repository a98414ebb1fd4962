"""What a network in training makes of the same few images, epoch after epoch, on dashboards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from wsss.data.datamodule import Sample, WholeSet
from wsss.show.dashboard import show_pictures, shows_pictures
from wsss.show.layout import Cell, Shown
from wsss.show.sheets import spread


@dataclass(frozen=True)
class Album:
    """The pictures that a training can show of itself.

    Attributes:
        images: whole images to choose from, with their `picture`.
        headings: what `draw` draws, in order.
        draw: from the module, without gradients and in evaluation mode, and a sample to the cells
            beside its photograph.
    """

    images: WholeSet
    headings: Sequence[str]
    draw: Callable[[pl.LightningModule, Sample], list[Cell]]


class TrainingPictures(Callback):
    """Shows an album's pictures on W&B and TensorBoard after each epoch, from the first one on.

    The images are the same in every epoch. Without one of those loggers nothing is computed; what
    is trained does not depend on it.

    Args:
        album: what can be shown.
        pictures: how many images.
        every_n_epochs: how often.
    """

    def __init__(self, album: Album, pictures: int = 4, every_n_epochs: int = 1) -> None:
        self.every, self.album = every_n_epochs, album
        self.images = album.images.only(spread(album.images.names, pictures))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw them, on the main process."""
        due = (trainer.current_epoch + 1) % self.every == 0
        if not (due and trainer.is_global_zero and shows_pictures(trainer.loggers)):
            return
        modes = [(module, module.training) for module in pl_module.modules()]
        pl_module.eval()
        rows: list[list[Cell]] = []
        try:
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                for number in range(len(self.images)):
                    sample = self.images[number]
                    photograph = Shown(sample["picture"].numpy(), _present(sample))
                    sample = trainer.strategy.batch_to_device(sample)
                    rows.append([[photograph], *self.album.draw(pl_module, sample)])
        finally:
            for module, mode in modes:
                module.training = mode
        headings = ["photograph", *self.album.headings]
        names, classes = self.images.names, self.images.image_set.classes
        show_pictures(trainer.loggers, rows, headings, names, classes, trainer.global_step)


def _present(sample: Sample) -> tuple[int, ...]:
    """Ids of the classes that an image is labeled with."""
    label = sample.get("label")
    return () if label is None else tuple((np.flatnonzero(label.numpy()) + 1).tolist())
