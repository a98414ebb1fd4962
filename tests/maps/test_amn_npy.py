"""AMN's class-map files: its own form in and out, the background's channel dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wsss.errors import WsssError
from wsss.maps.files import ClassMaps
from wsss.maps.interop import read_npy_maps, write_npy_maps

SIZE, GRID = (30, 41), (8, 11)


def theirs(folder: Path, keys: object, channels: int) -> tuple[Path, np.ndarray]:
    """A file as AMN's program writes it, and its strided maps."""
    rng = np.random.default_rng(0)
    cam = rng.random((channels, *GRID), dtype=np.float32)
    full = rng.random((channels, *SIZE), dtype=np.float32)
    path = folder / "a.npy"
    np.save(path, {"keys": keys, "cam": torch.from_numpy(cam), "high_res": full})
    return path, cam


@pytest.mark.parametrize("keys", [np.array([3, 19]), torch.tensor([3, 19])])
def test_the_backgrounds_channel_is_dropped(tmp_path: Path, keys: object) -> None:
    path, cam = theirs(tmp_path, keys, 3)
    found = read_npy_maps(path, SIZE)
    assert found.classes.tolist() == [4, 20] and found.size == SIZE
    assert not found.has_background("amn_cam")
    np.testing.assert_array_equal(found.maps["amn_cam"], cam[1:])


def test_an_image_without_classes_has_keys_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", {"keys": np.zeros(0, np.int64)})
    found = read_npy_maps(tmp_path / "a.npy", SIZE)
    assert found.size == SIZE and len(found.classes) == 0
    assert len(found.maps["amn_cam"]) == 0
    with pytest.raises(WsssError, match="size"):
        read_npy_maps(tmp_path / "a.npy")


@pytest.mark.parametrize("background", [False, True])
def test_what_is_written_has_their_form_and_is_read_back(tmp_path: Path, background: bool) -> None:
    maps = np.random.default_rng(1).random((2 + background, *GRID), dtype=np.float32)
    stored = ClassMaps(np.array([5, 9]), SIZE, {"own": maps})
    path = tmp_path / "a.npy"
    write_npy_maps(path, stored, "own", "amn")
    content = np.load(path, allow_pickle=True).item()
    assert content["keys"].tolist() == [4, 8]
    assert content["cam"].shape == (3, *GRID) and isinstance(content["cam"], torch.Tensor)
    assert content["high_res"].shape == (3, *SIZE)
    foreground = maps[-2:]
    for name in ("cam", "high_res"):
        first, *others = np.asarray(content[name])
        np.testing.assert_allclose(first, 1 - np.maximum(*others), atol=1e-6)
    found = read_npy_maps(path, SIZE)
    assert found.classes.tolist() == [5, 9]
    np.testing.assert_allclose(found.maps["amn_cam"], foreground, atol=1e-6)


def test_an_image_without_classes_is_written_as_keys_alone(tmp_path: Path) -> None:
    none = ClassMaps(np.zeros(0, np.int64), SIZE, {"cam": np.zeros((0, *GRID), np.float32)})
    path = tmp_path / "a.npy"
    write_npy_maps(path, none, "cam", "amn")
    assert set(np.load(path, allow_pickle=True).item()) == {"keys"}
    assert len(read_npy_maps(path, SIZE).maps["amn_cam"]) == 0


def test_two_channels_too_many_are_refused(tmp_path: Path) -> None:
    path, _ = theirs(tmp_path, np.array([3, 19]), 4)
    with pytest.raises(WsssError, match="maps of shape"):
        read_npy_maps(path, SIZE)
