"""Weakly supervised semantic segmentation from image labels.

import wsss

model = wsss.load("outputs/cam_folder/default")
wsss.evaluate(model.stream("photos", labels="labels.csv"), "masks")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsss.errors import WsssError
from wsss.version import __version__

if TYPE_CHECKING:
    from wsss.api import (
        Evaluation,
        Model,
        Prediction,
        SeedModel,
        SeedUse,
        SegmentationModel,
        evaluate,
        load,
        pull,
        push,
        read_maps,
        save,
    )

__all__ = [
    "Evaluation",
    "Model",
    "Prediction",
    "SeedModel",
    "SeedUse",
    "SegmentationModel",
    "WsssError",
    "__version__",
    "evaluate",
    "load",
    "pull",
    "push",
    "read_maps",
    "save",
]


def __getattr__(name: str) -> Any:
    """The names of `wsss.api`, imported when they are first used: PyTorch takes seconds."""
    if name in __all__:
        import wsss.api

        return getattr(wsss.api, name)
    raise AttributeError(f"module 'wsss' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
