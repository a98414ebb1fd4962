"""What can be known to go wrong before the first stage of a job begins."""

from __future__ import annotations

from collections.abc import Mapping

from wsss.build.objects import build_image_set
from wsss.build.settings import Settings
from wsss.data.datamodule import check_batch
from wsss.errors import WsssError


def check_batches(stages: Mapping[str, Settings], world: int) -> None:
    """Check the batches of all trainings to come; a split that is made on the way is passed over.

    Args:
        stages: settings of each stage, by its name in the pipeline.
        world: number of processes.

    Raises:
        WsssError: a batch can't be filled, or not be split over the processes.
    """
    for name, s in stages.items():
        batch = batch_of(name.rpartition("/")[2], s)
        if batch is None:
            continue
        key, size, accumulate, split = batch
        try:
            images = len(build_image_set(s).names(split))
        except WsssError:
            images = size * accumulate
        try:
            check_batch(key, size, accumulate, images, world)
        except WsssError as error:
            raise WsssError(f"stage={name}: {error}") from None


def batch_of(stage: str, s: Settings) -> tuple[str, int, int, str] | None:
    """Key and size of the batch of a stage that trains, its accumulation, and its split."""
    infer = s.data.infer_split
    if stage == "train":
        learns = s.host.make.trains or s.method.branch is not None  # type: ignore[attr-defined]
        return ("data.batch_size", s.data.batch_size, 1, s.data.train_split) if learns else None
    if stage == "irn_train":
        return "refine.irn.batch_size", s.refine.irn.batch_size, 1, infer
    if stage == "psa_train":
        return "refine.psa.batch_size", s.refine.psa.batch_size, 1, infer
    if stage == "seg_train":
        train = s.segmentation.train
        key, split = "segmentation.train.batch_size", s.segmentation.split or infer
        return key, train.batch_size, train.accumulate, split
    return None
