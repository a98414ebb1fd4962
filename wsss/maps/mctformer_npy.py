"""MCTformer's `.npy` dictionaries of class maps, beside IRN's.

MCTformer writes {0-based class id: map of the image's size}, without a background; of an image
without classes an empty dictionary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

KIND = "refined"


def is_mctformer(content: dict[Any, Any]) -> bool:
    """Whether the content of a file has MCTformer's form."""
    return all(isinstance(key, (int, np.integer)) for key in content)


def to_irn(content: dict[Any, Any]) -> dict[str, Any]:
    """MCTformer's content in IRN's form; maps are read as they are if they are all of one size."""
    keys = np.array([int(key) for key in content], dtype=np.int64)
    if not len(keys):
        return {"keys": keys, "cam": np.zeros((0, 1, 1), dtype=np.float32)}
    shapes = {np.shape(values) for values in content.values()}
    if len(shapes) > 1:
        raise ValueError(f"maps of {len(shapes)} sizes in one file")
    return {"keys": keys, "high_res": np.stack([np.asarray(v) for v in content.values()])}


def from_irn(content: dict[str, Any]) -> dict[int, np.ndarray]:
    """IRN's content (`keys`, `high_res`) in MCTformer's."""
    keys = [int(key) for key in content["keys"]]
    return dict(zip(keys, content["high_res"], strict=True))
