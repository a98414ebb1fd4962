"""Take class maps from another project's .npy files (refine.npy=DIR) in make_cam's place."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsss.build.job import Job, Result
from wsss.build.objects import build_image_set
from wsss.build.settings import Settings
from wsss.build.sources import imported_maps
from wsss.data.photographs import photograph_size
from wsss.errors import WsssError
from wsss.maps.files import MAPS, ClassMaps, write_class_maps
from wsss.maps.fuse import enlarge
from wsss.maps.interop import npy_files, read_npy_maps
from wsss.run.group import led
from wsss.run.progress import track


@led
def run(s: Settings) -> Result:
    """Convert the files of all images of data.infer_split into this run's make_cam folder."""
    if not s.refine.npy:
        raise WsssError("stage=import_cam needs refine.npy=DIR, a folder of NAME.npy files")
    source = Path(s.refine.npy).expanduser()
    image_set = build_image_set(s)
    names = image_set.names(s.data.infer_split)
    paths = npy_files(source, names)
    needs = [f"{MAPS}/{name}.npz" for name in names]
    identity = imported_maps(s, image_set)
    job = Job(s, "make_cam", *identity, needs=lambda path: [path / n for n in needs])
    if job.finished:
        return job.result()
    kinds: dict[str, bool] = {}
    stride = s.make_cam.stride
    for name, path in track(list(zip(names, paths, strict=True)), "import_cam"):
        height, width = photograph_size(image_set.image_path(name))
        found = read_npy_maps(path, (height, width))
        (kind,) = found.maps
        if len(found.classes) and found.classes.max() > image_set.num_classes:
            raise WsssError(
                f"{path}: class id {found.classes.max()}, but there are "
                f"{image_set.num_classes} classes"
            )
        kinds[kind] = found.has_background(kind)
        if len(kinds) > 1:
            raise WsssError(f"{source}: holds {' and '.join(kinds)}; import files of one form")
        grid = ((height - 1) // stride + 1, (width - 1) // stride + 1)
        maps = np.clip(enlarge(found.maps[kind], grid), 0, 1)
        write_class_maps(
            job.path / MAPS / f"{name}.npz",
            ClassMaps(found.classes, found.size, {kind: maps}),
            s.make_cam.dtype,
        )
    text = f"import_cam: {len(names)} images ({', '.join(kinds)}) in {{time}}"
    return job.close(
        text, job.path / MAPS, kinds=kinds, images=len(names), class_names=list(image_set.classes)
    )
