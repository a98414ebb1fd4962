"""Predict a folder of photographs or a single one, input=PATH, with the segmentation network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss.build.job import Job, Result
from wsss.build.segmenter import find_trained, load_trained
from wsss.build.settings import Settings, plain
from wsss.build.trainer import predict, still_missing
from wsss.data.datamodule import WholeSet
from wsss.data.photographs import load_image
from wsss.data.plain_folder import Photographs
from wsss.data.transforms import Pyramid, resize_bilinear
from wsss.errors import WsssError
from wsss.evaluation.scoring import MASKS
from wsss.files import atomic, digest, read_json, write_json
from wsss.run.folder import MANIFEST, reopen
from wsss.run.group import led
from wsss.run.process import is_main_process, relative, say
from wsss.segmentation.predict import Predictor
from wsss.show.legend import overlay_with_legend, predicted_classes
from wsss.show.sheets import Drawing, mask_column
from wsss.stages.seg_eval import prediction_identity

OVERLAYS = "overlays"
LISTING = "photographs.json"


def folder_name(root: Path) -> str:
    """Name of the results' folder: the input's own and a hash of where it lies.

    The results of two inputs of one name stay apart, and `input` names no run: a trained network
    is applied to any number of folders without being looked for elsewhere.
    """
    whole = root.expanduser().resolve()
    return f"{whole.name or 'root'}-{digest(str(whole))[:6]}"


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of photographs that were predicted and have since changed or gone."""
    return sorted(name for name, stamp in before.items() if now.get(name) != stamp)


def bring_up_to_date(path: Path, listing: Mapping[str, Any]) -> None:
    """Drop predictions of photographs that have changed, so that only these are made anew."""
    note = path / LISTING
    before = read_json(note) if note.is_file() else {}
    if before == listing:
        return
    for name in changed(before, listing):
        (path / MASKS / f"{name}.png").unlink(missing_ok=True)
        (path / OVERLAYS / f"{name}.jpg").unlink(missing_ok=True)
    if (path / MANIFEST).is_file():
        say("seg_predict: the photographs have changed since; the new ones are predicted")
        reopen(path)


@dataclass(frozen=True)
class _WriteOverlay:
    """Writes the overlay of a predicted photograph."""

    folder: Path
    classes: tuple[str, ...]

    def __call__(self, sample: Mapping[str, Any], labels: np.ndarray) -> None:
        overlay = overlay_with_legend(sample["picture"].cpu().numpy(), labels, self.classes)
        with atomic(self.folder / f"{sample['name']}.jpg") as temporary:
            Image.fromarray(overlay).save(temporary, format="JPEG", quality=92)


def unreadable(photographs: Photographs, names: list[str]) -> dict[str, str]:
    """Why each of these photographs could not be read."""
    found = {}
    for name in names:
        try:
            load_image(photographs.image_path(name))
        except WsssError as error:
            found[photographs.image_path(name).name] = str(error)
    return found


def run(s: Settings) -> Result:
    """Predict what is not predicted yet; photographs that can't be read are told at the end."""
    if not s.input:
        raise WsssError(
            "stage=seg_predict: give a folder of photographs or one of them, input=PATH"
        )
    trained = find_trained(s, "seg_predict")
    photographs = Photographs(s.input, trained.classes)
    path = s.folder("seg_predict") / (part := folder_name(photographs.root))
    listing = photographs.listing()
    if is_main_process():
        bring_up_to_date(path, listing)
    identity = {**prediction_identity(s), "predict": plain(s.segmentation.predict)}
    job = Job(s, "seg_predict", identity, {"seg_train": trained.hash}, part=part)
    if job.finished:
        return job.result()
    names = photographs.names("all")
    masks, overlays = job.path / MASKS, job.path / OVERLAYS
    missing = still_missing(names, (masks, ".png"))
    if job.main:
        write_json(job.path / LISTING, listing)
    if missing:
        segmenter, network = load_trained(s, trained, "seg_predict")
        inputs = Pyramid(
            network.mean,
            network.std,
            long_side=s.segmentation.long_side,
            max_side=s.segmentation.predict.max_side,
            resize=resize_bilinear,
        )
        after = _WriteOverlay(overlays, trained.classes)
        predictor = Predictor(segmenter, s.segmentation.eval, masks, after=after)
        predict(job, predictor, WholeSet(photographs, missing, inputs, picture=True, lenient=True))

    @led
    def finish() -> Result:
        lost = still_missing(names, (masks, ".png"))
        faulty = unreadable(photographs, lost)
        done = [name for name in names if name not in set(lost)]
        columns: dict[str, Drawing] = {"prediction": mask_column(masks, photographs.num_classes)}
        seen = predicted_classes(masks, photographs.num_classes)
        job.sheet(photographs, done, s.segmentation.pictures, columns, seen)
        if photographs.passed_over:
            others = photographs.passed_over
            more = ", ..." if len(others) > 3 else ""
            what = (
                "1 file is no photograph" if len(others) == 1 else f"{len(others)} files are none"
            )
            say(f"seg_predict: {what}: {', '.join(others[:3])}{more}")
        if faulty:
            say(f"seg_predict: {len(faulty)} of {len(names)} photographs could not be read:")
            for reason in faulty.values():
                say(f"  {reason}")
        many = "1 photograph" if len(done) == 1 else f"{len(done)} photographs"
        return job.close(
            f"{many} in {{time}}, overlays in {relative(overlays)}",
            masks,
            input=str(s.input),
            images=len(done),
            unreadable=faulty,
            passed_over=photographs.passed_over,
            checkpoint=relative(trained.path),
        )

    return finish()
