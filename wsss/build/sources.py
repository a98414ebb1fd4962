"""What a stage reads of the stages before it: class maps, pseudo masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wsss.build.settings import Settings, plain
from wsss.errors import WsssError
from wsss.evaluation.scoring import MASKS
from wsss.maps.files import MAPS, MapSource
from wsss.run.folder import require


def map_source(s: Settings, wanted_by: str) -> MapSource:
    """The class maps of this run that `refine.kind` names; null names the method's own.

    Raises:
        WsssError: make_cam has not ended, or there are no maps of that kind.
    """
    folder = s.folder("make_cam")
    made = require(folder, "make_cam", wanted_by)
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


def mask_source(s: Settings) -> tuple[Path, str | None]:
    """Folder of the pseudo masks, and the stage of this run that made them, if one did.

    Raises:
        WsssError: the stage has not ended, or the folder is not there.
    """
    if s.segmentation.masks:
        folder = Path(s.segmentation.masks).expanduser()
        if not folder.is_dir():
            raise WsssError(
                f"segmentation.masks={folder}: no such folder; give a folder of label maps "
                f"NAME.png, or null for those of this run"
            )
        return folder, None
    stage = s.refine.masks
    require(s.folder(stage), stage, "seg_train")
    return s.folder(stage) / MASKS, stage
