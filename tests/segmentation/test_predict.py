"""Scales, mirror image and fusion; enlargement without much memory; the CRF's queue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsss.data.masks import read_mask
from wsss.errors import WsssError
from wsss.refine.crf import CrfSettings, crf_from_probabilities
from wsss.segmentation.predict import (
    CrfQueue,
    Predictor,
    class_probabilities,
    label_map,
    refined_labels,
)
from wsss.segmentation.settings import EvalSettings

SETTINGS = CrfSettings(gaussian_sxy=1, bilateral_sxy=67, bilateral_srgb=3, bilateral_compat=4)


@pytest.fixture
def network() -> nn.Conv2d:
    """A lopsided network of stride 4 and five labels."""
    torch.manual_seed(0)
    return nn.Conv2d(3, 5, 7, stride=4, padding=3).requires_grad_(False)


IMAGE = torch.rand(3, 37, 53, generator=torch.Generator().manual_seed(1)) * 4 - 2


def alone(
    network: nn.Module, image: torch.Tensor, scale: float, mirrored: bool, corners: bool = False
) -> torch.Tensor:
    """Probabilities at one scale, written out."""
    height, width = image.shape[-2:]
    x = image.flip(-1) if mirrored else image
    size = (round(height * scale), round(width * scale))
    x = F.interpolate(x[None], size, mode="bilinear", align_corners=corners)
    logits = F.interpolate(network(x), (height, width), mode="bilinear", align_corners=False)[0]
    logits = logits.flip(-1) if mirrored else logits
    return logits.exp() / logits.exp().sum(0)


@pytest.mark.parametrize("fuse", ["mean", "max"])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("corners", [False, True])
def test_scales_and_mirror_are_fused(
    network: nn.Module, fuse: str, mirror: bool, corners: bool
) -> None:
    scales = (1.0, 0.5, 1.5)
    test = EvalSettings(scales=scales, mirror=mirror, fuse=fuse, align_corners=corners)  # type: ignore[arg-type]
    found = class_probabilities(network, IMAGE, test)
    parts = [
        alone(network, IMAGE, s, m, corners) for s in scales for m in (False, True)[: 1 + mirror]
    ]
    stacked = torch.stack(parts)
    expected = stacked.mean(0) if fuse == "mean" else stacked.amax(0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    if fuse == "mean":
        torch.testing.assert_close(found.sum(0), torch.ones(37, 53))


def test_with_the_mirror_image_the_answer_mirrors_with_the_photograph(network) -> None:
    test = EvalSettings(scales=(1.0, 0.75), mirror=True)
    answer = class_probabilities(network, IMAGE, test)
    mirrored = class_probabilities(network, IMAGE.flip(-1), test)
    torch.testing.assert_close(mirrored.flip(-1), answer, atol=1e-5, rtol=1e-4)
    plain = class_probabilities(network, IMAGE, EvalSettings())
    lopsided = class_probabilities(network, IMAGE.flip(-1), EvalSettings())
    assert not torch.allclose(lopsided.flip(-1), plain, atol=1e-3)


@pytest.mark.parametrize("size", [(37, 53), (80, 91), (12, 9), (1, 1)])
def test_the_label_map_is_the_arg_max_of_the_enlarged_probabilities(network, size) -> None:
    probabilities = class_probabilities(network, IMAGE, EvalSettings())
    full = F.interpolate(probabilities[None], size, mode="bilinear", align_corners=False)[0]
    found = label_map(probabilities, size)
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), full.argmax(0))


def test_at_a_tie_the_lowest_class_wins() -> None:
    assert (label_map(torch.ones(4, 3, 3), (5, 5)) == 0).all()


def photographs(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        (
            rng.integers(0, 255, (20, 24, 3), dtype=np.uint8),
            rng.dirichlet((1, 1, 1), (20, 24)).transpose(2, 0, 1).astype(np.float32),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_queue_refines_every_photograph_whatever_the_processes(
    tmp_path: Path, workers: int
) -> None:
    items = photographs(7)
    with CrfQueue(SETTINGS, workers) as queue:
        for n, (picture, probabilities) in enumerate(items):
            queue.add(tmp_path / f"{n}.png", picture, probabilities)
            assert len(queue.pending) <= 2 * workers
    for n, (picture, probabilities) in enumerate(items):
        expected = crf_from_probabilities(picture, probabilities, SETTINGS).argmax(0)
        np.testing.assert_array_equal(read_mask(tmp_path / f"{n}.png", 2), expected)


def test_what_a_process_ends_with_is_told(tmp_path: Path) -> None:
    picture, probabilities = photographs(1)[0]
    with pytest.raises(WsssError, match="no numbers"), CrfQueue(SETTINGS, 2) as queue:
        queue.add(tmp_path / "0.png", picture, np.full_like(probabilities, np.nan))
    assert not list(tmp_path.iterdir())


def test_coarse_probabilities_are_enlarged_for_the_crf() -> None:
    picture, probabilities = photographs(1)[0]
    coarse = probabilities[:, ::2, ::2]
    full = F.interpolate(torch.from_numpy(coarse)[None], (20, 24), mode="bilinear")[0].numpy()
    expected = crf_from_probabilities(picture, full, SETTINGS).argmax(0)
    np.testing.assert_array_equal(refined_labels(picture, coarse, SETTINGS), expected)


def test_a_photograph_that_could_not_be_read_is_passed_over(tmp_path: Path, network) -> None:
    network.logits = network.forward
    seen = []
    predictor = Predictor(
        network, EvalSettings(), tmp_path, after=lambda sample, labels: seen.append(labels)
    )
    predictor.predict_step({"name": "bad", "images": None}, 0)
    size = torch.tensor([74, 106])
    picture = torch.zeros(74, 106, 3, dtype=torch.uint8)
    predictor.predict_step({"name": "a", "picture": picture, "images": [IMAGE], "size": size}, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert seen[0].shape == (74, 106)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", 4), seen[0])
