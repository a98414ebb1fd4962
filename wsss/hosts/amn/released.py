"""AMN's published checkpoints (`res50_amn.pth.pth`, `res50_amn_coco.pth.pth`).

They are bare state dicts. The network lists its layers up to three times, as itself, as stages and
as groups of the optimizer, so every weight stands in the file under up to three names:

| theirs | here, behind `host.` |
|---|---|
| `resnet50.*` | `backbone.network.*` |
| `stage1.0`, `1`, `4`, again `backbone.0.0`, `1`, `4` | ... `conv1`, `bn1`, `layer1` |
| `stage2.0` to `stage4.0`, again `backbone.1.0` to `backbone.3.0` | ... `layer2` to `layer4` |
| `label_enc`, again `newly_added.1` | `conditioning` |
| `classifier.1.c0` to `c3`, again `newly_added.0.1.c0` to `c3` | `classifier.0` to `3` |
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from wsss.errors import WsssError

_STEM = {"0": "conv1", "1": "bn1", "4": "layer1"}
_BODY = re.compile(r"resnet50\.(.+)")
_STAGE1 = re.compile(r"(?:stage1|backbone\.0)\.([014])\.(.+)")
_STAGE = re.compile(r"(?:stage([2-4])|backbone\.([1-3]))\.0\.(.+)")
_LABEL = re.compile(r"(?:label_enc|newly_added\.1)\.(weight|bias)")
_HEAD = re.compile(r"(?:classifier|newly_added\.0)\.1\.c([0-3])\.(weight|bias)")


def is_amn(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is of AMN's network."""
    return any(name.removeprefix("module.").startswith("label_enc.") for name in state)


def from_amn_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of this project, from AMN's.

    Args:
        state: their state dict, with or without `module.` before the names.

    Returns:
        The state dict of host=amn method=cam backbone=resnet50; the tensors are the same ones.

    Raises:
        WsssError: a name is unknown to the table above, two copies of a weight differ, or label
            layer or classifier are missing.
    """
    source: dict[str, str] = {}
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        own = _renamed(name.removeprefix("module."))
        if own is None:
            raise WsssError(f"weights of AMN: {name} is not one of its names")
        if own not in converted:
            source[own], converted[own] = name, value
        elif not torch.equal(converted[own], value):
            raise WsssError(
                f"weights of AMN: {source[own]} and {name} are the same weight and differ; the "
                "file is damaged, get it again"
            )
    for wanted in ("conditioning.weight", "classifier.0.weight"):
        if f"host.{wanted}" not in converted:
            raise WsssError(f"weights of AMN: nothing in the file stands for {wanted}")
    return converted


def _renamed(name: str) -> str | None:
    """The name here; None: unknown."""
    if match := _BODY.fullmatch(name):
        return f"host.backbone.network.{match[1]}"
    if match := _STAGE1.fullmatch(name):
        return f"host.backbone.network.{_STEM[match[1]]}.{match[2]}"
    if match := _STAGE.fullmatch(name):
        layer = int(match[1] or int(match[2]) + 1)
        return f"host.backbone.network.layer{layer}.{match[3]}"
    if match := _LABEL.fullmatch(name):
        return f"host.conditioning.{match[1]}"
    if match := _HEAD.fullmatch(name):
        return f"host.classifier.{match[1]}.{match[2]}"
    return None
