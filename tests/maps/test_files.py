"""Class-map files: what comes back, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from wsss.errors import WsssError
from wsss.maps.files import ClassMaps, read_class_maps, write_class_maps


def some_maps() -> ClassMaps:
    rng = np.random.default_rng(0)
    cam, own = rng.random((2, 7, 9), np.float32), rng.random((3, 7, 9), np.float32)
    return ClassMaps(np.array([3, 15]), (27, 35), {"cam": cam, "pacam": own})


@pytest.mark.parametrize(("dtype", "error"), [("uint8", 0.5 / 255 + 1e-6), ("float16", 5e-4)])
def test_class_maps_come_back_within_the_dtypes_step(tmp_path, dtype: str, error: float) -> None:
    maps = some_maps()
    write_class_maps(tmp_path / "a.npz", maps, dtype)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as raw:
        assert raw["map_cam"].dtype == dtype
    back = read_class_maps(tmp_path / "a.npz")
    assert back.size == (27, 35)
    assert back.classes.tolist() == [3, 15]
    for kind, values in maps.maps.items():
        assert np.abs(back.maps[kind] - values).max() <= error
    assert not back.has_background("cam")
    assert back.has_background("pacam")
    assert list(read_class_maps(tmp_path / "a.npz", "pacam").maps) == ["pacam"]


def test_broken_missing_and_foreign_class_maps_are_told_in_one_line(tmp_path) -> None:
    with pytest.raises(WsssError, match="run stage=make_cam"):
        read_class_maps(tmp_path / "none.npz")
    (tmp_path / "b.npz").write_bytes(b"PK not really")
    with pytest.raises(WsssError, match=r"b\.npz: broken"):
        read_class_maps(tmp_path / "b.npz")
    write_class_maps(tmp_path / "c.npz", some_maps())
    with pytest.raises(WsssError, match="holds no map of kind is_cam"):
        read_class_maps(tmp_path / "c.npz", "is_cam")
    with pytest.raises(WsssError, match="make_cam.dtype=int4"):
        write_class_maps(tmp_path / "d.npz", some_maps(), "int4")


def test_values_that_are_no_numbers_are_neither_written_nor_read(tmp_path: Path) -> None:
    maps = some_maps()
    maps.maps["cam"][0, 2, 3] = np.nan
    with pytest.raises(WsssError, match="x: the class maps of kind cam .* no numbers"):
        write_class_maps(tmp_path / "x.npz", maps)
    assert not list(tmp_path.iterdir())
    write_class_maps(tmp_path / "y.npz", some_maps(), "float16")
    with np.load(tmp_path / "y.npz") as stored:
        arrays = dict(stored)
    arrays["map_cam"][1, 0, 0] = np.inf
    np.savez(tmp_path / "y.npz", **arrays)
    with pytest.raises(WsssError, match="no numbers.*delete it and run stage=make_cam again"):
        read_class_maps(tmp_path / "y.npz")


def test_any_damage_is_one_line_with_file_and_way_out(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_class_maps(path, some_maps())
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    expected = {kind: values.tobytes() for kind, values in read_class_maps(path).maps.items()}
    for trial in range(150):
        data = bytearray(whole)
        if trial % 3 == 0:
            data = data[: int(rng.integers(0, len(whole)))]
        else:
            for place in rng.integers(0, len(whole), 1 + trial % 5):
                data[place] = int(rng.integers(256))
        path.write_bytes(data)
        try:
            found = read_class_maps(path)
        except WsssError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            assert "delete it and run stage=make_cam again" in str(error)
        else:  # the damage hit nothing that is read (a kind whose name it hit is not there)
            assert {k: v.tobytes() for k, v in found.maps.items()}.items() <= expected.items()


def test_a_map_that_claims_more_than_its_photograph_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    write_class_maps(path, some_maps())
    head = np.lib.format.magic(1, 0) + b""
    described = str({"descr": "|u1", "fortran_order": False, "shape": (2, 24000, 24000)}).encode()
    described += b" " * (64 - (len(head) + 2 + len(described) + 1) % 64) + b"\n"
    content = head + len(described).to_bytes(2, "little") + described
    with zipfile.ZipFile(path) as old:
        kept = {n: old.read(n) for n in old.namelist() if n != "map_cam.npy"}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in kept.items():
            new.writestr(name, data)
        new.writestr("map_cam.npy", content)  # the 576 million values are not even there
    with pytest.raises(WsssError, match=r"\(2, 24000, 24000\) for a photograph of 27 x 35"):
        read_class_maps(path)
