"""Crops of IRN's training: image and labels stay together, randomness is by seed and epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.data.masks import write_mask
from wsss.errors import WsssError
from wsss.refine.data import AffinityCrop, AffinityData, AffinitySet, WholeImages

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def crop(size: int = 48, scale: tuple[float, float] = (0.5, 1.5)) -> AffinityCrop:
    return AffinityCrop(size, scale, MEAN, STD)


def striped(height: int = 60, width: int = 44) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 8 pixels whose gray level is their label times 20 (labels 0 to 5)."""
    labels = (np.add.outer(np.arange(height) // 8, 2 * (np.arange(width) // 8)) % 6).astype(
        np.uint8
    )
    return np.repeat(labels[:, :, None] * 20, 3, axis=2), labels


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 1.5), (2.0, 2.0)])
def test_labels_lie_on_their_pixels(scale: tuple[float, float]) -> None:
    image, labels = striped()
    for seed in range(6):
        pixels, ids = crop(scale=scale)(image, labels, np.random.default_rng(seed))
        assert pixels.shape == (3, 48, 48) and ids.shape == (48, 48)
        level = (pixels[0] * 0.25 + 0.5) * 255
        known = ids != 255
        assert (pixels[:, ~known] == 0).all()
        near = (level[known] - ids[known].float() * 20).abs() < 10
        # Bicubic resizing mixes levels at the borders of the blocks only.
        assert near.float().mean() > (0.999 if scale == (1.0, 1.0) else 0.6)


def test_scale_flip_and_place_vary_and_are_seeded() -> None:
    image, labels = striped()
    drawn = [crop()(image, labels, np.random.default_rng(s))[1] for s in range(8)]
    assert len({d.numpy().tobytes() for d in drawn}) == 8
    again = crop()(image, labels, np.random.default_rng(3))
    assert torch.equal(again[1], drawn[3])


def test_both_flips_and_both_ends_of_the_scale_are_reached() -> None:
    labels = np.zeros((64, 64), dtype=np.uint8)
    labels[:, 32:] = 1
    image = np.repeat(labels[:, :, None] * 100, 3, axis=2)
    left, covered = [], []
    for seed in range(60):
        _, ids = crop(160)(image, labels, np.random.default_rng(seed))
        known = ids != 255
        rows, columns = torch.nonzero(known, as_tuple=True)
        left.append(int(ids[rows[0], columns[0]]))
        covered.append(int(known.any(1).sum()) / 64)
    assert 15 < sum(left) < 45
    assert 0.5 <= min(covered) < 0.6 and 1.4 < max(covered) <= 1.5


def test_bad_settings_are_named() -> None:
    with pytest.raises(WsssError, match="crop_size=40"):
        crop(40)
    with pytest.raises(WsssError, match="refine.irn.scale"):
        crop(scale=(1.0, 0.5))


@pytest.fixture
def five_images(tmp_path: Path):
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for n in range(5):
        pixels = rng.integers(0, 255, (30 + n, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"i{n}.png")
        write_mask(tmp_path / "labels" / f"i{n}.png", pixels[:, :, 0] // 128)

    class Bare:
        num_classes = 1

        def image_path(self, name: str) -> Path:
            return tmp_path / "images" / f"{name}.png"

    return Bare(), [f"i{n}" for n in range(5)], tmp_path / "labels"


def test_samples_depend_on_seed_epoch_and_index_alone(five_images) -> None:
    one, two = (AffinitySet(*five_images, crop(), seed=1) for _ in range(2))
    assert torch.equal(one[(2, 3)]["image"], two[(2, 3)]["image"])
    assert not torch.equal(one[(2, 3)]["image"], one[(3, 3)]["image"])
    other = AffinitySet(*five_images, crop(), seed=2)
    assert not torch.equal(one[(2, 3)]["image"], other[(2, 3)]["image"])


def test_labels_of_another_size_are_named(five_images) -> None:
    image_set, names, folder = five_images
    write_mask(folder / "i2.png", np.zeros((5, 5), dtype=np.uint8))
    with pytest.raises(WsssError, match="image i2: .*stage=irn_labels"):
        AffinitySet(image_set, names, folder, crop(), seed=0)[(0, 2)]


def test_batches_are_whole_and_a_too_large_one_is_refused(five_images) -> None:
    data = AffinityData(AffinitySet(*five_images, crop(), 0), batch_size=2, num_workers=0)
    batches = list(data.train_dataloader())
    assert [tuple(b["label"].shape) for b in batches] == [(2, 48, 48)] * 2
    with pytest.raises(WsssError, match="refine.irn.batch_size=6"):
        AffinityData(AffinitySet(*five_images, crop(), 0), batch_size=6).train_dataloader()


def test_whole_images_keep_their_size_or_are_cut_at_the_corner(five_images) -> None:
    image_set, names, _ = five_images
    whole = WholeImages(image_set, names, MEAN, STD)
    data = AffinityData(whole=whole, num_workers=0)
    samples = list(data.predict_dataloader())
    assert [s["name"] for s in samples] == names
    assert samples[4]["image"].shape == (3, 34, 40)
    square = WholeImages(image_set, names, MEAN, STD, top_left=36)[4]["image"]
    assert torch.equal(square[:, :34, :36], samples[4]["image"][:, :, :36])
    assert (square[:, 34:] == 0).all()
