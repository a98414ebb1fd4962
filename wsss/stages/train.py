"""Train host and method from image labels; writes last.ckpt."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytorch_lightning as pl

from wsss.build.blueprint import seed_blueprint
from wsss.build.job import Job, Result
from wsss.build.objects import (
    build_image_set,
    build_network,
    training_data,
    whole_set,
)
from wsss.build.settings import Settings
from wsss.build.sources import training
from wsss.build.trainer import fit
from wsss.data.datamodule import Sample
from wsss.methods.network import SeedNetwork
from wsss.run.callbacks import BLUEPRINT, CHECKPOINT
from wsss.run.process import relative, say
from wsss.show.layout import Cell
from wsss.show.sheets import map_cell
from wsss.show.training import Album


def drawn(network: pl.LightningModule, sample: Sample, stride: int) -> list[Cell]:
    """Class maps of an image as they are now, of each kind; at scale 1."""
    assert isinstance(network, SeedNetwork)
    classes = (sample["label"].nonzero().flatten() + 1).tolist()
    maps = network.whole_maps(sample, stride).values()
    picture = sample["picture"].cpu().numpy()
    return [map_cell(picture, one.float().cpu().numpy(), classes) for one in maps]


def run(s: Settings) -> Result:
    """Train, or go on with a killed training; no mask is ever read."""
    image_set = build_image_set(s)
    learns = s.host.make.trains or s.method.branch is not None  # type: ignore[attr-defined]
    job = Job(
        s,
        "train",
        *training(s, image_set),
        needs=lambda path: [path / CHECKPOINT] if learns else [],
    )
    if job.finished:
        return job.result()
    facts: dict[str, Any] = {"class_names": list(image_set.classes)}
    if not learns:
        text = f"{s.host.target.rpartition('.')[2]} learns nothing, its maps can be made at once"
        facts[BLUEPRINT] = seed_blueprint(s, image_set.classes)
        return job.close(text, job.path, trained=False, **facts)
    network = build_network(s, image_set.classes)
    data = training_data(s, image_set, network.host)
    assert data.train_set is not None
    fitted = fit(
        job,
        network,
        data,
        "optimizer.lr and optimizer.head_lr",
        album=Album(
            whole_set(s, image_set, network.host, s.data.train_split, (1.0,), picture=True),
            list(network.kinds),
            partial(drawn, stride=s.make_cam.stride),
        ),
        max_epochs=s.training.max_epochs,
        gradient_clip_val=s.training.gradient_clip_val,
    )
    if job.main:
        figures = fitted.figures
        if network.branch is not None and figures:
            figures = figures + network.branch.training_figures(job.path / "metrics.csv", job.path)
        for path in figures:
            say(f"train: {relative(path)}")
    return job.close(
        str(fitted),
        fitted.checkpoint,
        loss=fitted.loss,
        steps=fitted.steps,
        images=len(data.train_set),
        **facts,
    )
