"""Time and memory of reading annotations of COCO's size, and how quickly masks are painted.

python benchmarks/coco_prepare.py                 82,783 images, 600,000 polygons (0.4 GB of JSON)
python benchmarks/coco_prepare.py --quick         2,000 images
python benchmarks/coco_prepare.py --pycocotools   the same file loaded as pycocotools does

The annotations are made up: seven objects an image, polygons of 30 points, 80 categories.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from wsss.data.coco_index import INDEX, OUTLINES, build_index, read_index, read_outlines
from wsss.data.coco_masks import PaintTask, paint_file

OBJECTS, POINTS, CATEGORIES = 7.3, 30, 80
HEIGHT, WIDTH = 480, 640
PAINTED = 300


def megabytes() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_annotations(path: Path, images: int) -> None:
    """COCO's format, written piece by piece so that the writer's memory stays small, too."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(4 * images)[:images]
    angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    with path.open("w") as file:
        file.write('{"info": {}, "images": [')
        for i, ident in enumerate(ids.tolist()):
            name = f"COCO_train2014_{ident:012d}.jpg"
            entry = {"id": ident, "file_name": name, "height": HEIGHT, "width": WIDTH}
            file.write((", " if i else "") + json.dumps(entry))
        file.write('], "annotations": [')
        for i in range(round(OBJECTS * images)):
            radius = rng.uniform(5, 150) * rng.uniform(0.7, 1, POINTS)
            x, y = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
            outline = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
            entry = {
                "segmentation": [outline.clip(0, HEIGHT).round(2).ravel().tolist()],
                "iscrowd": 0,
                "image_id": int(ids[rng.integers(images)]),
                "category_id": int(rng.integers(1, CATEGORIES + 1)),
                "id": i,
            }
            file.write((", " if i else "") + json.dumps(entry))
        categories = [{"id": i, "name": f"class {i}"} for i in range(1, CATEGORIES + 1)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2,000 images")
    parser.add_argument("--pycocotools", action="store_true", help="compare with its loading")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, derived = Path(folder) / "instances.json", Path(folder) / "derived"
        write_annotations(path, 2_000 if arguments.quick else 82_783)
        print(f"{path.stat().st_size / 1e6:.0f} MB of JSON; so far {megabytes():.0f} MB of memory")
        if arguments.pycocotools:
            from pycocotools.coco import COCO

            start = time.process_time()
            COCO(str(path))
            print(f"pycocotools: {time.process_time() - start:.1f} s of CPU, {megabytes():.0f} MB")
            return
        start = time.process_time()
        assert not build_index(path, derived)
        spent = time.process_time() - start
        print(
            f"index: {spent:.1f} s of CPU, {megabytes():.0f} MB of memory, "
            f"{(derived / INDEX).stat().st_size / 1e6:.1f} MB on disk, and until masks are painted "
            f"{(derived / OUTLINES).stat().st_size / 1e6:.0f} MB"
        )
        index, outlines = read_index(path, derived), read_outlines(derived)
        assert outlines is not None
        print(f"read for use: {len(index.names)} images, {megabytes():.0f} MB")
        start = time.process_time()
        for row in range(PAINTED):
            spans = outlines.spans[outlines.first[row] : outlines.first[row + 1]]
            target = Path(folder) / "mask.png"
            task = PaintTask("", Path(folder), (HEIGHT, WIDTH), spans, target)
            assert paint_file(task, derived / OUTLINES, path) is None
        spent = (time.process_time() - start) / PAINTED
        print(f"masks: {1e3 * spent:.1f} ms of CPU each")


if __name__ == "__main__":
    main()
