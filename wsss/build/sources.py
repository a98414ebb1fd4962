"""What a stage reads of the stages before it, where that lies, and what it is known by."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from wsss.build.identity import (
    file_hash,
    files_of,
    given_of,
    images_of,
    irn_identity,
    map_identity,
    masks_of,
    psa_identity,
    segmentation_identity,
    split_of,
    training_identity,
)
from wsss.build.objects import build_image_set
from wsss.build.settings import Settings, plain
from wsss.data.base import ImageSet
from wsss.errors import WsssError
from wsss.evaluation.scoring import MASKS
from wsss.files import read_json
from wsss.maps.files import MAPS, MapSource
from wsss.run.callbacks import CHECKPOINT
from wsss.run.folder import MANIFEST, StageFolder, check_classes, ended_as, require
from wsss.run.group import led
from wsss.run.process import relative, say

# Settings that act on a result, and hashes of what is read for it, by name.
Identity = tuple[dict[str, Any], dict[str, str]]
# The stages that make pseudo masks by a walk: the training before, its file, the walk's key.
WALKS = {
    "irn_masks": ("irn_train", "irn.pt", "walk"),
    "psa_masks": ("psa_train", "psa.pt", "psa_walk"),
}


def other_folders(s: Settings, stage: str) -> list[Path]:
    """Folders of other overrides in which the stage may have been done for this run, too."""
    return s.other_folders(stage) if stage in IDENTITIES else []


def taken(stage: str, folder: Path) -> str:
    """What is said of results that another folder has made."""
    return f"{stage}: taken from {relative(folder)}, which these settings would make again"


def find_stage(
    s: Settings, stage: str, wanted_by: str, classes: tuple[str, ...] | None = None
) -> tuple[Path, dict[str, Any]]:
    """Folder and manifest of a stage that another one reads.

    That of this run; if it was not done there, that of other overrides of the run's name with
    which it would have come out the same: `eval_cam.background=0.5` acts on no training.

    Raises:
        WsssError: it has not ended in any of them, or knew other classes.
    """

    @led
    def found() -> tuple[Path, list[Path]]:
        folder = s.folder(stage)
        here = (folder / MANIFEST).is_file()
        others = [] if here else [one for one in other_folders(s, stage) if ended_as(one)]
        if others:
            try:
                folder = _same(s, stage, others) or folder
            except WsssError:  # what it would be made of is not there, so neither is it
                pass
        return folder, others

    folder, others = found()
    return folder, require(folder, stage, wanted_by, classes, _instead(stage, others))


def _same(s: Settings, stage: str, others: list[Path]) -> Path | None:
    """The first of some folders that holds what this run would make."""
    wanted = StageFolder(s.folder(stage), stage, *IDENTITIES[stage](s, build_image_set(s)))
    found = wanted.take(others)
    if found:
        say(taken(stage, found))
    return found


def _instead(stage: str, others: list[Path]) -> str:
    """The way out beside running a stage that is wanted."""
    key = {"train": "checkpoint", "seg_train": "segmentation.checkpoint"}.get(stage)
    if key is None:
        return ""
    there = next((one / CHECKPOINT for one in others if (one / CHECKPOINT).is_file()), None)
    return f"give {key}={relative(there) if there else 'FILE'}"


def find_checkpoint(
    s: Settings, wanted_by: str, classes: tuple[str, ...]
) -> tuple[Path | None, str]:
    """The checkpoint that a stage reads, and the hash of its content.

    `checkpoint=FILE` names one of another run; otherwise it is that of this run's training. A
    host that learns nothing has none.

    Raises:
        WsssError: there is none, or it was trained for other classes or in another order.
    """
    if s.checkpoint:
        path = Path(s.checkpoint).expanduser()
        if not path.is_file():
            raise WsssError(f"checkpoint={path}: no such file")
        if (path.parent / MANIFEST).is_file():
            require(path.parent, "train", wanted_by, classes)
        return path, file_hash(s, path)
    folder, made = find_stage(s, "train", wanted_by, classes)
    path = folder / CHECKPOINT
    if not made.get("trained", True):
        return None, made["hash"]
    if not path.is_file():
        raise WsssError(f"{path}: is not there any more; run stage=train again")
    return path, file_hash(s, path)


def map_source(s: Settings, wanted_by: str, classes: tuple[str, ...]) -> MapSource:
    """The class maps of this run that `refine.kind` names; null names the method's own.

    Raises:
        WsssError: make_cam has not ended, knew other classes, or made no maps of that kind.
    """
    folder, made = find_stage(s, "make_cam", wanted_by, classes)
    kinds = list(made["kinds"])
    kind = s.refine.kind or kinds[-1]
    if kind not in kinds:
        raise WsssError(f"refine.kind={kind}: there are maps of kind {', '.join(kinds)}")
    return MapSource(folder / MAPS, kind, made["hash"])


def mask_source(s: Settings, classes: tuple[str, ...]) -> tuple[Path, str | None]:
    """Folder of the pseudo masks, and the stage of this run that made them, if one did.

    Raises:
        WsssError: the stage has not ended, the folder is not there, or they are of other classes.
    """
    if s.segmentation.masks:
        folder = Path(s.segmentation.masks).expanduser()
        if not folder.is_dir():
            raise WsssError(
                f"segmentation.masks={folder}: no such folder; give a folder of label maps "
                f"NAME.png, or null for those of this run"
            )
        if (folder.parent / MANIFEST).is_file():  # of another run of this program
            check_classes(
                str(folder), read_json(folder.parent / MANIFEST).get("class_names"), classes
            )
        return folder, None
    stage = s.refine.masks
    return find_stage(s, stage, "seg_train", classes)[0] / MASKS, stage


def training(s: Settings, image_set: ImageSet) -> Identity:
    """Of stage=train: all settings of the training, images and image labels."""
    split = s.data.train_split
    inputs = images_of(s, image_set, split) | given_of(s, image_set, split, "train")
    return training_identity(s), inputs


def made_maps(s: Settings, image_set: ImageSet) -> Identity:
    """Of stage=make_cam: the training, images, image labels and what acts at test time."""
    _, source = find_checkpoint(s, "make_cam", image_set.classes)
    split = s.data.infer_split
    inputs = images_of(s, image_set, split) | given_of(s, image_set, split, "make_cam")
    return map_identity(s), {"train": source, **inputs}


def imported_maps(s: Settings, image_set: ImageSet) -> Identity:
    """Of stage=import_cam: another project's files, and the images."""
    split, folder = s.data.infer_split, Path(str(s.refine.npy)).expanduser()
    settings = {"make_cam": map_identity(s)["make_cam"], "infer_split": split}
    return settings, {
        **files_of(s, "refine.npy", folder, image_set.names(split), ".npy"),
        **images_of(s, image_set, split, labels=False),
    }


