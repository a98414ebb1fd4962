"""The Lightning shell around a segmentation network that learns from pseudo masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from wsss.errors import WsssError
from wsss.run.callbacks import BLUEPRINT, log_losses
from wsss.segmentation.base import SegmentationNetwork
from wsss.segmentation.losses import LOSSES, losses_of
from wsss.segmentation.multi_scale import SCALES, check_scales, maximum, multi_scale_logits
from wsss.segmentation.settings import OptimizerSettings


def poly_factor(step: int, total: int, power: float, every: int) -> float:
    """Factor of the learning rate after `step` optimizer steps: (1 - step / total) ^ power.

    Args:
        step: steps already made.
        total: steps of the whole training.
        power: 0.9 as published.
        every: the factor is brought up to date only after each so many steps: deeplab-pytorch has
            10, so that its first ten steps have the full rate.
    """
    step = min(step // every * every, total)
    return (1 - step / total) ** power


class Segmenter(pl.LightningModule):
    """Trains a segmentation network on crops with pseudo masks.

    Args:
        network: the network.
        optimizer: SGD and its schedule (see `poly_factor`).
        loss: `ce` (mean cross-entropy), `balanced` (background and foreground weigh the same) or
            `balanced_dsrg` (the same in DSRG's form, per image).
        train_scales: scales of the multi-scale inputs, 1 among them.
        msc: whether the network looks at several scales. In training the losses of each scale and
            of their maximum are summed; in use the maximum is the answer.
        enlarge_logits: whether the loss is taken at the size of the labels.
        class_names: foreground classes, kept in the checkpoint.

    Raises:
        WsssError: unusable scales, or other classes than the network has.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        *,
        optimizer: OptimizerSettings,
        loss: str = "ce",
        train_scales: Sequence[float] = SCALES,
        msc: bool = True,
        enlarge_logits: bool = False,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if class_names and len(class_names) != network.num_classes - 1:
            raise WsssError(
                f"segmentation: {len(class_names)} class names for a network of "
                f"{network.num_classes - 1} classes and background"
            )
        self.network = network
        self.optimizer_options = optimizer
        self.loss_name, self.enlarge_logits = loss, enlarge_logits
        self.scales = check_scales(train_scales) if msc else (1.0,)
        self.class_names = tuple(class_names)
        self.blueprint: dict[str, Any] | None = None  # what it was built from
        self.for_export = False  # set where it is traced for any size of image

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """All logits that are trained, by name: of each scale, and of several the maximum.

        Args:
            images: normalized (B, 3, H, W).
        """
        logits = multi_scale_logits(self.network, images, self.scales)
        named = {f"x{scale:g}": each for scale, each in zip(self.scales, logits, strict=True)}
        return named if len(logits) == 1 else {**named, "max": maximum(logits)}

    def logits(self, images: Tensor) -> Tensor:
        """The network's answer (B, C, h, w): the maximum over its scales.

        Args:
            images: normalized (B, 3, H, W).
        """
        return maximum(multi_scale_logits(self.network, images, self.scales, self.for_export))

    def forward(self, images: Tensor) -> Tensor:
        """The same as `logits`."""
        return self.logits(images)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """The sum of the losses of all outputs.

        The batch has `image` (B, 3, H, W), normalized, and `target` (B, H, W) int64, 255 ignored.
        """
        outputs = self.outputs(batch["image"])
        losses = losses_of(
            list(outputs.values()), batch["target"], LOSSES[self.loss_name], self.enlarge_logits
        )
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("train/lr", rate, batch_size=len(batch["image"]))
        named = dict(zip(outputs, losses, strict=True))
        return log_losses(self, named, len(batch["image"]))

    def configure_optimizers(self) -> Any:
        """SGD over the network's groups, and the poly schedule per optimizer step.

        Raises:
            WsssError: nothing is left to learn.
        """
        o = self.optimizer_options
        groups = self.network.parameter_groups(o.lr, o.weight_decay)
        if not groups:
            raise WsssError("segmentation: no parameter learns")
        optimizer = torch.optim.SGD(groups, momentum=o.momentum, nesterov=o.nesterov)
        total = max(int(self.trainer.estimated_stepping_batches), 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: poly_factor(step, total, o.poly_power, o.poly_every)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a reader of the file alone should know: what it is, classes, weights."""
        checkpoint[BLUEPRINT] = self.blueprint
        checkpoint["segmentation"] = {
            "class_names": list(self.class_names),
            "initial_weights": self.network.initial_weights,
        }
