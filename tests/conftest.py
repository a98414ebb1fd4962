"""Fixtures shared by all tests: the optional real data, and a fixed number of threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    # The tests' tensors are small: more threads cost more in waiting than they win, and
    # sums must not depend on how many cores the machine has.
    torch.set_num_threads(min(2, os.cpu_count() or 1))


def _shared(relative: str) -> Path:
    """Returns a path below $WSSS_SHARED (by default ../shared beside the checkout) or skips."""
    shared = Path(os.environ.get("WSSS_SHARED", ROOT.parent / "shared"))
    path = shared / relative
    if not path.exists():
        pytest.skip(f"real data absent: {path} (set WSSS_SHARED to the folder that has {relative})")
    return path


@pytest.fixture(scope="session")
def voc2007_mini() -> Path:
    """The root of the small real data set, laid out as Pascal VOC; skips where it is absent."""
    return _shared("data/voc2007-mini")


@pytest.fixture(scope="session")
def lite0_weights() -> Path:
    """The file of ImageNet weights of tf_efficientnet_lite0; skips where it is absent."""
    return _shared("weights/tf_efficientnet_lite0.safetensors")
