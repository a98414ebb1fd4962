"""Fills the support bank after every step and re-clusters it at the start of every epoch."""

from __future__ import annotations

from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from wsss.errors import WsssError
from wsss.methods.cpal.bank import PrototypeBank

RECLUSTER = ("epoch", "once", "never")
REFILL = ("never", "epoch")


class PrototypeBranch(Protocol):
    """What the callback needs of a branch; the Lightning module holds it as `branch`."""

    bank: PrototypeBank

    def take_anchors(self) -> tuple[Tensor, Tensor]:
        """Anchors (P, d) and class indices (P,) of the last training batch."""
        ...


def gather_anchors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Rows of all processes, in rank order; every process must call it, also with no rows.

    Args:
        tensors: tensors whose first dimension may differ between processes.

    Returns:
        Each of them, concatenated over the processes; unchanged in a single process.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return tensors
    return tuple(torch.cat(gather_all_tensors(tensor)) for tensor in tensors)


class PrototypeCallback(pl.Callback):
    """Keeps the bank of `pl_module.branch` (CPAL section 3.2 and its callback).

    It has no state of its own: entries, clusters and the epoch that made them are buffers of the
    bank, so they are in the checkpoint and a resumed run equals an uninterrupted one.
    """

    def __init__(
        self,
        seed: int = 0,
        warmup_epochs: int = 1,
        recluster: str = "epoch",
        refill: str = "never",
    ) -> None:
        """Keep the settings.

        Args:
            seed: epoch e clusters with seed + e.
            warmup_epochs: first epoch (from 0) that clusters; before it the bank only fills.
            recluster: "epoch" at the start of each epoch, "once" at the first one after the
                warm-up, "never".
            refill: "epoch" renews all entries with the current weights before each clustering, by
                `pl_module.refill(datamodule)`; "never" lets old entries leave first in, first out.

        Raises:
            WsssError: a value makes no sense; the message names its key.
        """
        for key, value, choices in [
            ("recluster", recluster, RECLUSTER),
            ("refill", refill, REFILL),
        ]:
            if value not in choices:
                raise WsssError(
                    f"method.{key}={value} is unknown; choose one of {', '.join(choices)}"
                )
        if warmup_epochs < 0:
            raise WsssError(f"method.warmup_epochs={warmup_epochs}: give 0 or more")
        self.seed, self.warmup_epochs = seed, warmup_epochs
        self.recluster, self.refill = recluster, refill

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cluster every class's entries (eq. 5), from the first epoch after the warm-up."""
        bank: PrototypeBank = pl_module.branch.bank  # type: ignore[union-attr, assignment]
        epoch, done = trainer.current_epoch, int(bank.clustered_epoch)
        # A run resumed within an epoch keeps the clusters that this epoch began with.
        if self.recluster == "never" or epoch < self.warmup_epochs or done == epoch:
            return
        if self.recluster == "once" and done >= 0:
            return
        if self.refill == "epoch":
            pl_module.refill(trainer.datamodule)  # type: ignore[operator, attr-defined]
        bank.recluster(self.seed + epoch)
        bank.clustered_epoch.fill_(epoch)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Push the anchors of all processes, in rank order."""
        branch: PrototypeBranch = pl_module.branch  # type: ignore[assignment]
        anchors, classes = gather_anchors(*branch.take_anchors())
        branch.bank.push(anchors, classes)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log how full the bank is and how large this epoch's clusters are."""
        bank: PrototypeBank = pl_module.branch.bank  # type: ignore[union-attr, assignment]
        for name, value in bank.statistics().items():
            pl_module.log(f"bank/{name}", value, on_step=False, on_epoch=True, sync_dist=True)
