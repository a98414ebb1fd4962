"""What COCO's 82,081 images cost beside the computing: listing, resuming, identity, starting.

python benchmarks/scale.py              82,081 files of a few hundred bytes in each folder
python benchmarks/scale.py --quick      2,000
python benchmarks/scale.py --folder DIR on the disk of DIR, for instance that of a cluster

A folder of images, one of class maps and one of masks, annotations in COCO's format, and what a
stage does with them before and after its work; then the start of a process, and what CPAL's
processes send one another in a step. Seconds of the CPU, in which other work on the machine does
not count, and of the clock, in which a network's disk does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss.build.settings import Settings
from wsss.cli import compose_for_doctor
from wsss.data.base import missing_files
from wsss.data.coco import MASKS
from wsss.data.coco_index import build_index
from wsss.files import missing_files_of, remove_parts
from wsss.maps.files import ClassMaps, write_class_maps

COCO_IMAGES = 82_081
CLASSES = 80
LABELS = 2.9  # of an image, on average
ROOT = Path(__file__).resolve().parents[1]


def timed(what: str, work: Callable[[], Any]) -> Any:
    """Print how long something takes, with the processes that it starts."""
    start, before = time.perf_counter(), sum(os.times()[:4])
    result = work()
    used, passed = sum(os.times()[:4]) - before, time.perf_counter() - start
    print(f"| {what} | {used:.2f} | {passed:.2f} |", flush=True)
    return result


def copies(first: Path, paths: list[Path]) -> None:
    """The same small file at many places."""
    content = first.read_bytes()
    for path in paths:
        path.write_bytes(content)


def write_coco(coco: Path, images: int, size: tuple[int, int]) -> list[str]:
    """Annotations in COCO's format of `images` pictures of (height, width); their names.

    Each has a triangle of each of its classes. The pictures themselves are the caller's.
    """
    names = [f"COCO_train2014_{number:012d}" for number in range(images)]
    rng, (height, width) = np.random.default_rng(0), size
    annotations = []
    for i in range(images):
        count = min(CLASSES, 1 + rng.poisson(LABELS - 1))
        for n in rng.choice(CLASSES, size=count, replace=False).tolist():
            x, y = rng.uniform(0, width, 3), rng.uniform(0, height, 3)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": i,
                    "category_id": n,
                    "iscrowd": 0,
                    "segmentation": [np.stack([x, y], axis=1).round(2).ravel().tolist()],
                }
            )
    content = {
        "images": [
            {"id": i, "file_name": f"{name}.jpg", "height": height, "width": width}
            for i, name in enumerate(names)
        ],
        "annotations": annotations,
        "categories": [{"id": n, "name": f"class {n}"} for n in range(CLASSES)],
    }
    for folder in ("annotations", "train2014"):
        (coco / folder).mkdir(parents=True)
    (coco / "annotations/instances_train2014.json").write_text(json.dumps(content))
    return names


def settings(coco: Path, outputs: Path, *more: str) -> Settings:
    """Those of COCO, for a folder in its format."""
    places = (f"data.root={coco}", f"paths.outputs={outputs}", "backbone.weights=null")
    return compose_for_doctor(["experiment=cpal_coco", *places, *more])


def make(root: Path, images: int) -> tuple[Settings, list[str]]:
    """The data set, its derived files and the class maps of its images."""
    coco, maps = root / "coco", root / "maps"
    names = write_coco(coco, images, (8, 8))
    maps.mkdir()
    picture, mask, stored = root / "picture.jpg", root / "mask.png", root / "maps.npz"
    Image.new("RGB", (8, 8)).save(picture)
    Image.new("P", (8, 8)).save(mask)
    write_class_maps(stored, ClassMaps(np.array([1]), (8, 8), {"cam": np.zeros((1, 2, 2))}))
    copies(picture, [coco / f"train2014/{name}.jpg" for name in names])
    copies(stored, [maps / f"{name}.npz" for name in names])
    s = settings(coco, root / "out")
    image_set: Any = s.data.image_set()
    derived = image_set.folder("train")
    timed(
        "read the annotations, once", lambda: build_index(image_set.annotations["train"], derived)
    )
    (derived / MASKS).mkdir()
    copies(mask, [derived / MASKS / f"{name}.png" for name in names])
    return s, names


def files(root: Path, s: Settings, names: list[str]) -> None:
    """What a stage does with the files of all images."""
    from wsss.build.identity import file_hash, files_of, images_of, masks_of

    maps = root / "maps"
    split = s.data.train_split
    timed("names and paths of the images", lambda: _paths(s))
    for time_of in ("first", "again"):
        timed(f"content of the images, {time_of}", lambda: images_of(s, s.data.image_set(), split))
        timed(f"content of the masks, {time_of}", lambda: masks_of(s, s.data.image_set(), split))
        timed(
            f"content of the class maps, {time_of}",
            lambda: files_of(s, "class maps", maps, names, ".npz"),
        )
    timed("content of one file beside them", lambda: file_hash(s, root / "maps.npz"))
    timed("which class maps are missing", lambda: missing_files_of(maps, names, ".npz"))
    wanted = [maps / f"{name}.npz" for name in names]
    timed("whether a finished stage is whole", lambda: missing_files(wanted))
    timed("look for what killed processes left", lambda: remove_parts(root))
    nested = root / "nested"
    for number, name in enumerate(names):
        folder = nested / f"{number % 1000:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        os.link(maps / f"{name}.npz", folder / f"{name}.npz")
    timed("list one folder", lambda: sum(1 for _ in os.scandir(maps)))
    timed("list 1,000 folders", lambda: sum(1 for f in nested.iterdir() for _ in os.scandir(f)))
    some = names[:: max(1, len(names) // 2000)]
    timed(
        f"read {len(some)} files of one folder",
        lambda: [(maps / f"{name}.npz").read_bytes() for name in some],
    )
    places = {path.stem: path for path in nested.rglob("*.npz")}
    timed(
        f"read {len(some)} files of 1,000 folders", lambda: [places[n].read_bytes() for n in some]
    )


def _paths(s: Settings) -> list[Path]:
    image_set = s.data.image_set()
    return [image_set.image_path(name) for name in image_set.names(s.data.train_split)]


def starts() -> None:
    """A process until its first stage could begin, by what it imports."""
    for what in ("torch", "pytorch_lightning", "wsss.cli, wsss.stages.train"):
        command = [sys.executable, "-c", f"import {what}"]
        timed(f"import {what}", lambda command=command: subprocess.run(command, cwd=ROOT))
    command = [sys.executable, "run.py", "--help"]
    timed("run.py --help", lambda: subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL))


def exchanged(dim: int = 128, batch: int = 16) -> None:
    """Bytes of a step of CPAL that processes send one another."""
    from wsss.build.objects import build_network

    print("\n| classes | gradients MB | anchors KB | shift's means KB | bank, sent once MB |")
    print("|---|---|---|---|---|")
    s = settings(Path("."), Path("."))
    for classes, labels in ((20, 1.5), (80, LABELS)):
        network = build_network(s, tuple(f"class {n}" for n in range(classes)))
        learning = sum(p.numel() for p in network.parameters() if p.requires_grad)
        anchors, means = batch * labels * (dim + 2), classes * (dim + 1)
        bank = sum(b.numel() * b.element_size() for b in network.branch.bank.buffers())
        print(
            f"| {classes} | {4 * learning / 1e6:.0f} | {4 * anchors / 1e3:.1f} | "
            f"{4 * means / 1e3:.1f} | {bank / 1e6:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2,000 files instead of 82,081")
    parser.add_argument("--folder", type=Path, help="where to write; default: the temporary folder")
    arguments = parser.parse_args()
    images = 2000 if arguments.quick else COCO_IMAGES
    root = Path(tempfile.mkdtemp(dir=arguments.folder))
    print(f"{platform.machine()}, {os.cpu_count()} cores; {images} images, {root}\n")
    print("| work | CPU s | clock s |\n|---|---|---|")
    try:
        s, names = make(root, images)
        files(root, s, names)
        starts()
        exchanged()
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
