"""Predict a split with the segmentation network, with and without CRF, and score it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from wsss.build import objects as ex
from wsss.build.segmenter import Trained, find_trained, load_trained
from wsss.data.base import ImageSet
from wsss.errors import WsssError
from wsss.evaluation import scoring
from wsss.files import missing_files_of, write_json
from wsss.refine.crf import CrfSettings, require_pydensecrf
from wsss.run.folder import StageFolder
from wsss.run.pool import cores
from wsss.run.progress import duration
from wsss.segmentation.archive import check_archive, write_archive
from wsss.segmentation.data import SegmentationData, WholePhotographs
from wsss.segmentation.predict import CrfQueue, Predictor, PredictProgress, TestScales
from wsss.show.dashboard import show_scores
from wsss.show.legend import prediction_sheet

REFINED = "masks_crf"


def split_of(cfg: DictConfig) -> str:
    """The split that is predicted."""
    return str(cfg.segmentation.eval.split or cfg.data.val_split)


def test_scales(cfg: DictConfig) -> TestScales:
    """Scales, mirror and fusion of the settings."""
    options = cfg.segmentation.eval
    return TestScales(tuple(options.scales), bool(options.mirror), str(options.fuse))


def crf_settings(cfg: DictConfig) -> CrfSettings | None:
    """The CRF's pairwise terms, or None if it is not wanted.

    Raises:
        WsssError: If it is wanted and pydensecrf can't be imported.
    """
    options = ex.plain(cfg.segmentation.eval.crf)
    if not options.pop("use"):
        return None
    require_pydensecrf()
    return CrfSettings(**options)


def workers_of(cfg: DictConfig) -> int:
    """Processes for CRFs, of this one of perhaps several training processes."""
    wanted = int(cfg.segmentation.workers)
    return cores() if wanted < 0 else wanted


def eval_settings(cfg: DictConfig) -> dict[str, Any]:
    """All that predictions depend on, the training apart."""
    options = ex.plain(cfg.segmentation)
    trainer = ex.training_settings(cfg)["trainer"]
    return {
        "eval": {k: v for k, v in options["eval"].items() if k not in ("split", "archive")},
        "split": split_of(cfg),
        "data": cfg.data.name,
        "long_side": options["long_side"],
        "msc": options["msc"],
        "msc_scales": options["msc_scales"],
        "precision": trainer["precision"],
    }


def miou_over_truth(matrix: np.ndarray) -> float:
    """Mean IoU in percent over the classes that occur in the truth.

    What deeplab-pytorch reports. A class that is predicted somewhere and occurs nowhere lowers the
    IoU of others, and is not itself a zero among them. Over all of VOC's or COCO's val it is the
    same as the mean over classes that occur in truth or prediction.

    Args:
        matrix: (L, L) int64 confusion, rows true.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    hit, truth, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    there = truth > 0
    if not there.any():
        return float("nan")
    return float((100 * hit[there] / (truth + predicted - hit)[there]).mean())


def score(
    cfg: DictConfig, image_set: ImageSet, masks: Path, names: list[str], what: str
) -> dict[str, Any]:
    """All figures of stored label maps."""
    task = scoring.MaskScore(image_set, masks)
    workers, classes = cfg.segmentation.workers, image_set.classes
    result = scoring.miou(task, names, workers, classes, f"seg_eval: score {what}")
    occurring = result.pop("miou")
    miou = miou_over_truth(np.array(result["confusion"]))
    return {"miou": miou, "miou_truth_or_prediction": occurring, **result}


def why_unscored(image_set: ImageSet, names: list[str], split: str) -> str | None:
    """Why there is no score, or None if every image has a mask."""
    bare = [] if split in image_set.unlabelled_splits else names
    bare = [name for name in bare if not image_set.has_mask(name)]
    if split in image_set.unlabelled_splits or len(bare) == len(names):
        return f"split '{split}' has no masks"
    if bare:
        return f"{len(bare)} of {len(names)} images of split '{split}' have no mask ({bare[0]})"
    return None


def wants_archive(cfg: DictConfig, split: str) -> bool:
    """Whether to pack the predictions for VOC's server.

    Raises:
        WsssError: If a key has an unknown value.
    """
    options = cfg.segmentation.eval.archive
    check_archive(options.competition, options.format)
    if options.write not in (True, False, "auto"):
        raise WsssError(f"segmentation.eval.archive.write={options.write}: auto, true or false")
    return split == "test" if options.write == "auto" else bool(options.write)


