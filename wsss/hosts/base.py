"""The Lightning shell that all methods share: a classifier trained from image labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from wsss.backbones.base import Backbone
from wsss.hosts.optimizer import build_optimizer
from wsss.maps.functional import classification_loss


class SeedMethod(pl.LightningModule):
    """A network that learns from image labels and answers with class maps.

    A method of its own is a subclass with `kinds`, `maps_at_scale` and, where it supervises
    itself, `self_supervision`. Nothing else of the project has to know it.

    Args:
        backbone: features of four stages.
        num_classes: foreground classes N.
        optimizer: settings for `wsss.hosts.optimizer.build_optimizer`.
        test: options that act at test time only (a training does not depend on them).
        memory_format: `channels_last` or `contiguous`; the layout of images and weights.

    Attributes:
        kinds: the kinds of map that `maps_at_scale` gives, in order, the method's own last; the
            value says whether the kind has a background channel of its own.
    """

    kinds: ClassVar[dict[str, bool]]

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        optimizer: Mapping[str, Any],
        test: Mapping[str, Any] | None = None,
        memory_format: str = "contiguous",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.classifier = nn.Conv2d(backbone.channels[-1], num_classes, 1, bias=False)
        self.optimizer_settings = dict(optimizer)
        self.test_options = dict(test or {})
        self.layout = (
            torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
        )
        self.to(memory_format=self.layout)

    def self_supervision(
        self, features: list[Tensor], activation: Tensor, batch: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Further loss terms by name, already weighted; none for a plain classifier.

        Args:
            features: the four stage features (B, C, h, w).
            activation: raw class maps (B, N, h, w).
            batch: the training batch (`image`, `label`, `valid`, ...).
        """
        return {}

    def maps_at_scale(self, images: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Class maps of one image at one scale, before fusion over scales.

        Args:
            images: the normalized image and its mirror image (2, 3, H, W).
            label: image label (N,), 1 for present classes.

        Returns:
            For each of `kinds`: un-normalized maps (K, h, w) of the K present classes in ascending
            order, or (K+1, h, w) with the background first where the kind has one.
        """
        raise RuntimeError(f"{type(self).__name__} must implement maps_at_scale")

    def before_maps(self, datamodule: pl.LightningDataModule) -> None:
        """Called once on every process before map making; a method may refresh its state here."""

    def map_notes(self) -> dict[str, Any]:
        """What the manifest of the maps should say about how they were made."""
        return {}

    def training_figures(self, metrics: Path, folder: Path) -> list[Path]:
        """Draw what the log of a training shows into `folder`; returns the files.

        Args:
            metrics: `metrics.csv` of the training.
            folder: an existing folder.
        """
        return []

    def figures(
        self, samples: Sequence[Mapping[str, Any]], folder: Path, class_names: Sequence[str]
    ) -> list[Path]:
        """Draw the method's own figures into `folder`; returns the files.

        Args:
            samples: samples of the predict loader, with the photograph as `picture`
                (uint8, (H, W, 3)).
            folder: an existing folder.
            class_names: foreground class names.
        """
        return []

    def to_layout(self, images: Tensor) -> Tensor:
        """Images in the memory layout of the weights."""
        return images.contiguous(memory_format=self.layout)

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Stage features and raw class maps (B, N, h, w) of normalized images (B, 3, H, W)."""
        features = self.backbone(self.to_layout(image))
        return features, self.classifier(features[-1])

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Classification loss plus the method's own terms, summed."""
        features, activation = self(batch["image"])
        losses = {"cls": classification_loss(activation, batch["label"])}
        losses.update(self.self_supervision(features, activation, batch))
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        size = batch["image"].shape[0]
        for name, loss in losses.items():
            self.log(f"train/loss_{name}", loss.detach(), batch_size=size, sync_dist=True)
        self.log("train/loss", total.detach(), batch_size=size, prog_bar=True, sync_dist=True)
        return total

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of newly added layers: everything outside the backbone."""
        return (p for name, p in self.named_parameters() if not name.startswith("backbone."))

    def configure_optimizers(self) -> Any:
        """SGD with the poly schedule over all steps of this training."""
        return build_optimizer(
            self.backbone.parameters(),
            self.head_parameters(),
            self.optimizer_settings,
            int(self.trainer.estimated_stepping_batches),
        )
