"""What the compact form of stored class maps saves, and what it costs in mIoU.

Make and score the maps of one checkpoint twice, in the form that is the default and in full
resolution, and name the folders of the two jobs:

    python run.py experiment=cam_voc2007_mini data.root=DIR checkpoint=CKPT run_name=compact \\
        stage=make_cam,eval_cam -m
    python run.py experiment=cam_voc2007_mini data.root=DIR checkpoint=CKPT run_name=full \\
        make_cam.dtype=float16 make_cam.stride=1 stage=make_cam,eval_cam -m
    python benchmarks/map_storage.py outputs/compact/... outputs/full/...

Bytes are those of the files. For COCO they are scaled by channels (an image has 2.9 labels) and by
pixels (640 x 480 at most, taken as all). Without folders a sample of random maps is stored in both
forms: sizes only.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from wsss.files import read_json
from wsss.maps.files import MAPS, ClassMaps, read_class_maps, write_class_maps

COCO_IMAGES = 82_081
COCO_LABELS = 2.9  # of an image, on average
COCO_PIXELS = 640 * 480  # of most photographs at most


def sizes(maps: Path, kinds: dict[str, bool]) -> tuple[float, float]:
    """Bytes per image as they are, and as they would be for COCO's images."""
    files = sorted(maps.glob("*.npz"))
    total, scaled = 0, 0.0
    for path in files:
        stored = read_class_maps(path)
        size = path.stat().st_size
        total += size
        found = sum(len(values) for values in stored.maps.values())
        coco = sum(COCO_LABELS + own for own in kinds.values())
        scaled += size * coco / found * COCO_PIXELS / (stored.size[0] * stored.size[1])
    return total / len(files), scaled / len(files)


def compare(jobs: list[Path]) -> None:
    """Print sizes and scores of two or more jobs with make_cam and eval_cam."""
    for job in jobs:
        manifest = read_json(job / "make_cam/manifest.json")
        size, coco = sizes(job / "make_cam" / MAPS, manifest["kinds"])
        form = manifest["settings"]["make_cam"]
        print(
            f"{form['dtype']}, stride {form['stride']}: {size / 1024:.1f} KiB per image of "
            f"{manifest['images']}; COCO, {COCO_IMAGES} images: {coco * COCO_IMAGES / 1e9:.1f} GB"
        )
        metrics = read_json(job / "eval_cam/metrics.json")
        for kind in manifest["kinds"]:
            scores = metrics[kind]
            print(
                f"  {kind}: mIoU {scores['miou']:.3f} by arg max, "
                f"{scores['miou_best_threshold']:.3f} at the best threshold"
            )


def sample(count: int) -> None:
    """Smooth random maps of 2 classes: their sizes in both forms."""
    generator = torch.Generator().manual_seed(0)
    for dtype, stride in (("uint8", 4), ("float16", 1)):
        total = 0
        with tempfile.TemporaryDirectory() as folder:
            for i in range(count):
                coarse = torch.rand(1, 2, 24, 32, generator=generator).clamp(0.5) * 2 - 1
                size = (375 // stride, 500 // stride)
                maps = torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0].numpy()
                path = Path(folder) / f"{i}.npz"
                write_class_maps(
                    path, ClassMaps(np.array([1, 2]), (375, 500), {"cam": maps}), dtype
                )
                total += path.stat().st_size
        print(f"{dtype}, stride {stride}: {total / count / 1024:.1f} KiB per image (random maps)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", nargs="*", type=Path, help="folders of jobs of one checkpoint")
    parser.add_argument("--quick", action="store_true", help="a smaller sample")
    arguments = parser.parse_args()
    if arguments.jobs:
        compare(arguments.jobs)
    else:
        sample(5 if arguments.quick else 50)


if __name__ == "__main__":
    main()
