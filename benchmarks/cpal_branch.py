"""What CPAL's branch costs in a training step: time and memory, beside SIPE's head and plain CAM.

    python benchmarks/cpal_branch.py            # 16 images of 512 x 512, ResNet-50, 20 / 80 classes
    python benchmarks/cpal_branch.py --quick    # seconds, to see that it runs

A step is forward, all losses and backward. `head` is a method's own part of it, forward and
backward on given stage features (CPAL: with the bank's push), without the network; `share` is its
part of the method's step. Memory of the head is what autograd keeps for the backward pass, beyond
its inputs; on a GPU the allocator's peak of the whole step stands beside it. 1.6 classes per image
at 20 classes, 2.9 at 80, as in VOC and COCO; the bank is full. Steps of the methods are interleaved
and the median is taken, so that a busy machine does not favour one of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsss.methods.cpal.module import CPAL
from wsss.methods.sipe.module import SIPE

from wsss.backbones import ResNet
from wsss.hosts.base import SeedMethod
from wsss.hosts.cam import CAM
from wsss.maps.functional import classification_loss

OPTIMIZER = {"lr": 0.1, "head_lr": 1.0, "momentum": 1e-4, "weight_decay": 1e-4, "poly_power": 0.9}
METHODS: dict[str, type[SeedMethod]] = {"cam": CAM, "sipe": SIPE, "cpal": CPAL}


def make_batch(images: int, side: int, classes: int, device: str) -> dict[str, Tensor]:
    """Random images whose labels are as dense as those of VOC or COCO."""
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(images, classes)
    # 1.6 or 2.9 classes per image on average.
    for image in range(images):
        number = 1 + image % 2 + (image % 5 == 0) if classes <= 20 else 2 + image % 3
        label[image, torch.randperm(classes, generator=generator)[:number]] = 1
    pixels = torch.randn(images, 3, side, side, generator=generator)
    batch = {"image": pixels, "label": label, "valid": torch.ones(images, side, side)}
    return {key: value.to(device) for key, value in batch.items()}


def make_method(name: str, depth: int, classes: int, device: str) -> SeedMethod:
    torch.manual_seed(0)
    method = METHODS[name](ResNet(depth=depth, weights=None), classes, OPTIMIZER).to(device).train()
    if isinstance(method, CPAL):
        bank = method.branch.bank
        anchors = torch.randn(classes * bank.size, bank.entries.shape[2], device=device)
        bank.push(anchors, torch.arange(len(anchors), device=device) % classes)
        bank.recluster(0)
    return method


def own_losses(
    method: SeedMethod, features: list[Tensor], activation: Tensor, batch: dict[str, Tensor]
) -> list[Tensor]:
    """The method's own terms; for CPAL with what the callback does after the step."""
    losses = list(method.self_supervision(features, activation, batch).values())
    if isinstance(method, CPAL):
        method.branch.bank.push(*method.branch.take_anchors())
    return losses


def step(method: SeedMethod, batch: dict[str, Tensor]) -> None:
    method.zero_grad()
    features, activation = method(batch["image"])
    losses = [classification_loss(activation, batch["label"])]
    losses += own_losses(method, features, activation, batch)
    torch.stack(losses).sum().backward()


def head(method: SeedMethod, features: list[Tensor], activation: Tensor, batch: dict) -> None:
    activation.grad = None
    torch.stack(own_losses(method, features, activation, batch)).sum().backward()


def timed(device: str, work: Callable[..., None], *inputs: object) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work(*inputs)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def kept_for_backward(
    method: SeedMethod, features: list[Tensor], activation: Tensor, batch: dict
) -> int:
    """Bytes of the tensors that autograd keeps in the head's forward pass, inputs not counted."""
    known = [*features, activation, *batch.values(), *method.parameters(), *method.buffers()]
    inputs = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in inputs:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = own_losses(method, features, activation, batch)
    total = sum(kept.values())
    del losses
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 images of 128 x 128, ResNet-18")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--depth", type=int, default=50, help="of the ResNet")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.images, arguments.side = 2, 128
        arguments.depth, arguments.repeats = 18, 2
    device = arguments.device
    print(
        f"{arguments.images} images of {arguments.side} x {arguments.side}, "
        f"ResNet-{arguments.depth}, float32, {device}, {torch.get_num_threads()} threads, "
        f"median of {arguments.repeats}"
    )
    print(f"{'classes':>7} {'method':>7} {'step s':>8} {'head s':>8} {'share':>7} "
          f"{'kept MiB':>9} {'peak MiB':>9} {'to SIPE':>8}")  # fmt: skip
    for classes in (20, 80):
        batch = make_batch(arguments.images, arguments.side, classes, device)
        methods = {name: make_method(name, arguments.depth, classes, device) for name in METHODS}
        steps: dict[str, list[float]] = {name: [] for name in methods}
        heads: dict[str, list[float]] = {name: [] for name in methods}
        peak: dict[str, float] = {}
        given = {}
        for name, method in methods.items():
            with torch.no_grad():
                features, activation = method(batch["image"])
            given[name] = (features, activation.detach().requires_grad_())
        for repeat in range(arguments.repeats + 1):
            for name, method in methods.items():
                features, activation = given[name]
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                spent = timed(device, step, method, batch)
                if device == "cuda":
                    peak[name] = torch.cuda.max_memory_allocated() / 2**20
                own = 0.0
                if name != "cam":
                    own = timed(device, head, method, features, activation, batch)
                if repeat:  # the first round warms up
                    steps[name].append(spent)
                    heads[name].append(own)
        sipe = statistics.median(steps["sipe"])
        for name, method in methods.items():
            whole, own = statistics.median(steps[name]), statistics.median(heads[name])
            kept = 0 if name == "cam" else kept_for_backward(method, *given[name], batch)
            print(
                f"{classes:7d} {name:>7} {whole:8.3f} {own:8.4f} {own / whole:7.1%} "
                f"{kept / 2**20:9.1f} {peak.get(name, float('nan')):9.0f} {whole / sipe - 1:+8.1%}"
            )


if __name__ == "__main__":
    main()
