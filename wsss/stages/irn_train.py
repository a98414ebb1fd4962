"""Train IRN's edge and displacement heads on the confident labels; writes irn.pt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from wsss.backbones.base import Backbone
from wsss.build.job import Job, Result
from wsss.build.objects import (
    build_backbone,
    build_image_set,
)
from wsss.build.segmenter import method_backbone
from wsss.build.settings import Settings
from wsss.build.sources import WALKS, find_stage, irn_heads
from wsss.build.trainer import fit
from wsss.data.datamodule import EpochData, EpochSet, WholeSet
from wsss.data.transforms import Crop, Pyramid, ScaleRange
from wsss.errors import WsssError
from wsss.files import atomic
from wsss.refine.irn import EdgeDisplacement, IRNModule, mean_displacement
from wsss.run.compute import choose_memory_format
from wsss.run.group import led
from wsss.stages.irn_labels import LABELS

WEIGHTS = WALKS["irn_masks"][1]


def features_of(s: Settings, classes: tuple[str, ...]) -> Backbone:
    """The backbone whose frozen features the heads read."""
    if s.refine.irn.features == "pretrained":
        return build_backbone(s)
    return method_backbone(s, classes, "irn_train")


def load_irn(s: Settings, path: Path) -> EdgeDisplacement:
    """The trained network, ready for inference.

    Raises:
        WsssError: the file can't be read or is of another backbone.
    """
    backbone = build_backbone(s, pretrained=False)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        backbone.load_state_dict(state["backbone"])
        network = EdgeDisplacement(backbone.folded(), displacement=False)
        edges = {k: v for k, v in state["heads"].items() if not k.startswith("field")}
        network.load_heads(edges)
    except Exception as error:
        first = str(error).splitlines()[0]
        raise WsssError(f"{path}: no IRN weights of this backbone ({first[:200]})") from error
    return network.eval()


def run(s: Settings) -> Result:
    """Train, or go on with a killed training."""
    options = s.refine.irn
    image_set = build_image_set(s)
    classes = image_set.classes
    labels, _ = find_stage(s, "irn_labels", "irn_train", classes)
    identity = irn_heads(s, image_set)
    job = Job(s, "irn_train", *identity, needs=lambda path: [path / WEIGHTS])
    if job.finished:
        return job.result()
    names = image_set.names(s.data.infer_split)
    backbone = features_of(s, classes)
    original, mean, std = backbone.state_dict(), backbone.mean, backbone.std
    torch.manual_seed(s.seed)
    # A frozen network may be folded for training too, which halves its time on a CPU.
    network = EdgeDisplacement(backbone.folded(), options.displacement)
    if choose_memory_format(s.trainer.memory_format) == "channels_last":
        network.to(memory_format=torch.channels_last)
    crop = Crop(options.crop_size, mean, std, ScaleRange(*options.scale))
    fitted = fit(
        job,
        IRNModule(network, options.radius, options.optimizer),
        EpochData(
            EpochSet(image_set, names, crop, s.seed, targets=labels / LABELS),
            batch_size=options.batch_size,
            num_workers=s.data.num_workers,
            key="refine.irn.batch_size",
        ),
        "refine.irn.optimizer.lr_edge",
        max_epochs=options.max_epochs,
        gradient_clip_val=options.gradient_clip_val,
    )

    @led
    def finish() -> Result:
        facts: dict[str, Any] = {}
        if options.displacement and options.mean_displacement:
            whole = WholeSet(image_set, names, Pyramid(mean, std))
            shift = mean_displacement(
                network, whole, options.crop_size, options.batch_size, fitted.device
            )
            network.mean_shift.copy_(shift)
            facts["mean_displacement"] = shift.tolist()
        heads = {k: v.cpu() for k, v in network.heads_state().items()}
        with atomic(job.path / WEIGHTS) as temporary:
            torch.save({"backbone": original, "heads": heads}, temporary)
        return job.close(
            str(fitted),
            job.path / WEIGHTS,
            loss=fitted.loss,
            steps=fitted.steps,
            images=len(names),
            **facts,
        )

    return finish()
