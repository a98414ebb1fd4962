"""Make pseudo masks: class maps propagated by a random walk up to IRN's edges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image

from wsss.build.job import Job, Result
from wsss.build.objects import build_image_set
from wsss.build.settings import Settings
from wsss.build.sources import map_source, refine_identity, refine_inputs
from wsss.build.trainer import predict, still_missing
from wsss.data.base import ImageSet
from wsss.data.datamodule import WholeSet
from wsss.data.masks import write_mask
from wsss.data.transforms import Pyramid
from wsss.evaluation.scoring import (
    MASKS,
    MaskScore,
    Score,
    SeedScore,
    label_folder,
    scored_names,
)
from wsss.files import atomic
from wsss.maps.files import MapSource
from wsss.refine.irn import GRID_STRIDE, EdgeDisplacement, edge_map
from wsss.refine.pseudo_mask import WalkSettings, pseudo_mask
from wsss.run.folder import MANIFEST, require
from wsss.show.sheets import Drawing, edge_column, mask_column, truth_column
from wsss.stages.irn_train import WEIGHTS, load_irn

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
    image_set = build_image_set(s)
    source = map_source(s, "irn_masks", image_set.classes)
    trained = s.folder("irn_train")
    names = image_set.names(s.data.infer_split)
    job = Job(
        s,
        "irn_masks",
        refine_identity(s, source, "walk"),
        {
            "irn_train": require(trained, "irn_train", "irn_masks")["hash"],
            **refine_inputs(s, source, image_set),
        },
        needs=lambda path: [path / MASKS / f"{name}.png" for name in names],
    )
    if job.finished:
        return job.result()
    masks = job.path / MASKS
    missing = still_missing(names, (masks, ".png"))
    if missing:
        network = load_irn(s, trained / WEIGHTS)
        inputs_of = Pyramid(network.backbone.mean, network.backbone.std)
        maker = MaskMaker(network, source, job.path, s.refine.walk)
        predict(job, maker, WholeSet(image_set, missing, inputs_of))
    if not job.main:
        return job.result()
    scored = scored_names(image_set, s.data.eval_split, names)
    facts: dict[str, Any] = {"images": len(names), "kind": source.kind}
    columns: dict[str, Drawing] = {
        "edges": edge_column(job.path / EDGES, GRID_STRIDE),
        "pseudo mask": mask_column(masks, image_set.num_classes),
    }
    text = ""
    if scored:
        scores = scores_of(s, image_set, source, masks, "irn_masks")
        workers = s.refine.workers
        about = {"split": s.data.eval_split, "image_labels_known": True}
        rows = job.scores(scores, scored, "irn_masks", workers, **about)
        facts["miou"] = rows["irn_masks"]["miou"]
        shown = ", ".join(f"{row} {one['miou']:.2f}" for row, one in rows.items())
        text = f"mIoU {shown} on {len(scored)} images of {s.data.eval_split}; "
        columns["truth"] = truth_column(image_set)
    job.sheet(image_set, scored or names, s.refine.pictures, columns)
    facts["class_names"] = list(image_set.classes)
    return job.close(f"{text}{len(names)} images in {{time}}", masks, **facts)


def scores_of(
    s: Settings, image_set: ImageSet, source: MapSource, masks: Path, stage: str
) -> dict[str, Score]:
    """Of seeds, of CRF-refined seeds where stage=crf was run, and of a stage's pseudo masks."""
    found: dict[str, Score] = {"seed": SeedScore(image_set, source, s.eval_cam.background)}
    crf = s.folder("crf")
    if (crf / MANIFEST).is_file():
        found["crf"] = MaskScore(image_set, label_folder(crf))
    return {**found, stage: MaskScore(image_set, masks)}
