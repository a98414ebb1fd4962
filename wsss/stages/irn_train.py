"""Train IRN's edge and displacement heads on the confident labels; writes irn.pt."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from wsss.backbones.base import Backbone
from wsss.build import objects as ex
from wsss.errors import WsssError
from wsss.files import atomic
from wsss.refine.data import AffinityCrop, AffinityData, AffinitySet, WholeImages
from wsss.refine.irn import EdgeDisplacement, IRNModule
from wsss.run.callbacks import CHECKPOINT
from wsss.run.compute import choose_memory_format
from wsss.run.folder import StageFolder, require
from wsss.run.logs import METRICS, join_metrics, read_metrics
from wsss.run.progress import duration, track
from wsss.show.charts import draw_training
from wsss.stages.irn_labels import LABELS

WEIGHTS = "irn.pt"
FEATURES = ("pretrained", "method")


def irn_settings(cfg: DictConfig) -> dict[str, Any]:
    """All that the trained heads depend on, the labels apart."""
    training = ex.training_settings(cfg)
    trainer = {k: training["trainer"][k] for k in ("precision", "memory_format")}
    trainer["limit_train_batches"] = cfg.trainer.limit_train_batches
    return {
        "irn": ex.plain(cfg.refine.irn),
        "backbone": training["backbone"],
        "trainer": trainer,
        "seed": cfg.seed,
    }


def build_features(cfg: DictConfig) -> Backbone:
    """The backbone whose frozen features the heads read.

    Raises:
        WsssError: If `refine.irn.features` is unknown, or the method's checkpoint does not fit.
    """
    if cfg.refine.irn.features not in FEATURES:
        raise WsssError(f"refine.irn.features={cfg.refine.irn.features}: pretrained or method")
    if cfg.refine.irn.features == "pretrained":
        return ex.build_backbone(cfg)
    checkpoint, _ = ex.find_checkpoint(cfg, "irn_train")
    num_classes = ex.build_image_set(cfg).num_classes
    return ex.load_method(cfg, checkpoint, num_classes).backbone


def load_irn(cfg: DictConfig, path: Path) -> EdgeDisplacement:
    """The trained network, ready for inference.

    Raises:
        WsssError: If the file can't be read or is of another backbone.
    """
    backbone = ex.build_backbone(cfg, pretrained=False)
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


@torch.no_grad()
def mean_displacement(
    network: EdgeDisplacement, images: WholeImages, batch_size: int, device: torch.device
) -> torch.Tensor:
    """Mean displacement (2,) over all images and cells, y and x.

    The published code takes the mean of batch means and drops the last batch; here every image
    counts once.
    """
    network.to(device).train()  # evaluation mode would subtract the shift that is sought
    total, count = torch.zeros(2, dtype=torch.float64), 0
    loader = DataLoader(images, batch_size)
    for batch in track(loader, "irn_train: mean displacement", len(loader)):
        field = network(batch["image"].to(device))[1]
        assert field is not None
        total += field.double().mean(dim=(2, 3)).sum(dim=0).cpu()
        count += len(field)
    return (total / max(count, 1)).float()


def run(cfg: DictConfig) -> None:
    """Train, or go on with a killed training."""
    labels = ex.stage_folder(cfg, "irn_labels")
    inputs = {"irn_labels": require(labels, "irn_labels", "irn_train")["hash"]}
    if cfg.refine.irn.features == "method":
        inputs["train"] = ex.find_checkpoint(cfg, "irn_train")[1]
    folder = StageFolder(ex.stage_folder(cfg, "irn_train"), "irn_train", irn_settings(cfg), inputs)
    if not ex.begin(cfg, folder):
        return
    start = time.monotonic()
    options = ex.plain(cfg.refine.irn)
    image_set = ex.build_image_set(cfg)
    names = image_set.names(cfg.data.infer_split)
    backbone = build_features(cfg)
    original = backbone.state_dict()
    torch.manual_seed(cfg.seed)
    # A frozen network may be folded for training too, which halves its time on a CPU.
    network = EdgeDisplacement(backbone.folded(), options["displacement"])
    if choose_memory_format(cfg.trainer.memory_format) == "channels_last":
        network.to(memory_format=torch.channels_last)
    module = IRNModule(network, options["radius"], options["optimizer"])
    crop = AffinityCrop(options["crop_size"], tuple(options["scale"]), backbone.mean, backbone.std)
    data = AffinityData(
        AffinitySet(image_set, names, labels / LABELS, crop, cfg.seed),
        options["batch_size"],
        num_workers=cfg.data.num_workers,
    )
    checkpoint = folder.path / CHECKPOINT
    resume = checkpoint if checkpoint.is_file() else None
    earlier = read_metrics(folder.path / METRICS) if resume else []
    trainer = ex.build_trainer(
        cfg,
        folder.path,
        ex.build_callbacks(cfg, folder.path),
        ex.build_loggers(cfg, folder.path, "irn_train"),
        max_epochs=options["max_epochs"],
        gradient_clip_val=options["gradient_clip_val"],
    )
    if resume:
        resumed_at = torch.load(resume, map_location="cpu", weights_only=True)["global_step"]
        ex.say(f"irn_train: resumes at step {resumed_at}")
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    if not trainer.is_global_zero:
        return
    if resume:
        join_metrics(earlier, folder.path / METRICS, resumed_at)
    draw_training(read_metrics(folder.path / METRICS), folder.path)
    facts: dict[str, Any] = {}
    if options["displacement"] and options["mean_displacement"]:
        whole = WholeImages(image_set, names, backbone.mean, backbone.std, options["crop_size"])
        device = trainer.strategy.root_device
        shift = mean_displacement(network, whole, options["batch_size"], device)
        network.mean_shift.copy_(shift)
        facts["mean_displacement"] = shift.tolist()
    heads = {k: v.cpu() for k, v in network.heads_state().items()}
    with atomic(folder.path / WEIGHTS) as temporary:
        torch.save({"backbone": original, "heads": heads}, temporary)
    loss = float(trainer.callback_metrics.get("train/loss", torch.nan))
    seconds = time.monotonic() - start
    folder.close(loss=loss, steps=trainer.global_step, images=len(names), seconds=seconds, **facts)
    ex.say(
        f"irn_train: {trainer.global_step} steps in {duration(seconds)}, loss {loss:.4f} "
        f"-> {ex.relative(folder.path / WEIGHTS)}"
    )
