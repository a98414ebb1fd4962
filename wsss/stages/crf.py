"""Refine the seeds by a dense CRF and score them beside the raw ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsss.build.job import Job, Result
from wsss.build.objects import build_image_set
from wsss.build.settings import SeedCrf, Settings
from wsss.build.sources import map_source, refined
from wsss.build.trainer import still_missing
from wsss.data.base import ImageSet
from wsss.data.masks import VOID, write_mask
from wsss.data.photographs import load_image
from wsss.evaluation.scoring import (
    LABELS,
    MASKS,
    MaskScore,
    SeedScore,
    label_folder,
    scored_names,
)
from wsss.maps.files import MapSource
from wsss.maps.fuse import enlarge
from wsss.refine.crf import crf_from_probabilities, prepare_crf, seed_probabilities
from wsss.run.group import led
from wsss.run.pool import parallel
from wsss.show.sheets import mask_column, seed_column, truth_column


@dataclass(frozen=True)
class RefineSeeds:
    """Refines one image and writes its label map; runs in a worker process."""

    image_set: ImageSet
    source: MapSource
    folder: Path
    options: SeedCrf

    def __call__(self, name: str) -> None:
        """Refine the image `name`."""
        image = load_image(self.image_set.image_path(name))
        stored = self.source.read(name)
        maps = enlarge(stored.maps[self.source.kind], stored.size)
        options = self.options
        scores = seed_probabilities(maps, stored.classes, options.background, options.power)
        shares = crf_from_probabilities(image, scores, options)
        ids = np.concatenate([[0], stored.classes])
        labels = ids[shares.argmax(axis=0)].astype(np.uint8)
        if options.confidence is not None:
            write_mask(self.folder / LABELS / f"{name}.png", labels)
            labels[shares.max(axis=0) < options.confidence] = VOID
        write_mask(self.folder / MASKS / f"{name}.png", labels)


@led
def run(s: Settings) -> Result:
    """Refine what is not refined yet, then score."""
    image_set = build_image_set(s)
    source = map_source(s, "crf", image_set.classes)
    names = image_set.names(s.data.infer_split)
    job = Job(
        s,
        "crf",
        *refined(s, image_set, "crf", "crf"),
        needs=lambda path: [path / MASKS / f"{name}.png" for name in names],
    )
    if job.finished:
        return job.result()
    masks, workers, options = job.path / MASKS, s.refine.workers, s.refine.crf
    refine = RefineSeeds(image_set, source, job.path, options)
    missing = still_missing(names, (masks, ".png"))
    if missing:
        prepare_crf(options)
    parallel(refine, missing, "crf", workers)
    scored = scored_names(image_set, s.data.eval_split, names)
    facts: dict[str, Any] = {"images": len(names), "kind": source.kind}
    columns = {
        f"{source.kind} seed": seed_column(source.folder, source.kind, options.constant),
        "+ CRF": mask_column(masks, image_set.num_classes),
    }
    text = ""
    if scored:
        scores = {
            "seed": SeedScore(image_set, source, options.constant),
            "crf": MaskScore(image_set, label_folder(job.path)),
        }
        about = {"split": s.data.eval_split, "image_labels_known": True}
        rows = job.scores(scores, scored, "crf", workers, **about)
        facts |= {"seed_miou": rows["seed"]["miou"], "miou": rows["crf"]["miou"]}
        text = f"mIoU {facts['seed_miou']:.2f} -> {facts['miou']:.2f} on "
        text += f"{len(scored)} images of {s.data.eval_split}; "
        columns["truth"] = truth_column(image_set)
    job.sheet(image_set, scored or names, s.refine.pictures, columns)
    facts["class_names"] = list(image_set.classes)
    return job.close(f"{text}{len(names)} images in {{time}}", masks, **facts)
