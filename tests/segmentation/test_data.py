"""Crops with pseudo masks: labels stay on their pixels, randomness is by seed, epoch and name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.data.base import ImageSet
from wsss.data.masks import write_mask
from wsss.errors import WsssError
from wsss.segmentation.data import (
    PseudoMaskSet,
    SegmentationCrop,
    SegmentationData,
    WholePhotographs,
    base_size,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.25, 0.25)


class Blind(ImageSet):
    """Images of a folder, whose ground truth must not be looked at."""

    classes = ("cat", "dog")

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self, split: str) -> list[str]:
        return sorted(path.stem for path in self.root.glob("*.png"))

    def image_path(self, name: str) -> Path:
        return self.root / f"{name}.png"

    def labels(self, names) -> np.ndarray:
        raise AssertionError("labels were read")

    def mask(self, name: str) -> np.ndarray:
        raise AssertionError("the truth was read")


@pytest.fixture
def blind(tmp_path: Path) -> tuple[Blind, Path]:
    """Six images of 40 x 56, and their pseudo masks."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for n in range(6):
        labels = rng.integers(0, 3, (5, 7)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        image = np.repeat(labels[:, :, None] * 100, 3, axis=2)
        Image.fromarray(image).save(tmp_path / "images" / f"i{n}.png")
        write_mask(tmp_path / "masks" / f"i{n}.png", labels)
    return Blind(tmp_path / "images"), tmp_path / "masks"


def crop(size: int = 48, **options) -> SegmentationCrop:
    return SegmentationCrop(size, MEAN, STD, **options)


def levels(pixels: torch.Tensor) -> torch.Tensor:
    """Gray levels 0..255 of a normalized crop."""
    return (pixels * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255


def striped(height: int = 60, width: int = 44) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 8 pixels whose gray level is their label times 20."""
    labels = (np.add.outer(np.arange(height) // 8, 2 * (np.arange(width) // 8)) % 6).astype(
        np.uint8
    )
    return np.repeat(labels[:, :, None] * 20, 3, axis=2), labels


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.5), (2.0,)])
def test_labels_lie_on_their_pixels(scales: tuple[float, ...]) -> None:
    image, labels = striped()
    for seed in range(8):
        pixels, ids = crop(scales=scales)(image, labels, np.random.default_rng(seed))
        assert pixels.shape == (3, 48, 48) and ids.shape == (48, 48) and ids.dtype == torch.int64
        known = ids != 255
        assert (pixels[:, ~known] == 0).all()
        near = (levels(pixels)[1][known] - ids[known].float() * 20).abs() < 11
        # Bilinear resizing mixes levels at the borders of the blocks only.
        assert near.float().mean() > (0.999 if scales == (1.0,) else 0.7)


@pytest.mark.parametrize("pad", [255, 0])
def test_at_scale_1_the_crop_is_the_image_padded_right_and_below(pad: int) -> None:
    image, labels = striped(20, 30)
    seen = set()
    for seed in range(20):
        pixels, ids = crop(36, scales=(1.0,), pad_label=pad)(
            image, labels, np.random.default_rng(seed)
        )
        expected = np.full((36, 36), pad)
        expected[:20, :30] = labels
        shown = np.zeros((36, 36))
        shown[:20, :30] = image[..., 2] / 255.0 - MEAN[2]
        for mirrored in (False, True):
            wanted = expected[:, ::-1] if mirrored else expected
            if (ids.numpy() == wanted).all():
                seen.add(mirrored)
                picture = shown[:, ::-1] if mirrored else shown
                np.testing.assert_allclose(pixels[2].numpy() * STD[2], picture, atol=1e-6)
                break
        else:
            raise AssertionError("neither the image nor its mirror image")
    assert seen == {False, True}


def test_a_large_image_is_cut_at_any_offset_and_not_padded() -> None:
    labels = np.zeros((40, 50), dtype=np.uint8)
    rows = np.arange(40, dtype=np.uint8)[:, None] + np.zeros((40, 50), dtype=np.uint8)
    columns = np.arange(50, dtype=np.uint8)[None] + np.zeros((40, 50), dtype=np.uint8)
    image = np.stack([rows, columns, rows], axis=2)
    tops, lefts = set(), set()
    for seed in range(200):
        pixels, ids = crop(36, scales=(1.0,), mirror=False)(
            image, labels, np.random.default_rng(seed)
        )
        assert (ids == 0).all()
        corner = levels(pixels)[:, 0, 0].round()
        tops.add(int(corner[0]))
        lefts.add(int(corner[1]))
    assert tops == set(range(5)) and lefts == set(range(15))


@pytest.mark.parametrize(
    ("options", "sides"),
    [
        ({"scales": (0.5, 1.0, 1.25)}, {15, 31, 38}),  # 31 x 1.25 = 38.75: cut, not rounded
        ({"scales": (0.5, 1.0), "long_side": 62}, {31, 62}),
        ({"scales": None, "scale_range": (1.0, 1.2)}, set(range(31, 38))),
    ],
)
def test_the_scale_is_drawn_from_the_list_or_the_range(options: dict, sides: set[int]) -> None:
    image, labels = np.zeros((31, 31, 3), dtype=np.uint8), np.ones((31, 31), dtype=np.uint8)
    found = set()
    for seed in range(200):
        _, ids = crop(70, **options)(image, labels, np.random.default_rng(seed))
        found.add(int((ids[0] == 1).sum()))
    assert found == sides


def test_a_sample_depends_on_seed_epoch_and_name_alone(blind) -> None:
    image_set, masks = blind
    names = image_set.names("all")
    whole = PseudoMaskSet(image_set, names, masks, crop(24), seed=3)
    part = PseudoMaskSet(image_set, names[4:], masks, crop(24), seed=3)
    other = PseudoMaskSet(image_set, names, masks, crop(24), seed=4)
    for epoch in range(3):
        assert torch.equal(whole[epoch, 4]["target"], part[epoch, 0]["target"])
        assert torch.equal(whole[epoch, 4]["image"], part[epoch, 0]["image"])
    epochs = {whole[epoch, 4]["image"].numpy().tobytes() for epoch in range(4)}
    assert len(epochs) == 4
    assert not torch.equal(whole[0, 4]["image"], other[0, 4]["image"])


def test_no_truth_and_no_label_is_read_by_any_loader(blind) -> None:
    image_set, masks = blind
    names = image_set.names("all")
    data = SegmentationData(
        PseudoMaskSet(image_set, names, masks, crop(24), 0),
        WholePhotographs(image_set, names, MEAN, STD),
        batch_size=2,
        num_workers=0,
    )
    batches = list(data.train_dataloader())
    assert [len(batch["image"]) for batch in batches] == [2, 2, 2]
    assert sorted(n for batch in batches for n in batch["name"]) == names
    assert [sample["name"] for sample in data.predict_dataloader()] == names


def test_an_epoch_ends_with_a_whole_step_and_processes_share_it(blind) -> None:
    image_set, masks = blind
    train = PseudoMaskSet(image_set, image_set.names("all"), masks, crop(24), 0)

    def names(rank: int, world: int) -> list[str]:
        data = SegmentationData(train, batch_size=2, accumulate=2, num_workers=0)
        epoch = SimpleNamespace(
            epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=1))
        )
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world, fit_loop=epoch)
        assert data.steps_per_epoch == 1
        return [n for batch in data.train_dataloader() for n in batch["name"]]

    alone = names(0, 1)
    assert len(alone) == 4  # of six images: one step of 2 x 2
    assert sorted(names(0, 2) + names(1, 2)) == sorted(alone)
    with pytest.raises(WsssError, match="batch_size=2 is the global batch.*3 processes"):
        names(0, 3)
    with pytest.raises(WsssError, match="batch_size 4 x accumulate 2 is more than the 6 images"):
        SegmentationData(train, batch_size=4, accumulate=2)


def test_shares_of_photographs_are_disjoint_and_miss_none(blind) -> None:
    image_set, _ = blind
    whole = WholePhotographs(image_set, image_set.names("all"), MEAN, STD)
    shares = [whole.share(rank, 4).names for rank in range(4)]
    assert sorted(sum(shares, [])) == whole.names
    assert [len(share) for share in shares] == [2, 2, 1, 1]


def test_a_photograph_keeps_its_pixels_and_is_brought_to_scale_1(blind, tmp_path) -> None:
    image_set, _ = blind
    (own,) = WholePhotographs(image_set, ["i0"], MEAN, STD)
    assert own["image"].shape == (3, 40, 56) and own["size"].tolist() == [40, 56]
    torch.testing.assert_close(
        levels(own["image"]), own["picture"].permute(2, 0, 1).float(), atol=1e-3, rtol=0
    )
    sample = WholePhotographs(image_set, ["i0"], MEAN, STD, long_side=112, max_side=28)[0]
    assert sample["image"].shape == (3, 20, 28) and sample["size"].tolist() == [40, 56]
    (image_set.root / "bad.png").write_bytes(b"no")
    with pytest.raises(WsssError, match="bad.png"):
        WholePhotographs(image_set, ["bad"], MEAN, STD)[0]
    assert WholePhotographs(image_set, ["bad"], MEAN, STD, lenient=True)[0]["picture"] is None


def test_size_at_scale_1() -> None:
    assert base_size((30, 40), None) == (30, 40)
    assert base_size((30, 40), 80) == (60, 80)
    assert base_size((30, 40), 80, at_most=True) == (30, 40)
    assert base_size((30, 40), 20, at_most=True) == (15, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "crop_size=0"),
        ({"scales": ()}, "scales="),
        ({"scales": (1.0, -1.0)}, "scales="),
        ({"scales": None}, "give scales or scale_range"),
        ({"scale_range": (0.5, 1.0)}, "give scales or scale_range"),
        ({"scales": None, "scale_range": (1.0, 0.5)}, "scale_range="),
        ({"pad_label": 7}, "pad_label=7"),
    ],
)
def test_impossible_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(WsssError, match=message):
        crop(**options)
