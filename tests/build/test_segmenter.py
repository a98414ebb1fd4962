"""What a network starts from is told in words, whatever it is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from wsss.build.segmenter import in_words, initial_weights


def settings(name: str, weights=None, trained_on=None, backbone=None, features="pretrained"):
    return OmegaConf.create(
        {
            "segmentation": {
                "features": features,
                "network": {"name": name, "weights": weights, "trained_on": trained_on},
            },
            "backbone": {"weights": backbone},
            "method": {"name": "sipe"},
        }
    )


@pytest.mark.parametrize(
    ("cfg", "network", "told"),
    [
        (settings("resnet101_msra"), "none", "none"),
        (settings("resnet101_msra", "a.pth", "imagenet"), "imagenet", "ImageNet"),
        (
            settings("resnet101_msra", "a.pth", "coco"),
            "coco (head included)",
            "COCO (head included)",
        ),
        (settings("resnet38d", "a.pth"), "a.pth", "a.pth"),
        (settings("backbone"), "those of the backbone", "none"),
        (settings("backbone", backbone="imagenet"), "those of the backbone", "ImageNet"),
        (
            settings("backbone", backbone="x/y.safetensors"),
            "those of the backbone",
            "y.safetensors",
        ),
        (settings("backbone", features="method"), "none", "the sipe classifier of this run"),
    ],
)
def test_initial_weights(cfg, network: str, told: str) -> None:
    assert initial_weights(cfg, SimpleNamespace(initial_weights=network)) == told


def test_other_names_are_left_alone() -> None:
    assert in_words("imagenet21k.pth") == "imagenet21k.pth"
