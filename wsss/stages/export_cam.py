"""Write class maps as IRN's or SIPE's .npy files (refine.npy_format)."""

from __future__ import annotations

import time

from omegaconf import DictConfig

from wsss.build import objects as ex
from wsss.build import sources
from wsss.files import missing_files_of
from wsss.maps.interop import write_npy_maps
from wsss.run.folder import StageFolder
from wsss.run.progress import duration, track


def run(cfg: DictConfig) -> None:
    """Export the maps of all images of data.infer_split that are not exported yet."""
    source = sources.map_source(cfg, "export_cam")
    settings = {
        "npy_format": cfg.refine.npy_format,
        "kind": source.kind,
        "infer_split": cfg.data.infer_split,
    }
    folder = StageFolder(
        ex.stage_folder(cfg, "export_cam"), "export_cam", settings, {"make_cam": source.hash}
    )
    if not ex.is_main_process() or not ex.begin(cfg, folder):
        return
    start = time.monotonic()
    names = ex.build_image_set(cfg).names(cfg.data.infer_split)
    files = folder.path / "npy"
    for name in track(missing_files_of(files, names, ".npy"), "export_cam"):
        write_npy_maps(files / f"{name}.npy", source.read(name), source.kind, cfg.refine.npy_format)
    folder.close(images=len(names), seconds=time.monotonic() - start)
    ex.say(
        f"export_cam: {len(names)} images in {duration(time.monotonic() - start)} "
        f"-> {ex.relative(files)}"
    )
