"""CLIP-ES's map making: time of one image, by the number of its classes.

    python benchmarks/clip_es.py            # ViT-B/16 drawn at random
    python benchmarks/clip_es.py --quick    # seconds, to see that it runs

One image at scale 1, float32, 20 classes and 25 background words. "together": one forward pass and
one batch of backward passes through the last block, as maps are made here; "one by one": a backward
pass for each class, as released; "whole": a forward pass of the tower for each class, too. "CAA" is
"together" with the attention looked at, and both kinds of map. Seconds are CPU time, the median of
three; the forms take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time

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


def build(quick: bool) -> CLIPES:
    """The host with a tower drawn at random."""
    torch.manual_seed(0)
    options = CLIPESSettings(
        weights=None,
        sizes=TINY if quick else TowerSettings(),
        background=tuple(f"word {i}" for i in range(25)),
        attention_layers=2 if quick else 8,
    )
    return CLIPES(options, [f"class {i}" for i in range(20)]).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small images, three blocks")
    quick = parser.parse_args().quick
    host = build(quick)
    print("| image | classes |" + "".join(f" {form} s |" for form in FORMS))
    print("|---|---|" + "---|" * len(FORMS))
    for name, size in [("64 x 96", (64, 96))] if quick else SIZES:
        image = torch.randn(1, 3, *size)
        for classes in (1, 3, 6):
            label = torch.zeros(1, 20)
            label[0, :classes] = 1
            taken: dict[str, list[float]] = {form: [] for form in FORMS}
            for _ in range(3):
                for form, times in taken.items():
                    start = time.process_time()
                    work(host, form, image, label)
                    times.append(time.process_time() - start)
            cells = "".join(f" {statistics.median(times):.2f} |" for times in taken.values())
            print(f"| {name} | {classes} |{cells}", flush=True)


if __name__ == "__main__":
    main()
