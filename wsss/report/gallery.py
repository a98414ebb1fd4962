"""A gallery: every image of some runs in the browser, methods side by side, as static files.

`index.html` reads `data.js` (names, classes, scores of every image) and the pictures beside it,
from a disk as from a server. A photograph is stored once; class maps and label maps lie over it as
small PNG files with clear pixels, so that thousands of images and several runs stay small.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss.data.base import ImageSet
from wsss.data.masks import VOID, read_mask
from wsss.data.photographs import load_image
from wsss.errors import WsssError
from wsss.evaluation.per_image import Confusions
from wsss.evaluation.scoring import MASKS, label_folder
from wsss.evaluation.seeds import seed_labels
from wsss.files import atomic
from wsss.maps.files import MAPS, read_class_maps
from wsss.maps.fuse import enlarge
from wsss.report.gather import ORDER, Job, Setting, Stage, is_number
from wsss.run.pool import parallel
from wsss.show.colors import PALETTE, class_color

PAGE = Path(__file__).with_name("gallery.html")
PICTURES = "pictures"
IN_A_FOLDER = 500  # images
LEVELS = 64  # steps of a class map's opacity
OPAQUE = 0.9  # of a class map where it is 1


@dataclass(frozen=True)
class Step:
    """What a run has made of its images at one step: class maps, or label maps.

    Attributes:
        name: its heading.
        folder: files of class maps, NAME.npz, or of label maps, NAME.png.
        kind: which of the class maps; None: label maps.
        background: of class maps: None shows the maps, else their arg max as seeds, with this
            constant for maps without a background of their own.
        scores: confusion matrices of its label maps, where they were scored.
    """

    name: str
    folder: Path
    kind: str | None = None
    background: float | None = None
    scores: Confusions | None = None

    @property
    def maps(self) -> bool:
        """Whether it shows a map for each class."""
        return self.kind is not None and self.background is None

    def names(self) -> set[str]:
        """The images that it has files of."""
        end = ".png" if self.kind is None else ".npz"
        return {
            path.relative_to(self.folder).as_posix().removesuffix(end)
            for path in self.folder.rglob(f"*{end}")
        }


@dataclass(frozen=True)
class Shelf:
    """A run as the gallery shows it: its title and its steps, in their order."""

    title: str
    steps: tuple[Step, ...]


def shelves(settings: Sequence[Setting], data: str) -> list[Shelf]:
    """The first seed of each setting, as far as it has pictures.

    Args:
        settings: what was gathered.
        data: name of the data set whose photographs are shown.

    Raises:
        WsssError: a run is of another data set, or there is nothing to show.
    """
    found = []
    for setting in settings:
        if setting.data not in (None, data):
            raise WsssError(
                f"stage=gallery: run {setting.run} is of data.name={setting.data}, the command's "
                f"is {data}; a gallery shows one data set, so leave the run out of report.runs"
            )
        job = setting.jobs[0]
        seed = f", seed {job.seed}" if len(setting.jobs) > 1 else ""
        steps = tuple(steps_of(job))
        if steps:
            found.append(Shelf(f"{setting.title}{seed}", steps))
    if not found:
        raise WsssError(
            "stage=gallery needs a finished stage with pictures (make_cam, crf, irn_masks, "
            "psa_masks, seg_eval), which there is in no run of report.runs"
        )
    return found


def steps_of(job: Job) -> list[Step]:
    """The steps of a job that have ended; those of a run inside the run are named after it."""
    found: list[Step] = []
    # A part comes first: what it makes is read by the run around it.
    order = sorted(job.stages, key=lambda stage: stage.name.partition("/")[0] in ORDER)
    ended = {stage.name: stage for stage in order if stage.state == "finished"}
    splits = sum(name.startswith("seg_eval/") for name in ended)
    for name, stage in ended.items():
        part, _, last = name.rpartition("/")
        if part == "seg_eval":
            what = "segmentation" if splits == 1 else f"segmentation of {last}"
            found.append(Step(what, stage.folder / MASKS, scores=_scores(stage, "network")))
            if (stage.folder / "masks_crf").is_dir():
                folder = stage.folder / "masks_crf"
                found.append(Step(f"{what} + CRF", folder, scores=_scores(stage, "crf")))
            continue
        before = f"{part}: " if part else ""
        if last == "make_cam":
            scored = ended.get(f"{part}/eval_cam" if part else "eval_cam")
            key = f"first.{part}.eval_cam.background" if part else "eval_cam.background"
            constant = job.config.get(key, job.config.get("eval_cam.background"))
            background = float(constant) if is_number(constant) else 0.0
            for kind in (stage.manifest or {}).get("kinds", ()):
                folder = stage.folder / MAPS
                scores = _scores(scored, kind)
                found.append(Step(f"{before}{kind}", folder, kind))
                found.append(Step(f"{before}{kind} seed", folder, kind, background, scores))
        elif last == "crf":
            folder = label_folder(stage.folder)
            found.append(Step(f"{before}+ CRF", folder, scores=_scores(stage, "crf")))
        elif last in ("irn_masks", "psa_masks"):
            folder = stage.folder / MASKS
            found.append(Step(f"{before}pseudo mask", folder, scores=_scores(stage, last)))
    return [step for step in found if step.folder.is_dir()]


def _scores(stage: Stage | None, row: str) -> Confusions | None:
    return None if stage is None else stage.confusions(row)


def image_ious(scores: Confusions) -> dict[str, dict[int, float]]:
    """IoU in percent of every label that an image's truth or label map has, by image and label."""
    labels = scores.num_labels
    ends = np.searchsorted(scores.triplets[0], np.arange(len(scores.names) + 1))
    found = {}
    for name, first, last in zip(scores.names, ends[:-1], ends[1:], strict=True):
        _, cells, counts = scores.triplets[:, first:last]
        true, predicted = np.divmod(cells, labels)
        both = np.bincount(true[true == predicted], counts[true == predicted], labels)
        union = np.bincount(true, counts, labels) + np.bincount(predicted, counts, labels) - both
        found[name] = {
            int(label): round(100 * float(both[label] / union[label]), 2)
            for label in np.flatnonzero(union)
        }
    return found


