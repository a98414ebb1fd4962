"""Write class maps as another project's .npy files (refine.npy_format=irn, amn, ...)."""

from __future__ import annotations

from wsss.build.job import Job, Result
from wsss.build.objects import build_image_set
from wsss.build.settings import Settings
from wsss.build.sources import map_source
from wsss.build.trainer import still_missing
from wsss.maps.interop import write_npy_maps
from wsss.run.group import led
from wsss.run.progress import track


@led
def run(s: Settings) -> Result:
    """Export the maps of all images of data.infer_split that are not exported yet."""
    image_set = build_image_set(s)
    source = map_source(s, "export_cam", image_set.classes)
    names = image_set.names(s.data.infer_split)
    identity = {
        "npy_format": s.refine.npy_format,
        "kind": source.kind,
        "infer_split": s.data.infer_split,
    }
    job = Job(
        s,
        "export_cam",
        identity,
        {"make_cam": source.hash},
        needs=lambda path: [path / "npy" / f"{name}.npy" for name in names],
    )
    if job.finished:
        return job.result()
    files = job.path / "npy"
    for name in track(still_missing(names, (files, ".npy")), "export_cam"):
        write_npy_maps(files / f"{name}.npy", source.read(name), source.kind, s.refine.npy_format)
    stride = s.make_cam.stride
    form = "" if stride == 1 else f", enlarged from stride {stride} (make_cam.stride=1: not)"
    return job.close(f"{len(names)} images in {{time}}{form}", files, images=len(names))
