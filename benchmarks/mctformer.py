"""MCTformer's map making: time and peak memory, with attention summed or kept layer by layer.

    python benchmarks/mctformer.py            # DeiT-small, 20 classes
    python benchmarks/mctformer.py --quick    # seconds, to see that it runs

An image and its mirror image at one scale, float32. "summed": patch-to-patch attention is added up
one head at a time, as maps are made here; "kept": every layer's attention of all heads is held
until the end, as the released code does; "none": without patch affinity. Every case runs in a
process of its own; seconds are CPU time, memory is the growth of the resident peak above network
and input.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor

from wsss.hosts.mctformer.functional import resize_positions
from wsss.hosts.mctformer.network import ClassTokenTransformer

SIZES = [("448 x 448", (448, 448)), ("500 x 375 at 1.5", (562, 750))]
FORMS = ("none", "summed", "kept")


def kept(network: ClassTokenTransformer, images: Tensor) -> Tensor:
    """The sum over layers, made at the end from what all layers have left."""
    classes, found = network.num_classes, []
    x = network.patch_embed["proj"](images).flatten(2).transpose(1, 2)
    x = torch.cat([network.cls_token.expand(len(images), -1, -1), x], dim=1)
    x = x + resize_positions(network.pos_embed, classes, network.grid(images))
    for block in network.blocks:
        joint = block.attn.qkv(block.norm1(x)).unflatten(2, (3, block.attn.num_heads, -1))
        query, key, value = joint.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
        found.append(weights)
        x = x + block.attn.proj((weights @ value).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return sum(w.mean(1)[:, classes:, classes:] for w in found)


def measure(form: str, size: tuple[int, int], depth: int) -> dict[str, float]:
    """Seconds and MiB of one case, in this process."""
    torch.manual_seed(0)
    network = ClassTokenTransformer(20, depth=depth).eval()
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        network(images[..., :32, :32], affinity=True)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        if form == "kept":
            kept(network, images)
        else:
            network(images, affinity=form == "summed")
        seconds = time.process_time() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "mib": (after - before) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small images, four blocks")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        form, height, width, depth = json.loads(given.case)
        print(json.dumps(measure(form, (height, width), depth)))
        return
    sizes, depth = ([("64 x 96", (64, 96))], 4) if given.quick else (SIZES, 12)
    print("| image | attention | CPU s | MiB |")
    print("|---|---|---|---|")
    for name, size in sizes:
        for form in FORMS:
            case = json.dumps([form, *size, depth])
            command = [sys.executable, __file__, "--case", case]
            made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result = json.loads(made)
            print(f"| {name} | {form} | {result['seconds']:.2f} | {result['mib']:.0f} |")


if __name__ == "__main__":
    main()
