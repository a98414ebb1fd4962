"""Weights in the files of other projects: published checkpoints of SIPE, IRN, AMN and MCTformer.

SIPE stores `{"net": state}`, IRN the bare state. Both networks name every weight of the backbone
several times, since they list the same layers again as stages and as groups of the optimizer:

| theirs | here | |
|---|---|---|
| `resnet50.*` | `host.backbone.network.*` | torchvision's names |
| `classifier.weight` | `host.classifier.weight` | (N, 2048, 1, 1) |
| `side1.weight` to `side4.weight` | `branch.sides.0.weight` to `.3.weight` | SIPE only |
| `stage0.*` to `stage4.*`, `backbone.*`, `newly_added.*` | left out | the same weights again |

MCTformer stores `{"model": state}`; its names stand here behind `host.network.`.

With `checkpoint=FILE`, SIPE's file fits method=sipe backbone=resnet50, IRN's method=cam
backbone=resnet50, AMN's (`wsss.hosts.amn.released`) host=amn method=cam backbone=resnet50,
MCTformer's host=mctformer_v1 or mctformer_v2; `data` must have as many classes as the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsss.errors import WsssError
from wsss.hosts.amn.released import from_amn_state_dict, is_amn

CLASSES = "class_names"  # of a checkpoint of stage=train: what its class ids mean
_AGAIN = re.compile(r"(stage\d|backbone|newly_added)\.")
_SIDE = re.compile(r"side([1-4])\.")


def from_sipe_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of this project, from SIPE's (or IRN's CAM network's).

    Args:
        state: their state dict, with or without `module.` before the names.

    Returns:
        The state dict of method=sipe (without sides: method=cam) with backbone=resnet50. The
        tensors are the same ones. Counters that old versions of PyTorch did not keep
        (`num_batches_tracked`, which nothing here reads) are 0.

    Raises:
        WsssError: a name is unknown to the table above, or there is no classifier.
    """
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        if _AGAIN.match(name):
            continue
        side = _SIDE.match(name)
        if side:
            converted[f"branch.sides.{int(side[1]) - 1}.{name[side.end() :]}"] = value
        elif name.startswith("resnet50."):
            converted[f"host.backbone.network.{name.removeprefix('resnet50.')}"] = value
        elif name == "classifier.weight":
            converted[f"host.{name}"] = value
        else:
            raise WsssError(f"weights of SIPE or IRN: {name} is not one of their names")
    if "host.classifier.weight" not in converted:
        raise WsssError("weights of SIPE or IRN: classifier.weight is missing")
    return _with_counters(converted)


def _with_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the batch counters that old versions of PyTorch did not keep."""
    for name in list(state):
        if name.endswith(".running_mean"):
            state.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return state


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    """Weights from a checkpoint of this project, of SIPE, IRN's CAM network, AMN or MCTformer.

    Args:
        path: a file that is loaded without running what it pickles.

    Returns:
        The weights, and the class names that the file tells; None where it tells none.

    Raises:
        WsssError: the file is missing, can't be read, or is none of these.
    """
    if not path.is_file():
        raise WsssError(f"{path}: no checkpoint; run stage=train first, or give checkpoint=")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can fail in any way
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WsssError(
            f"{path}: can't be read as a checkpoint ({first[:200]}); delete it and run stage=train "
            "again, or give another one, checkpoint="
        ) from error
    if isinstance(content, Mapping):
        if "state_dict" in content:
            return content["state_dict"], content.get(CLASSES)
        state = content.get("model", content)
        if isinstance(state, Mapping) and {"cls_token", "module.cls_token"} & set(state):
            return {f"host.network.{n.removeprefix('module.')}": v for n, v in state.items()}, None
        state = content.get("net", content)
        if isinstance(state, Mapping) and any("resnet50.conv1" in str(name) for name in state):
            try:
                if is_amn(state):
                    return _with_counters(from_amn_state_dict(state)), None
                return from_sipe_state_dict(state), None
            except WsssError as error:
                raise WsssError(f"{path}: {error}") from error
    raise WsssError(
        f"{path}: neither a checkpoint of stage=train nor one of SIPE, IRN, AMN or MCTformer"
    )
