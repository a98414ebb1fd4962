"""Make the confident labels that IRN learns from: class maps read twice, each through a CRF."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsss.build.job import Job, Result
from wsss.build.objects import build_image_set
from wsss.build.settings import Settings
from wsss.build.sources import map_source, refined
from wsss.build.trainer import still_missing
from wsss.data.base import ImageSet
from wsss.data.masks import VOID, read_mask, write_mask
from wsss.data.photographs import load_image
from wsss.evaluation.scoring import scored_names
from wsss.maps.files import MapSource
from wsss.maps.fuse import enlarge
from wsss.refine.crf import CrfSettings, prepare_crf
from wsss.refine.labels import LabelSettings, confident_labels
from wsss.run.group import led
from wsss.run.pool import parallel
from wsss.show.sheets import Drawing, mask_column, truth_column

LABELS = "labels"


@dataclass(frozen=True)
class MakeLabels:
    """Labels one image and writes the file; runs in a worker process."""

    image_set: ImageSet
    source: MapSource
    target: Path
    options: LabelSettings

    def __call__(self, name: str) -> None:
        """Label the image `name`."""
        image = load_image(self.image_set.image_path(name))
        stored = self.source.read(name)
        maps = enlarge(stored.maps[self.source.kind], stored.size)
        labels = confident_labels(image, maps, stored.classes, self.options)
        write_mask(self.target / f"{name}.png", labels)


@dataclass(frozen=True)
class Shares:
    """Pixels of one image's labels: all, foreground, unsure; sure ones with truth, right ones."""

    image_set: ImageSet
    labels: Path
    scored: frozenset[str]

    def __call__(self, name: str) -> np.ndarray:
        """(5,) int64 of the image `name`."""
        labels = read_mask(self.labels / f"{name}.png", self.image_set.num_classes)
        sure = labels != VOID
        counts = [labels.size, int((sure & (labels > 0)).sum()), int((~sure).sum()), 0, 0]
        truth = self.image_set.mask(name) if name in self.scored else None
        if truth is not None:
            known = sure & (truth != VOID)
            counts[3:] = [int(known.sum()), int((truth == labels)[known].sum())]
        return np.array(counts, dtype=np.int64)


@led
def run(s: Settings) -> Result:
    """Label what is not labeled yet."""
    image_set = build_image_set(s)
    source = map_source(s, "irn_labels", image_set.classes)
    names = image_set.names(s.data.infer_split)
    job = Job(
        s,
        "irn_labels",
        *refined(s, image_set, "irn_labels", "labels"),
        needs=lambda path: [path / LABELS / f"{name}.png" for name in names],
    )
    if job.finished:
        return job.result()
    labels, workers = job.path / LABELS, s.refine.workers
    work = MakeLabels(image_set, source, labels, s.refine.labels)
    missing = still_missing(names, (labels, ".png"))
    if missing:
        prepare_crf(s.refine.labels.crf or CrfSettings())
    parallel(work, missing, "irn_labels", workers)
    scored = scored_names(image_set, s.data.eval_split, names)
    shares = Shares(image_set, labels, frozenset(scored))
    pixels, foreground, unsure, known, right = np.sum(
        parallel(shares, names, "irn_labels: shares", workers), axis=0
    ).tolist()
    facts = {
        "images": len(names),
        "foreground_share": foreground / pixels,
        "unsure_share": unsure / pixels,
        "right_share_of_sure": right / known if known else None,
    }
    job.facts(facts)
    drawn = mask_column(labels, image_set.num_classes)
    columns: dict[str, Drawing] = {"confident labels (white: unsure)": drawn}
    if scored:
        columns["truth"] = truth_column(image_set)
    job.sheet(image_set, scored or names, s.refine.pictures, columns)
    quality = f", {100 * right / known:.1f} % of the sure pixels right" if known else ""
    return job.close(
        f"{len(names)} images, {100 * foreground / pixels:.1f} % foreground, "
        f"{100 * unsure / pixels:.1f} % unsure{quality}, in {{time}}",
        labels,
        kind=source.kind,
        class_names=list(image_set.classes),
        **facts,
    )
