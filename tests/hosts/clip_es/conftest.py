"""A tiny CLIP, drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from wsss.hosts.clip_es.host import CLIPES, CLIPESSettings
from wsss.hosts.clip_es.network import TowerSettings

SIZES = TowerSettings(
    image_size=32, patch_size=8, width=128, layers=3, text_width=64, text_layers=2, embedding=16
)
CLASSES = ("bird", "boat", "cat", "house")


@pytest.fixture
def make_host() -> Callable[..., CLIPES]:
    def make(**options: Any) -> CLIPES:
        torch.manual_seed(0)
        given = {"weights": None, "sizes": SIZES, "background": ("ground", "sky")}
        given |= {"attention_layers": 2, **options}
        return CLIPES(CLIPESSettings(**given), CLASSES).eval()

    return make
