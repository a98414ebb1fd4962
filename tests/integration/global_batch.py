"""Trainings in float64, for test_global_batch.py: `global_batch.py RANK WORLD SCENES FOLDER`.

Each of `TRAININGS` by this process alone, or as one of several that share every global batch, with
the program's own loaders, modules and trainer; its weights and buffers go to
`FOLDER/NAME_RANK_of_WORLD.pt`. Dropout draws from each process's own generator, so it is off.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsss.build.objects import build_backbone, build_image_set, build_network, training_data
from wsss.build.segmenter import build_segmenter
from wsss.build.settings import Settings
from wsss.build.trainer import build_trainer
from wsss.cli import compose_for_doctor
from wsss.data.datamodule import EpochData, EpochSet
from wsss.data.masks import VOID, write_mask
from wsss.data.transforms import Crop, ScaleRange
from wsss.maps.files import ClassMaps, write_class_maps
from wsss.refine.irn import EdgeDisplacement, IRNModule
from wsss.refine.psa import READINGS
from wsss.refine.psa_network import PosteriorSet, PSACrop, PSAModule, PSANetwork
from wsss.run.callbacks import FiniteLoss
from wsss.stages.psa_train import BackboneBody
from wsss.stages.seg_train import training_crop

CONF = Path(__file__).resolve().parent / "conf"
# A bank that overflows, few clusters: order and numbers of anchors matter.
BANK = ("method.bank.size=9", "method.bank.clusters=3", "method.neighbors=2")
SEG = ("experiment=tiny_segmentation", "backbone=timm", "backbone.name=test_resnet")
TRAININGS: dict[str, tuple[str, ...]] = {
    "cam": (),
    "cam_batch_norm": ("backbone.norm=batch",),
    "sipe": ("method=sipe",),
    "sipe_present": ("method=sipe_small", "method.gsc_classes=present", "backbone.norm=batch"),
    "cpal": ("method=cpal", *BANK),
    "cpal_present": ("method=cpal_small", "method.reduction=present", *BANK),
    "cpal_refilled": ("method=cpal_small", "method.background=bank", "method.refill=epoch", *BANK),
    "several": ("method=several",),
    "amn": ("experiment=tiny_amn", "host.dropout=0", "optimizer.lr=0.001"),
    "mctformer": (
        *("host=mctformer_tiny", "optimizer=mctformer", "host.image_size=64", "host.width=24"),
        *("host.heads=2", "training.gradient_clip_val=null"),
    ),
    "irn": ("refine.irn.radius=4",),
    "psa": ("refine.psa.network=backbone", "refine.psa.radius=3"),
    "segmentation_ce": (*SEG, "segmentation.loss=ce", "segmentation.msc=true"),
    "segmentation_balanced": (*SEG, "segmentation.loss=balanced", "backbone.norm=batch"),
    "segmentation_balanced_dsrg": (*SEG, "segmentation.loss=balanced_dsrg"),
}


def stripes(number: int, height: int, width: int) -> np.ndarray:
    """Labels of background, objects and unsure pixels, very different from image to image."""
    ids = np.repeat([0, 1 + number % 3, VOID, 2][: 1 + number % 4], 9)
    return np.resize(ids, (height, width)).astype(np.uint8)


def write_labels(s: Settings, labels: Path, posteriors: Path) -> None:
    """Label maps and PSA's readings of all training images, as no stage made them."""
    image_set = build_image_set(s)
    for number, name in enumerate(image_set.names(s.data.train_split)):
        ids = stripes(number, 64, 64)
        write_mask(labels / f"{name}.png", ids)
        reading = np.stack([ids == 0, ids == 1 + number % 3]).astype(np.float32)
        reading = reading / np.maximum(reading.sum(axis=0), 1)
        maps = {kind: reading for kind in READINGS}
        write_class_maps(posteriors / f"{name}.npz", ClassMaps(np.array([1]), (64, 64), maps))


def training_of(name: str, s: Settings, folder: Path) -> tuple[Any, EpochData, dict[str, Any]]:
    """Module, loaders, and what the trainer must know."""
    image_set = build_image_set(s)
    names = image_set.names(s.data.train_split)
    if name == "irn":
        backbone = build_backbone(s)
        torch.manual_seed(s.seed)
        module = IRNModule(EdgeDisplacement(backbone), s.refine.irn.radius, s.refine.irn.optimizer)
        crop = Crop(64, backbone.mean, backbone.std, ScaleRange(0.75, 1.25))
        labeled = EpochSet(image_set, names, crop, s.seed, targets=folder / "labels")
        return module, EpochData(labeled, batch_size=4, num_workers=0), {"max_epochs": 2}
    if name == "psa":
        torch.manual_seed(s.seed)
        body = BackboneBody(build_backbone(s))
        psa = PSAModule(PSANetwork(body), s.refine.psa.radius, s.refine.psa.optimizer)
        cut = PSACrop(64, body.mean, body.std)
        read = PosteriorSet(image_set, names, folder / "posteriors", cut, s.seed)
        return psa, EpochData(read, batch_size=4, num_workers=0), {"max_epochs": 2}
    if name.startswith("segmentation"):
        segmenter, network = build_segmenter(s, image_set.classes)
        crop = training_crop(s.segmentation, network)
        labeled = EpochSet(image_set, names, crop, s.seed, targets=folder / "labels")
        data = EpochData(labeled, batch_size=4, accumulate=2, num_workers=0)
        return segmenter, data, {"max_epochs": 3, "accumulate_grad_batches": 2}
    seeds = build_network(s, image_set.classes)
    options = {"max_epochs": 3, "gradient_clip_val": s.training.gradient_clip_val}
    return seeds, training_data(s, image_set, seeds.host), options


def main(rank: int, world: int, scenes: Path, folder: Path) -> None:
    """Run all trainings."""
    common = (
        f"hydra.searchpath=[file://{CONF}]",
        f"data.root={scenes}",
        f"paths.outputs={folder / f'out{rank}'}",
        *(("trainer=ddp",) if world > 1 else ("trainer=cpu",)),
        "trainer.accelerator=cpu",
        f"trainer.devices={world}",
        "trainer.precision=64-true",
        "data.num_workers=0",
        "segmentation.features=pretrained",
        f"++host.labels={folder / 'labels'}",
    )
    for name, changes in TRAININGS.items():
        first = () if any(c.startswith("experiment=") for c in changes) else ("experiment=tiny",)
        own = common if name == "amn" else common[:-1]
        s = compose_for_doctor([*first, *own, *changes])
        if rank == 0 and not (folder / "labels").is_dir():
            write_labels(s, folder / "labels", folder / "posteriors")
        if world > 1:
            torch.distributed.barrier()
        module, data, options = training_of(name, s, folder)
        trainer = build_trainer(s, folder, [FiniteLoss("lr")], **options)
        trainer.fit(module, datamodule=data)
        torch.save(module.state_dict(), folder / f"{name}_{rank}_of_{world}.pt")


if __name__ == "__main__":
    # As torchrun starts it.
    number, processes = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    warnings.filterwarnings("error", message=".*find_unused_parameters.*")
    if processes > 1:
        place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": processes}
        place |= {"LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1}
        os.environ |= {key: str(value) for key, value in place.items()}
        os.environ["TORCHELASTIC_RUN_ID"] = "test"
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{sys.argv[4]}/meet", rank=number, world_size=processes
        )
    main(number, processes, Path(sys.argv[3]), Path(sys.argv[4]))
    if processes > 1:
        torch.distributed.destroy_process_group()