@dataclass(frozen=True)
class DrawImage:
    """Writes the pictures of one image, and says what there is; runs in a worker process.

    Attributes:
        image_set: gives photographs and truth.
        shelves: the runs.
        folder: of the gallery.
        side: longer side of a picture, pixels.
    """

    image_set: ImageSet
    shelves: tuple[Shelf, ...]
    folder: Path
    side: int

    def __call__(self, item: tuple[int, str]) -> dict[str, Any]:
        """Draw image (number, name)."""
        number, name = item
        stem = f"{PICTURES}/{number // IN_A_FOLDER}/{number}"
        photograph = Image.fromarray(load_image(self.image_set.image_path(name)))
        whole = photograph.size
        photograph.thumbnail((self.side, self.side), Image.Resampling.LANCZOS, reducing_gap=3)
        size = photograph.size
        with atomic(self.folder / f"{stem}.jpg") as temporary:
            photograph.save(temporary, format="JPEG", quality=82)
        truth = self.image_set.mask(name)
        seen: set[int] = set()
        if truth is not None:
            clear = np.where(truth == VOID, 0, truth)
            seen |= self._labels(f"{stem}-truth", clear, size)
        shown: list[list[list[int] | None]] = []
        for run, shelf in enumerate(self.shelves):
            shown.append([])
            for place, step in enumerate(shelf.steps):
                ids = self._step(f"{stem}-{run}-{place}", step, name, size)
                shown[-1].append(None if ids is None else sorted(ids))
                seen |= ids or set()
        return {
            "name": name,
            "file": stem,
            "size": list(size),
            "whole": list(whole),
            "classes": sorted(seen - {0, VOID}),
            "truth": truth is not None,
            "shown": shown,
        }

    def _step(self, stem: str, step: Step, name: str, size: tuple[int, int]) -> set[int] | None:
        """Draw a step; the class ids in it, None where the step does not have the image."""
        if step.kind is None:
            path = step.folder / f"{name}.png"
            if not path.is_file():
                return None
            return self._labels(stem, read_mask(path, self.image_set.num_classes), size)
        path = step.folder / f"{name}.npz"
        if not path.is_file():
            return None
        stored = read_class_maps(path, step.kind)
        maps, own = stored.maps[step.kind], stored.has_background(step.kind)
        if step.background is not None:
            constant = None if own else step.background
            full = enlarge(maps, stored.size)
            return self._labels(stem, seed_labels(full, stored.classes, constant)[0], size)
        ids = stored.classes.tolist()
        for values, label in zip(maps[own:], ids, strict=True):
            levels = np.rint(np.clip(values, 0, 1) * (LEVELS - 1)).astype(np.uint8)
            alpha = np.rint(np.linspace(0, 255 * OPAQUE, LEVELS)).astype(np.uint8)
            self._save(f"{stem}-{label}", levels, class_color(label) * LEVELS, alpha.tobytes())
        return set(ids)

    def _labels(self, stem: str, labels: np.ndarray, size: tuple[int, int]) -> set[int]:
        """Draw a label map; the class ids in it."""
        small = Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        self._save(stem, np.asarray(small), PALETTE.tobytes(), b"\x00")
        return {int(label) for label in np.unique(labels)}

    def _save(
        self, stem: str, pixels: np.ndarray, colors: bytes | Sequence[int], alpha: bytes
    ) -> None:
        picture = Image.fromarray(pixels)
        picture.putpalette(colors)
        with atomic(self.folder / f"{stem}.png") as temporary:
            picture.save(temporary, format="PNG", transparency=alpha)


