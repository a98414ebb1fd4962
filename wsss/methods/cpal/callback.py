"""Fills the support bank after every step and clusters it at the start of every epoch."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor

from wsss.data.datamodule import WholeSet
from wsss.methods.base import Network
from wsss.methods.cpal.bank import PrototypeBank
from wsss.run.callbacks import log_epoch, seed_of
from wsss.run.progress import track
from wsss.run.reduce import gather_rows, world_and_rank


class PrototypeBranch(Protocol):
    """What the callback needs of a branch."""

    bank: PrototypeBank
    name: str

    def take_anchors(self) -> tuple[Tensor, Tensor]:
        """Anchors (P, d) and class indices (P,) of the last training batch of all processes."""
        ...


@torch.no_grad()
def refill(network: Network, branch: Any, images: WholeSet) -> None:
    """Renew the bank with anchors of the training images under the current weights.

    Whole images at scale 1 in the order of their list, shared among the processes; the bank does
    not depend on their number. Class maps of the image alone, without its mirror.

    Args:
        network: host and branch.
        branch: the branch, with `project`, `anchors`, `shift` and `bank`.
        images: samples with `images` (the first is looked at) and `label`.
    """
    world, rank = world_and_rank()
    mine = images.share(rank, world)
    training = network.training
    network.train(False)
    anchors = [branch.shift[:0]]
    classes = [torch.zeros(0, dtype=torch.long, device=network.device)]
    places = [classes[0]]
    for place, sample in enumerate(track(mine.loader(), "refilling the bank", total=len(mine))):
        # Outside of a step nobody else brings them to the network's device and precision.
        image, label = (
            part[None].to(branch.shift) for part in (sample["images"][0], sample["label"])
        )
        given = sample["maps"][None].to(branch.shift) if "maps" in sample else None
        seen = network(image, label, given)
        z, cam = branch.project(seen.features), network.host.general(seen)
        found, index = branch.anchors(z, seen.features[-1], cam, label)
        anchors.append(found)
        classes.append(index)
        places.append(torch.full_like(index, place * world + rank))
    network.train(training)
    branch.bank.clear()
    branch.bank.push(*gather_rows(torch.cat(anchors), torch.cat(classes), torch.cat(places)))


class PrototypeCallback(pl.Callback):
    """Keeps the bank of a branch (CPAL section 3.2 and its callback).

    It has no state of its own: entries, clusters and the epoch that made them are buffers of the
    bank, so they are in the checkpoint and a resumed run equals an uninterrupted one.
    """

    def __init__(
        self,
        branch: PrototypeBranch,
        seed: int = 0,
        warmup_epochs: int = 1,
        recluster: Literal["epoch", "once", "never"] = "epoch",
        refill: Literal["never", "epoch"] = "never",
    ) -> None:
        """Keep branch and settings, see `CPALSettings`; each epoch clusters with its own seed."""
        self.branch = branch
        self.seed, self.warmup_epochs = seed, warmup_epochs
        self.recluster, self.refill = recluster, refill

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cluster every class's entries (eq. 5), from the first epoch after the warm-up."""
        bank = self.branch.bank
        epoch, done = trainer.current_epoch, int(bank.clustered_epoch)
        # A run resumed within an epoch keeps the clusters that this epoch began with.
        if epoch < self.warmup_epochs or done == epoch:
            return
        if self.recluster != "epoch" and done >= 0:
            return
        if self.refill == "epoch":
            refill(pl_module, self.branch, trainer.datamodule.whole)  # type: ignore[arg-type, attr-defined]
        if self.recluster != "never":
            bank.recluster(seed_of(self.seed, epoch))
        bank.clustered_epoch.fill_(epoch)  # the warm-up is over, whatever was clustered

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Push the anchors of all processes."""
        self.branch.bank.push(*self.branch.take_anchors())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log how full the bank is and how large this epoch's clusters are."""
        bank = f"{self.branch.name}/bank".lstrip("/")
        values = self.branch.bank.statistics().items()
        log_epoch(trainer, {f"{bank}/{name}": value for name, value in values})
