"""Take class maps from IRN's or SIPE's .npy files (refine.npy=DIR) in the place of make_cam."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from PIL import Image

from wsss.build import objects as ex
from wsss.errors import WsssError
from wsss.maps.files import ClassMaps, write_class_maps
from wsss.maps.fuse import enlarge
from wsss.maps.interop import npy_files, read_npy_maps
from wsss.run.folder import StageFolder
from wsss.run.progress import duration, track
from wsss.stages.make_cam import MAPS


def run(cfg: DictConfig) -> None:
    """Convert the files of all images of data.infer_split into this run's make_cam folder."""
    if not cfg.refine.npy:
        raise WsssError("stage=import_cam needs refine.npy=DIR, a folder of NAME.npy files")
    source = Path(cfg.refine.npy)
    settings = {
        "npy": str(source.resolve()),
        "make_cam": ex.plain(cfg.make_cam),
        "infer_split": cfg.data.infer_split,
    }
    folder = StageFolder(ex.stage_folder(cfg, "make_cam"), "make_cam", settings)
    if not ex.is_main_process() or not ex.begin(cfg, folder):
        return
    start = time.monotonic()
    image_set = ex.build_image_set(cfg)
    image_set.check(cfg.data.infer_split)
    names = image_set.names(cfg.data.infer_split)
    kinds: dict[str, bool] = {}
    stride = cfg.make_cam.stride
    paths = npy_files(source, names)
    for name, path in track(list(zip(names, paths, strict=True)), "import_cam"):
        with Image.open(image_set.image_path(name)) as file:
            width, height = file.size
        found = read_npy_maps(path, (height, width))
        (kind,) = found.maps
        if len(found.classes) and found.classes.max() > image_set.num_classes:
            raise WsssError(
                f"{path}: class id {found.classes.max()}, but there are "
                f"{image_set.num_classes} classes"
            )
        kinds[kind] = found.has_background(kind)
        if len(kinds) > 1:
            raise WsssError(f"{source}: holds both IRN's and SIPE's files; import one of them")
        grid = ((height - 1) // stride + 1, (width - 1) // stride + 1)
        maps = np.clip(enlarge(found.maps[kind], grid), 0, 1)
        write_class_maps(
            folder.path / MAPS / f"{name}.npz",
            ClassMaps(found.classes, found.size, {kind: maps}),
            cfg.make_cam.dtype,
        )
    folder.close(kinds=kinds, images=len(names), seconds=time.monotonic() - start)
    ex.say(
        f"import_cam: {len(names)} images ({', '.join(kinds)}) in "
        f"{duration(time.monotonic() - start)} -> {ex.relative(folder.path / MAPS)}"
    )
