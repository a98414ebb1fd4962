"""How much of the processor's arithmetic a training step uses: FLOPs, seconds, share of the peak.

    python benchmarks/peak.py                                     EfficientNet-Lite0, 16 x 256²
    python benchmarks/peak.py --backbone resnet50 --size 512      the papers' shape
    python benchmarks/peak.py --precision float32 --compile
    python benchmarks/peak.py --quick                             2 x 128², to see that it runs

FLOPs are those that PyTorch counts in matrix products and convolutions, forward and backward; the
peak is what a product of two 4096 x 4096 matrices reaches in the same precision at the same time of
day. A step is forward, all losses, backward and the optimizer on given images. `plain` is float32,
contiguous, eager, `ours` the layout and layers of the program in the given precision, `compiled`
the same through torch.compile. Memory on a GPU is the allocator's peak.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable

import torch
from branches import make_batch
from speed import backbone
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from wsss.hosts.base import HostSettings
from wsss.hosts.cam import CAM
from wsss.hosts.optimizer import OptimizerSettings
from wsss.methods.cpal.branch import CPAL
from wsss.methods.network import SeedNetwork
from wsss.methods.sipe.branch import SIPE
from wsss.refine.affinity import affinity_labels, affinity_loss, displacement_loss
from wsss.refine.irn import EdgeDisplacement
from wsss.refine.paths import path_index
from wsss.run.compute import cpu_has_bfloat16
from wsss.segmentation.base import SegmentationNetwork
from wsss.segmentation.deeplabv2 import build_network
from wsss.segmentation.losses import LOSSES, losses_of
from wsss.segmentation.multi_scale import maximum, multi_scale_logits

CLASSES = 20
STEPS = ("cam", "sipe", "cpal", "irn", "deeplabv2")
Loss = Callable[[dict[str, Tensor]], Tensor]


def seed_network(name: str, kind: str, fast: bool) -> SeedNetwork:
    """Plain CAM with a branch; CPAL's bank is full and clustered."""
    host = CAM(HostSettings(), [str(n) for n in range(CLASSES)], backbone(kind, fast))
    options = {"sipe": SIPE, "cpal": CPAL}.get(name)
    branch = None if options is None else options(options.Settings(), host.channels, CLASSES)
    if isinstance(branch, CPAL):
        bank = branch.bank
        anchors = torch.randn(CLASSES * bank.size, bank.entries.shape[2])
        bank.push(anchors, torch.arange(len(anchors)) % CLASSES)
        bank.recluster(0)
    return SeedNetwork(host, branch, OptimizerSettings(lr=1e-3, head_lr=1e-3))


def loss_of(name: str, network: nn.Module) -> Loss:
    """All losses of a step, as one."""

    def seeds(batch: dict[str, Tensor]) -> Tensor:
        assert isinstance(network, SeedNetwork)
        seen, branch = network(batch["image"], batch["label"]), network.branch
        losses = [*network.host.losses(seen, batch).values()]
        if branch is not None:
            losses += branch.losses(seen, network.host.general(seen), batch).values()
        if isinstance(branch, CPAL):
            branch.bank.push(*branch.take_anchors())
        return torch.stack([loss.float() for loss in losses]).sum()

    def irn(batch: dict[str, Tensor]) -> Tensor:
        edge, field = network(batch["image"])
        index = path_index(10)
        target = batch["target"][:, ::4, ::4]
        pairs = affinity_labels(target, index)
        losses = affinity_loss(edge, pairs, index) | displacement_loss(field, pairs, index)
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    def segmentation(batch: dict[str, Tensor]) -> Tensor:
        assert isinstance(network, SegmentationNetwork)
        logits = multi_scale_logits(network, batch["image"], (1.0, 0.75, 0.5))
        outputs = [*logits, maximum(logits)]
        return torch.stack(losses_of(outputs, batch["target"], LOSSES["ce"])).sum()

    return {"irn": irn, "deeplabv2": segmentation}.get(name, seeds)


