"""Read the seeds twice for PSA, each reading refined by a CRF."""

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
from wsss.data.photographs import load_image
from wsss.evaluation.scoring import scored_names
from wsss.evaluation.seeds import seed_labels
from wsss.maps.files import ClassMaps, MapSource, read_class_maps, write_class_maps
from wsss.maps.fuse import enlarge
from wsss.refine.crf import prepare_crf
from wsss.refine.psa import READINGS, PSALabelSettings, posteriors
from wsss.run.group import led
from wsss.run.pool import parallel
from wsss.show.sheets import seed_column, truth_column

POSTERIORS = "posteriors"


@dataclass(frozen=True)
class MakePosteriors:
    """Reads the maps of one image and writes the file; runs in a worker process."""

    image_set: ImageSet
    source: MapSource
    target: Path
    options: PSALabelSettings

    def __call__(self, name: str) -> None:
        """Both readings of the image `name`."""
        image = load_image(self.image_set.image_path(name))
        stored = self.source.read(name)
        maps = enlarge(stored.maps[self.source.kind], stored.size)
        both = posteriors(image, maps, stored.classes, self.options)
        path = self.target / f"{name}.npz"
        write_class_maps(path, ClassMaps(stored.classes, stored.size, both))


@dataclass(frozen=True)
class Shares:
    """Pixels of one image: all, and foreground in each reading."""

    posteriors: Path

    def __call__(self, name: str) -> np.ndarray:
        """(3,) int64 of the image `name`."""
        stored = read_class_maps(self.posteriors / f"{name}.npz")
        readings = [seed_labels(stored.maps[kind], stored.classes, None)[0] for kind in READINGS]
        return np.array([readings[0].size, *((one > 0).sum() for one in readings)], dtype=np.int64)


@led
def run(s: Settings) -> Result:
    """Read what is not read yet."""
    image_set = build_image_set(s)
    source = map_source(s, "psa_labels", image_set.classes)
    names = image_set.names(s.data.infer_split)
    job = Job(
        s,
        "psa_labels",
        *refined(s, image_set, "psa_labels", "psa_labels"),
        needs=lambda path: [path / POSTERIORS / f"{name}.npz" for name in names],
    )
    if job.finished:
        return job.result()
    folder, workers = job.path / POSTERIORS, s.refine.workers
    work = MakePosteriors(image_set, source, folder, s.refine.psa_labels)
    missing = still_missing(names, (folder, ".npz"))
    if missing:
        prepare_crf(s.refine.psa_labels.crf)
    parallel(work, missing, "psa_labels", workers)
    pixels, *foreground = np.sum(
        parallel(Shares(folder), names, "psa_labels: shares", workers), axis=0
    ).tolist()
    shares = dict(zip(READINGS, (count / pixels for count in foreground), strict=True))
    facts = {"images": len(names), **{f"{k}_foreground_share": v for k, v in shares.items()}}
    job.facts(facts)
    columns = {f"{kind} reading": seed_column(folder, kind, 0.0) for kind in READINGS}
    scored = scored_names(image_set, s.data.eval_split, names)
    if scored:
        columns["truth"] = truth_column(image_set)
    job.sheet(image_set, scored or names, s.refine.pictures, columns)
    told = ", ".join(f"{kind} {100 * share:.1f} %" for kind, share in shares.items())
    return job.close(
        f"{len(names)} images, foreground {told}, in {{time}}",
        folder,
        kind=source.kind,
        class_names=list(image_set.classes),
        **facts,
    )
