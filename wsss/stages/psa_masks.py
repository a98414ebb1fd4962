"""Make pseudo masks: class maps carried by a random walk along PSA's affinities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from wsss.build.job import Result
from wsss.build.pseudo_masks import make_pseudo_masks
from wsss.build.settings import Settings
from wsss.data.masks import write_mask
from wsss.data.transforms import Pyramid
from wsss.evaluation.scoring import MASKS
from wsss.maps.files import MapSource
from wsss.maps.fuse import enlarge
from wsss.refine.psa import PSAWalkSettings, psa_mask
from wsss.refine.psa_network import PSANetwork, padded_features
from wsss.stages.psa_train import load_psa


class MaskMaker(pl.LightningModule):
    """Runs the network and the walk over whole images and writes each one's mask."""

    def __init__(
        self, network: PSANetwork, source: MapSource, folder: Path, options: PSAWalkSettings
    ) -> None:
        super().__init__()
        self.network, self.source, self.folder, self.options = network, source, folder, options

    def predict_step(self, sample: Mapping[str, Any], batch_idx: int) -> None:
        """Pseudo mask of one image."""
        name = sample["name"]
        feature = padded_features(self.network, sample["images"][0])
        stored = self.source.read(name)
        maps = torch.from_numpy(enlarge(stored.maps[self.source.kind], stored.size))
        mask = psa_mask(
            maps.to(feature.device),
            torch.from_numpy(stored.classes),
            feature,
            stored.size,
            self.options,
        )
        write_mask(self.folder / MASKS / f"{name}.png", mask.numpy())


def run(s: Settings) -> Result:
    """Make the masks that are not there yet, then score them beside the seeds."""

    def make(weights: Path, source: MapSource, folder: Path) -> tuple[MaskMaker, Pyramid]:
        network = load_psa(s, weights)
        inputs = Pyramid(network.body.mean, network.body.std)
        return MaskMaker(network, source, folder, s.refine.psa_walk), inputs

    return make_pseudo_masks(s, "psa_masks", make)
