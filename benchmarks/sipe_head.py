"""SIPE's head as matrix products against the naive broadcast form: time and peak memory.

    python benchmarks/sipe_head.py            # the paper's shapes
    python benchmarks/sipe_head.py --quick    # seconds, to see that it runs

Training rows are forward + backward of seeds, prototypes, IS-CAM and GSC loss for a batch of 512 x
512 crops (32 x 32 grid); structure from 2048 channels, prototypes from 768 (hierarchical) or 2048
(semantic). Test rows are the forward pass of one 768 x 1024 image (48 x 64 grid). Every case runs
in a process of its own; memory is the growth of its resident peak above the inputs (on a GPU: of
the allocator's peak). Where the naive form would not fit into --memory-gb, both forms run with
the same smaller batch, which the table shows; nothing is extrapolated.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.maps.functional import add_background, normalize_cam
from wsss.methods.sipe.functional import explore, gsc_loss


@dataclass(frozen=True)
class Case:
    """One row: `classes` counts the background; `channels` are the prototypes' feature."""

    name: str
    batch: int
    classes: int
    grid: tuple[int, int]
    structure: int
    channels: int
    train: bool


CASES = [
    Case("train", 16, 21, (32, 32), 2048, 768, True),
    Case("train", 16, 21, (32, 32), 2048, 2048, True),
    Case("train", 16, 81, (32, 32), 2048, 768, True),
    Case("train", 16, 81, (32, 32), 2048, 2048, True),
    Case("test", 1, 21, (48, 64), 768, 768, False),
    Case("test", 1, 81, (48, 64), 768, 768, False),
]
QUICK = [
    Case("train", 2, 21, (16, 16), 320, 768, True),
    Case("test", 1, 21, (24, 32), 768, 768, False),
]


def naive_explore(maps: Tensor, structure: Tensor, feature: Tensor, allowed: Tensor) -> Tensor:
    """IS-CAM by broadcasting, as the equations read."""
    classes = maps.shape[1]
    unit = F.normalize(structure.flatten(2), dim=1)
    correlation = F.relu(unit.transpose(1, 2) @ unit)[:, None]  # (B, 1, hw, hw)
    template = maps.flatten(2)[:, :, None]  # (B, N+1, 1, hw)
    inter = (correlation * template).sum(-1)
    iou = inter / (correlation.sum(-1) + template.sum(-1) - inter)
    iou = torch.cat([iou[:, :1] * 0.5, iou[:, 1:]], dim=1)
    seeds = F.one_hot(iou.argmax(1), classes).permute(0, 2, 1).view(maps.shape) * allowed
    selected = seeds[:, :, None] * feature[:, None]  # (B, N+1, C, h, w)
    prototypes = selected.mean(dim=(3, 4), keepdim=True)
    return F.relu(torch.cosine_similarity(feature[:, None], prototypes, dim=2))


def lean_explore(maps: Tensor, structure: Tensor, feature: Tensor, allowed: Tensor) -> Tensor:
    """The project's form."""
    return explore(maps, structure, feature, allowed).is_cam


def measure(case: Case, form: str, device: str, repeats: int) -> dict[str, float]:
    """Median seconds, growth of the peak in MiB, and the resulting loss (or mean map)."""
    head = naive_explore if form == "naive" else lean_explore
    generator = torch.Generator().manual_seed(0)

    def run(batch: int, grid: tuple[int, int], structure: int, channels: int) -> tuple:
        made = [
            torch.rand(batch, c, *grid, generator=generator).to(device)
            for c in (case.classes - 1, structure, channels)
        ]
        allowed = torch.ones(batch, case.classes, 1, 1, device=device)
        activation, u, g = made
        activation.requires_grad_(case.train)
        g.requires_grad_(case.train)

        def step() -> float:
            with torch.set_grad_enabled(case.train):
                maps = add_background(normalize_cam(activation))
                is_cam = head(maps, u, g, allowed)
                if not case.train:
                    return is_cam.mean().item()
                loss = gsc_loss(maps, normalize_cam(is_cam))
            activation.grad = g.grad = None
            loss.backward()
            return loss.item()

        return step, made

    def peak() -> float:
        if device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB on Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20

    run(1, (4, 4), 8, 8)[0]()  # loads the kernels, so that their memory is not counted
    step, _ = run(case.batch, case.grid, case.structure, case.channels)
    before = torch.cuda.memory_allocated() / 2**20 if device == "cuda" else peak()
    times = []
    value = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        value = step()  # .item() inside waits for the device
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {"seconds": sorted(times)[len(times) // 2], "mib": peak() - before, "value": value}


def in_subprocess(case: Case, form: str, device: str, repeats: int) -> dict[str, float]:
    """`measure` in a fresh process, whose peak is nobody else's."""
    task = json.dumps({"case": asdict(case), "form": form, "device": device, "repeats": repeats})
    done = subprocess.run(
        [sys.executable, __file__, "--one", task], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{form} form of {case} failed (memory?):\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def naive_gib(case: Case) -> float:
    """Rough peak of the naive form: two (B, N, hw, hw) or four (B, N, C, hw) tensors."""
    positions = case.grid[0] * case.grid[1]
    widest = max(2 * positions, (4 if case.train else 2) * case.channels)
    return 4 * case.batch * case.classes * positions * widest / 2**30


def available_gib(device: str) -> float:
    """Memory that may be used, with a margin for others."""
    if device == "cuda":
        return 0.8 * torch.cuda.mem_get_info()[0] / 2**30
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 8.0
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return 0.6 * int(lines["MemAvailable"].split()[0]) / 2**20


def main() -> None:
    """Run the cases and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two small cases")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-gb", type=float, help="for the naive form; default: 60%% of free")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        task = json.loads(options.one)
        case = Case(**{**task["case"], "grid": tuple(task["case"]["grid"])})
        print(json.dumps(measure(case, task["form"], task["device"], task["repeats"])))
        return
    limit = options.memory_gb or available_gib(options.device)
    print(
        f"{options.device}, torch {torch.__version__}, {torch.get_num_threads()} threads, ", end=""
    )
    print(f"naive form limited to {limit:.1f} GiB, median of {options.repeats}\n")
    print("| case | batch | classes | grid | u, g channels | naive s | lean s | faster ", end="")
    print("| naive MiB | lean MiB | less memory | difference |")
    print("|" + "---|" * 12)
    for asked in QUICK if options.quick else CASES:
        case = asked
        while case.batch > 1 and naive_gib(case) > limit:
            case = Case(**{**asdict(case), "batch": case.batch // 2})
        naive = in_subprocess(case, "naive", options.device, options.repeats)
        lean = in_subprocess(case, "lean", options.device, options.repeats)
        batch = f"{case.batch}" + (f" (of {asked.batch})" if case.batch < asked.batch else "")
        print(
            f"| {case.name} | {batch} | {case.classes} | {case.grid[0]}x{case.grid[1]} "
            f"| {case.structure}, {case.channels} | {naive['seconds']:.3f} | {lean['seconds']:.3f} "
            f"| {naive['seconds'] / lean['seconds']:.1f}x | {naive['mib']:.0f} | {lean['mib']:.0f} "
            f"| {naive['mib'] / max(lean['mib'], 1):.0f}x "
            f"| {abs(naive['value'] - lean['value']):.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
