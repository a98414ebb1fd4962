"""Make class maps of every image of data.infer_split from a trained method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from wsss.build.job import Job, Result
from wsss.build.objects import build_image_set, load_network, whole_set
from wsss.build.settings import MakeCamSettings, Settings
from wsss.build.sources import find_checkpoint, made_maps
from wsss.build.trainer import predict, still_missing
from wsss.maps.files import MAPS, ClassMaps, write_class_maps
from wsss.methods.network import SeedNetwork
from wsss.run.group import led
from wsss.run.process import relative
from wsss.show.sheets import map_column


class MapMaker(pl.LightningModule):
    """Runs host and method over whole images and writes a file for each.

    Args:
        network: host and method.
        folder: where NAME.npz go.
        options: resolution and type of the stored maps.
    """

    def __init__(self, network: SeedNetwork, folder: Path, options: MakeCamSettings) -> None:
        super().__init__()
        self.network, self.folder, self.options = network, folder, options

    def predict_step(self, sample: Mapping[str, Any], batch_idx: int) -> None:
        """Class maps of one image, all scales."""
        height, width = sample["size"].tolist()
        found = self.network.whole_maps(sample, self.options.stride)
        maps = {kind: values.cpu().numpy() for kind, values in found.items()}
        classes = np.flatnonzero(sample["label"].cpu().numpy()) + 1
        write_class_maps(
            self.folder / f"{sample['name']}.npz",
            ClassMaps(classes, (height, width), maps),
            self.options.dtype,
        )


def run(s: Settings) -> Result:
    """Make the maps that are not there yet."""
    image_set = build_image_set(s)
    checkpoint, _ = find_checkpoint(s, "make_cam", image_set.classes)
    names = image_set.names(s.data.infer_split)
    job = Job(
        s,
        "make_cam",
        *made_maps(s, image_set),
        needs=lambda path: [path / MAPS / f"{name}.npz" for name in names],
    )
    if job.finished:
        return job.result()
    network = load_network(s, checkpoint, image_set.classes)
    maps = job.path / MAPS
    missing = still_missing(names, (maps, ".npz"))
    if missing:
        whole = whole_set(s, image_set, network.host, s.data.infer_split, s.data.scales)
        seen = whole_set(s, image_set, network.host, s.data.train_split, (1.0,))

        def before(device: torch.device) -> None:
            network.to(device)
            network.before_maps(seen)

        maker = MapMaker(network, maps, s.make_cam)
        predict(job, maker, whole.only(missing), before, network.host.needs_grad)

    @led
    def finish() -> Result:
        size = sum((maps / f"{name}.npz").stat().st_size for name in names) / len(names)
        facts = {"images": len(names), "bytes_per_image": size}
        job.facts(facts)
        columns = {kind: map_column(maps, kind) for kind in network.kinds}
        job.sheet(image_set, names, s.make_cam.pictures, columns)
        return job.close(
            f"{len(names)} images ({', '.join(network.kinds)}) in {{time}}, "
            f"{size / 1024:.1f} KiB each",
            maps,
            kinds=dict(network.kinds),
            class_names=list(image_set.classes),
            notes=network.notes(),
            checkpoint=relative(checkpoint) if checkpoint else None,
            **facts,
        )

    return finish()
