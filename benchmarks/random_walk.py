"""Time and memory of the random walk beside the published dense form, where that fits.

    python benchmarks/random_walk.py [--device cuda] [--dense-limit-mb 300] [--repeats 3]
    python benchmarks/random_walk.py --quick      the smallest size once, to see that it runs

Columns: image size, number of grid cells n, seconds (wall clock and CPU time, best of the repeats),
peak of additional memory in MB, and the largest difference from the dense form in single precision.
A size at which the dense form needs more than the limit is left out for it: nothing is
extrapolated. On a busy machine the wall clock says little; look at the CPU time then.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.refine.random_walk import affinity_weights, random_walk

SIZES = ((96, 128), (160, 160), (192, 256), (256, 256), (375, 500), (500, 375), (640, 640))
RADIUS, BETA, LOG2_STEPS, CLASSES = 5, 10.0, 8, 4


def grid_of(size: tuple[int, int]) -> tuple[int, int]:
    return (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1


def scene(size: tuple[int, int], device: str) -> tuple[Tensor, Tensor]:
    """Smooth maps and thin, closed edges, as a trained network draws them."""
    height, width = grid_of(size)
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(1, 1, height // 12 + 2, width // 12 + 2, generator=generator)
    field = F.interpolate(field, (height, width), mode="bicubic")[0, 0]
    edge = torch.exp(-((field / 0.08) ** 2))
    maps = torch.rand(1, CLASSES, 8, 8, generator=generator)
    maps = F.interpolate(maps, (height, width), mode="bilinear")[0]
    return maps.to(device), edge.to(device)


def dense_walk(maps: Tensor, edge: Tensor) -> Tensor:
    """T as a full matrix, squared 8 times, as published (float32)."""
    height, width = edge.shape
    cells = torch.arange(height * width, device=edge.device).view(height, width)
    matrix = torch.eye(height * width, device=edge.device)
    for (dy, dx), weight in affinity_weights(edge, RADIUS, BETA).items():
        one = cells[: height - dy, max(-dx, 0) : width - max(dx, 0)].flatten()
        two = cells[dy:, max(dx, 0) : width - max(-dx, 0)].flatten()
        matrix[one, two] = matrix[two, one] = weight.flatten()
    matrix /= matrix.sum(dim=0, keepdim=True)
    for _ in range(LOG2_STEPS):
        matrix = matrix @ matrix
    return ((maps * (1 - edge)).flatten(1) @ matrix).view(maps.shape)


def sparse_walk(maps: Tensor, edge: Tensor) -> Tensor:
    return random_walk(maps, edge, RADIUS, BETA, LOG2_STEPS)


class Memory:
    """Peak of memory taken inside the block, MB: of the GPU's allocator, or of the process."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")

    def __enter__(self) -> Memory:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
        else:
            self.before = self.peak = self._resident()
            self.running = True
            self.thread = threading.Thread(target=self._watch)
            self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated() / 2**20
        else:
            self.running = False
            self.thread.join()
        self.used = self.peak - self.before

    @staticmethod
    def _resident() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, self._resident())
            time.sleep(0.002)


def measure(
    walk: Callable[[Tensor, Tensor], Tensor], maps: Tensor, edge: Tensor, repeats: int, device: str
) -> tuple[Tensor, str]:
    """Result, and its columns: best wall-clock seconds, best CPU seconds, MB."""
    with Memory(device) as memory:
        result = walk(maps, edge)
    wall = cpu = float("inf")
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        walk(maps, edge).sum().item()  # waits for the GPU
        wall = min(wall, time.perf_counter() - start)
        cpu = min(cpu, time.process_time() - start_cpu)
    return result, f"{wall:>9.3f} {cpu:>7.3f} {memory.used:>6.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dense-limit-mb", type=float, default=300, help="of one n x n matrix")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    arguments.repeats = 1 if arguments.quick else arguments.repeats
    torch.set_num_threads(arguments.threads)
    print(
        f"{torch.__version__}, {arguments.device}, {arguments.threads} threads, {CLASSES} classes"
    )
    columns = f"{'wall s':>9} {'CPU s':>7} {'MB':>6}"
    print(f"{'image':>9} {'cells':>6} | sparse {columns} | dense {columns} {'diff':>8}")
    for size in SIZES[:1] if arguments.quick else SIZES:
        maps, edge = scene(size, arguments.device)
        cells = edge.numel()
        sparse, figures = measure(sparse_walk, maps, edge, arguments.repeats, arguments.device)
        line = f"{size[0]:>4}x{size[1]:<4} {cells:>6} |        {figures}"
        if cells**2 * 4 / 2**20 <= arguments.dense_limit_mb:
            dense, figures = measure(dense_walk, maps, edge, arguments.repeats, arguments.device)
            line += f" |       {figures} {float((dense - sparse).abs().max()):>8.1e}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
