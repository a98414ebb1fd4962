"""CLIP-ES's `.npy` dictionaries in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsss.errors import WsssError
from wsss.maps.files import ClassMaps
from wsss.maps.interop import read_npy_maps, write_npy_maps


def as_released(path: Path, content: dict[str, Any]) -> Path:
    np.save(path, content)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("keys", [[14, 2], np.array([14, 2]), torch.tensor([14, 2])])
def test_refined_maps_are_read_in_the_order_of_their_classes(keys: Any, tmp_path: Path) -> None:
    maps = np.random.default_rng(0).random((2, 6, 7)).astype(np.float16)
    content = {"keys": keys, "attn_highres": maps, "highres": maps[::-1]}
    found = read_npy_maps(as_released(tmp_path / "x.npy", content), (6, 7))
    assert found.classes.tolist() == [3, 15] and found.size == (6, 7)
    assert list(found.maps) == ["caa"] and not found.has_background("caa")
    assert np.array_equal(found.maps["caa"], maps[::-1].astype(np.float32))


def test_plain_maps_are_read_where_there_are_no_refined_ones(tmp_path: Path) -> None:
    maps = np.ones((1, 4, 5), dtype=np.float32)
    found = read_npy_maps(as_released(tmp_path / "x.npy", {"keys": [0], "highres": maps}))
    assert list(found.maps) == ["cam"] and found.classes.tolist() == [1]


@pytest.mark.parametrize("background", [False, True])
def test_written_maps_have_the_released_form(background: bool, tmp_path: Path) -> None:
    maps = np.random.default_rng(1).random((2 + background, 3, 4)).astype(np.float32)
    write_npy_maps(
        tmp_path / "x.npy",
        ClassMaps(np.array([3, 15]), (12, 16), {"pacam": maps}),
        "pacam",
        "clip_es",
    )
    content = np.load(tmp_path / "x.npy", allow_pickle=True).item()
    assert set(content) == {"keys", "attn_highres"}
    assert content["keys"].tolist() == [2, 14] and isinstance(content["keys"], np.ndarray)
    full = content["attn_highres"]
    assert full.dtype == np.float16 and full.shape == (2, 12, 16)
    again = read_npy_maps(tmp_path / "x.npy", (12, 16))
    assert again.classes.tolist() == [3, 15]
    corner = maps[int(background) :, 0, 0]  # half a cell at the edge keeps its value
    assert np.allclose(again.maps["caa"][:, 0, 0], corner, atol=1e-3)


def test_an_image_without_classes(tmp_path: Path) -> None:
    empty = ClassMaps(np.zeros(0, np.int64), (12, 16), {"caa": np.zeros((0, 3, 4), np.float32)})
    write_npy_maps(tmp_path / "x.npy", empty, "caa", "clip_es")
    found = read_npy_maps(tmp_path / "x.npy", (12, 16))
    assert found.maps["caa"].shape == (0, 12, 16) and not len(found.classes)


def test_wrong_numbers_of_maps_are_refused(tmp_path: Path) -> None:
    content = {"keys": [1, 2, 3], "attn_highres": np.zeros((2, 4, 4), np.float16)}
    with pytest.raises(WsssError, match="for 3 keys"):
        read_npy_maps(as_released(tmp_path / "x.npy", content))
