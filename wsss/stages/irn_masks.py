"""Make pseudo masks: class maps propagated by a random walk up to IRN's edges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image

from wsss.build.job import Result
from wsss.build.pseudo_masks import make_pseudo_masks
from wsss.build.settings import Settings
from wsss.data.masks import write_mask
from wsss.data.transforms import Pyramid
from wsss.evaluation.scoring import MASKS
from wsss.files import atomic
from wsss.maps.files import MapSource
from wsss.refine.irn import GRID_STRIDE, EdgeDisplacement, edge_map
from wsss.refine.pseudo_mask import WalkSettings, pseudo_mask
from wsss.show.sheets import edge_column
from wsss.stages.irn_train import load_irn

EDGES = "edges"


class MaskMaker(pl.LightningModule):
    """Runs the network and the walk over whole images and writes each one's edges and mask."""

    def __init__(
        self, network: EdgeDisplacement, source: MapSource, folder: Path, options: WalkSettings
    ) -> None:
        super().__init__()
        self.network, self.source, self.folder, self.options = network, source, folder, options

    def predict_step(self, sample: Mapping[str, Any], batch_idx: int) -> None:
        """Edge map and pseudo mask of one image; the mask is written last."""
        name = sample["name"]
        edge = edge_map(self.network, sample["images"][0])
        stored = self.source.read(name)
        mask = pseudo_mask(
            torch.from_numpy(stored.maps[self.source.kind]).to(edge.device),
            torch.from_numpy(stored.classes),
            edge,
            stored.size,
            self.options,
        )
        gray = Image.fromarray((edge.cpu().numpy() * 255).round().astype(np.uint8))
        with atomic(self.folder / EDGES / f"{name}.png") as temporary:
            gray.save(temporary, format="PNG")
        write_mask(self.folder / MASKS / f"{name}.png", mask.numpy())


def run(s: Settings) -> Result:
    """Make the masks that are not there yet, then score them beside the seeds."""

    def make(weights: Path, source: MapSource, folder: Path) -> tuple[MaskMaker, Pyramid]:
        network = load_irn(s, weights)
        inputs = Pyramid(network.backbone.mean, network.backbone.std)
        return MaskMaker(network, source, folder, s.refine.walk), inputs

    return make_pseudo_masks(
        s,
        "irn_masks",
        make,
        lambda folder: {"edges": edge_column(folder / EDGES, GRID_STRIDE)},
    )
