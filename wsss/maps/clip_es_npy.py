"""CLIP-ES's `.npy` dictionaries of class maps.

They have `keys` (0-based class ids, in the order of the annotation) and `attn_highres` (image size,
float16): the maps after CAA, without a background. Users who store the plain Grad-CAM beside it
call it `highres`; it is taken where the other one is missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

KINDS = {"attn_highres": "caa", "highres": "cam"}  # theirs and ours, the first one preferred


def kind_of(content: dict[str, Any]) -> str | None:
    """Our name of the maps in a file's content; None if that is not CLIP-ES's."""
    return next((ours for theirs, ours in KINDS.items() if theirs in content), None)


def to_irn(content: dict[str, Any]) -> dict[str, Any]:
    """CLIP-ES's content in IRN's form, maps of the image's size alone."""
    theirs = next(name for name in KINDS if name in content)
    return {"keys": content["keys"], "high_res": content[theirs]}


def from_irn(content: dict[str, Any]) -> dict[str, Any]:
    """IRN's content (`high_res` an array) in CLIP-ES's."""
    return {
        "keys": np.asarray(content["keys"]),
        "attn_highres": content["high_res"].astype(np.float16),
    }
