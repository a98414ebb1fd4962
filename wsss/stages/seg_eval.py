"""Predict a split with the segmentation network, with and without CRF, and score it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from wsss.build.identity import images_of, masks_of, trainer_identity
from wsss.build.job import METRICS, Job, Result
from wsss.build.objects import build_image_set
from wsss.build.segmenter import Trained, find_trained, load_trained
from wsss.build.settings import Settings, plain
from wsss.build.trainer import predict, still_missing
from wsss.data.base import ImageSet
from wsss.data.datamodule import WholeSet
from wsss.data.transforms import Pyramid, resize_bilinear
from wsss.evaluation.scoring import MASKS, MaskScore, absent_classes
from wsss.files import write_json
from wsss.run.folder import check_classes
from wsss.run.group import led
from wsss.run.pool import cores
from wsss.run.process import relative, say
from wsss.segmentation.archive import write_archive
from wsss.segmentation.predict import CrfQueue, Predictor
from wsss.show.legend import predicted_classes
from wsss.show.sheets import Drawing, mask_column, truth_column

REFINED = "masks_crf"


def prediction_identity(s: Settings) -> dict[str, Any]:
    """All that predictions depend on, the training and the split apart."""
    options = plain(s.segmentation)
    return {
        "eval": {k: v for k, v in options["eval"].items() if k not in ("split", "archive", "crf")},
        **{key: options[key] for key in ("long_side", "msc", "msc_scales")},
        "precision": trainer_identity(s)["precision"],
    }


def why_unscored(image_set: ImageSet, names: list[str], split: str) -> str | None:
    """Why there is no score, or None if every image has a mask."""
    bare = [] if split in image_set.unlabeled_splits else names
    bare = [name for name in bare if not image_set.has_mask(name)]
    if split in image_set.unlabeled_splits or len(bare) == len(names):
        return f"split '{split}' has no masks"
    if bare:
        return f"{len(bare)} of {len(names)} images of split '{split}' have no mask ({bare[0]})"
    return None


def predict_split(
    job: Job, trained: Trained, image_set: ImageSet, missing: list[str], with_crf: bool
) -> None:
    """Predict some images; in a distributed run each process its share."""
    s = job.settings
    segmenter, network = load_trained(s, trained, job.stage)
    inputs = Pyramid(
        network.mean, network.std, long_side=s.segmentation.long_side, resize=resize_bilinear
    )
    workers = cores() if s.segmentation.workers < 0 else s.segmentation.workers
    queue = CrfQueue(s.segmentation.eval.crf, min(workers, len(missing))) if with_crf else None
    options, path = s.segmentation.eval, job.path
    predictor = Predictor(segmenter, options, path / MASKS, queue, path / REFINED)
    with queue or nullcontext():
        predict(job, predictor, WholeSet(image_set, missing, inputs, picture=True))


def run(s: Settings) -> Result:
    """Predict what is not predicted yet, then score, pack and show it."""
    trained = find_trained(s, "seg_eval")
    options = s.segmentation.eval
    split = options.split or str(s.data.val_split)
    identity = {
        **prediction_identity(s),
        "crf": plain(options.crf),
        "split": split,
    }
    image_set = build_image_set(s)
    if s.stage == "all" and not image_set.has_split(split):
        say(f"seg_eval: left out, as there is no split '{split}' to predict and score")
        return Result("seg_eval")
    check_classes(str(trained.path), trained.classes, image_set.classes)
    names = image_set.names(split)
    write = options.archive.write
    packed = split == "test" if write == "auto" else bool(write)
    inputs = {
        "seg_train": trained.hash,
        **images_of(s, image_set, split, labels=False),
        **masks_of(s, image_set, split),
    }
    folders = {"network": MASKS, **({"crf": REFINED} if options.crf.use else {})}
    needs = [f"{folder}/{name}.png" for folder in folders.values() for name in names]
    job = Job(
        s,
        "seg_eval",
        identity,
        inputs,
        part=split,
        needs=lambda path: [path / METRICS, *(path / file for file in needs)],
    )
    results = {what: job.path / folder for what, folder in folders.items()}
    if job.finished:
        if packed and job.main:
            pack(s, job.path, split, results, names, image_set.num_classes + 1)
        return job.result()
    missing = still_missing(names, *((folder, ".png") for folder in results.values()))
    if missing:
        predict_split(job, trained, image_set, missing, options.crf.use)

    @led
    def finish() -> Result:
        main = list(results)[-1]
        about = {
            "split": split,
            "images": len(names),
            "image_labels_known": False,
            "initial_weights": trained.initial_weights,
        }
        facts: dict[str, Any] = {"images": len(names), "checkpoint": relative(trained.path)}
        columns: dict[str, Drawing] = {
            {"network": "network", "crf": "+ CRF"}[what]: mask_column(folder, image_set.num_classes)
            for what, folder in results.items()
        }
        text = ""
        unscored = why_unscored(image_set, names, split)
        if unscored:
            say(f"seg_eval: no score: {unscored}")
            write_json(job.path / METRICS, {**about, "main": main})
        else:
            workers = s.segmentation.workers
            scores = {what: MaskScore(image_set, folder) for what, folder in results.items()}
            rows = job.scores(scores, names, main, workers, **about)
            facts["miou"] = rows[main]["miou"]
            say(class_table({what: row["iou"] for what, row in rows.items()}))
            for line in absent_classes(rows):
                say(f"seg_eval: {line}")
            shown = ", ".join(f"{what} {row['miou']:.2f}" for what, row in rows.items())
            text = f"mIoU {shown}; "
            columns["truth"] = truth_column(image_set)
        seen = predicted_classes(results[main], image_set.num_classes)
        job.sheet(image_set, names, s.segmentation.pictures, columns, seen)
        if packed:
            pack(s, job.path, split, results, names, image_set.num_classes + 1)
        return job.close(
            f"{text}{len(names)} images of split '{split}' in {{time}} (initial weights: "
            f"{trained.initial_weights})",
            job.path,
            **facts,
        )

    return finish()


def class_table(columns: dict[str, dict[str, float | None]]) -> str:
    """IoU of each class in aligned lines; `-` where it does not occur."""
    classes = list(next(iter(columns.values())))
    width = max(len(name) for name in classes) + 2
    lines = [f"{'IoU':<{width}}" + "".join(f"{what:>10}" for what in columns)]
    for name in classes:
        values = [column[name] for column in columns.values()]
        cells = (f"{'-':>10}" if v is None else f"{v:>10.2f}" for v in values)
        lines.append(f"{name:<{width}}" + "".join(cells))
    return "\n".join(lines)


def pack(
    s: Settings,
    folder: Path,
    split: str,
    results: dict[str, Path],
    names: list[str],
    num_labels: int,
) -> None:
    """Write an archive for VOC's server of each result that has none yet."""
    options = s.segmentation.eval.archive
    for what, masks in results.items():
        suffix = "" if what == "network" else f"_{what}"
        path = folder / f"results_{options.competition}_{split}{suffix}.{options.format}"
        if not path.is_file():
            kind = (options.competition, options.format)
            write_archive(path, masks, names, split, num_labels, *kind)
        say(f"seg_eval: for VOC's evaluation server: {relative(path)}")
