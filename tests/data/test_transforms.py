"""Decoding, the training crop and the test-time pyramid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.data.photographs import load_image
from wsss.data.transforms import TrainingCrop, long_side_size, normalize, scaled_images, scaled_size
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
    assert scaled_size((375, 500), 1.5) == (562, 750)  # 562.5 goes to the even neighbour
    assert scaled_size((375, 333), 0.5) == (188, 166)  # 187.5 up, 166.5 down
    assert scaled_size((2, 1), 0.1) == (1, 1)
    assert long_side_size((375, 500), 320) == (240, 320)
    assert long_side_size((500, 375), 641) == (641, 481)


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
        crop, valid = TrainingCrop(size, long_sides, MEAN, STD)(image, np.random.default_rng(seed))
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
    crop = TrainingCrop(8, (20, 20), (0, 0, 0), (1, 1, 1))
    xs, ys, mirrored = [], [], 0
    for seed in range(1300):
        out, valid = crop(ramp, np.random.default_rng(seed))
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
    crop = TrainingCrop(10, (6, 6), MEAN, STD)
    corners = set()
    for seed in range(400):
        _, valid = crop(white, np.random.default_rng(seed))
        ys, xs = np.nonzero(valid.numpy())
        corners.add((int(ys.min()), int(xs.min())))
    assert corners == {(y, x) for y in range(7) for x in range(5)}


def test_both_ends_of_the_long_side_are_drawn() -> None:
    image = np.full((10, 10, 3), 255, dtype=np.uint8)
    crop = TrainingCrop(20, (10, 12), MEAN, STD)
    sides = [int(crop(image, np.random.default_rng(s))[1].sum() ** 0.5) for s in range(60)]
    assert set(sides) == {10, 11, 12}


# ---- test-time pyramid


def test_pyramid_has_the_scales_in_order_and_the_native_one_untouched() -> None:
    image = smooth_image(51, 75)
    images = scaled_images(image, [1.0, 0.5, 1.5, 2.0], MEAN, STD)
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
    images = scaled_images(image, [1.0, 0.5], MEAN, STD, long_side=40)
    assert [tuple(i.shape) for i in images] == [(3, 40, 27), (3, 20, 14)]
    by_pil = np.array(Image.fromarray(image).resize((27, 40), Image.Resampling.BICUBIC))
    pixels = (images[0].permute(1, 2, 0).numpy() * np.array(STD) + np.array(MEAN)) * 255
    assert np.abs(pixels - by_pil).max() < 2.5
