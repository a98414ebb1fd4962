"""The Lightning shell around a segmentation network that learns from pseudo masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from wsss.errors import WsssError
from wsss.segmentation.base import SegmentationNetwork
from wsss.segmentation.losses import LOSSES, losses_of
from wsss.segmentation.multi_scale import SCALES, check_scales, maximum, multi_scale_logits

OPTIMIZER_KEYS = ("lr", "momentum", "weight_decay", "poly_power", "poly_every", "nesterov")


def poly_factor(step: int, total: int, power: float, every: int) -> float:
    """Factor of the learning rate after `step` optimizer steps: (1 - step / total) ^ power.

    Args:
        step: Steps already made.
        total: Steps of the whole training.
        power: 0.9 as published.
        every: The factor is brought up to date only after each so many steps: deeplab-pytorch has
            10, so that its first ten steps have the full rate.
    """
    step = min(step // every * every, total)
    return (1 - step / total) ** power


class Segmenter(pl.LightningModule):
    """Trains a segmentation network on crops with pseudo masks.

    Args:
        network: The network.
        optimizer: SGD's `lr`, `momentum`, `weight_decay`, `nesterov`, and `poly_power` and
            `poly_every` of the schedule (see `poly_factor`).
        loss: `ce` (mean cross-entropy), `balanced` (background and foreground weigh the same) or
            `balanced_dsrg` (the same in DSRG's form, per image).
        train_scales: Scales of the multi-scale inputs, 1 among them.
        msc: Whether the network looks at several scales. In training the losses of each scale and
            of their maximum are summed; in use the maximum is the answer.
        class_names: Foreground classes, kept in the checkpoint.

    Raises:
        WsssError: An unknown loss or key of the optimizer, unusable scales, or other classes than
            the network has.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        *,
        optimizer: Mapping[str, Any],
        loss: str = "ce",
        train_scales: Sequence[float] = SCALES,
        msc: bool = True,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise WsssError(f"segmentation.loss={loss}: choose {', '.join(LOSSES)}")
        unknown = sorted(set(optimizer) - set(OPTIMIZER_KEYS))
        if unknown:
            raise WsssError(
                f"segmentation.optimizer.{unknown[0]}: unknown key; there are "
                f"{', '.join(OPTIMIZER_KEYS)}"
            )
        if "lr" not in optimizer:
            raise WsssError("segmentation.optimizer.lr: give the learning rate of the body")
        if int(optimizer.get("poly_every", 1)) < 1:
            raise WsssError(
                f"segmentation.optimizer.poly_every={optimizer['poly_every']} must be at least 1"
            )
        if class_names and len(class_names) != network.num_classes - 1:
            raise WsssError(
                f"segmentation: {len(class_names)} class names for a network of "
                f"{network.num_classes - 1} classes and background"
            )
        self.network = network
        self.optimizer_settings = dict(optimizer)
        self.loss_name = loss
        self.scales = check_scales(train_scales) if msc else (1.0,)
        self.class_names = tuple(class_names)

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """All logits that are trained, float32, by name: of each scale, and of several the maximum.

        Args:
            images: Normalized (B, 3, H, W).
        """
        logits = multi_scale_logits(self.network, images, self.scales)
        named = {f"x{scale:g}": each for scale, each in zip(self.scales, logits, strict=True)}
        return named if len(logits) == 1 else {**named, "max": maximum(logits)}

    def logits(self, images: Tensor) -> Tensor:
        """The network's answer, float32 (B, C, h, w): the maximum over its scales.

        Args:
            images: Normalized (B, 3, H, W).
        """
        return maximum(multi_scale_logits(self.network, images, self.scales))

    def forward(self, images: Tensor) -> Tensor:
        """The same as `logits`."""
        return self.logits(images)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """The sum of the losses of all outputs.

        The batch has `image` (B, 3, H, W), normalized, and `target` (B, H, W) int64, 255 ignored.
        """
        outputs = self.outputs(batch["image"])
        losses = losses_of(list(outputs.values()), batch["target"], LOSSES[self.loss_name])
        total = torch.stack(losses).sum()
        size = len(batch["image"])
        if len(losses) > 1:
            for name, loss in zip(outputs, losses, strict=True):
                self.log(f"train/loss_{name}", loss.detach(), batch_size=size, sync_dist=True)
        self.log("train/loss", total.detach(), batch_size=size, prog_bar=True, sync_dist=True)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("train/lr", rate, batch_size=size)
        return total

    def configure_optimizers(self) -> Any:
        """SGD over the network's groups, and the poly schedule per optimizer step.

        Raises:
            WsssError: Nothing is left to learn.
        """
        s = self.optimizer_settings
        groups = self.network.parameter_groups(float(s["lr"]), float(s.get("weight_decay", 0.0)))
        if not groups:
            raise WsssError("segmentation: no parameter learns")
        optimizer = torch.optim.SGD(
            groups, momentum=s.get("momentum", 0.0), nesterov=s.get("nesterov", False)
        )
        total = max(int(self.trainer.estimated_stepping_batches), 1)
        power, every = float(s.get("poly_power", 0.9)), int(s.get("poly_every", 1))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: poly_factor(step, total, power, every)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a reader of the file alone should know: classes and initial weights."""
        checkpoint["segmentation"] = {
            "class_names": list(self.class_names),
            "initial_weights": self.network.initial_weights,
        }
