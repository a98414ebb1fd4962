"""Train host and method from image labels; writes last.ckpt."""

from __future__ import annotations

from typing import Any

from wsss.build.blueprint import seed_blueprint
from wsss.build.identity import given_of, images_of, training_identity
from wsss.build.job import Job, Result
from wsss.build.objects import (
    build_image_set,
    build_network,
    training_data,
)
from wsss.build.settings import Settings
from wsss.build.trainer import fit
from wsss.run.callbacks import BLUEPRINT, CHECKPOINT
from wsss.run.process import relative, say


def run(s: Settings) -> Result:
    """Train, or go on with a killed training; no mask is ever read."""
    image_set = build_image_set(s)
    split = s.data.train_split
    inputs = images_of(s, image_set, split) | given_of(s, image_set, split, "train")
    learns = s.host.make.trains or s.method.branch is not None  # type: ignore[attr-defined]
    job = Job(
        s,
        "train",
        training_identity(s),
        inputs,
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
