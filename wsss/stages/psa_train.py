"""Train PSA's affinity network on the readings of the seeds; writes psa.pt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from wsss.backbones.resnet38 import ResNet38Body
from wsss.build.identity import (
    backbone_identity,
    images_of,
    trainer_identity,
    weights_identity,
)
from wsss.build.job import Job, Result
from wsss.build.objects import build_backbone, build_image_set
from wsss.build.settings import Settings, plain
from wsss.build.trainer import fit
from wsss.data.datamodule import EpochData
from wsss.errors import WsssError
from wsss.files import atomic
from wsss.refine.psa_network import (
    BackboneBody,
    PosteriorSet,
    PSACrop,
    PSAModule,
    PSANetwork,
    load_published,
)
from wsss.run.compute import choose_memory_format
from wsss.run.folder import require
from wsss.stages.psa_labels import POSTERIORS

WEIGHTS = "psa.pt"


def psa_identity(s: Settings) -> dict[str, Any]:
    """All that the trained network depends on, the readings apart."""
    options = {**plain(s.refine.psa), "weights": weights_identity(s, s.refine.psa.weights)}
    identity = {"psa": options, "trainer": trainer_identity(s), "seed": s.seed}
    if s.refine.psa.network == "backbone":
        identity["backbone"] = backbone_identity(s)
    return identity


def build_psa(s: Settings, fresh: bool = True) -> PSANetwork:
    """The network, new layers drawn from the seed.

    Args:
        s: the settings.
        fresh: whether to load initial weights; a checkpoint that fills all needs none.
    """
    options = s.refine.psa
    if options.network == "backbone":
        body: BackboneBody | ResNet38Body = BackboneBody(build_backbone(s, pretrained=fresh))
    else:
        torch.manual_seed(s.seed)
        body = ResNet38Body()
    torch.manual_seed(s.seed)
    network = PSANetwork(body)
    if fresh and options.weights is not None and options.network == "resnet38d":
        load_published(network, options.weights)
    return network


def load_psa(s: Settings, path: Path) -> PSANetwork:
    """The trained network, ready for inference.

    Raises:
        WsssError: the file can't be read or is of another network.
    """
    network = build_psa(s, fresh=False)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        first = str(error).splitlines()[0]
        raise WsssError(
            f"{path}: no PSA weights of this network ({first[:200]}); delete it and run "
            "stage=psa_train again"
        ) from error
    return network.eval()


def run(s: Settings) -> Result:
    """Train, or go on with a killed training."""
    options, labels = s.refine.psa, s.folder("psa_labels")
    image_set = build_image_set(s)
    inputs = {
        "psa_labels": require(labels, "psa_labels", "psa_train", image_set.classes)["hash"],
        **images_of(s, image_set, s.data.infer_split, labels=False),
    }
    job = Job(s, "psa_train", psa_identity(s), inputs, needs=lambda path: [path / WEIGHTS])
    if job.finished:
        return job.result()
    names = image_set.names(s.data.infer_split)
    network = build_psa(s)
    if choose_memory_format(s.trainer.memory_format) == "channels_last":
        network.to(memory_format=torch.channels_last)
    crop = PSACrop(options.crop_size, network.body.mean, network.body.std)
    fitted = fit(
        job,
        PSAModule(network, options.radius, options.optimizer),
        EpochData(
            PosteriorSet(image_set, names, labels / POSTERIORS, crop, s.seed),
            batch_size=options.batch_size,
            num_workers=s.data.num_workers,
            key="refine.psa.batch_size",
        ),
        "refine.psa.optimizer.lr",
        max_epochs=options.max_epochs,
        gradient_clip_val=options.gradient_clip_val,
    )
    if not job.main:
        return job.result()
    with atomic(job.path / WEIGHTS) as temporary:
        torch.save({k: v.cpu() for k, v in network.state_dict().items()}, temporary)
    return job.close(
        str(fitted),
        job.path / WEIGHTS,
        loss=fitted.loss,
        steps=fitted.steps,
        images=len(names),
    )
