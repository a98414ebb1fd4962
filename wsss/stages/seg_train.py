"""Train the segmentation network on the pseudo masks; writes last.ckpt."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from wsss.build.identity import split_of
from wsss.build.job import Job, Result
from wsss.build.objects import build_image_set
from wsss.build.segmenter import build_segmenter, initial_weights
from wsss.build.settings import Settings
from wsss.build.sources import mask_source, segmenter
from wsss.build.trainer import fit
from wsss.data.base import ImageSet
from wsss.data.datamodule import EpochData, EpochSet, Sample, WholeSet
from wsss.data.transforms import Crop, DrawSize, Pyramid, ScaleRange, Scales, resize_bilinear
from wsss.run.callbacks import CHECKPOINT
from wsss.run.group import led
from wsss.run.process import relative, say
from wsss.segmentation.base import SegmentationNetwork
from wsss.segmentation.mask_check import check_masks
from wsss.segmentation.module import Segmenter
from wsss.segmentation.predict import class_probabilities, label_map
from wsss.segmentation.settings import EvalSettings, SegmentationSettings
from wsss.show.layout import Cell
from wsss.show.sheets import crop_sheet, label_cell
from wsss.show.training import Album


def training_length(options: SegmentationSettings, steps_per_epoch: int) -> dict[str, int]:
    """Lightning's `max_epochs` and `max_steps` (-1: no limit) for `segmentation.train`."""
    steps, epochs = options.train.max_steps, options.train.max_epochs
    if steps is None:
        assert epochs is not None
        return {"max_epochs": epochs, "max_steps": -1}
    return {"max_epochs": math.ceil(steps / steps_per_epoch), "max_steps": steps}


def training_crop(options: SegmentationSettings, network: SegmentationNetwork) -> Crop:
    """DeepLab's crop: random scale, padding right and below, bilinear."""
    train = options.train
    draw: DrawSize
    if train.scales is not None:
        draw = Scales(train.scales, options.long_side)
    else:
        assert train.scale_range is not None
        draw = ScaleRange(*train.scale_range, options.long_side, cut=True)
    return Crop(
        train.crop_size,
        network.mean,
        network.std,
        draw,
        resize=resize_bilinear,
        corner=True,
        mirror=train.mirror,
        pad_label=train.pad_label,
    )


def look_at_masks(
    job: Job, image_set: ImageSet, names: list[str], masks: Path, stage: str | None
) -> dict[str, Any]:
    """Check all pseudo masks and warn of what is odd; what they hold, for the manifest."""
    way_out = (
        f"run stage={stage} again (overwrite=true)"
        if stage
        else "correct them, or give another segmentation.masks"
    )
    workers = job.settings.segmentation.workers
    counts = check_masks(image_set, names, masks, way_out, workers)
    for line in counts.warnings(image_set.classes):
        say(f"seg_train: warning: {line}")
    return counts.as_dict(image_set.classes)


def drawn(segmenter: pl.LightningModule, sample: Sample) -> list[Cell]:
    """What the network makes of an image now, at scale 1, and what it learns from."""
    assert isinstance(segmenter, Segmenter)
    shares = class_probabilities(segmenter.logits, sample["images"][0], EvalSettings())
    labels = label_map(shares, tuple(sample["size"].tolist()))
    picture = sample["picture"].cpu().numpy()
    return [[label_cell(picture, one.cpu().numpy())] for one in (labels, sample["target"])]


def run(s: Settings) -> Result:
    """Train, or go on with a killed training; no mask but the pseudo masks is ever read."""
    image_set = build_image_set(s)
    masks, stage = mask_source(s, image_set.classes)
    names = image_set.names(split_of(s))
    job = Job(
        s,
        "seg_train",
        *segmenter(s, image_set),
        needs=lambda path: [path / CHECKPOINT],
    )
    if job.finished:
        return job.result()
    module, network = build_segmenter(s, image_set.classes)
    begins_with = initial_weights(s, network)
    if begins_with == "none" and network.fixed_norms:
        say(
            "seg_train: warning: the network starts from random weights with fixed batch "
            "statistics and will hardly learn; give segmentation.network.weights=FILE"
        )
    options = s.segmentation.train
    train = EpochSet(
        image_set, names, training_crop(s.segmentation, network), s.seed, targets=masks
    )
    data = EpochData(
        train,
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        num_workers=s.data.num_workers,
        key="segmentation.train.batch_size",
    )
    inputs_of = Pyramid(
        network.mean, network.std, long_side=s.segmentation.long_side, resize=resize_bilinear
    )
    whole = WholeSet(image_set, names, inputs_of, targets=masks, picture=True)

    @led
    def looked_at() -> dict[str, Any]:
        counts = look_at_masks(job, image_set, names, masks, stage)
        crop_sheet(train, s.segmentation.pictures, job.path / "samples.png")
        return counts

    facts = {"pseudo_masks": looked_at()}
    fitted = fit(
        job,
        module,
        data,
        "segmentation.optimizer.lr"
        + ", take segmentation.loss=balanced," * (s.segmentation.loss == "ce"),
        f"{len(names)} pseudo masks; initial weights: {begins_with}",
        Album(whole, ["segmentation", "pseudo mask"], drawn),
        **training_length(s.segmentation, data.steps_per_epoch),
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.gradient_clip_val,
    )
    return job.close(
        f"{fitted}; {len(names)} pseudo masks of "
        f"{stage or relative(masks)}, initial weights: {begins_with}",
        fitted.checkpoint,
        loss=fitted.loss,
        steps=fitted.steps,
        images=len(names),
        masks=stage or relative(masks),
        initial_weights=begins_with,
        class_names=list(image_set.classes),
        **facts,
    )
