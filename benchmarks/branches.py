"""What a method's branch costs in a training step: time and memory, CPAL beside SIPE and plain CAM.

    python benchmarks/branches.py            # 16 images of 512 x 512, ResNet-50, 20 / 80 classes
    python benchmarks/branches.py --quick    # seconds, to see that it runs

A step is forward, all losses and backward on plain CAM as the host. `head` is the branch's own part
of it, forward and backward on given features (CPAL: with the bank's push), without the host;
`share` is its part of the step. Memory of the head is what autograd keeps for the backward pass,
beyond its inputs; on a GPU the allocator's peak of the whole step stands beside it. 1.6 classes per
image at 20 classes, 2.9 at 80, as in VOC and COCO; the bank is full. Steps of the methods are
interleaved and the median is taken, so that a busy machine does not favor one of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from wsss.backbones import ResNet
from wsss.hosts.base import HostSettings, Seen
from wsss.hosts.cam import CAM
from wsss.hosts.optimizer import OptimizerSettings
from wsss.methods.base import Branch
from wsss.methods.cpal.branch import CPAL
from wsss.methods.network import SeedNetwork
from wsss.methods.sipe.branch import SIPE

METHODS: dict[str, type[Branch] | None] = {"cam": None, "sipe": SIPE, "cpal": CPAL}
Batch = dict[str, Tensor]


def make_batch(images: int, side: int, classes: int, device: str) -> Batch:
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


def make_network(name: str, depth: int, classes: int, device: str) -> SeedNetwork:
    """Plain CAM with a branch; that of CPAL has a full bank."""
    torch.manual_seed(0)
    names = [str(index) for index in range(classes)]
    host = CAM(HostSettings(), names, ResNet(depth=depth, weights=None))
    kind = METHODS[name]
    branch = None if kind is None else kind(kind.Settings(), host.channels, classes)
    network = SeedNetwork(host, branch, OptimizerSettings(lr=0.1, head_lr=1.0)).to(device).train()
    if isinstance(branch, CPAL):
        bank = branch.bank
        anchors = torch.randn(classes * bank.size, bank.entries.shape[2], device=device)
        bank.push(anchors, torch.arange(len(anchors), device=device) % classes)
        bank.recluster(0)
    return network


def own_losses(network: SeedNetwork, seen: Seen, batch: Batch) -> list[Tensor]:
    """The branch's terms; for CPAL with what its callback does after the step."""
    branch = network.branch
    if branch is None:
        return []
    losses = list(branch.losses(seen, network.host.general(seen), batch).values())
    if isinstance(branch, CPAL):
        branch.bank.push(*branch.take_anchors())
    return losses


def step(network: SeedNetwork, batch: Batch) -> None:
    """A training step, the optimizer left out."""
    network.zero_grad()
    seen = network(batch["image"], batch["label"])
    losses = [*network.host.losses(seen, batch).values(), *own_losses(network, seen, batch)]
    torch.stack(losses).sum().backward()


def head(network: SeedNetwork, seen: Seen, batch: Batch) -> None:
    """The branch's part of a step."""
    seen.activation.grad = None
    torch.stack(own_losses(network, seen, batch)).sum().backward()


def timed(device: str, work: Callable[..., None], *inputs: object) -> float:
    """Seconds of `work`."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work(*inputs)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def kept_for_backward(network: SeedNetwork, seen: Seen, batch: Batch) -> int:
    """Bytes of the tensors that autograd keeps in the head's forward pass, inputs not counted."""
    given = [*seen.features, seen.activation, *batch.values()]
    known = [*given, *network.parameters(), *network.buffers()]
    inputs = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in inputs:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = own_losses(network, seen, batch)
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
        networks = {name: make_network(name, arguments.depth, classes, device) for name in METHODS}
        steps: dict[str, list[float]] = {name: [] for name in networks}
        heads: dict[str, list[float]] = {name: [] for name in networks}
        peak: dict[str, float] = {}
        given = {}
        for name, network in networks.items():
            with torch.no_grad():
                seen = network(batch["image"], batch["label"])
            given[name] = Seen(seen.features, seen.activation.detach().requires_grad_())
        for repeat in range(arguments.repeats + 1):
            for name, network in networks.items():
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                spent = timed(device, step, network, batch)
                if device == "cuda":
                    peak[name] = torch.cuda.max_memory_allocated() / 2**20
                own = 0.0
                if network.branch is not None:
                    own = timed(device, head, network, given[name], batch)
                if repeat:  # the first round warms up
                    steps[name].append(spent)
                    heads[name].append(own)
        sipe = statistics.median(steps["sipe"])
        for name, network in networks.items():
            whole, own = statistics.median(steps[name]), statistics.median(heads[name])
            kept = kept_for_backward(network, given[name], batch)
            print(
                f"{classes:7d} {name:>7} {whole:8.3f} {own:8.4f} {own / whole:7.1%} "
                f"{kept / 2**20:9.1f} {peak.get(name, float('nan')):9.0f} {whole / sipe - 1:+8.1%}"
            )


if __name__ == "__main__":
    main()
