"""Draw the method's own figures for some images."""

from __future__ import annotations

import numpy as np
import torch
from omegaconf import DictConfig

from wsss.build import objects as ex
from wsss.data.photographs import load_image
from wsss.errors import WsssError
from wsss.run.folder import StageFolder


def run(cfg: DictConfig) -> None:
    """Draw with the trained weights; the images are spread over data.eval_split or named."""
    checkpoint, source = ex.find_checkpoint(cfg, "figures")
    settings = {"figures": ex.plain(cfg.figures), "test": ex.plain(cfg.method).get("test", {})}
    folder = StageFolder(ex.stage_folder(cfg, "figures"), "figures", settings, {"train": source})
    if not ex.is_main_process() or not ex.begin(cfg, folder):
        return
    image_set = ex.build_image_set(cfg)
    split = cfg.data.eval_split
    image_set.check(split)
    names = image_set.names(split)
    if cfg.figures.names:
        unknown = sorted(set(cfg.figures.names) - set(names))
        if unknown:
            raise WsssError(f"figures.names: {unknown[0]} is not in split '{split}'")
        names = list(cfg.figures.names)
    else:
        spread = np.linspace(0, len(names) - 1, min(cfg.figures.images, len(names)))
        names = [names[round(i)] for i in spread]
    method = ex.load_method(cfg, checkpoint, image_set.num_classes)
    datamodule = ex.build_datamodule(cfg, image_set, method.backbone)
    method.before_maps(datamodule)
    datamodule.infer_split = split
    samples = []
    for sample in datamodule.only(names).predict_dataloader():
        picture = load_image(image_set.image_path(sample["name"]))
        samples.append({**sample, "picture": picture})
    with torch.inference_mode():
        files = method.figures(samples, folder.path, image_set.classes)
    folder.close(files=[path.name for path in files])
    if not files:
        ex.say(f"figures: method={cfg.method.name} has no figures of its own")
    for path in files:
        ex.say(f"figures: {ex.relative(path)}")
