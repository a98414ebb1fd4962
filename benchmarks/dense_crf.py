"""Our dense CRF against pydensecrf: seconds of one core, differences of the results.

    python benchmarks/dense_crf.py --photographs DIR   real ones: the first of 333 x 500 in a folder
    python benchmarks/dense_crf.py                     a generated picture of the same size
    python benchmarks/dense_crf.py --quick             a small one, to see that it runs

Both run in turn in this one process, in one thread; a figure is the median of the CPU time, the
ratio the median of the ratios, so that other work on the machine changes little. Cases: the pair of
readings of stage=irn_labels with 2, 3 and 5 labels; a segmentation network's 81 labels of which 5
are likely somewhere, and of which none can be left out. Reading a photograph is no part of it;
everything else is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from wsss.refine.crf import CrfSettings, DenseCrf, label_energies, prepare_crf

NETWORK = CrfSettings(gaussian_sxy=1, bilateral_sxy=67, bilateral_srgb=3, bilateral_compat=4)


def picture(size: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(0)
    image = 128 + 900 * gaussian_filter(rng.normal(0, 1, (*size, 3)), (7, 7, 0))
    return (image + rng.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8)


def photographs(folder: Path, count: int) -> list[np.ndarray]:
    found = []
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as image:
            if image.size == (500, 333):
                found.append(np.asarray(image.convert("RGB")))
        if len(found) == count:
            break
    return found


def scores(labels: int, size: tuple[int, int], width: float, seed: int = 1) -> np.ndarray:
    """(L, H, W) smooth, with standard deviation 2."""
    noise = np.random.default_rng(seed).normal(0, 1, (labels, *size))
    smooth = gaussian_filter(noise, (0, width, width))
    return 2 * smooth / smooth.std()


def pair(labels: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Energies of a cautious and a generous reading of the same maps."""
    maps = scores(labels, size, size[0] / 10)
    generous = maps.copy()
    generous[0] -= 1
    return [label_energies(m.argmax(0), labels, 0.7) for m in (maps, generous)]


def network(size: tuple[int, int], weak: float) -> list[np.ndarray]:
    """Energies of 81 labels, the logits of all but 5 of them lower by `weak`."""
    logits = scores(81, size, size[0] / 10)
    logits[5:] -= weak
    powers = np.exp(logits - logits.max(0))
    return [-np.log(np.clip(powers / powers.sum(0), 1e-5, 1)).astype(np.float32)]


def measure(
    images: list[np.ndarray], unaries: list[np.ndarray], settings: CrfSettings, repeats: int
) -> str:
    """A case's columns."""
    seconds: list[list[float]] = []
    worst, same = 0.0, []
    for image in images:
        for _ in range(repeats):
            results, taken = [], []
            for backend in ("pydensecrf", "own"):
                start = time.process_time()
                chosen = replace(settings, backend=backend)
                results.append(DenseCrf(image, chosen).marginals(unaries))
                taken.append(time.process_time() - start)
            seconds.append([*taken, taken[0] / taken[1]])
        for theirs, ours in zip(*results, strict=True):
            worst = max(worst, float(np.abs(theirs - ours).max()))
            same.append(float((theirs.argmax(0) == ours.argmax(0)).mean()))
    theirs_s, ours_s, ratio = (statistics.median(column) for column in zip(*seconds, strict=True))
    return f"{theirs_s:.3f} | {ours_s:.3f} | {ratio:.1f}x | {worst:.0e} | {100 * min(same):.3f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=Path, help="a folder of .jpg")
    parser.add_argument("--count", type=int, default=5, help="how many of them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    size = (60, 90) if arguments.quick else (333, 500)
    repeats = 1 if arguments.quick else arguments.repeats
    images = [picture(size)]
    if arguments.photographs:
        images = photographs(arguments.photographs, arguments.count)
    size = images[0].shape[:2]
    prepare_crf(NETWORK)
    print(f"{len(images)} of {size[0]} x {size[1]} pixels, {repeats} times each, one thread")
    print("| case | pydensecrf s | ours s | faster | largest difference | same labels (least) |")
    print("|---|---|---|---|---|---|")
    for labels in (2, 3, 5):
        columns = measure(images, pair(labels, size), CrfSettings(), repeats)
        print(f"| irn_labels' pair, {labels} labels | {columns} |", flush=True)
    for weak, name in ((25.0, "5 likely"), (0.0, "all likely")):
        columns = measure(images[:2], network(size, weak), NETWORK, min(3, repeats))
        print(f"| 81 labels, {name} | {columns} |", flush=True)


if __name__ == "__main__":
    main()
