"""MCTformer's class-map files: its own form in and out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsss.errors import WsssError
from wsss.maps.files import ClassMaps
from wsss.maps.interop import read_npy_maps, write_npy_maps

SIZE, GRID = (30, 41), (8, 11)


@pytest.mark.parametrize("integer", [int, np.int64])
def test_a_file_as_its_own_program_writes_it(tmp_path: Path, integer: type) -> None:
    maps = np.random.default_rng(0).random((2, *SIZE), dtype=np.float32)
    np.save(tmp_path / "a.npy", {integer(14): maps[0], integer(3): maps[1]})
    found = read_npy_maps(tmp_path / "a.npy", SIZE)
    assert found.classes.tolist() == [4, 15] and found.size == SIZE
    np.testing.assert_array_equal(found.maps["refined"], maps[::-1])


def test_an_image_without_classes_is_an_empty_dictionary(tmp_path: Path) -> None:
    none = ClassMaps(np.zeros(0, np.int64), SIZE, {"cam": np.zeros((0, *GRID), np.float32)})
    write_npy_maps(tmp_path / "a.npy", none, "cam", "mctformer")
    assert np.load(tmp_path / "a.npy", allow_pickle=True).item() == {}
    found = read_npy_maps(tmp_path / "a.npy", SIZE)
    assert found.size == SIZE and len(found.maps["refined"]) == len(found.classes) == 0
    with pytest.raises(WsssError, match="size"):
        read_npy_maps(tmp_path / "a.npy")


@pytest.mark.parametrize("background", [False, True])
def test_what_is_written_has_their_form_and_is_read_back(tmp_path: Path, background: bool) -> None:
    maps = np.random.default_rng(1).random((2 + background, *SIZE), dtype=np.float32)
    stored = ClassMaps(np.array([5, 9]), SIZE, {"own": maps})
    write_npy_maps(tmp_path / "a.npy", stored, "own", "mctformer")
    content = np.load(tmp_path / "a.npy", allow_pickle=True).item()
    assert list(content) == [4, 8] and all(type(key) is int for key in content)
    np.testing.assert_array_equal(np.stack(list(content.values())), maps[-2:])
    found = read_npy_maps(tmp_path / "a.npy", SIZE)
    assert found.classes.tolist() == [5, 9]
    np.testing.assert_array_equal(found.maps["refined"], maps[-2:])


def test_maps_of_different_sizes_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", {0: np.zeros((3, 4)), 1: np.zeros((4, 3))})
    with pytest.raises(WsssError, match="2 sizes"):
        read_npy_maps(tmp_path / "a.npy")
