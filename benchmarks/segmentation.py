"""Seconds and memory of a training step of the segmentation network.

    python benchmarks/segmentation.py                                      ResNet-18, 2 x 161²
    python benchmarks/segmentation.py --network resnet101_msra --batch 5 --crop 321 --device cuda
    python benchmarks/segmentation.py --network resnet38d --batch 4 --crop 321 --one-scale

Forward, loss, backward and optimizer on random images, the weights random as well. Peak memory is
of the whole process on a CPU (so: one setting a run), of what PyTorch allocates on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import sys
import time

import torch

from wsss.backbones import ResNet
from wsss.segmentation.deeplabv2 import NAMES, build_network
from wsss.segmentation.losses import LOSSES, losses_of
from wsss.segmentation.module import Segmenter

SGD = {"lr": 1e-8, "momentum": 0.9, "weight_decay": 5e-4}  # what is learnt does not matter here


def peak_gigabytes(device: torch.device) -> float:
    """The most memory held so far, in 10^9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="backbone", choices=NAMES)
    parser.add_argument("--depth", type=int, default=18, help="of the ResNet of --network backbone")
    parser.add_argument("--classes", type=int, default=21, help="background included")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--crop", type=int, default=161, help="side of the crop, pixels")
    parser.add_argument("--loss", default="ce", choices=list(LOSSES))
    parser.add_argument("--one-scale", action="store_true", help="without multi-scale inputs")
    parser.add_argument("--bfloat16", action="store_true", help="autocast")
    parser.add_argument("--steps", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    device = torch.device(a.device)
    torch.manual_seed(0)
    backbone = ResNet(a.depth, None, 0) if a.network == "backbone" else None
    network = build_network(a.network, a.classes, backbone=backbone)
    segmenter = Segmenter(network, optimizer=SGD, msc=not a.one_scale)
    segmenter.to(device, memory_format=torch.channels_last)
    image = torch.randn(a.batch, 3, a.crop, a.crop, device=device)
    target = torch.randint(0, a.classes, (a.batch, a.crop, a.crop), device=device)
    groups = network.parameter_groups(SGD["lr"], SGD["weight_decay"])
    optimizer = torch.optim.SGD(groups, momentum=SGD["momentum"])

    def step() -> float:
        start = time.perf_counter()
        half = torch.autocast(device.type, torch.bfloat16) if a.bfloat16 else None
        with half or contextlib.nullcontext():
            outputs = list(segmenter.outputs(image).values())
            loss = torch.stack(losses_of(outputs, target, LOSSES[a.loss])).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    before = peak_gigabytes(device)
    step()
    seconds = [step() for _ in range(a.steps)]
    name = a.network if backbone is None else f"{a.network} resnet{a.depth}"
    print(
        f"{name}, {a.batch} x {a.crop}², {'1 scale' if a.one_scale else '3 scales'}, {a.loss}, "
        f"{'bfloat16' if a.bfloat16 else 'float32'}, {device}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}: {statistics.median(seconds):.3f} s a step "
        f"(least {min(seconds):.3f}), peak {peak_gigabytes(device):.2f} GB "
        f"({before:.2f} before the first step)"
    )


if __name__ == "__main__":
    main()
