"""Train PSA's affinity network on the readings of the seeds; writes psa.pt."""

from __future__ import annotations

from pathlib import Path

import torch

from wsss.backbones.resnet38 import ResNet38Body
from wsss.build.job import Job, Result
from wsss.build.objects import build_backbone, build_image_set
from wsss.build.settings import Settings
from wsss.build.sources import WALKS, find_stage, psa_network
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
from wsss.run.group import led
from wsss.stages.psa_labels import POSTERIORS

WEIGHTS = WALKS["psa_masks"][1]


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
    options = s.refine.psa
    image_set = build_image_set(s)
    labels, _ = find_stage(s, "psa_labels", "psa_train", image_set.classes)
    identity = psa_network(s, image_set)
    job = Job(s, "psa_train", *identity, needs=lambda path: [path / WEIGHTS])
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

    @led
    def finish() -> Result:
        with atomic(job.path / WEIGHTS) as temporary:
            torch.save({k: v.cpu() for k, v in network.state_dict().items()}, temporary)
        return job.close(
            str(fitted),
            job.path / WEIGHTS,
            loss=fitted.loss,
            steps=fitted.steps,
            images=len(names),
        )

    return finish()
