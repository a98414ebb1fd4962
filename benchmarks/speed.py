"""Images per second of training and of map making: plain float32 against the fast settings.

    python benchmarks/speed.py                                  EfficientNet-Lite0, 16 x 256²
    python benchmarks/speed.py --backbone resnet50 --size 512   the papers' shape
    python benchmarks/speed.py --device cuda
    python benchmarks/speed.py --quick                          2 x 64², to see that it runs

One process measures all settings, one after the other, on random images, so that the ratios hold
for the machine as it is at that moment. Training is one step of plain CAM: forward, backward,
optimizer. Map making is an image and its mirror image at scale 1.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator

import torch

from wsss.backbones import Backbone, ResNet, Timm
from wsss.hosts.base import HostSettings
from wsss.hosts.cam import CAM
from wsss.hosts.optimizer import OptimizerSettings, build_optimizer
from wsss.methods.network import SeedNetwork
from wsss.run.compute import cpu_has_bfloat16

CLASSES = [str(index) for index in range(20)]
SGD = OptimizerSettings(lr=1e-3, head_lr=1e-3, weight_decay=1e-4)


def backbone(name: str, fast: bool) -> Backbone:
    """The network with random weights; the fast one keeps its depthwise kernels frozen."""
    if name.startswith("resnet"):
        return ResNet(int(name.removeprefix("resnet")), weights=None)
    network = Timm(name, freeze_depthwise=fast)
    if not fast:  # PyTorch's own backward of depthwise layers
        for module in network.modules():
            if type(module).__name__ == "_QuickDepthwise":
                module.__class__ = torch.nn.Conv2d
    return network


def rate(step: Callable[[], object], images: int, seconds: float, device: torch.device) -> float:
    """Images per second of `step`, repeated for about `seconds` after one warm-up."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    wait()
    start, steps = time.perf_counter(), 0
    while steps < 2 or time.perf_counter() - start < seconds:
        step()
        wait()
        steps += 1
    return images * steps / (time.perf_counter() - start)


def settings(device: torch.device, everything: bool) -> Iterator[tuple[str, str, bool, bool]]:
    """Name, memory format, fast layers, bfloat16."""
    yield "float32, contiguous", "contiguous", False, False
    yield "float32, channels_last, fast layers", "channels_last", True, False
    if everything or device.type == "cuda" or cpu_has_bfloat16():
        yield "bfloat16, channels_last, fast layers", "channels_last", True, True


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=256, help="side of the crop, pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each figure")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true", help="also where the CPU is slow in it")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.batch, arguments.seconds = 64, 2, 0.5
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    image = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=device)
    label = (torch.rand(arguments.batch, len(CLASSES), device=device) < 0.1).float()
    print(
        f"{arguments.backbone}, {arguments.batch} x {arguments.size}², {device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{'setting':<40}{'train img/s':>12}{'ratio':>7}{'maps img/s':>12}{'ratio':>7}")
    first: tuple[float, float] | None = None
    for name, layout, fast, half in settings(device, arguments.bfloat16):
        host = CAM(HostSettings(), CLASSES, backbone(arguments.backbone, fast))
        network = SeedNetwork(host, None, SGD, memory_format=layout).to(device)
        groups = host.parameter_groups(SGD.lr, SGD.head_lr)
        optimizer = build_optimizer(groups, SGD, total_steps=1000)["optimizer"]
        cast = torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext()

        def train(network=network, optimizer=optimizer, cast=cast) -> None:
            with cast:
                seen = network(image, label)
                loss = network.host.losses(seen, {"label": label})["cls"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        trained = rate(train, arguments.batch, arguments.seconds, device)
        network.eval()
        if fast:
            host.folded()
            network.to(memory_format=network.layout)

        def maps(network=network, cast=cast) -> None:
            with torch.inference_mode(), cast:
                network.maps(image[0], label[0])

        made = rate(maps, 1, arguments.seconds, device)
        first = first or (trained, made)
        print(
            f"{name:<40}{trained:>12.2f}{trained / first[0]:>7.2f}{made:>12.2f}"
            f"{made / first[1]:>7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
