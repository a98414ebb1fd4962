"""What the columns of contact sheets show, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.data.masks import voc_palette, write_mask
from wsss.maps.files import ClassMaps, write_class_maps
from wsss.show import sheets
from wsss.show.layout import Shown
from wsss.show.sheets import (
    crop_sheet,
    draw_sheet,
    edge_column,
    label_sheet,
    map_column,
    mask_column,
    seed_column,
    truth_column,
)

SIZE = (6, 8)
PICTURE = np.full((*SIZE, 3), 100, dtype=np.uint8)
LEFT = np.zeros(SIZE, dtype=bool)
LEFT[:, :4] = True


class Scenes:
    """Stands for a data set of five images and two classes, whose last image has no mask."""

    num_classes, classes = 2, ("cat", "dog")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for n in range(5):
            Image.new("RGB", (SIZE[1], SIZE[0]), (40 * n, 0, 0)).save(folder / f"i{n}.png")

    def image_path(self, name: str) -> Path:
        return self.folder / f"{name}.png"

    def labels(self, names: list[str]) -> np.ndarray:
        return np.array([[1, int(name[1]) % 2] for name in names], dtype=np.float32)

    def mask(self, name: str) -> np.ndarray | None:
        return None if name == "i4" else np.where(LEFT, 255, 2).astype(np.uint8)

    def has_mask(self, name: str) -> bool:
        return self.mask(name) is not None


@pytest.fixture
def told(monkeypatch) -> list[dict[str, Any]]:
    """What sheets are made of, as it is put into files."""
    made: list[dict[str, Any]] = []
    write = sheets.contact_sheet

    def keep(rows, headings, captions, path, classes=()) -> Path:
        made.append({"rows": rows, "headings": headings, "captions": captions, "classes": classes})
        return write(rows, headings, captions, path, classes)

    monkeypatch.setattr(sheets, "contact_sheet", keep)
    return made


def colored(shown: np.ndarray, where: np.ndarray, label: int) -> None:
    """`where` leans to the color of a class, all else is as it was."""
    assert (shown[~where] == PICTURE[~where]).all()
    change = shown[where].astype(int) - 100
    towards = voc_palette()[label].astype(int) - 100
    assert (np.sign(change) == np.sign(towards)).all()


@pytest.mark.parametrize("own", [False, True])
def test_maps_and_seeds_are_those_of_the_file(tmp_path: Path, own: bool) -> None:
    """Class 2 is sure on the left; on the right the background is surer than both classes."""
    maps = np.stack([np.full(SIZE, 0.5), np.where(LEFT, 0.9, 0.2)]).astype(np.float32)
    if own:
        maps = np.concatenate([np.where(LEFT, 0.3, 1.0)[None].astype(np.float32), maps])
    write_class_maps(tmp_path / "i0.npz", ClassMaps(np.array([1, 2]), SIZE, {"k": maps}), "float16")
    (seed,) = seed_column(tmp_path, "k", 0.5)("i0", PICTURE)
    colored(seed.picture, LEFT, 2)
    assert seed.classes == (0, 2)
    cat, dog = map_column(tmp_path, "k")("i0", PICTURE)
    assert (cat.classes, dog.classes) == ((1,), (2,)) and cat.named and dog.named
    pale = 100 / 2 + 127
    for shown, value, label in ((cat, np.full(SIZE, 0.5), 1), (dog, maps[-1], 2)):
        weight = 0.9 * value[..., None]
        expected = pale * (1 - weight) + voc_palette()[label] * weight
        assert np.abs(shown.picture - expected).max() < 1.1


def test_an_image_without_classes_has_no_maps(tmp_path: Path) -> None:
    none = ClassMaps(np.zeros(0, dtype=int), SIZE, {"k": np.zeros((0, *SIZE), np.float32)})
    write_class_maps(tmp_path / "i0.npz", none)
    assert list(map_column(tmp_path, "k")("i0", PICTURE)) == []


def test_masks_and_truth_are_those_of_the_files(tmp_path: Path) -> None:
    write_mask(tmp_path / "m" / "i0.png", np.where(LEFT, 1, 0).astype(np.uint8))
    (mask,) = mask_column(tmp_path / "m", 2)("i0", PICTURE)
    colored(mask.picture, LEFT, 1)
    assert mask.classes == (0, 1)
    scenes: Any = Scenes(tmp_path)
    (clear,) = truth_column(scenes)("i0", PICTURE)
    colored(clear.picture, ~LEFT, 2)  # void on the left stays clear
    (shown,) = truth_column(scenes, void=True)("i0", PICTURE)
    assert (shown.picture[LEFT] == int(0.4 * 100 + 0.6 * 255)).all() and 255 in shown.classes
    assert (shown.picture[~LEFT] == clear.picture[~LEFT]).all()
    assert list(truth_column(scenes)("i4", PICTURE)) == []


def test_edges_are_squares_of_heat(tmp_path: Path) -> None:
    cells = np.array([[0, 255], [128, 0]], dtype=np.uint8)
    Image.fromarray(cells).save(tmp_path / "i0.png")
    shown = edge_column(tmp_path, 4)("i0", PICTURE)
    assert isinstance(shown, np.ndarray) and shown.shape == (*SIZE, 3)
    for y in range(2):
        for x in range(2):
            cell = shown[4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
            assert len(np.unique(cell.reshape(-1, 3), axis=0)) == 1
    cold, hot = shown[0, 0].astype(int), shown[0, 4].astype(int)
    assert hot[0] > hot[2] and cold[2] > cold[1] and (shown[0, 0] == shown[4, 4]).all()


def test_rows_are_spread_and_legends_name_labels_or_what_is_asked_for(tmp_path: Path, told) -> None:
    scenes: Any = Scenes(tmp_path)
    names = [f"i{n}" for n in range(5)]
    columns = {"twice": lambda name, picture: picture // 2}
    path = tmp_path / "sheet.png"
    assert draw_sheet(scenes, names, 0, columns, path) is None and not path.exists()
    assert draw_sheet(scenes, [], 3, columns, path) is None
    assert draw_sheet(scenes, names, 3, columns, path) == path and path.is_file()
    draw_sheet(scenes, names[:2], 9, columns, path, (), lambda name: [2] if name == "i1" else [])
    first, second = told
    assert first["headings"] == ["photograph", "twice"]
    assert first["captions"] == ["i0", "i2", "i4"] and second["captions"] == ["i0", "i1"]
    photographs = [row[0][0] for row in first["rows"]]
    assert [one.picture[0, 0, 0] for one in photographs] == [0, 80, 160]
    assert [one.classes for one in photographs] == [(1,), (1,), (1,)]
    assert [row[0][0].classes for row in second["rows"]] == [(), (2,)]
    assert [row[1][0, 0, 0] for row in first["rows"]] == [0, 40, 80]
    assert first["classes"] == ("cat", "dog")


def test_labels_are_shown_with_masks_where_there_are_some(tmp_path: Path, told) -> None:
    scenes: Any = Scenes(tmp_path)
    label_sheet(scenes, [f"i{n}" for n in range(5)], 2, tmp_path / "a.png")
    label_sheet(scenes, ["i4"], 2, tmp_path / "b.png")
    both, bare = told
    assert both["headings"] == ["photograph", "mask (white: void)"]
    assert [len(row[1]) for row in both["rows"]] == [1, 0]
    assert both["rows"][0][1][0].classes == (2, 255)
    assert bare["headings"] == ["photograph"] and bare["rows"][0][0][0].classes == (1,)


def test_crops_are_shown_as_the_network_gets_them(tmp_path: Path, told) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    pixels = torch.from_numpy(picture).permute(2, 0, 1) / 255
    image = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    target = torch.from_numpy(np.where(LEFT, 255, 2))

    class Crops:
        names = ("a", "b", "c")
        crop = SimpleNamespace(mean=mean, std=std)
        image_set = SimpleNamespace(classes=("cat", "dog"))
        asked: ClassVar[list[tuple[int, int]]] = []

        def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
            self.asked.append(key)
            return {"image": image, "target": target, "name": self.names[key[1]]}

    crops: Any = Crops()
    assert crop_sheet(crops, 0, tmp_path / "no.png") is None and not told
    crop_sheet(crops, 2, tmp_path / "s.png")
    assert crops.asked == [(0, 0), (0, 2)]
    (made,) = told
    crop, (mask,) = made["rows"][0]
    assert (crop == picture).all() and isinstance(mask, Shown)
    assert mask.classes == (2, 255)
    assert (mask.picture[LEFT] == (picture[LEFT] * 0.4 + 255 * 0.6).astype(np.uint8)).mean() > 0.9
