"""Settings that go by the number of photographs of a set of one's own: two resolvers."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

SIZES = (200, 2000)  # numbers of photographs at which `by_images` goes on to its next value


def register() -> None:
    """Make the resolvers known to OmegaConf."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("by_images", by_images, replace=True)
    OmegaConf.register_new_resolver("epochs", epochs, replace=True)


def by_images(*values: Any, _root_: Any) -> Any:
    """Resolver `by_images`: the value for as many photographs as there are, the last for more."""
    from omegaconf import OmegaConf

    number = photographs(_root_.data)
    value = values[min(sum(number >= limit for limit in SIZES), len(values) - 1)]
    return OmegaConf.create(value) if isinstance(value, list) else value


def epochs(steps: int, batch_size: int, *, _root_: Any) -> int:
    """Resolver `epochs`: as many as make at least so many steps."""
    return math.ceil(steps / max(1, photographs(_root_.data) // batch_size))


def photographs(data: Any) -> int:
    """Number of photographs in the image folder of a set of one's own; 0 where there is none."""
    from wsss.data.base import list_files
    from wsss.data.photographs import IMAGE_ENDINGS

    images = data.image_set.get("images")
    if images is not None and not isinstance(images, str):  # a folder for each split
        images = images.get(data.train_split)
    if not images or not data.root:
        return 0
    return len(list_files(Path(str(data.root)).expanduser() / images, IMAGE_ENDINGS)[0])


def chosen(cfg: DictConfig) -> str | None:
    """What the number of photographs has chosen, as a line; None where it chooses nothing."""
    from omegaconf import OmegaConf

    from wsss.files import flatten

    content = flatten(OmegaConf.to_container(cfg, resolve=False))
    by_number = re.compile(r"\$\{(by_images|epochs):")
    keys = [key for key, value in content.items() if by_number.match(str(value))]
    unread = ("pipeline", *(["refine.irn.max_epochs"] if "irn_train" not in cfg.pipeline else []))
    told = ", ".join(f"{k}={OmegaConf.select(cfg, k)}" for k in keys if k not in unread)
    number = photographs(cfg.data)
    return f"settings for {number} photographs: {told}" if told and number else None
