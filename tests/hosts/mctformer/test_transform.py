"""The training transform: random by its generator alone, as strong as it says."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from wsss.errors import WsssError
from wsss.hosts.mctformer.transform import AugmentSettings, RandomSquare, drawing_from

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def square(seed: int, image: np.ndarray = IMAGE, **options) -> torch.Tensor:
    crop = RandomSquare(32, MEAN, STD, AugmentSettings(**options))
    made = crop(image, np.random.default_rng(seed))
    assert made.image.shape == (3, 32, 32) and made.target is None
    assert bool((made.valid == 1).all())
    return made.image


def test_it_is_random_by_the_given_generator_alone() -> None:
    one = square(3)
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    assert torch.equal(square(3), one)
    assert not torch.equal(square(4), one)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])


def test_global_generators_come_back_after_an_error() -> None:
    before = random.getstate()
    with pytest.raises(ZeroDivisionError), drawing_from(np.random.default_rng(0)):
        random.random()
        raise ZeroDivisionError
    assert random.getstate() == before


def test_without_changes_it_is_a_normalized_part_of_the_image() -> None:
    """A ramp to the right says where a part comes from, and whether it is mirrored."""
    ramp = np.broadcast_to(np.arange(0, 140, 2, dtype=np.uint8)[None, :, None], (50, 70, 3)).copy()
    crop = RandomSquare(
        32, MEAN, STD, AugmentSettings(scale=(0.3, 0.3), policy=None, erasing=0.0, ratio=(1.0, 1.0))
    )
    side = round((0.3 * 50 * 70) ** 0.5)
    signs = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        # color jitter, DeiT's without a policy, keeps the order of values
        image = crop(ramp, rng).image[0]
        slope = image[:, 1:] - image[:, :-1]
        signs.add(float(slope.mean().sign()))
        assert (slope.mean(dim=0) * slope.mean().sign() > -1e-6).all()
        assert image.std(dim=0).max() < 1e-5  # rows are alike
    assert signs == {1.0, -1.0} and side == 32


def test_erasing_puts_noise_into_a_rectangle() -> None:
    flat = np.full((60, 60, 3), 128, dtype=np.uint8)
    erased = [
        square(seed, flat, policy="rand-m0-n0", erasing=1.0, scale=(0.5, 1.0)) for seed in range(4)
    ]
    for image in erased:
        changed = (image - image[:, :1, :1]).abs().amax(dim=0) > 0.05
        assert 0.01 < changed.float().mean() < 0.5
    whole = square(0, flat, policy="rand-m0-n0", erasing=0.0)
    assert whole.flatten(1).std(dim=1).max() < 1e-6


def test_wrong_ranges_are_told() -> None:
    with pytest.raises(WsssError, match=r"host\.augment\.scale"):
        AugmentSettings(scale=(0.5, 0.2))
