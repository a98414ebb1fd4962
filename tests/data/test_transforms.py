"""Decoding, sizes, the training crop of every stage and the test-time pyramid."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.data.photographs import load_image
from wsss.data.transforms import (
    Crop,
    DrawSize,
    LongSide,
    Pyramid,
    ScaleRange,
    Scales,
    check_range,
    long_side_size,
    normalize,
    resize_bicubic,
    resize_bilinear,
    resize_labels,
    scaled_size,
)
from wsss.errors import WsssError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def smooth_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(60, 200, (5, 6, 3)).astype(np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


# ---- decoding


def test_every_kind_of_file_is_read_as_upright_rgb(tmp_path: Path) -> None:
    image = smooth_image(30, 50)
    pil = Image.fromarray(image)

    pil.save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), image)

    gray = pil.convert("L")
    gray.save(tmp_path / "gray.png")
    np.testing.assert_array_equal(
        load_image(tmp_path / "gray.png"), np.repeat(np.array(gray)[:, :, None], 3, axis=2)
    )

    pil.convert("RGBA").save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(load_image(tmp_path / "alpha.png"), image)

    pil.quantize(16).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(
        load_image(tmp_path / "palette.png"), np.array(pil.quantize(16).convert("RGB"))
    )

    pil.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    read = load_image(tmp_path / "cmyk.jpg")
    assert read.shape == image.shape and read.dtype == np.uint8
    assert np.abs(read.astype(int) - image.astype(int)).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_brightness(tmp_path: Path, suffix: str) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    deep = gray.astype(np.uint16) * 257  # 0..255 on 0..65535
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(deep).save(path)
    np.testing.assert_array_equal(load_image(path), np.repeat(gray[..., None], 3, axis=2))
    Image.fromarray(gray.astype(np.int32)).save(tmp_path / "wide.tif")  # 32 bits, values of 8
    np.testing.assert_array_equal(
        load_image(tmp_path / "wide.tif"), np.repeat(gray[..., None], 3, axis=2)
    )


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = smooth_image(30, 50)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the viewer must turn a quarter clockwise
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(
        load_image(tmp_path / "turned.png"), np.rot90(image, k=-1, axes=(0, 1))
    )


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(WsssError, match="gone.jpg does not exist"):
        load_image(tmp_path / "gone.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(WsssError, match="can't read image .*text.jpg"):
        load_image(tmp_path / "text.jpg")
    Image.fromarray(smooth_image(200, 200)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-900])
    with pytest.raises(WsssError, match="can't read image .*cut.jpg"):
        load_image(tmp_path / "cut.jpg")


# ---- sizes and normalization


def test_sizes_round_half_to_even() -> None:
    assert scaled_size((375, 500), 1.5) == (562, 750)  # 562.5 goes to the even neighbor
    assert scaled_size((375, 333), 0.5) == (188, 166)  # 187.5 up, 166.5 down
    assert scaled_size((2, 1), 0.1) == (1, 1)
    assert long_side_size((375, 500), 320) == (240, 320)
    assert long_side_size((500, 375), 641) == (641, 481)
    assert long_side_size((30, 40), None) == (30, 40)
    assert long_side_size((30, 40), 80, at_most=True) == (30, 40)
    assert long_side_size((30, 40), 20, at_most=True) == (15, 20)


@pytest.mark.parametrize("limits", [(48, 24), (0, 4), (-1.0, 1.0)])
def test_a_range_names_its_key(limits: tuple[float, float]) -> None:
    check_range("data.long_side", (24, 48))
    with pytest.raises(WsssError, match=r"^data\.long_side=\[.*must be \[smallest, largest\]"):
        check_range("data.long_side", limits)


def test_labels_take_the_sample_at_the_middle_of_each_cell() -> None:
    """In whole numbers: 634 to 75 and 6 to 4 have middles that lie between two samples."""
    for old, new in ((634, 75), (75, 634), (6, 4), (32, 8), (5, 5), (1, 3)):
        ids = torch.arange(old)[None].expand(2, old)
        found = resize_labels(ids, (2, new))
        expected = [int(Fraction(2 * i + 1, 2) * old / new) for i in range(new)]
        assert found.tolist() == [expected, expected], (old, new)
        assert torch.equal(resize_labels(ids.T, (new, 2)), found.T)


def test_normalize_is_the_formula() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    expected = (image / 255.0 - np.array(MEAN)) / np.array(STD)
    result = normalize(torch.from_numpy(image).permute(2, 0, 1), MEAN, STD)
    assert result.dtype == torch.float32 and result.is_contiguous()
    np.testing.assert_allclose(result.permute(1, 2, 0).numpy(), expected, atol=2e-6)


# ---- training crop


def resized_by_pil(image: np.ndarray, long_side: int) -> np.ndarray:
    height, width = image.shape[:2]
    factor = long_side / max(height, width)
    size = (int(np.round(width * factor)), int(np.round(height * factor)))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (40, 40)])
def test_crop_is_a_window_of_the_resized_image_on_zero_padding(shape: tuple[int, int]) -> None:
    image = smooth_image(*shape)
    size, long_sides = 64, (48, 96)
    seen: set[tuple[bool, int]] = set()
    for seed in range(40):
        make = Crop(size, MEAN, STD, LongSide(*long_sides))
        crop, valid, target, _ = make(image, np.random.default_rng(seed))
        assert target is None
        assert crop.shape == (3, size, size) and crop.dtype == torch.float32
        assert valid.shape == (size, size) and valid.dtype == torch.float32
        assert (crop[:, valid == 0] == 0).all()
        # The valid window is a full rectangle.
        ys, xs = np.nonzero(valid.numpy())
        top, left, height, width = ys.min(), xs.min(), np.ptp(ys) + 1, np.ptp(xs) + 1
        assert valid.sum() == height * width

        # Look for it, pixel by pixel, in the image at every length that could have been drawn
        # (Pillow's resize in bytes differs from torchvision's by 2 at most).
        window = crop[:, top : top + height, left : left + width].permute(1, 2, 0).numpy()
        pixels = (window * np.array(STD) + np.array(MEAN)) * 255
        found = None
        for long_side in range(long_sides[0], long_sides[1] + 1):
            full = resized_by_pil(image, long_side).astype(float)
            if min(full.shape[0], size) != height or min(full.shape[1], size) != width:
                continue
            for mirrored in (False, True):
                candidate = full[:, ::-1] if mirrored else full
                for y in range(candidate.shape[0] - height + 1):
                    for x in range(candidate.shape[1] - width + 1):
                        part = candidate[y : y + height, x : x + width]
                        corner = np.abs(part[0, 0] - pixels[0, 0]).max()
                        if corner < 2.5 and np.abs(part - pixels).max() < 2.5:
                            found = (mirrored, long_side)
        assert found is not None, f"seed {seed}: no window of the image gives this crop"
        seen.add(found)
    assert {mirrored for mirrored, _ in seen} == {False, True}
    lengths = {length for _, length in seen}
    assert min(lengths) < 56 and max(lengths) > 88


def test_every_length_place_and_mirror_is_drawn_evenly() -> None:
    """A ramp image tells from a crop's values how it was made; 20 x 20 into 8 x 8, length 20."""
    ramp = np.zeros((20, 20, 3), dtype=np.uint8)
    ramp[:, :, 0] = np.arange(20)[None, :] * 5
    ramp[:, :, 1] = np.arange(20)[:, None] * 5
    crop = Crop(8, (0, 0, 0), (1, 1, 1), LongSide(20, 20))
    xs, ys, mirrored = [], [], 0
    for seed in range(1300):
        out, valid, _, _ = crop(ramp, np.random.default_rng(seed))
        assert valid.all()
        columns = (out[0, 0] * 51).round().int().tolist()
        flip = columns[0] > columns[1]
        mirrored += flip
        xs.append(19 - columns[0] if flip else columns[0])
        ys.append(int((out[1, 0, 0] * 51).round()))
    assert set(xs) == set(ys) == set(range(13))
    # 100 expected per place; six standard deviations.
    assert np.abs(np.bincount(xs) - 100).max() < 58 and np.abs(np.bincount(ys) - 100).max() < 58
    assert abs(mirrored - 650) < 6 * 18.1


