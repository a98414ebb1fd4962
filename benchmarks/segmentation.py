"""What a training step of the segmentation network costs: seconds and peak memory.

    python benchmarks/segmentation.py                              # MSRA ResNet-101, MSC, 321²
    python benchmarks/segmentation.py --network resnet38d --single
    python benchmarks/segmentation.py --quick                      # to see that it runs

Without --batch it is 5 images on a GPU, deeplab-pytorch's share of an accumulated step, and 1 on a
CPU. A step is forward at all scales, all losses, backward and the optimizer. Memory is the
allocator's peak on a GPU, else the largest resident set, which includes Python and PyTorch.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import torch

from wsss.segmentation.deeplabv2 import build_network
from wsss.segmentation.losses import LOSSES, losses_of
from wsss.segmentation.multi_scale import maximum, multi_scale_logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--network",
        default="resnet101_msra",
        choices=("resnet101_msra", "resnet101_torchvision", "resnet38d"),
    )
    parser.add_argument("--classes", type=int, default=21, help="background included")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--crop", type=int, default=321, help="side of the crop, pixels")
    parser.add_argument("--steps", type=int, help="measured, after one unmeasured; 5 or 2")
    parser.add_argument("--single", action="store_true", help="one scale instead of three")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--quick", action="store_true", help="1 crop of 65 pixels, 2 steps")
    options = parser.parse_args()
    if options.quick:
        options.batch, options.crop, options.steps = 1, 65, 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options.batch = options.batch or (5 if device == "cuda" else 1)
    options.steps = options.steps or (5 if device == "cuda" else 2)
    torch.manual_seed(0)
    network = build_network(options.network, options.classes).to(device).train()
    optimizer = torch.optim.SGD(network.parameter_groups(2.5e-4, 5e-4), lr=2.5e-4, momentum=0.9)
    images = torch.randn(options.batch, 3, options.crop, options.crop, device=device)
    target = torch.randint(
        0, options.classes, (options.batch, options.crop, options.crop), device=device
    )
    scales = (1.0,) if options.single else (1.0, 0.75, 0.5)
    seconds = []
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bfloat16"):
            logits = multi_scale_logits(network, images, scales)
        outputs = logits if options.single else [*logits, maximum(logits)]
        loss = torch.stack(losses_of(outputs, target, LOSSES["ce"])).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    if device == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**30
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{options.network}, {options.batch} x {options.crop}, {len(scales)} scale(s), "
        f"{options.precision}, {device}: {statistics.median(seconds[1:]):.2f} s a step, "
        f"{memory:.2f} GiB"
    )


if __name__ == "__main__":
    main()
