"""What the compact form of stored class maps saves, and what it costs in mIoU.

Make the maps of one checkpoint twice, in the form that is the default and in full resolution:

    python run.py experiment=cam_voc2007_mini data.root=DIR checkpoint=CKPT stage=make_cam \\
        run_name=compact
    python run.py experiment=cam_voc2007_mini data.root=DIR checkpoint=CKPT stage=make_cam \\
        run_name=full make_cam.dtype=float16 make_cam.stride=1
    python benchmarks/map_storage.py DIR outputs/compact/.../make_cam outputs/full/.../make_cam

Bytes are those of the files. For COCO they are scaled by channels (an image has 2.9 labels) and by
pixels (640 x 480 at most, taken as all). Without arguments a sample of random maps is stored
in both forms: sizes only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsss.data.voc import VOC
from wsss.evaluation.confusion import scores
from wsss.evaluation.seeds import SeedTask
from wsss.files import read_json
from wsss.maps.files import ClassMaps, read_class_maps, write_class_maps
from wsss.run.pool import parallel

COCO_IMAGES = 82_081
COCO_LABELS = 2.9  # of an image, on average
COCO_PIXELS = 640 * 480  # of most photographs at most
THRESHOLDS = np.round(np.arange(0.01, 0.81, 0.01), 2)
BACKGROUND = 0.15  # of maps without a background channel, as eval_cam


def sizes(maps: Path, names: list[str], kinds: dict[str, bool]) -> tuple[float, float]:
    """Bytes per image as they are, and as they would be for COCO's images."""
    total, scaled = 0, 0.0
    for name in names:
        path = maps / f"{name}.npz"
        stored = read_class_maps(path)
        size = path.stat().st_size
        total += size
        found = sum(len(values) for values in stored.maps.values())
        coco = sum(COCO_LABELS + own for own in kinds.values())
        scaled += size * coco / found * COCO_PIXELS / (stored.size[0] * stored.size[1])
    return total / len(names), scaled / len(names)


def miou(data: VOC, names: list[str], maps: Path, kind: str) -> tuple[float, float]:
    """By arg max, and at the best constant threshold."""
    task = SeedTask(data, maps, kind, BACKGROUND, THRESHOLDS)
    chunks = [names[i : i + 8] for i in range(0, len(names), 8)]
    results = parallel(task, chunks, f"{maps.parent.parent.name} {kind}", -1)
    matrix = sum(one for one, _ in results)
    curve = sum(by_threshold for _, by_threshold in results)
    return scores(matrix).miou, max(scores(m).miou for m in curve)


def compare(root: Path, folders: list[Path], split: str) -> None:
    data = VOC(root)
    names = data.names(split)
    kinds = {}
    for folder in folders:
        manifest = read_json(folder / "manifest.json")
        kinds = manifest["kinds"]
        size, coco = sizes(folder / "maps", names, kinds)
        form = manifest["settings"]["make_cam"]
        print(
            f"{form['dtype']}, stride {form['stride']}: {size / 1024:.1f} KiB per image of "
            f"{len(names)}; COCO, {COCO_IMAGES} images: {coco * COCO_IMAGES / 1e9:.1f} GB"
        )
    for kind in kinds:
        found = [miou(data, names, folder / "maps", kind) for folder in folders]
        for i, how in enumerate(("arg max", "best threshold")):
            first, second = (result[i] for result in found)
            print(f"{kind}, {how}: mIoU {first:.3f} and {second:.3f}, {first - second:+.3f}")


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
    parser.add_argument("root", nargs="?", type=Path, help="data set in VOC layout")
    parser.add_argument("folders", nargs="*", type=Path, help="make_cam folders of one checkpoint")
    parser.add_argument("--split", default="train", help="images with masks")
    parser.add_argument("--quick", action="store_true", help="a smaller sample")
    arguments = parser.parse_args()
    if arguments.root is None:
        sample(5 if arguments.quick else 50)
    else:
        compare(arguments.root, arguments.folders, arguments.split)


if __name__ == "__main__":
    main()
