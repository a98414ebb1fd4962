"""K-means of all classes in one call, against scikit-learn class by class.

python benchmarks/kmeans.py            20 and 80 classes x 1000 anchors of length 128, k = 50
python benchmarks/kmeans.py --quick    5 classes x 200

The points are clusters with heavy overlap, as the anchors of a class are. Both start from greedy
k-means++ once, and stop by the same rule.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from wsss.methods.cpal.kmeans import kmeans

DIM = 128


def points(classes: int, entries: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(classes, 30, DIM, generator=generator)
    which = torch.randint(0, 30, (entries,), generator=generator)
    return centers[:, which] + 1.5 * torch.randn(classes, entries, DIM, generator=generator)


def ours(data: torch.Tensor, k: int) -> tuple[float, np.ndarray]:
    counts = torch.full((len(data),), data.shape[1], device=data.device)
    if data.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    assignment, centers, _ = kmeans(data, counts, k, seed=0)
    if data.is_cuda:
        torch.cuda.synchronize()
    spent = time.perf_counter() - start
    own = centers.gather(1, assignment[..., None].expand(-1, -1, DIM))
    return spent, (F.normalize(data, dim=2) - own).square().sum((1, 2)).cpu().numpy()


def theirs(data: torch.Tensor, k: int) -> tuple[float, np.ndarray]:
    unit = F.normalize(data, dim=2).cpu().numpy()
    start = time.perf_counter()
    inertia = [KMeans(k, n_init=1, random_state=0).fit(x).inertia_ for x in unit]
    return time.perf_counter() - start, np.array(inertia)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, one repetition")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    sizes, entries, k, repeats = [20, 80], 1000, 50, 5
    if arguments.quick:
        sizes, entries, k, repeats = [5], 200, 10, 1
    print(f"{entries} entries x {DIM}, k = {k}, {arguments.device}, median of {repeats}")
    print(f"{'classes':>8} {'wsss s':>8} {'sklearn s':>10} {'faster':>7} {'inertia':>8}")
    for classes in sizes:
        data = points(classes, entries).to(arguments.device)
        ours(data[:2], k)
        theirs(data[:1], k)
        one = [ours(data, k) for _ in range(repeats)]
        other = [theirs(data, k) for _ in range(repeats)]
        time_one, time_other = (statistics.median(t for t, _ in runs) for runs in (one, other))
        ratio = (one[0][1] / other[0][1]).mean()
        print(
            f"{classes:8d} {time_one:8.3f} {time_other:10.3f} {time_other / time_one:6.1f}x "
            f"{ratio:8.4f}"
        )


if __name__ == "__main__":
    main()
