"""Files that stages hand to one another."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wsss.errors import WsssError
from wsss.files import atomic
from wsss.maps.files import ClassMaps, read_class_maps, write_class_maps
from wsss.run.folder import StageFolder, require


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


def test_an_error_while_writing_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def folder(tmp_path, lr: float = 0.1, source: str = "a") -> StageFolder:
    return StageFolder(tmp_path / "train", "train", {"optimizer": {"lr": lr}}, {"data": source})


def test_a_stage_is_fresh_then_resumed_then_finished(tmp_path) -> None:
    first = folder(tmp_path).open()
    assert not first.finished and not first.resumed
    assert folder(tmp_path).open().resumed
    first.close(loss=0.5)
    again = folder(tmp_path).open()
    assert again.finished
    assert again.manifest["loss"] == 0.5
    assert again.manifest["settings"] == {"optimizer": {"lr": 0.1}}
    assert {"python", "torch"} <= again.manifest["versions"].keys()
    assert require(tmp_path / "train", "train", "make_cam")["hash"] == again.hash


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused_by_name_unless_overwritten(tmp_path, finished: bool) -> None:
    old = folder(tmp_path).open()
    (old.path / "result").write_text("kept")
    if finished:
        old.close()
    with pytest.raises(WsssError, match=r"optimizer\.lr was 0\.1, now 0\.2.*overwrite=true"):
        folder(tmp_path, lr=0.2).open()
    with pytest.raises(WsssError, match=r"inputs\.data was a, now b"):
        folder(tmp_path, source="b").open()
    assert (old.path / "result").exists()
    new = folder(tmp_path, lr=0.2).open(overwrite=True)
    assert not new.finished and not new.resumed
    assert not (old.path / "result").exists()


def test_a_stage_that_failed_before_it_made_anything_blocks_nothing(tmp_path) -> None:
    (folder(tmp_path).open().path / "cli.log").write_text("error")
    new = folder(tmp_path, lr=0.2).open()
    assert not new.finished and not new.resumed
    assert folder(tmp_path, lr=0.2).open().resumed


def test_overwrite_redoes_a_finished_stage_of_equal_settings(tmp_path) -> None:
    folder(tmp_path).open().close()
    assert not folder(tmp_path).open(overwrite=True).finished


def test_a_missing_input_names_the_stage_to_run(tmp_path) -> None:
    with pytest.raises(WsssError, match="stage=eval_cam needs stage=make_cam.*stage=make_cam"):
        require(tmp_path, "make_cam", "eval_cam")


def test_manifest_is_plain_json(tmp_path) -> None:
    stage = folder(tmp_path).open()
    stage.close()
    content = json.loads((stage.path / "manifest.json").read_text())
    assert content["hash"] == stage.hash
