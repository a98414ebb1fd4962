"""Generated scenes: they are what they say, the same every time, and made once."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from wsss.data import scenes as scenes_module
from wsss.data.photographs import load_image
from wsss.data.scenes import CLASSES, HOME, Scenes, draw_scene, generate
from wsss.errors import WsssError

SMALL = dict(n_train=12, n_val=4, size=96)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    assert generate(folder, seed=3, **SMALL)
    return folder


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def corners(item: ElementTree.Element) -> list[int]:
    keys = ("xmin", "ymin", "xmax", "ymax")
    return [int(item.findtext(f"bndbox/{key}") or 0) for key in keys]


def test_layout_is_vocs(root: Path) -> None:
    data = Scenes(root, seed=3, **SMALL)
    data.check("trainaug", need_masks=True)
    data.check("val", need_masks=True)
    train, val = data.names("train"), data.names("val")
    assert (len(train), len(val)) == (12, 4) and not set(train) & set(val)
    assert data.names("trainaug") == train
    assert (root / "ImageSets/classes.txt").read_text().split() == list(CLASSES)
    assert data.num_classes == 6 and set(HOME) == set(CLASSES)
    for name in train + val:
        with Image.open(data.image_path(name)) as image:
            assert image.format == "JPEG" and image.mode == "RGB" and image.size == (96, 96)
        with Image.open(root / "SegmentationClass" / f"{name}.png") as file:
            assert file.mode == "P"


def test_labels_masks_and_boxes_agree(root: Path) -> None:
    data = Scenes(root, seed=3, **SMALL)
    names = data.names("train") + data.names("val")
    labels = data.labels(names)
    for name, label in zip(names, labels, strict=True):
        mask = data.mask(name)
        assert mask is not None and mask.shape == (96, 96)
        assert set(np.unique(mask).tolist()) - {0, 255} == set((np.flatnonzero(label) + 1).tolist())
        assert 0.002 < (mask == 255).mean() < 0.2 and (mask == 0).mean() > 0.3
        objects = ElementTree.parse(root / "Annotations" / f"{name}.xml").findall("object")
        assert 1 <= len(objects) <= 3
        for item in objects:
            x0, y0, x1, y1 = corners(item)
            assert 1 <= x0 < x1 <= 96 and 1 <= y0 < y1 <= 96
            own = CLASSES.index(item.findtext("name") or "") + 1
            inside = mask[y0 - 1 : y1, x0 - 1 : x1]
            assert (inside == own).any()
        boxed = np.zeros_like(mask, dtype=bool)
        for item in objects:
            x0, y0, x1, y1 = corners(item)
            boxed[y0 - 1 : y1, x0 - 1 : x1] = True
        assert not ((mask > 0) & (mask < 255) & ~boxed).any()


def test_same_seed_same_files_other_seed_others(root: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", seed=3, **SMALL)
    assert digest(tmp_path / "again") == digest(root)
    generate(tmp_path / "other", seed=4, **SMALL)
    other, first = digest(tmp_path / "other"), digest(root)
    assert not any(other[path] == first[path] for path in first if path.endswith(".jpg"))
    # A larger set begins with the same scenes.
    generate(tmp_path / "more", seed=3, **(SMALL | {"n_train": 13}))
    more = digest(tmp_path / "more")
    assert all(more[p] == first[p] for p in first if p.endswith((".jpg", ".png", ".xml")))


def test_scenes_have_the_troubles_they_are_made_for() -> None:
    counts, classes, background = [], set(), []
    for i in range(60):
        image, owner, names = draw_scene(64, np.random.default_rng([0, i]))
        assert image.dtype == np.uint8 and image.shape == (64, 64, 3)
        assert set(np.unique(owner).tolist()) == set(range(len(names) + 1))
        counts.append(len(names))
        classes.update(names)
        background.append(image[owner == 0].astype(float).std())
    assert set(counts) == {1, 2, 3} and classes == set(CLASSES)
    assert min(background) > 5  # never a plain surface


def test_scenes_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "s"
    data = Scenes(root, n_train=2, n_val=1, size=64)
    assert not root.exists()  # only when asked for
    assert len(data.labels(data.names("train"))) == 2
    assert json.loads((root / "scenes.json").read_text())["n_train"] == 2
    before = (root / "scenes.json").stat().st_mtime_ns
    time.sleep(0.01)
    assert len(Scenes(root, n_train=2, n_val=1, size=64).names("train")) == 2
    assert (root / "scenes.json").stat().st_mtime_ns == before

    assert len(Scenes(root, n_train=3, n_val=1, size=64).names("train")) == 3  # other arguments
    monkeypatch.setattr(scenes_module, "VERSION", scenes_module.VERSION + 1)
    assert generate(root, n_train=3, n_val=1, size=64)
    assert not generate(root, n_train=3, n_val=1, size=64)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]  # no drafts left


def test_interrupted_generation_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scenes_module, "annotation", dies)
        with pytest.raises(KeyboardInterrupt):
            generate(tmp_path / "s", n_train=2, n_val=1, size=64)
    assert list(tmp_path.iterdir()) == []
    assert generate(tmp_path / "s", n_train=2, n_val=1, size=64)


def test_a_slower_process_accepts_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process finishes the same scenes while this one draws."""
    settings = dict(seed=0, n_train=2, n_val=1, size=64)
    original = scenes_module._write_scenes

    def overtaken(*arguments: object) -> None:
        original(*arguments)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(scenes_module, "_write_scenes", original)
            assert generate(tmp_path / "s", **settings)

    monkeypatch.setattr(scenes_module, "_write_scenes", overtaken)
    generate(tmp_path / "s", **settings)
    assert len(Scenes(tmp_path / "s", n_train=2, n_val=1, size=64).names("train")) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_folder_of_the_users_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("precious")
    with pytest.raises(WsssError, match="not generated scenes"):
        generate(tmp_path / "photos", n_train=2, n_val=1, size=64)
    assert (tmp_path / "photos" / "mine.txt").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert generate(tmp_path / "empty", n_train=2, n_val=1, size=64)


@pytest.mark.parametrize("wrong", [{"n_train": 0}, {"n_val": 0}, {"size": 8}, {"seed": -1}])
def test_senseless_arguments(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(WsssError, match="scenes need"):
        generate(tmp_path / "s", **(dict(n_train=2, n_val=1, size=64) | wrong))


def test_they_are_made_on_first_use(tmp_path: Path) -> None:
    data = Scenes(tmp_path / "s", n_train=4, n_val=1, size=64)
    assert not (tmp_path / "s").exists()
    assert data.labels(data.names("train")).shape == (4, 6)
    assert load_image(data.image_path(data.names("val")[0])).shape == (64, 64, 3)


def test_lost_scenes_have_a_way_out(tmp_path: Path) -> None:
    data = Scenes(tmp_path / "s", n_train=4, n_val=1, size=64)
    data.check("train", need_masks=True)
    path = data.image_path(data.names("train")[0])
    path.unlink()
    with pytest.raises(WsssError, match=f"{path}.*or delete {tmp_path / 's'} to have it made anew"):
        data.check("train")
