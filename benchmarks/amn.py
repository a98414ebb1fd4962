"""AMN's map making beside plain CAM's: time of an image at four scales with its mirror image.

    python benchmarks/amn.py            # ResNet-50, 20 classes, 500 x 375
    python benchmarks/amn.py --quick    # seconds, to see that it runs

float32, batch normalization folded. "network" is all forward passes, "fuse" what makes one map of
them at stride 4. Seconds are CPU time; memory is that of logits or class maps before the fusion.
"""

from __future__ import annotations

import argparse
import time

import torch

from wsss.backbones import ResNet
from wsss.hosts.amn.host import AMN, AMNSettings
from wsss.hosts.base import Host, HostSettings
from wsss.hosts.cam import CAM

CLASSES = tuple(f"class {n}" for n in range(20))
SCALES = (1.0, 0.5, 1.5, 2.0)


def measure(host: Host, size: tuple[int, int]) -> tuple[float, float, float]:
    """Seconds of the forward passes and of the fusion, MiB in between."""
    label = torch.zeros(len(CLASSES))
    label[[3, 14]] = 1
    target = torch.zeros(size, dtype=torch.uint8)
    target[: size[0] // 2] = 255
    images = [torch.randn(2, 3, *host.test_size(size, scale)) for scale in SCALES]
    host.eval().folded()
    with torch.inference_mode():
        host(images[1], label.expand(2, -1))
        start = time.process_time()
        scales = [host.maps(host(pair, label.expand(2, -1)), label) for pair in images]
        middle = time.process_time()
        (kind,) = host.kinds
        maps = [scale[kind] for scale in scales]
        grid = ((size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1)
        host.fuse(kind, maps, grid, {"label": label, "target": target})
        end = time.process_time()
    memory = sum(m.numel() * m.element_size() for m in maps) / 2**20
    return middle - start, end - middle, memory


def main() -> None:
    """Print a row for each host."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small images, ResNet-18")
    quick = parser.parse_args().quick
    size, depth = ((60, 80), 18) if quick else ((375, 500), 50)
    torch.manual_seed(0)
    hosts = {
        "cam": CAM(HostSettings(), CLASSES, ResNet(depth)),
        "amn": AMN(AMNSettings(), CLASSES, ResNet(depth, frozen_stages=0)),
    }
    print(f"{'host':<6}{'network':>10}{'fuse':>10}{'MiB':>8}")
    for name, host in hosts.items():
        network, fuse, memory = measure(host, size)
        print(f"{name:<6}{network:>8.2f} s{fuse:>8.3f} s{memory:>8.2f}")


if __name__ == "__main__":
    main()
