"""AMN's `.npy` dictionaries of class maps, beside IRN's.

AMN writes what IRN does, `keys` (0-based class ids), `cam` (stride 4) and `high_res` (image size),
but both maps have the background's channel first, which none of its programs reads: they take a
constant in its place. Of an image without classes it writes the empty `keys` alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

KIND = "amn_cam"


def is_amn(content: dict[str, Any]) -> bool:
    """Whether the content of a file has AMN's form."""
    if {"keys", "cam"} <= content.keys():
        return len(content["cam"]) == len(content["keys"]) + 1
    return set(content) == {"keys"} and not len(content["keys"])


def to_irn(content: dict[str, Any]) -> dict[str, Any]:
    """AMN's content in IRN's form, without the background's channel."""
    if "cam" not in content:
        return {"keys": np.zeros(0, dtype=np.int64), "cam": np.zeros((0, 1, 1), dtype=np.float32)}
    return {name: values if name == "keys" else values[1:] for name, values in content.items()}


def from_irn(content: dict[str, Any]) -> dict[str, Any]:
    """IRN's content (`cam` a tensor, `high_res` an array) in AMN's; the background is 1 - max."""
    if not len(content["keys"]):
        return {"keys": np.zeros(0, dtype=np.int64)}
    strided, full = content["cam"], content["high_res"]
    return {
        "keys": content["keys"],
        "cam": torch.cat([1 - strided.amax(0, keepdim=True).clamp(0, 1), strided]),
        "high_res": np.concatenate([1 - full.max(0, keepdims=True).clip(0, 1), full]),
    }
