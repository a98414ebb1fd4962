"""A folder of photographs of any kind is predicted; what has changed since is predicted anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data.masks import read_mask
from wsss.errors import WsssError
from wsss.files import read_json
from wsss.stages import seg_predict
from wsss.stages.seg_predict import changed, folder_name

SMALL = ("segmentation=demo", "segmentation.features=pretrained")


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    root = tmp_path / "in" / "holiday"
    root.mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    photograph(40, 60).save(root / "plain.jpg")
    photograph(64, 48).convert("L").save(root / "gray.png")
    photograph(48, 64).convert("CMYK").save(root / "print.jpg")
    photograph(40, 60).save(root / "lying.jpg", exif=turned)
    photograph(2, 3).save(root / "dot.png")
    photograph(700, 300).convert("P").save(root / "tall.gif")
    (root / "broken.jpg").write_bytes(b"no picture")
    (root / "list.csv").write_text("a,b")
    return root


def test_photographs_of_any_kind_are_predicted_and_bad_ones_listed(
    settings, untrained_network, photographs, capsys, monkeypatch, few_scenes
) -> None:
    wanted = (*SMALL, f"input={photographs}", "segmentation.predict.max_side=256")
    untrained_network(settings(*wanted))
    s = settings(*wanted, "data.root=nowhere")  # the data set is not needed any more
    manifest = seg_predict.run(s).manifest
    told = capsys.readouterr().out
    folder = s.folder("seg_predict") / folder_name(photographs)
    assert folder.name.startswith("holiday-")
    sizes = {
        "plain": (40, 60),
        "gray": (64, 48),
        "print": (48, 64),
        "lying": (60, 40),
        "dot": (2, 3),
        "tall": (700, 300),
    }
    assert {p.stem for p in (folder / "masks").iterdir()} == set(sizes)
    assert {p.stem for p in (folder / "overlays").iterdir()} == set(sizes)
    for name, size in sizes.items():
        assert read_mask(folder / "masks" / f"{name}.png", 6).shape == size
        assert Image.open(folder / "masks" / f"{name}.png").mode == "P"
    assert "1 file is no photograph: list.csv" in told
    assert "1 of 7 photographs could not be read" in told and "broken.jpg" in told
    assert told.strip().splitlines()[-1].startswith("seg_predict: 6 photographs in")
    assert list(manifest["unreadable"]) == ["broken.jpg"] and manifest["images"] == 6
    assert (folder / "contact_sheet.png").is_file()


def test_what_is_new_changed_or_gone_is_brought_up_to_date(
    settings, untrained_network, photographs, capsys
) -> None:
    s = settings(*SMALL, f"input={photographs}")
    untrained_network(s)
    seg_predict.run(s)
    seg_predict.run(s)
    assert "finished before" in capsys.readouterr().out
    folder = s.folder("seg_predict") / folder_name(photographs)
    kept = (folder / "masks" / "gray.png").stat().st_mtime_ns
    photograph(30, 30, 1).save(photographs / "plain.jpg")
    photograph(20, 25).save(photographs / "new.jpg")
    photograph(20, 25).save(photographs / "broken.jpg")
    (photographs / "dot.png").unlink()
    manifest = seg_predict.run(s).manifest
    assert "have changed since" in capsys.readouterr().out
    assert manifest["images"] == 7 and manifest["unreadable"] == {}
    masks = {p.stem: read_mask(p, 6).shape for p in (folder / "masks").iterdir()}
    assert masks["plain"] == (30, 30) and masks["new"] == (20, 25) and "dot" not in masks
    assert (folder / "masks" / "gray.png").stat().st_mtime_ns == kept
    assert read_json(folder / "photographs.json").keys() == masks.keys()


def test_folders_of_one_name_have_results_of_their_own(tmp_path: Path) -> None:
    a, b = folder_name(tmp_path / "a" / "x"), folder_name(tmp_path / "b" / "x")
    assert a != b and a[:2] == b[:2] == "x-"
    assert folder_name(tmp_path / "a" / ".." / "a" / "x") == a


def test_changed_names() -> None:
    before = {"a": [1, 2], "b": [1, 2], "c": [1, 2]}
    assert changed(before, {"a": [1, 2], "b": [1, 3], "d": [1, 2]}) == ["b", "c"]


def test_bad_input_is_one_line(settings, untrained_network, tmp_path) -> None:
    with pytest.raises(WsssError, match="give a folder of photographs or one of them, input=PATH"):
        seg_predict.run(settings(*SMALL))
    with pytest.raises(WsssError, match="stage=seg_predict needs stage=seg_train"):
        seg_predict.run(settings(*SMALL, f"input={tmp_path}"))
    untrained_network(settings(*SMALL))
    with pytest.raises(WsssError, match="input=nowhere: no such folder"):
        seg_predict.run(settings(*SMALL, "input=nowhere"))