def write_gallery(
    folder: Path,
    title: str,
    image_set: ImageSet,
    runs: Sequence[Shelf],
    side: int,
    workers: int = 0,
) -> int:
    """Write the gallery anew.

    Args:
        folder: where `index.html`, `data.js` and the pictures go.
        title: its heading.
        image_set: the data set of all runs.
        runs: what is shown.
        side: longer side of a picture, pixels.
        workers: processes; -1: one per core.

    Returns:
        Number of images.

    Raises:
        WsssError: a photograph, class map or label map can't be read.
    """
    names = sorted({name for shelf in runs for step in shelf.steps for name in step.names()})
    if (folder / PICTURES).is_dir():
        shutil.rmtree(folder / PICTURES)
    for number in range(0, len(names), IN_A_FOLDER):
        (folder / PICTURES / str(number // IN_A_FOLDER)).mkdir(parents=True)
    bare = tuple(
        Shelf(s.title, tuple(Step(t.name, t.folder, t.kind, t.background) for t in s.steps))
        for s in runs
    )
    draw = DrawImage(image_set, bare, folder, side)
    images = parallel(draw, list(enumerate(names)), "gallery", workers)
    scores = [[step.scores and image_ious(step.scores) for step in shelf.steps] for shelf in runs]
    for image in images:
        image["iou"] = [[one and one.get(image["name"]) for one in row] for row in scores]
    content = {
        "title": title,
        "classes": list(image_set.classes),
        "colors": [
            "#{:02x}{:02x}{:02x}".format(*class_color(label))
            for label in range(image_set.num_classes + 1)
        ],
        "runs": [
            {
                "title": shelf.title,
                "steps": [
                    {"name": step.name, "maps": step.maps, "scored": step.scores is not None}
                    for step in shelf.steps
                ],
            }
            for shelf in runs
        ],
        "images": images,
    }
    with atomic(folder / "data.js") as temporary:  # a script: files may not read files by fetch()
        temporary.write_text(f"const GALLERY = {json.dumps(content)};\n", encoding="ascii")
    with atomic(folder / "index.html") as temporary:
        temporary.write_bytes(PAGE.read_bytes())
    return len(names)