def class_maps(s: Settings, image_set: ImageSet) -> Identity:
    """Of the folder make_cam, which import_cam fills, too."""
    return (imported_maps if s.refine.npy else made_maps)(s, image_set)


def refined(s: Settings, image_set: ImageSet, stage: str, part: str) -> Identity:
    """Of a refining stage: class maps, images, its part of `refine`, and masks to score against."""
    source = map_source(s, stage, image_set.classes)
    settings = {
        part: plain(getattr(s.refine, part)),
        "kind": source.kind,
        "infer_split": s.data.infer_split,
        "eval_split": s.data.eval_split,
    }
    return settings, {
        "make_cam": source.hash,
        **images_of(s, image_set, s.data.infer_split, labels=False),
        **masks_of(s, image_set, s.data.eval_split),
    }


def irn_heads(s: Settings, image_set: ImageSet) -> Identity:
    """Of stage=irn_train: labels, images and, where it goes on from it, the training."""
    classes = image_set.classes
    inputs = {
        "irn_labels": find_stage(s, "irn_labels", "irn_train", classes)[1]["hash"],
        **images_of(s, image_set, s.data.infer_split, labels=False),
    }
    if s.refine.irn.features == "method":
        inputs["train"] = find_checkpoint(s, "irn_train", classes)[1]
    return irn_identity(s), inputs


def psa_network(s: Settings, image_set: ImageSet) -> Identity:
    """Of stage=psa_train: the readings of the seeds, and images."""
    made = find_stage(s, "psa_labels", "psa_train", image_set.classes)[1]
    images = images_of(s, image_set, s.data.infer_split, labels=False)
    return psa_identity(s), {"psa_labels": made["hash"], **images}


def walked(s: Settings, image_set: ImageSet, stage: str) -> Identity:
    """Of a stage of `WALKS`: class maps, images, the trained network, and how seeds are scored."""
    trained_by, weights, part = WALKS[stage]
    settings, inputs = refined(s, image_set, stage, part)
    folder, made = find_stage(s, trained_by, stage, image_set.classes)
    trained = {trained_by: made["hash"], weights: file_hash(s, folder / weights)}
    return {**settings, "seed_background": s.eval_cam.background}, {**trained, **inputs}


def segmenter(s: Settings, image_set: ImageSet) -> Identity:
    """Of stage=seg_train: pseudo masks, images and, where it goes on from it, the training."""
    masks, _ = mask_source(s, image_set.classes)
    split = split_of(s)
    inputs = {
        **images_of(s, image_set, split, labels=False),
        **files_of(s, "pseudo masks", masks, image_set.names(split), ".png"),
    }
    if s.segmentation.features == "method":
        inputs["train"] = find_checkpoint(s, "seg_train", image_set.classes)[1]
    return segmentation_identity(s), inputs


# What each stage that others read is known by, which finds it under other overrides, too.
IDENTITIES: dict[str, Callable[[Settings, ImageSet], Identity]] = {
    "train": training,
    "make_cam": class_maps,
    "crf": partial(refined, stage="crf", part="crf"),
    "irn_labels": partial(refined, stage="irn_labels", part="labels"),
    "irn_train": irn_heads,
    "irn_masks": partial(walked, stage="irn_masks"),
    "psa_labels": partial(refined, stage="psa_labels", part="psa_labels"),
    "psa_train": psa_network,
    "psa_masks": partial(walked, stage="psa_masks"),
    "seg_train": segmenter,
}
