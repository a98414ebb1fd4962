"""CLIP-ES's map making: time and peak memory of one image, by the number of its classes.

    python benchmarks/clip_es.py            # ViT-B/16 drawn at random
    python benchmarks/clip_es.py --quick    # seconds, to see that it runs

One image at scale 1, float32, 20 classes and 25 background words. "together": one forward pass and
one batch of backward passes through the last block, as maps are made here; "one by one": a backward
pass for each class, as released; "whole": a forward pass of the tower for each class, too. "CAA" is
"together" with the attention looked at, and both kinds of map. Every case runs in a process of its
own; seconds are CPU time, memory is the growth of the resident peak above network and input.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from wsss.hosts.clip_es.functional import class_probabilities
from wsss.hosts.clip_es.host import CLIPES, CLIPESSettings
from wsss.hosts.clip_es.network import TowerSettings

SIZES = [("500 x 375", (384, 512)), ("640 x 480", (480, 640))]
FORMS = ("together", "one by one", "whole", "CAA")
TINY = TowerSettings(width=64, layers=3, text_width=64, text_layers=1, embedding=32)


def one_by_one(host: CLIPES, image: Tensor, label: Tensor) -> list[Tensor]:
    """A backward pass for each class through one graph of the last block."""
    trunk = host.tower.trunk(image, look=False)
    tokens = host.tower.last_norm(trunk).detach().requires_grad_()
    embedding, _ = host.tower.last_block(trunk, tokens, look=False)
    words = len(host.options.background)
    scores = class_probabilities(embedding, host.texts, host.scale, label, words)
    maps = []
    for n in label[0].nonzero().flatten().tolist():
        (gradient,) = torch.autograd.grad(scores[0, n], tokens, retain_graph=True)
        maps.append((tokens.detach()[0, 1:] @ gradient[0, 1:].mean(dim=0)).relu())
    return maps


def work(host: CLIPES, form: str, image: Tensor, label: Tensor) -> None:
    """What is measured."""
    if form == "one by one":
        one_by_one(host, image, label)
    elif form == "whole":
        for n in label[0].nonzero().flatten():
            one_by_one(host, image, torch.nn.functional.one_hot(n, len(label[0]))[None])
    else:
        host.train(form == "together")  # in training no attention is looked at
        seen = host(image, label)
        if form == "CAA":
            host.maps(seen, label[0])


def measure(form: str, size: tuple[int, int], classes: int, quick: bool) -> dict[str, float]:
    """Seconds and MiB of one case, in this process."""
    torch.manual_seed(0)
    words = tuple(f"word {i}" for i in range(25))
    sizes = TINY if quick else TowerSettings()
    options = CLIPESSettings(weights=None, sizes=sizes, background=words, attention_layers=2)
    if not quick:
        options = CLIPESSettings(weights=None, background=words)
    host = CLIPES(options, [f"class {i}" for i in range(20)]).eval()
    image, label = torch.randn(1, 3, *size), torch.zeros(1, 20)
    label[0, :classes] = 1
    small = image[..., :32, :32]
    work(host, form, small, label)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: building took more
    before = resident("VmRSS")
    start = time.process_time()
    work(host, form, image, label)
    seconds = time.process_time() - start
    return {"seconds": seconds, "mib": resident("VmHWM") - before}


def resident(field: str) -> float:
    """Resident memory (VmRSS) or its peak (VmHWM), MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small images, three blocks")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        form, height, width, classes, quick = json.loads(given.case)
        print(json.dumps(measure(form, (height, width), classes, quick)))
        return
    sizes = [("64 x 96", (64, 96))] if given.quick else SIZES
    print("| image | classes | passes | CPU s | MiB |")
    print("|---|---|---|---|---|")
    for name, size in sizes:
        for classes in (1, 3, 6):
            for form in FORMS:
                case = json.dumps([form, *size, classes, given.quick])
                command = [sys.executable, __file__, "--case", case]
                made = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                result = json.loads(made)
                cells = f"{result['seconds']:.2f} | {result['mib']:.0f}"
                print(f"| {name} | {classes} | {form} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
