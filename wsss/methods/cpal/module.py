"""CPAL on the plain CAM network: the branch as a seed method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from wsss.backbones.base import Backbone
from wsss.data.datamodule import PyramidSet, WSSSDataModule, single_sample
from wsss.errors import WsssError
from wsss.hosts.base import SeedMethod
from wsss.maps.functional import classification_loss, normalize_cam
from wsss.methods.cpal.branch import TEST_DEFAULTS, CPALBranch
from wsss.methods.cpal.callback import PrototypeCallback, gather_anchors
from wsss.methods.cpal.figures import draw, draw_bank_history
from wsss.run.progress import track

MODULE_TEST_DEFAULTS: dict[str, Any] = {"refresh_bank": False}


class Observation(NamedTuple):
    """One image at one scale, image and mirror image combined: what the branch is asked with."""

    activation: Tensor
    """Raw class maps of the image and of its mirror image, un-mirrored, (2, N, h, w)."""
    cam: Tensor
    """Normalized CAM of their sum (1, N, h, w)."""
    z: Tensor
    """Projected features, averaged (1, d, h, w)."""
    structure: Tensor
    """Last backbone feature, averaged (1, C, h, w)."""


class CPAL(SeedMethod):
    """Context prototype-aware learning (CPAL, CVPR 2024) on the plain CAM network.

    L = λ1 L_cls + λ2 L_self (eq. 1). The branch holds all of the method; this class connects it to
    a backbone, a classifier and the stages.
    """

    kinds = {"cam": False, "pacam": True}

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        optimizer: Mapping[str, Any],
        test: Mapping[str, Any] | None = None,
        memory_format: str = "contiguous",
        seed: int = 0,
        lambda_cls: float = 1.0,
        lambda_self: float = 1.0,
        warmup_epochs: int = 1,
        recluster: str = "epoch",
        refill: str = "never",
        **branch: Any,
    ) -> None:
        """Build classifier and branch.

        Args:
            backbone: Network with four stage features.
            num_classes: Number N of foreground classes.
            optimizer: Settings of the optimizer, see `SeedMethod`.
            test: What holds at test time only: the branch's, and `refresh_bank`, whether the bank
                is refilled with the final weights before maps are made.
            memory_format: See `SeedMethod`.
            seed: Seed of the clustering; epoch e takes seed + e.
            lambda_cls: λ1.
            lambda_self: λ2; 0 trains the classifier alone while the bank fills (Table 1, II to IV).
            warmup_epochs: See `PrototypeCallback`, as `recluster` and `refill`.
            recluster: See `warmup_epochs`.
            refill: See `warmup_epochs`.
            **branch: Options of `CPALBranch`.

        Raises:
            WsssError: If a value makes no sense; the message names its key.
        """
        super().__init__(backbone, num_classes, optimizer, test, memory_format)
        known = {**TEST_DEFAULTS, **MODULE_TEST_DEFAULTS}
        unknown = sorted(set(self.test_options) - set(known))
        if unknown:
            raise WsssError(f"method.test.{unknown[0]} is unknown; known: {', '.join(known)}")
        if lambda_cls < 0 or lambda_self < 0:
            raise WsssError(
                f"method.lambda_cls={lambda_cls}, method.lambda_self={lambda_self}: give 0 or more"
            )
        self.test_options = {**known, **self.test_options}
        self.lambda_cls, self.lambda_self = float(lambda_cls), float(lambda_self)
        self.seed = int(seed)
        self.prototype_callback = PrototypeCallback(self.seed, warmup_epochs, recluster, refill)
        self.branch = CPALBranch(
            backbone.channels,
            num_classes,
            test={key: self.test_options[key] for key in TEST_DEFAULTS},
            **branch,
        )
        self.branch.to(memory_format=self.layout)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The callback that fills the bank comes with the method."""
        return [self.prototype_callback]

    def self_supervision(
        self, features: list[Tensor], activation: Tensor, batch: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """λ2 L_self of a training batch (eq. 14), and λ1 L_cls where λ1 is not 1."""
        # Float32 before the division by the maximum: bfloat16 maps would tie at the threshold.
        cam = normalize_cam(activation.float())
        label, valid = batch["label"], batch["valid"]
        losses = {}
        if self.lambda_cls != 1:
            losses["cls"] = self.lambda_cls * classification_loss(activation, label)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.lambda_self > 0):
            answer = self.branch(features, cam, label, valid)
        if self.lambda_self > 0:
            losses["self"] = self.lambda_self * answer.loss
        return losses

    @torch.no_grad()
    def observe(self, images: Tensor) -> Observation:
        """Class maps and features of an image and its mirror image (2, 3, H, W), combined.

        Raw class maps are added before the ReLU, features are averaged: averaging keeps the length
        of z what it was in training, which the dot product of eq. 7 depends on.
        """
        features, activation = self(images)
        activation = activation.float()
        activation = torch.stack([activation[0], activation[1].flip(-1)])
        z = self.branch.project(features)
        structure = features[-1].float()
        return Observation(
            activation,
            normalize_cam(activation.sum(0, keepdim=True)),
            (z[:1] + z[1:].flip(-1)) / 2,
            (structure[:1] + structure[1:].flip(-1)) / 2,
        )

    @torch.no_grad()
    def maps_at_scale(self, images: Tensor, label: Tensor) -> dict[str, Tensor]:
        """CAM and PACAM of an image's present classes at one scale.

        Args:
            images: (2, 3, H, W), the image and its mirror image.
            label: (N,).

        Returns:
            "cam" (K, h, w): ReLU first, then image + mirror; "pacam" (K+1, h, w), normalized per
            class, background first.
        """
        seen = self.observe(images)
        present = label > 0
        answer = self.branch.predict(seen.z, seen.cam, label[None], seen.structure)
        kept = torch.cat([torch.ones_like(present[:1]), present])
        return {
            "cam": seen.activation.relu().sum(0)[present],
            "pacam": answer.pacam[0, kept],
        }

    @torch.no_grad()
    def refill(self, datamodule: WSSSDataModule) -> None:
        """Renew the bank with anchors of the training images under the current weights.

        Whole images at scale 1 in the order of the training list, shared among the processes; the
        bank does not depend on their number. Class maps of the image alone, without its mirror.
        """
        names = datamodule.image_set.names(datamodule.train_split)
        world, rank = 1, 0
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        mine = list(names)[rank::world]
        images = PyramidSet(
            datamodule.image_set,
            mine,
            datamodule.image_set.labels(mine),
            (1.0,),
            datamodule.crop.mean,
            datamodule.crop.std,
            datamodule.infer_long_side,
        )
        loader = DataLoader(images, batch_size=1, collate_fn=single_sample)
        training = self.training
        self.eval()
        dim = self.branch.shift.shape[1]
        anchors = [torch.zeros(0, dim, device=self.device)]
        classes = [torch.zeros(0, dtype=torch.long, device=self.device)]
        places = [classes[0]]
        for place, sample in enumerate(track(loader, "refilling the bank", total=len(mine))):
            features, activation = self(sample["images"][0][None].to(self.device))
            found, index = self.branch.anchors(
                self.branch.project(features),
                normalize_cam(activation.float()),
                sample["label"][None].to(self.device),
                features[-1],
            )
            anchors.append(found)
            classes.append(index)
            places.append(torch.full_like(index, place * world + rank))
        self.train(training)
        found, index, place_of = gather_anchors(
            torch.cat(anchors), torch.cat(classes), torch.cat(places)
        )
        order = place_of.argsort(stable=True)
        self.branch.bank.clear()
        self.branch.bank.push(found[order], index[order])

    def before_maps(self, datamodule: pl.LightningDataModule) -> None:
        """Refill and re-cluster the bank with the final weights, where `test.refresh_bank` asks."""
        if self.test_options["refresh_bank"]:
            self.refill(datamodule)  # type: ignore[arg-type]
            self.branch.bank.recluster(self.seed)

    def map_notes(self) -> dict[str, Any]:
        """How the maps were made: the test options and how full the bank is."""
        bank = self.branch.bank
        return {
            **self.test_options,
            "bank": bank.statistics(),
            "classes_without_prototypes": int((bank.cluster_count == 0).sum()),
        }

    def training_figures(self, metrics: Path, folder: Path) -> list[Path]:
        """Draw bank fill and cluster sizes over the epochs."""
        return [draw_bank_history(metrics, folder / "bank_history.png")]

    def figures(
        self, samples: Sequence[Mapping[str, Any]], folder: Path, class_names: Sequence[str]
    ) -> list[Path]:
        """Draw the figures of the paper for these samples, see `figures.draw`."""
        return draw(self, samples, folder, class_names)
