"""Foreign class-map files: round trips, the originals' forms, and files that must not be loaded."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from wsss.errors import WsssError
from wsss.maps.files import ClassMaps
from wsss.maps.interop import npy_files, read_npy_maps, write_npy_maps

SIZE = (30, 41)
GRID = (8, 11)


def some_maps(channels: int) -> np.ndarray:
    return np.random.default_rng(0).random((channels, *GRID)).astype(np.float32)


def test_irn_file_as_its_own_code_writes_it(tmp_path: Path) -> None:
    cam, large = torch.rand(2, *GRID), np.random.default_rng(0).random((2, *SIZE))
    label = torch.zeros(20)
    label[[3, 19]] = 1
    keys = torch.nonzero(label)[:, 0]
    np.save(tmp_path / "a.npy", {"keys": keys, "cam": cam.cpu(), "high_res": large})
    found = read_npy_maps(tmp_path / "a.npy")
    assert found.classes.tolist() == [4, 20]
    assert found.size == SIZE
    assert np.array_equal(found.maps["cam"], cam.numpy())
    assert not found.has_background("cam")


def test_tensors_that_are_views_are_read_right(tmp_path: Path) -> None:
    base = torch.rand(11, 8, 4)
    cam = base.permute(2, 1, 0)[1:3]
    np.save(tmp_path / "a.npy", {"keys": np.array([0, 1]), "cam": cam, "high_res": cam.numpy()})
    assert np.array_equal(read_npy_maps(tmp_path / "a.npy").maps["cam"], cam.numpy())


def test_sipe_file_as_its_own_code_writes_it(tmp_path: Path) -> None:
    maps = np.random.default_rng(0).random((3, *SIZE)).astype(np.float32)
    np.save(tmp_path / "a.npy", {"keys": np.array([0, 7, 15]), "IS_CAM": maps})
    found = read_npy_maps(tmp_path / "a.npy")
    assert found.classes.tolist() == [7, 15]
    assert found.size == SIZE and found.has_background("is_cam")
    assert np.array_equal(found.maps["is_cam"], maps)


@pytest.mark.parametrize("form", ["irn", "sipe"])
def test_written_maps_are_read_back(tmp_path: Path, form: str) -> None:
    own = form == "sipe"
    kind = "is_cam" if own else "cam"
    maps = ClassMaps(np.array([1, 12]), SIZE, {kind: some_maps(2 + own)})
    write_npy_maps(tmp_path / "a.npy", maps, kind, form)
    found = read_npy_maps(tmp_path / "a.npy")
    assert found.classes.tolist() == [1, 12] and found.size == SIZE
    if own:
        assert found.maps[kind].shape == (3, *SIZE)
        # Enlarged bilinearly: means stay.
        assert np.allclose(found.maps[kind].mean((1, 2)), maps.maps[kind].mean((1, 2)), atol=0.03)
    else:
        assert np.allclose(found.maps[kind], maps.maps[kind], atol=1e-6)


def test_written_files_have_what_the_originals_expect(tmp_path: Path) -> None:
    """Read as IRN and SIPE read them, by NumPy with pickle allowed (these files are our own)."""
    maps = ClassMaps(np.array([1, 12]), SIZE, {"is_cam": some_maps(3)})
    write_npy_maps(tmp_path / "irn.npy", maps, "is_cam", "irn")
    irn = np.load(tmp_path / "irn.npy", allow_pickle=True).item()
    assert np.pad(irn["keys"] + 1, (1, 0), mode="constant").tolist() == [0, 1, 12]
    assert isinstance(irn["cam"], torch.Tensor) and irn["cam"].shape == (2, *GRID)
    assert irn["high_res"].shape == (2, *SIZE) and irn["high_res"].dtype == np.float32
    write_npy_maps(tmp_path / "sipe.npy", maps, "is_cam", "sipe")
    sipe = np.load(tmp_path / "sipe.npy", allow_pickle=True).item()
    assert sipe["keys"][np.array([[0, 2]])].tolist() == [[0, 12]]
    assert sipe["IS_CAM"].shape == (3, *SIZE)


def test_an_image_without_classes(tmp_path: Path) -> None:
    maps = ClassMaps(np.zeros(0, dtype=int), SIZE, {"cam": np.zeros((0, *GRID), np.float32)})
    write_npy_maps(tmp_path / "a.npy", maps, "cam", "irn")
    found = read_npy_maps(tmp_path / "a.npy")
    assert found.classes.tolist() == [] and found.maps["cam"].shape == (0, *GRID)


def test_keys_out_of_order_are_sorted_with_their_maps(tmp_path: Path) -> None:
    maps = some_maps(3)
    np.save(tmp_path / "a.npy", {"keys": np.array([0, 9, 2]), "IS_CAM": maps})
    found = read_npy_maps(tmp_path / "a.npy")
    assert found.classes.tolist() == [2, 9]
    assert np.array_equal(found.maps["is_cam"], maps[[0, 2, 1]])


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "broken_in"
    np.save(tmp_path / "a.npy", {"keys": np.array([0]), "cam": Malicious(target)})
    with pytest.raises(WsssError, match="unsafe.*mkdir"):
        read_npy_maps(tmp_path / "a.npy")
    assert not target.exists()


def test_code_in_a_tensors_storage_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "broken_in"

    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (pickle.dumps(Malicious(target)),)

    np.save(tmp_path / "a.npy", {"keys": np.array([0]), "cam": Storage()})
    with pytest.raises(WsssError, match="unsafe"):
        read_npy_maps(tmp_path / "a.npy")
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"keys": np.array([3])}, "no class maps"),
        ({"keys": np.array([3]), "maps": np.zeros((1, 4, 4))}, "no class maps"),
        ({"keys": np.array([3]), "cam": np.zeros((3, 4, 4))}, "for 1 keys"),
        ({"keys": np.array([3]), "high_res": np.full((1, 4, 4), np.nan)}, "not finite"),
        ({"keys": np.array([3]), "high_res": np.full((1, 4, 4), np.inf)}, "not finite"),
        ({"keys": np.array([3.5]), "high_res": np.zeros((1, 4, 4))}, "float64 are no class ids"),
        ({"keys": np.array([3]), "high_res": np.zeros((1, 4, 4), complex)}, "complex128 are no"),
        ({"keys": np.array([3]), "high_res": np.full((1, 4, 4), "0.5")}, "are no numbers"),
        ({"keys": np.array([[3]]), "high_res": np.zeros((1, 4, 4))}, "for 1 keys"),
        ({"keys": np.array([-1]), "high_res": np.zeros((1, 4, 4))}, "distinct"),
        ({"keys": 3, "high_res": np.zeros((1, 4, 4))}, "a.npy: .*refine.npy"),
        ({"keys": np.array([3]), "cam": np.zeros((1, 4, 4))}, "none was given"),
        ({"keys": np.array([3, 3]), "high_res": np.zeros((2, 4, 4))}, "distinct"),
        ({"keys": np.array([4, 7]), "IS_CAM": np.zeros((2, 4, 4))}, "begin with 0"),
        ([1, 2], "no dictionary"),
    ],
)
def test_other_contents_are_named(tmp_path: Path, content: object, message: str) -> None:
    array = np.empty((), dtype=object)
    array[()] = content
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(WsssError, match=message) as caught:
        read_npy_maps(tmp_path / "a.npy")
    assert "\n" not in str(caught.value) and str(tmp_path / "a.npy") in str(caught.value)
    assert str(caught.value).endswith("or correct refine.npy")


def test_damaged_files_are_refused_whatever_is_wrong_with_them(tmp_path: Path) -> None:
    """Cut or overwritten anywhere, empty: the right maps or one line with a way out."""
    path, refused = tmp_path / "a.npy", 0
    maps = ClassMaps(np.array([1, 12]), SIZE, {"cam": some_maps(2)})
    write_npy_maps(path, maps, "cam", "irn")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for attempt in range(150):
        damaged = bytearray(whole)
        if attempt % 3 == 0:
            damaged = damaged[: rng.integers(len(whole))]
        elif attempt % 3 == 1:
            damaged = damaged[: rng.integers(600)] if attempt > 1 else bytearray()
        else:
            for place in rng.integers(0, 900, 3):
                damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_npy_maps(path, SIZE).size == SIZE
        except WsssError as error:
            assert "\n" not in str(error) and str(error).startswith(f"{path}: ")
            assert str(error).endswith("or correct refine.npy")
            refused += 1
    assert refused > 100


def test_maps_that_claim_to_be_huge_are_not_unpacked(tmp_path: Path) -> None:
    """A tensor of one number that says it is 24,000 x 24,000: 2.3 GB if it were copied."""
    huge = torch.zeros(1).expand(2, 24_000, 24_000)
    np.save(tmp_path / "a.npy", {"keys": np.array([0, 3]), "IS_CAM": huge})
    np.save(tmp_path / "b.npy", {"keys": np.array([0, 3]), "cam": huge})
    assert (tmp_path / "a.npy").stat().st_size < 10_000
    tracemalloc.start()
    for name in ("a.npy", "b.npy"):
        with pytest.raises(WsssError, match=r"maps of 24000 x 24000 for a photograph of 30 x 41"):
            read_npy_maps(tmp_path / name, SIZE)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WsssError, match="no such"):
        read_npy_maps(tmp_path / "a.npy")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(WsssError, match="folder.npy: no regular file"):
        read_npy_maps(tmp_path / "folder.npy")
    (tmp_path / "a.npy").write_bytes(b"nothing of the kind")
    with pytest.raises(WsssError, match="broken"):
        read_npy_maps(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(WsssError, match="plain array"):
        read_npy_maps(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", {"keys": np.array([0, 1]), "IS_CAM": np.zeros((2, 4, 5))})
    whole = (tmp_path / "c.npy").read_bytes()
    (tmp_path / "c.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WsssError, match="broken"):
        read_npy_maps(tmp_path / "c.npy")
    with pytest.raises(WsssError, match="1 of 2 class-map files are missing, for instance z.npy"):
        npy_files(tmp_path, ["b", "z"])


def test_sizes_must_agree_with_the_photograph(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", {"keys": np.array([0, 1]), "IS_CAM": np.zeros((2, 4, 5))})
    assert read_npy_maps(tmp_path / "a.npy", (4, 5)).size == (4, 5)
    with pytest.raises(WsssError, match="4 x 5"):
        read_npy_maps(tmp_path / "a.npy", (5, 4))


def test_sipe_form_needs_a_background(tmp_path: Path) -> None:
    maps = ClassMaps(np.array([1]), SIZE, {"cam": some_maps(1)})
    with pytest.raises(WsssError, match="export them as irn"):
        write_npy_maps(tmp_path / "a.npy", maps, "cam", "sipe")
    with pytest.raises(WsssError, match="choose irn, amn, mctformer, clip_es, sipe"):
        write_npy_maps(tmp_path / "a.npy", maps, "cam", "coco")
