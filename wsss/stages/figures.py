"""Draw the method's own figures for some images."""

from __future__ import annotations

import numpy as np
import torch

from wsss.build.identity import method_options
from wsss.build.job import Job, Result
from wsss.build.objects import build_image_set, load_network, whole_set
from wsss.build.settings import Settings, plain
from wsss.build.sources import find_checkpoint
from wsss.errors import WsssError
from wsss.run.group import led
from wsss.run.process import relative, say


@led
def run(s: Settings) -> Result:
    """Draw with the trained weights; the images are spread over data.eval_split or named."""
    image_set = build_image_set(s)
    checkpoint, source = find_checkpoint(s, "figures", image_set.classes)
    identity = {"figures": plain(s.figures), "test": method_options(s)[1]}
    job = Job(s, "figures", identity, {"train": source})
    if job.finished:
        return job.result()
    split = s.data.eval_split
    image_set.check(split)
    names = image_set.names(split)
    if s.figures.names:
        unknown = sorted(set(s.figures.names) - set(names))
        if unknown:
            raise WsssError(f"figures.names: {unknown[0]} is not in split '{split}'")
        names = list(s.figures.names)
    else:
        spread = np.linspace(0, len(names) - 1, min(s.figures.images, len(names)))
        names = [names[round(i)] for i in spread]
    network = load_network(s, checkpoint, image_set.classes)
    files = []
    if network.branch is not None:
        network.before_maps(whole_set(s, image_set, network.host, s.data.train_split, (1.0,)))
        whole = whole_set(s, image_set, network.host, split, s.data.scales, picture=True)
        with torch.no_grad():
            files = network.branch.figures(network, list(whole.only(names).loader()), job.path)
    for path in files:
        say(f"figures: {relative(path)}")
    text = f"{len(files)} files" if files else f"method={s.method.name} has no figures of its own"
    return job.close(
        text, job.path, files=[path.relative_to(job.path).as_posix() for path in files]
    )
