"""Export the segmentation network as one file: a torch.export program, or ONNX."""

from __future__ import annotations

import time
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from wsss.build import objects as ex
from wsss.build.segmenter import find_trained, load_trained
from wsss.data.photographs import load_image
from wsss.data.transforms import to_tensor
from wsss.errors import WsssError
from wsss.files import write_json
from wsss.run.folder import StageFolder
from wsss.run.progress import duration
from wsss.segmentation.data import resize_bilinear
from wsss.segmentation.export import (
    FORMATS,
    LARGEST,
    ExportedSegmenter,
    check_format,
    disagreement,
    export,
    load_exported,
)

SIZES = ((161, 241), (224, 190))  # of the check; neither is the one that was traced


def check_photograph(cfg: DictConfig) -> tuple[Tensor, str]:
    """A photograph to check the export with, (3, H, W) uint8, and what it is.

    One of the data set's, or noise where the data set is not at hand.
    """
    try:
        image_set = ex.build_image_set(cfg)
        name = image_set.names(cfg.data.infer_split)[0]
        return to_tensor(load_image(image_set.image_path(name))), name
    except WsssError:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, (3, 12, 16), generator=generator, dtype=torch.uint8)
        return resize_bilinear(noise, (375, 500)), "noise (the data set is not at hand)"


def run(cfg: DictConfig) -> dict[str, Any]:
    """Write the file, read it back and compare its answers with the network's."""
    options = ex.plain(cfg.segmentation.export)
    check_format(options["format"])
    trained = find_trained(cfg, "seg_export")
    settings = {key: ex.plain(cfg.segmentation)[key] for key in ("msc", "msc_scales")}
    folder = StageFolder(
        ex.stage_folder(cfg, "seg_export") / options["format"],
        "seg_export",
        settings,
        {"seg_train": trained.hash},
    )
    if not ex.is_main_process() or not ex.begin(cfg, folder):
        return {}
    start = time.monotonic()
    segmenter, network = load_trained(cfg, trained, "seg_export")
    program = ExportedSegmenter(segmenter, network.mean, network.std).eval()
    path = folder.path / FORMATS[options["format"]]
    ex.say(f"seg_export: tracing {cfg.segmentation.network.name} for any height and width")
    export(program, path, options["format"])
    exported = load_exported(path)
    photograph, name = check_photograph(cfg)
    worst = 0.0
    for size in SIZES:
        image = resize_bilinear(photograph, size)[None].float() / 255
        with torch.inference_mode():
            worst = max(worst, disagreement(program(image), exported(image)))
    if worst:
        path.unlink()
        raise WsssError(
            f"seg_export: the exported network labels {100 * worst:.2f} % of the pixels of {name} "
            f"otherwise than the trained one; {path.name} is not kept"
        )
    write_json(
        folder.path / "segmenter.json",
        {
            "input": "image: float32 (1, 3, height, width), RGB in 0..1; not normalized",
            "sides": [program.smallest, LARGEST],
            "output": "logits: float32 (1, labels, height, width); arg max gives label ids",
            "labels": ["background", *trained.classes],
            "initial_weights": trained.initial_weights,
        },
    )
    seconds = time.monotonic() - start
    length = path.stat().st_size
    folder.close(file=path.name, bytes=length, checked_with=name, sizes=SIZES, seconds=seconds)
    ex.say(
        f"seg_export: same label maps as the trained network on {name} at "
        f"{' and '.join(f'{h} x {w}' for h, w in SIZES)}; {length / 2**20:.1f} MiB in "
        f"{duration(seconds)} -> {ex.relative(path)}"
    )
    return folder.manifest
