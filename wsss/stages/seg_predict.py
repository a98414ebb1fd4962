"""Predict the photographs of a plain folder, input=DIR, with the segmentation network."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from PIL import Image

from wsss.build import objects as ex
from wsss.build.segmenter import find_trained, load_trained
from wsss.data.photographs import load_image
from wsss.data.plain_folder import Photographs
from wsss.errors import WsssError
from wsss.evaluation import scoring
from wsss.files import atomic, digest, missing_files_of, read_json, write_json
from wsss.run.folder import MANIFEST, StageFolder
from wsss.run.progress import duration
from wsss.segmentation.data import SegmentationData, WholePhotographs
from wsss.segmentation.predict import Predictor, PredictProgress
from wsss.show.legend import overlay_with_legend, prediction_sheet
from wsss.stages.seg_eval import eval_settings, test_scales

OVERLAYS = "overlays"
LISTING = "photographs.json"


def folder_name(root: Path) -> str:
    """Name of the results' folder: the input's own and a hash of where it lies.

    The results of two folders of one name stay apart, and `input` names no run: a trained network
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
        (path / scoring.MASKS / f"{name}.png").unlink(missing_ok=True)
        (path / OVERLAYS / f"{name}.jpg").unlink(missing_ok=True)
    if (path / MANIFEST).is_file():
        ex.say("seg_predict: the photographs have changed since; the new ones are predicted")
        (path / MANIFEST).unlink()


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


def run(cfg: DictConfig) -> dict[str, Any]:
    """Predict what is not predicted yet; photographs that can't be read are told at the end."""
    if not cfg.input:
        raise WsssError("stage=seg_predict: give the folder of photographs, input=DIR")
    trained = find_trained(cfg, "seg_predict")
    photographs = Photographs(cfg.input, trained.classes)
    options = ex.plain(cfg.segmentation.predict)
    settings = eval_settings(cfg)
    settings = {
        "predict": options,
        **{k: settings["eval"][k] for k in ("scales", "mirror", "fuse")},
        **{k: settings[k] for k in ("long_side", "msc", "msc_scales", "precision")},
    }
    folder = StageFolder(
        ex.stage_folder(cfg, "seg_predict") / folder_name(photographs.root),
        "seg_predict",
        settings,
        {"seg_train": trained.hash},
    )
    test = test_scales(cfg)
    listing = photographs.listing()
    if ex.is_main_process():
        bring_up_to_date(folder.path, listing)
    if not ex.begin(cfg, folder):
        return folder.manifest
    start = time.monotonic()
    names = photographs.names("all")
    masks, overlays = folder.path / scoring.MASKS, folder.path / OVERLAYS
    missing = missing_files_of(masks, names, ".png")
    if ex.is_main_process():
        write_json(folder.path / LISTING, listing)
    if missing:
        segmenter, network = load_trained(cfg, trained, "seg_predict")
        whole = WholePhotographs(
            photographs,
            missing,
            network.mean,
            network.std,
            cfg.segmentation.long_side,
            options["max_side"],
            lenient=True,
        )
        trainer = ex.build_trainer(
            cfg,
            folder.path,
            [PredictProgress("seg_predict")] if ex.is_main_process() else [],
            limit_train_batches=None,
        )
        trainer.predict(
            Predictor(segmenter, test, masks, after=_WriteOverlay(overlays, trained.classes)),
            datamodule=SegmentationData(whole=whole, num_workers=cfg.data.num_workers),
            return_predictions=False,
        )
        trainer.strategy.barrier("seg_predict")
    if not ex.is_main_process():
        return {}
    lost = missing_files_of(masks, names, ".png")
    faulty = unreadable(photographs, lost)
    done = [name for name in names if name not in set(lost)]
    sheet, count = folder.path / "contact_sheet.png", cfg.segmentation.pictures
    prediction_sheet(photographs, done, count, {"prediction": masks}, False, sheet)
    seconds = time.monotonic() - start
    folder.close(
        input=str(cfg.input),
        images=len(done),
        unreadable=faulty,
        passed_over=photographs.passed_over,
        checkpoint=ex.relative(trained.path),
        seconds=seconds,
    )
    if photographs.passed_over:
        others = photographs.passed_over
        more = ", ..." if len(others) > 3 else ""
        ex.say(
            f"seg_predict: {len(others)} files are no photographs: {', '.join(others[:3])}{more}"
        )
    if faulty:
        ex.say(f"seg_predict: {len(faulty)} of {len(names)} photographs could not be read:")
        for reason in faulty.values():
            ex.say(f"  {reason}")
    ex.say(
        f"seg_predict: {len(done)} photographs in {duration(seconds)} -> "
        f"{ex.relative(masks)}, {ex.relative(overlays)}"
    )
    return folder.manifest
