"""Make pseudo masks: class maps carried by a random walk along PSA's affinities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from wsss.build.job import Job, Result
from wsss.build.objects import build_image_set
from wsss.build.settings import Settings
from wsss.build.sources import map_source, refine_identity, refine_inputs
from wsss.build.trainer import predict, still_missing
from wsss.data.datamodule import WholeSet
from wsss.data.masks import write_mask
from wsss.data.transforms import Pyramid
from wsss.evaluation.scoring import MASKS, scored_names
from wsss.maps.files import MapSource
from wsss.maps.fuse import enlarge
from wsss.refine.psa import PSAWalkSettings, psa_mask
from wsss.refine.psa_network import PSANetwork, padded_features
from wsss.run.folder import require
from wsss.show.sheets import Drawing, mask_column, truth_column
from wsss.stages.irn_masks import scores_of
from wsss.stages.psa_train import WEIGHTS, load_psa


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
    image_set = build_image_set(s)
    source = map_source(s, "psa_masks", image_set.classes)
    trained = s.folder("psa_train")
    names = image_set.names(s.data.infer_split)
    job = Job(
        s,
        "psa_masks",
        refine_identity(s, source, "psa_walk"),
        {
            "psa_train": require(trained, "psa_train", "psa_masks")["hash"],
            **refine_inputs(s, source, image_set),
        },
        needs=lambda path: [path / MASKS / f"{name}.png" for name in names],
    )
    if job.finished:
        return job.result()
    masks = job.path / MASKS
    missing = still_missing(names, (masks, ".png"))
    if missing:
        network = load_psa(s, trained / WEIGHTS)
        inputs_of = Pyramid(network.body.mean, network.body.std)
        maker = MaskMaker(network, source, job.path, s.refine.psa_walk)
        predict(job, maker, WholeSet(image_set, missing, inputs_of))
    if not job.main:
        return job.result()
    scored = scored_names(image_set, s.data.eval_split, names)
    facts: dict[str, Any] = {"images": len(names), "kind": source.kind}
    columns: dict[str, Drawing] = {"pseudo mask": mask_column(masks, image_set.num_classes)}
    text = ""
    if scored:
        scores = scores_of(s, image_set, source, masks, "psa_masks")
        workers = s.refine.workers
        about = {"split": s.data.eval_split, "image_labels_known": True}
        rows = job.scores(scores, scored, "psa_masks", workers, **about)
        facts["miou"] = rows["psa_masks"]["miou"]
        shown = ", ".join(f"{row} {one['miou']:.2f}" for row, one in rows.items())
        text = f"mIoU {shown} on {len(scored)} images of {s.data.eval_split}; "
        columns["truth"] = truth_column(image_set)
    job.sheet(image_set, scored or names, s.refine.pictures, columns)
    facts["class_names"] = list(image_set.classes)
    return job.close(f"{text}{len(names)} images in {{time}}", masks, **facts)
