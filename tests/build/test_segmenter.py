"""What a network starts from is told in words, whatever it is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from wsss.build.segmenter import in_words, initial_weights
from wsss.cli import compose_for_doctor


def own(name: str, *overrides: str) -> list[str]:
    """Settings of a segmentation network that starts from no file, but for the overrides."""
    base = [f"segmentation.network.name={name}", "backbone.weights=null"]
    return [*base, "segmentation.network.trained_on=null", *overrides]


FILE = "segmentation.network.weights=a.pth"


@pytest.mark.parametrize(
    ("overrides", "network", "told"),
    [
        (own("resnet101_msra"), "none", "none"),
        (
            own("resnet101_msra", FILE, "segmentation.network.trained_on=imagenet"),
            "imagenet",
            "ImageNet",
        ),
        (
            own("resnet101_msra", FILE, "segmentation.network.trained_on=coco"),
            "coco (head included)",
            "COCO (head included)",
        ),
        (own("resnet38d", FILE), "a.pth", "a.pth"),
        (own("backbone"), "those of the backbone", "none"),
        (own("backbone", "backbone.weights=imagenet"), "those of the backbone", "ImageNet"),
        (
            own("backbone", "backbone.weights=x/y.safetensors"),
            "those of the backbone",
            "y.safetensors",
        ),
        (
            own("backbone", "segmentation.features=method", "method=sipe"),
            "none",
            "the sipe classifier of this run",
        ),
    ],
)
def test_initial_weights(overrides: list[str], network: str, told: str) -> None:
    s = compose_for_doctor(overrides)
    assert initial_weights(s, SimpleNamespace(initial_weights=network)) == told  # type: ignore[arg-type]


def test_other_names_are_left_alone() -> None:
    assert in_words("imagenet21k.pth") == "imagenet21k.pth"