def build(name: str, kind: str, fast: bool) -> nn.Module:
    """The network of a step."""
    torch.manual_seed(0)
    if name == "irn":
        return EdgeDisplacement(backbone(kind, fast)).train()
    if name == "deeplabv2":
        body = None if kind.startswith("resnet") else backbone(kind, fast)
        network = "resnet101_msra" if body is None else "backbone"
        return build_network(network, CLASSES + 1, backbone=body).train()
    return seed_network(name, kind, fast).train()


def backward_flops(
    gradient: list[int], x: list[int], weight: list[int], *rest: object, **named: object
) -> int:
    """FLOPs of a convolution's backward pass; PyTorch's own count forgets groups."""
    mask = rest[-1]  # gradients wanted for x, weight, bias
    assert isinstance(mask, (list, tuple))
    return conv_flop_count(x, weight, gradient) * (bool(mask[0]) + bool(mask[1]))


def seconds_of(work: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Seconds of `work`: the least of several, after two unmeasured."""
    found: list[float] = []
    while len(found) < 5 or sum(found[2:]) < seconds:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[2:])


def peak(dtype: torch.dtype, side: int, device: torch.device) -> float:
    """FLOPs per second of a large matrix product."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: a @ b, 2.0, device)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=256, help="side of the crop, pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    half = torch.cuda.is_available() or cpu_has_bfloat16()
    parser.add_argument(
        "--precision", default="bfloat16" if half else "float32", choices=("float32", "bfloat16")
    )
    parser.add_argument("--steps", default=",".join(STEPS), help="A,B,...")
    parser.add_argument("--compile", action="store_true", help="torch.compile, too")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    side = 4096
    if options.quick:
        options.size, options.batch, options.seconds, side = 128, 2, 0.1, 256
    device, dtype = torch.device(options.device), getattr(torch, options.precision)
    peaks = {one: peak(one, side, device) for one in {torch.float32, dtype}}
    told = ", ".join(f"{str(k)[6:]} {v / 1e9:,.0f}" for k, v in peaks.items())
    print(
        f"{options.backbone}, {options.batch} x {options.size}², {device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; GFLOP/s at the peak: {told}"
    )
    print("| step | form | GFLOP | s | images/s | of the peak | GPU GiB |\n" + "|---" * 7 + "|")
    batch = make_batch(options.batch, options.size, CLASSES, str(device))
    shape = (options.batch, options.size, options.size)
    target = torch.randint(0, CLASSES + 1, shape, generator=torch.Generator().manual_seed(0))
    batch["target"] = target.to(device)
    forms = [("plain", torch.float32), ("ours", dtype)]
    forms += [("compiled", dtype)] if options.compile else []
    for name in options.steps.split(","):
        for form, used in forms:
            fast = form != "plain"
            layout = torch.channels_last if fast else torch.contiguous_format
            network = build(name, options.backbone, fast).to(device, memory_format=layout)
            learns = [p for p in network.parameters() if p.requires_grad]
            optimizer = torch.optim.SGD(learns, lr=1e-4, momentum=0.9)
            given = {**batch, "image": batch["image"].contiguous(memory_format=layout)}
            loss = loss_of(name, network)
            if form == "compiled":
                network.compile()
            cast = torch.autocast(device.type, torch.bfloat16, enabled=used == torch.bfloat16)

            def step(
                loss: Loss = loss,
                given: dict[str, Tensor] = given,
                optimizer: torch.optim.Optimizer = optimizer,
                cast: contextlib.AbstractContextManager[object] = cast,
            ) -> None:
                with cast:
                    value = loss(given)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()

            if form == "plain":
                own = {torch.ops.aten.convolution_backward: backward_flops}
                with FlopCounterMode(display=False, custom_mapping=own) as counter:
                    step()
                flops = counter.get_total_flops()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            spent = seconds_of(step, options.seconds, device)
            memory = ""
            if device.type == "cuda":
                memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"
            print(
                f"| {name} | {form} | {flops / 1e9:,.0f} | {spent:.3f} | "
                f"{options.batch / spent:.2f} | {100 * flops / spent / peaks[used]:.0f} % | "
                f"{memory} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
