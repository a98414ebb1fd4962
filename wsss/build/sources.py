"""What a stage reads of the stages before it: class maps, pseudo masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wsss.build.identity import images_of, masks_of
from wsss.build.settings import Settings, plain
from wsss.data.base import ImageSet
from wsss.errors import WsssError
from wsss.evaluation.scoring import MASKS
from wsss.files import read_json
from wsss.maps.files import MAPS, MapSource
from wsss.run.folder import MANIFEST, check_classes, require


def map_source(s: Settings, wanted_by: str, classes: tuple[str, ...]) -> MapSource:
    """The class maps of this run that `refine.kind` names; null names the method's own.

    Raises:
        WsssError: make_cam has not ended, knew other classes, or made no maps of that kind.
    """
    folder = s.folder("make_cam")
    made = require(folder, "make_cam", wanted_by, classes)
    kinds = list(made["kinds"])
    kind = s.refine.kind or kinds[-1]
    if kind not in kinds:
        raise WsssError(f"refine.kind={kind}: there are maps of kind {', '.join(kinds)}")
    return MapSource(folder / MAPS, kind, made["hash"])


def refine_identity(s: Settings, source: MapSource, part: str) -> dict[str, Any]:
    """What a refining stage depends on: its part of `refine`, the kind of map, the splits."""
    return {
        part: plain(getattr(s.refine, part)),
        "kind": source.kind,
        "infer_split": s.data.infer_split,
        "eval_split": s.data.eval_split,
    }


def refine_inputs(s: Settings, source: MapSource, image_set: ImageSet) -> dict[str, str]:
    """What a refining stage reads: class maps, images, and masks to score against."""
    return {
        "make_cam": source.hash,
        **images_of(s, image_set, s.data.infer_split, labels=False),
        **masks_of(s, image_set, s.data.eval_split),
    }


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
    require(s.folder(stage), stage, "seg_train", classes)
    return s.folder(stage) / MASKS, stage
