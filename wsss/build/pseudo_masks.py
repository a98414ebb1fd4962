"""What the stages that make pseudo masks by a network and a random walk have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from wsss.build.job import Job, Result
from wsss.build.objects import build_image_set
from wsss.build.settings import Settings
from wsss.build.sources import WALKS, find_stage, map_source, walked
from wsss.build.trainer import predict, still_missing
from wsss.data.datamodule import WholeSet
from wsss.data.transforms import Pyramid
from wsss.evaluation.scoring import MASKS, MaskScore, Score, SeedScore, scored_names
from wsss.maps.files import MapSource
from wsss.run.group import led
from wsss.show.sheets import Drawing, mask_column, truth_column

# Makes the module that writes `MASKS/NAME.png` below a folder, and the inputs it wants, of
# (file of weights, class maps, folder).
Maker = Callable[[Path, MapSource, Path], tuple[pl.LightningModule, Pyramid]]


def make_pseudo_masks(
    s: Settings,
    stage: str,
    make: Maker,
    columns: Callable[[Path], Mapping[str, Drawing]] = lambda folder: {},
) -> Result:
    """Make the masks that are not there yet, then score them beside the seeds.

    Args:
        s: the settings.
        stage: the stage, one of `WALKS`.
        make: see `Maker`.
        columns: what its sheet shows before the masks, given the stage's folder.
    """
    image_set = build_image_set(s)
    source = map_source(s, stage, image_set.classes)
    trained_by, weights, _ = WALKS[stage]
    folder, _ = find_stage(s, trained_by, stage, image_set.classes)
    names = image_set.names(s.data.infer_split)
    job = Job(
        s,
        stage,
        *walked(s, image_set, stage),
        needs=lambda path: [path / MASKS / f"{name}.png" for name in names],
    )
    if job.finished:
        return job.result()
    masks = job.path / MASKS
    missing = still_missing(names, (masks, ".png"))
    if missing:
        maker, inputs = make(folder / weights, source, job.path)
        predict(job, maker, WholeSet(image_set, missing, inputs))

    @led
    def finish() -> Result:
        scored = scored_names(image_set, s.data.eval_split, names)
        facts: dict[str, Any] = {"images": len(names), "kind": source.kind}
        shown = {**columns(job.path), "pseudo mask": mask_column(masks, image_set.num_classes)}
        text = ""
        if scored:
            scores: dict[str, Score] = {"seed": SeedScore(image_set, source, s.eval_cam.background)}
            scores[stage] = MaskScore(image_set, masks)
            about = {"split": s.data.eval_split, "image_labels_known": True}
            rows = job.scores(scores, scored, stage, s.refine.workers, **about)
            facts["miou"] = rows[stage]["miou"]
            told = ", ".join(f"{row} {one['miou']:.2f}" for row, one in rows.items())
            text = f"mIoU {told} on {len(scored)} images of {s.data.eval_split}; "
            shown["truth"] = truth_column(image_set)
        job.sheet(image_set, scored or names, s.refine.pictures, shown)
        facts["class_names"] = list(image_set.classes)
        return job.close(f"{text}{len(names)} images in {{time}}", masks, **facts)

    return finish()
