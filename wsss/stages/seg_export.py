"""Export the segmentation network as one file: a torch.export program, or ONNX."""

from __future__ import annotations

import torch
from torch import Tensor

from wsss.build.job import Job, Result
from wsss.build.objects import build_image_set
from wsss.build.segmenter import find_trained, load_trained
from wsss.build.settings import Settings, plain
from wsss.data.photographs import load_image
from wsss.data.transforms import resize_bilinear, to_tensor
from wsss.errors import WsssError
from wsss.files import write_json
from wsss.run.group import led
from wsss.run.process import say
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


def check_photograph(s: Settings) -> tuple[Tensor, str]:
    """A photograph to check the export with, (3, H, W) uint8, and what it is.

    One of the data set's, or noise where the data set is not at hand.
    """
    try:
        image_set = build_image_set(s)
        name = image_set.names(s.data.infer_split)[0]
        return to_tensor(load_image(image_set.image_path(name))), name
    except WsssError:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, (3, 12, 16), generator=generator, dtype=torch.uint8)
        return resize_bilinear(noise, (375, 500)), "noise (the data set is not at hand)"


@led
def run(s: Settings) -> Result:
    """Write the file, read it back and compare its answers with the network's."""
    form = s.segmentation.export.format
    check_format(form)
    trained = find_trained(s, "seg_export")
    identity = {key: plain(s.segmentation)[key] for key in ("msc", "msc_scales")}
    job = Job(s, "seg_export", identity, {"seg_train": trained.hash}, part=form)
    if job.finished:
        return job.result()
    segmenter, network = load_trained(s, trained, "seg_export")
    program = ExportedSegmenter(segmenter, network.mean, network.std).eval()
    path = job.path / FORMATS[form]
    say(f"seg_export: tracing {s.segmentation.network.name} for any height and width")
    export(program, path, form)
    exported = load_exported(path)
    photograph, name = check_photograph(s)
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
        job.path / "segmenter.json",
        {
            "input": "image: float32 (1, 3, height, width), RGB in 0..1; not normalized",
            "sides": [program.smallest, LARGEST],
            "output": "logits: float32 (1, labels, height, width); arg max gives label ids",
            "labels": ["background", *trained.classes],
            "initial_weights": trained.initial_weights,
        },
    )
    length = path.stat().st_size
    return job.close(
        f"same label maps as the trained network on {name} at "
        f"{' and '.join(f'{h} x {w}' for h, w in SIZES)}; {length / 2**20:.1f} MiB in {{time}}",
        path,
        file=path.name,
        bytes=length,
        checked_with=name,
        sizes=SIZES,
    )