def predict(
    cfg: DictConfig,
    folder: StageFolder,
    trained: Trained,
    image_set: ImageSet,
    missing: list[str],
    crf: CrfSettings | None,
) -> None:
    """Predict some images; in a distributed run each process its share."""
    segmenter, network = load_trained(cfg, trained, folder.stage)
    trainer = ex.build_trainer(
        cfg,
        folder.path,
        [PredictProgress(folder.stage)] if ex.is_main_process() else [],
        limit_train_batches=None,
    )
    workers = max(1, workers_of(cfg) // trainer.world_size) if workers_of(cfg) else 0
    queue = CrfQueue(crf, min(workers, len(missing))) if crf else None
    whole = WholePhotographs(
        image_set, missing, network.mean, network.std, cfg.segmentation.long_side
    )
    predictor = Predictor(
        segmenter, test_scales(cfg), folder.path / scoring.MASKS, queue, folder.path / REFINED
    )
    data = SegmentationData(whole=whole, num_workers=cfg.data.num_workers)
    try:
        trainer.predict(predictor, datamodule=data, return_predictions=False)
        if queue:
            queue.finish()
    finally:
        if queue:
            queue.close()
    trainer.strategy.barrier(folder.stage)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Predict what is not predicted yet, then score, pack and show it."""
    trained = find_trained(cfg, "seg_eval")
    split = split_of(cfg)
    folder = StageFolder(
        ex.stage_folder(cfg, "seg_eval") / split,
        "seg_eval",
        eval_settings(cfg),
        {"seg_train": trained.hash},
    )
    test_scales(cfg)
    packed = wants_archive(cfg, split)
    crf = crf_settings(cfg)
    image_set = ex.build_image_set(cfg)
    if tuple(image_set.classes) != trained.classes:
        raise WsssError(
            f"{trained.path}: trained for {len(trained.classes)} classes "
            f"({', '.join(trained.classes[:3])}, ...), the data set has {image_set.num_classes} "
            f"({', '.join(image_set.classes[:3])}, ...)"
        )
    results = {"network": folder.path / scoring.MASKS}
    if crf:
        results["crf"] = folder.path / REFINED
    names = image_set.names(split)
    if not ex.begin(cfg, folder):
        if packed and ex.is_main_process():
            pack(cfg, folder.path, results, names, image_set.num_classes + 1)
        return folder.manifest
    start = time.monotonic()
    image_set.check(split)
    lacking = {n for p in results.values() for n in missing_files_of(p, names, ".png")}
    missing = [name for name in names if name in lacking]
    if missing:
        predict(cfg, folder, trained, image_set, missing, crf)
    if not ex.is_main_process():
        return {}
    result: dict[str, Any] = {
        "split": split,
        "images": len(names),
        "image_labels_known": False,
        "initial_weights": trained.initial_weights,
        "main": list(results)[-1],
    }
    facts: dict[str, Any] = {"images": len(names), "checkpoint": ex.relative(trained.path)}
    loggers = ex.build_loggers(cfg, folder.path, "seg_eval")
    unscored = why_unscored(image_set, names, split)
    if unscored:
        ex.say(f"seg_eval: no score: {unscored}")
    else:
        for what, masks in results.items():
            result[what] = score(cfg, image_set, masks, names, what)
        result["miou"] = facts["miou"] = result[result["main"]]["miou"]
        rows = {what: result[what] for what in results}
        show_scores(loggers, folder.path, rows, result["main"])
        ex.say(class_table({what: result[what]["iou"] for what in results}))
    write_json(folder.path / "metrics.json", result)
    columns = {"network": results["network"], **({"+ CRF": results["crf"]} if crf else {})}
    sheet, count = folder.path / "contact_sheet.png", cfg.segmentation.pictures
    prediction_sheet(image_set, names, count, columns, not unscored, sheet, loggers)
    if packed:
        pack(cfg, folder.path, results, names, image_set.num_classes + 1)
    seconds = time.monotonic() - start
    folder.close(**facts, seconds=seconds)
    shown = ", ".join(f"{w} {result[w]['miou']:.2f}" for w in results) if not unscored else ""
    ex.say(
        f"seg_eval: {'mIoU ' + shown + '; ' if shown else ''}{len(names)} images of split "
        f"'{split}' in {duration(seconds)} (initial weights: {trained.initial_weights}) -> "
        f"{ex.relative(folder.path)}"
    )
    return folder.manifest


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
    cfg: DictConfig, folder: Path, results: dict[str, Path], names: list[str], num_labels: int
) -> None:
    """Write an archive for VOC's server of each result that has none yet."""
    options, split = cfg.segmentation.eval.archive, split_of(cfg)
    for what, masks in results.items():
        suffix = "" if what == "network" else f"_{what}"
        path = folder / f"results_{options.competition}_{split}{suffix}.{options.format}"
        if not path.is_file():
            kind = (options.competition, options.format)
            write_archive(path, masks, names, split, num_labels, *kind)
        ex.say(f"seg_eval: for VOC's evaluation server: {ex.relative(path)}")