def test_padding_is_at_a_random_place() -> None:
    white = np.full((4, 6, 3), 255, dtype=np.uint8)
    crop = Crop(10, MEAN, STD, LongSide(6, 6))
    corners = set()
    for seed in range(400):
        valid = crop(white, np.random.default_rng(seed)).valid
        ys, xs = np.nonzero(valid.numpy())
        corners.add((int(ys.min()), int(xs.min())))
    assert corners == {(y, x) for y in range(7) for x in range(5)}


def test_both_ends_of_the_long_side_are_drawn() -> None:
    image = np.full((10, 10, 3), 255, dtype=np.uint8)
    crop = Crop(20, MEAN, STD, LongSide(10, 12))
    sides = [int(crop(image, np.random.default_rng(s)).valid.sum() ** 0.5) for s in range(60)]
    assert set(sides) == {10, 11, 12}


# ---- the crop with a label map: IRN's (anywhere) and DeepLab's (upper left corner)


def striped(height: int = 60, width: int = 44) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 8 pixels whose gray level is their label times 20 (labels 0 to 5)."""
    labels = (np.add.outer(np.arange(height) // 8, 2 * (np.arange(width) // 8)) % 6).astype(
        np.uint8
    )
    return np.repeat(labels[:, :, None] * 20, 3, axis=2), labels


def levels(pixels: torch.Tensor) -> torch.Tensor:
    """Gray levels 0..255 of a normalized crop."""
    return (pixels * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255


def irn(side: int = 48, smallest: float = 0.5, largest: float = 1.5) -> Crop:
    return Crop(side, MEAN, STD, ScaleRange(smallest, largest))


AT_ONE = Scales((1.0,))


def deeplab(side: int = 48, draw: DrawSize = AT_ONE, **options: object) -> Crop:
    return Crop(side, MEAN, STD, draw, resize=resize_bilinear, corner=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("crop", "share"),
    [
        (irn(48, 1.0, 1.0), 0.999),
        # Resizing mixes levels at the borders of the blocks only.
        (irn(48, 0.5, 1.5), 0.6),
        (irn(48, 2.0, 2.0), 0.6),
        (deeplab(48), 0.999),
        (deeplab(48, Scales((0.5, 1.5))), 0.7),
        (deeplab(48, Scales((2.0,))), 0.7),
    ],
)
def test_labels_lie_on_their_pixels(crop: Crop, share: float) -> None:
    image, labels = striped()
    for seed in range(8):
        pixels, valid, ids, _ = crop(image, np.random.default_rng(seed), labels)
        assert ids is not None and ids.shape == (48, 48) and ids.dtype == torch.int64
        assert torch.equal(ids != 255, valid == 1)
        assert (pixels[:, valid == 0] == 0).all()
        near = (levels(pixels)[1][valid == 1] - ids[valid == 1] * 20).abs() < 11
        assert near.float().mean() > share


def test_with_or_without_labels_the_image_is_the_same() -> None:
    image, labels = striped()
    for crop in (irn(), deeplab(draw=Scales((0.5, 1.5)))):
        for seed in range(4):
            bare = crop(image, np.random.default_rng(seed))
            both = crop(image, np.random.default_rng(seed), labels)
            assert bare.target is None and torch.equal(bare.image, both.image)
            assert torch.equal(bare.valid, both.valid)


def test_scale_mirror_and_place_vary_and_are_seeded() -> None:
    image, labels = striped()
    drawn = [irn()(image, np.random.default_rng(s), labels).target for s in range(8)]
    assert len({d.numpy().tobytes() for d in drawn if d is not None}) == 8
    again = irn()(image, np.random.default_rng(3), labels).target
    assert again is not None and drawn[3] is not None and torch.equal(again, drawn[3])


def test_both_mirrors_and_both_ends_of_the_scale_are_reached() -> None:
    labels = np.zeros((64, 64), dtype=np.uint8)
    labels[:, 32:] = 1
    image = np.repeat(labels[:, :, None] * 100, 3, axis=2)
    left, covered = [], []
    for seed in range(60):
        _, valid, ids, _ = irn(160)(image, np.random.default_rng(seed), labels)
        assert ids is not None
        rows, columns = torch.nonzero(valid, as_tuple=True)
        left.append(int(ids[rows[0], columns[0]]))
        covered.append(float(valid.amax(1).sum()) / 64)
    assert 15 < sum(left) < 45
    assert 0.5 <= min(covered) < 0.6 and 1.4 < max(covered) <= 1.5


@pytest.mark.parametrize("pad", [255, 0])
def test_in_the_corner_the_crop_is_the_image_padded_right_and_below(pad: int) -> None:
    image, labels = striped(20, 30)
    seen = set()
    for seed in range(20):
        pixels, valid, ids, _ = deeplab(36, pad_label=pad)(
            image, np.random.default_rng(seed), labels
        )
        assert ids is not None and valid[:20, :30].all() and valid.sum() == 600
        for mirrored in (False, True):
            step = -1 if mirrored else 1
            expected = np.full((36, 36), pad)
            expected[:20, :30] = labels[:, ::step]
            if (ids.numpy() == expected).all():
                seen.add(mirrored)
                shown = np.zeros((36, 36))
                shown[:20, :30] = image[:, ::step, 2] / 255.0 - MEAN[2]
                np.testing.assert_allclose(pixels[2].numpy() * STD[2], shown, atol=1e-6)
                break
        else:
            raise AssertionError("neither the image nor its mirror image")
    assert seen == {False, True}


def test_a_large_image_is_cut_at_any_offset_and_not_padded() -> None:
    rows = np.arange(40, dtype=np.uint8)[:, None] + np.zeros((40, 50), dtype=np.uint8)
    columns = np.arange(50, dtype=np.uint8)[None] + np.zeros((40, 50), dtype=np.uint8)
    image = np.stack([rows, columns, rows], axis=2)
    for crop in (deeplab(36, mirror=False), Crop(36, MEAN, STD, Scales((1.0,)), mirror=False)):
        tops, lefts = set(), set()
        for seed in range(200):
            pixels, valid, _, _ = crop(image, np.random.default_rng(seed))
            assert valid.all()
            corner = levels(pixels)[:, 0, 0].round()
            tops.add(int(corner[0]))
            lefts.add(int(corner[1]))
        assert tops == set(range(5)) and lefts == set(range(15))


@pytest.mark.parametrize(
    ("draw", "sides"),
    [
        (Scales((0.5, 1.0, 1.25)), {15, 31, 38}),  # 31 x 1.25 = 38.75: cut, not rounded
        (Scales((0.5, 1.0), long_side=62), {31, 62}),
        (ScaleRange(1.0, 1.2, cut=True), set(range(31, 38))),
        (ScaleRange(1.0, 1.2), set(range(31, 38))),  # 31 to 37.2, rounded
        (ScaleRange(0.5, 0.5), {16}),  # 15.5 to the even neighbor
        (ScaleRange(0.5, 0.5, cut=True), {15}),
        (ScaleRange(1.0, 1.0, long_side=20), {20}),
        (LongSide(30, 33), {30, 31, 32, 33}),
    ],
)
def test_the_size_is_drawn_from_the_list_or_the_range(draw: DrawSize, sides: set[int]) -> None:
    found = [draw((31, 31), np.random.default_rng(seed)) for seed in range(200)]
    assert {height for height, _ in found} == sides
    assert all(height == width for height, width in found)


# ---- test-time pyramid


def test_pyramid_has_the_scales_in_order_and_the_native_one_untouched() -> None:
    image = smooth_image(51, 75)
    images = Pyramid(MEAN, STD, (1.0, 0.5, 1.5, 2.0))(image)
    assert [tuple(i.shape) for i in images] == [
        (3, 51, 75),
        (3, 26, 38),
        (3, 76, 112),
        (3, 102, 150),
    ]
    native = (image / 255.0 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(images[0].permute(1, 2, 0).numpy(), native, atol=2e-6)
    for scaled in images[1:]:
        height, width = scaled.shape[1:]
        by_pil = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        pixels = (scaled.permute(1, 2, 0).numpy() * np.array(STD) + np.array(MEAN)) * 255
        assert np.abs(pixels - np.array(by_pil)).max() < 2.5


def test_pyramid_with_a_given_long_side() -> None:
    image = smooth_image(75, 51)
    images = Pyramid(MEAN, STD, (1.0, 0.5), long_side=40)(image)
    assert [tuple(i.shape) for i in images] == [(3, 40, 27), (3, 20, 14)]
    by_pil = np.array(Image.fromarray(image).resize((27, 40), Image.Resampling.BICUBIC))
    pixels = (images[0].permute(1, 2, 0).numpy() * np.array(STD) + np.array(MEAN)) * 255
    assert np.abs(pixels - by_pil).max() < 2.5


def test_pyramid_of_a_picture_that_is_too_large_or_of_a_hosts_own_sizes() -> None:
    image = smooth_image(40, 56)
    (small,) = Pyramid(MEAN, STD, long_side=112, max_side=28, resize=resize_bilinear)(image)
    assert small.shape == (3, 20, 28)
    (same,) = Pyramid(MEAN, STD, max_side=56)(image)
    assert same.shape == (3, 40, 56)
    square = Pyramid(MEAN, STD, (1.0, 0.5), size=lambda size, scale: (int(32 * scale),) * 2)
    assert [tuple(one.shape) for one in square(image)] == [(3, 32, 32), (3, 16, 16)]


def test_bilinear_is_without_antialiasing_and_bicubic_with() -> None:
    """A checkerboard at half size: neighbors averaged pairwise either way, but at a third only
    antialiasing keeps the mean."""
    board = np.repeat(np.indices((27, 27)).sum(0)[:, :, None] % 2 * 255, 3, axis=2).astype(np.uint8)
    tensor = torch.from_numpy(board).permute(2, 0, 1)
    aliased = resize_bilinear(tensor, (9, 9)).float()
    expected = torch.nn.functional.interpolate(tensor[None].float(), (9, 9), mode="bilinear")[0]
    assert (aliased - expected).abs().max() <= 1 and aliased.std() > 100
    assert resize_bicubic(tensor, (9, 9)).float().std() < 60
