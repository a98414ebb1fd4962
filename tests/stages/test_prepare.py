"""stage=prepare: what it prints and leaves behind, when it is skipped, how it fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.errors import WsssError
from wsss.files import read_json
from wsss.stages.prepare import run

IMAGES = 40


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Forty images of two classes, three of them with a mask."""
    root = tmp_path / "own"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rows = []
    for i in range(IMAGES):
        pixels = np.full((30 + i, 40, 3), i, dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i:02d}.png")
        rows.append(f"{i:02d},{'cat;dog' if i < 10 else 'cat'}")
        if i < 3:
            mask = np.ones(pixels.shape[:2], dtype=np.uint8)
            Image.fromarray(mask).save(root / "masks" / f"{i:02d}.png")
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "labels.csv").write_text("\n".join(rows))
    return root


Run = Callable[..., None]


@pytest.fixture
def prepare(root: Path, settings) -> Run:
    """The stage on the forty images, with what else is set."""

    def call(*overrides: str) -> None:
        run(settings("data=folder", f"data.root={root}", *overrides))

    return call


def results(root: Path) -> Path:
    return root.parent / "run" / "prepare"


def test_report_for_a_person(root: Path, prepare: Run, capsys: pytest.CaptureFixture[str]) -> None:
    prepare("data.val_split=null")
    shown = capsys.readouterr().out.splitlines()
    assert f"Folder('{root}'): 2 classes" in shown
    lines = {line.split()[0]: line.split()[1:] for line in shown if line}
    assert lines["split"][:3] == ["images", "masks", "labels/image"]
    assert lines["train"] == ["40", "3", "1.25", "40x30", "40x50", "40x69"]
    assert lines["train_with_masks"] == ["3", "3", "2.00", "40x30", "40x31", "40x32"]
    assert "labels of an image in train: 30 with 1, 10 with 2" in shown
    assert "images of a class in train / train_with_masks:" in shown
    assert "  cat 40 / 3  dog 10 / 3" in shown
    assert shown[-1].startswith("prepare: nothing is wrong")

    report = read_json(results(root) / "report.json")
    assert report["problems"] == [] and report["splits"]["train"]["images"] == IMAGES
    manifest = read_json(results(root) / "manifest.json")
    assert manifest["stage"] == "prepare" and manifest["images"] == IMAGES + 3
    with Image.open(results(root) / "contact_sheet.png") as sheet:
        assert sheet.width > 2 * 140 and sheet.height > 3 * 140  # a row for each masked image


def test_it_is_skipped_until_the_data_change(
    root: Path, prepare: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare()
    capsys.readouterr()
    prepare()
    assert "prepare: finished before" in capsys.readouterr().out
    (root / "labels.csv").write_text("\n".join(f"{i:02d},dog" for i in range(IMAGES)))
    prepare()
    shown = capsys.readouterr().out
    assert "the data have changed" in shown and "cat 0" in shown
    assert "warning: split 'train' has no image of: cat" in shown
    (root / "labels.csv").write_text("00,cow")
    with pytest.raises(WsssError, match="40 problems"):
        prepare()
    assert not (results(root) / "manifest.json").exists()


def test_all_problems_are_in_the_report_and_twenty_are_told(root: Path, prepare: Run) -> None:
    for i in range(4, 30):
        (root / "images" / f"{i:02d}.png").write_bytes(b"no image")
    with pytest.raises(WsssError) as caught:
        prepare()
    lines = str(caught.value).splitlines()
    assert "26 problems" in lines[0] and len(lines) == 22 and lines[-1] == "... and 6 more"
    report = read_json(results(root) / "report.json")
    assert len(report["problems"]) == 26
    assert all(f"{i:02d}.png" in line for i, line in enumerate(report["problems"], start=4))


def test_one_problem_is_one_line(root: Path, prepare: Run) -> None:
    (root / "images" / "07.png").write_bytes(b"no image")
    with pytest.raises(WsssError) as caught:
        prepare()
    assert str(caught.value).count("\n") == 0 and "07.png" in str(caught.value)


def test_splits_that_train_nothing_may_be_wanting(
    root: Path, prepare: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for mask in (root / "masks").iterdir():
        mask.unlink()
    prepare()
    shown = capsys.readouterr().out
    assert " passed over: " not in shown.replace("split 'val' is passed over: ", "")
    assert "warning: split 'val' is passed over: " in shown
    with Image.open(results(root) / "contact_sheet.png") as sheet:
        assert sheet.height > 12 * 140 and sheet.width < 2 * 1.5 * 140  # photographs only
    with pytest.raises(WsssError, match="no list .*train_a.txt"):
        prepare("data.train_split=train_a", "overwrite=true")
    with pytest.raises(WsssError, match="'train' has 40 images, expected 41"):
        prepare("+data.expected_counts.train=41", "overwrite=true")
    prepare("+data.expected_counts.train=null", "overwrite=true")


def test_a_part_of_a_data_set_is_let_through_by_one_key(root: Path, prepare: Run) -> None:
    way_out = "data.expected_counts=null"
    with pytest.raises(WsssError, match=way_out):
        prepare("+data.expected_counts.train=41")
    prepare("+data.expected_counts.train=41", way_out, "overwrite=true")


@pytest.mark.parametrize(("largest", "told"), [(26, False), (25, True)])
def test_large_photographs_are_told_with_the_key_that_suits_them(
    prepare: Run, capsys: pytest.CaptureFixture[str], largest: int, told: bool
) -> None:
    """The median photograph has 40 x 50 pixels."""
    seen = f"data.long_side=[20,{largest}]"
    prepare(seen)
    assert ("data.infer_long_side=" in capsys.readouterr().out) == told
    prepare(seen, "data.infer_long_side=32", "overwrite=true")
    assert "data.infer_long_side=" not in capsys.readouterr().out


def test_held_out_images_are_found(root: Path, prepare: Run) -> None:
    (root / "splits").mkdir()
    (root / "splits" / "train.txt").write_text("\n".join(f"{i:02d}" for i in range(30)))
    (root / "splits" / "hold.txt").write_text("\n".join(f"{i:02d}" for i in range(29, 40)))
    with pytest.raises(WsssError, match="1 images of split 'hold' are in split 'train'"):
        prepare("data.val_split=hold")


@pytest.mark.parametrize("data", ["scenes", "voc", "coco", "coco_format", "folder"])
def test_every_data_set_has_what_the_stage_asks_for(data: str, tmp_path: Path, settings) -> None:
    if data == "scenes":
        few = [f"data.image_set.{size}" for size in ("n_train=3", "n_val=2", "size=64")]
        s = settings("data=scenes", *few)
        run(s)
        assert read_json(s.folder("prepare") / "manifest.json")["images"] > 0
    else:
        with pytest.raises(WsssError, match=r"data\.root="):
            run(settings(f"data={data}"))
