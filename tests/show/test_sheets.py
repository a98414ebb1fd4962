"""What the columns of contact sheets show, pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data.masks import voc_palette, write_mask
from wsss.maps.files import ClassMaps, write_class_maps
from wsss.show.sheets import draw_sheet, map_column, mask_column, seed_column, truth_column

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


def coloured(shown: np.ndarray, where: np.ndarray, label: int) -> None:
    """`where` leans to the colour of a class, all else is as it was."""
    assert (shown[~where] == PICTURE[~where]).all()
    change = shown[where].astype(int) - 100
    towards = voc_palette()[label].astype(int) - 100
    assert (np.sign(change) == np.sign(towards)).all()


@pytest.mark.parametrize("own", [False, True])
def test_maps_and_seeds_are_those_of_the_file(tmp_path: Path, own: bool) -> None:
    """Class 2 is sure on the left; on the right the background is surer than both classes."""
    maps = np.stack([np.full(SIZE, 0.1), np.where(LEFT, 0.9, 0.2)]).astype(np.float32)
    if own:
        maps = np.concatenate([np.where(LEFT, 0.3, 1.0)[None].astype(np.float32), maps])
    write_class_maps(tmp_path / "i0.npz", ClassMaps(np.array([1, 2]), SIZE, {"k": maps}), "float16")
    coloured(seed_column(tmp_path, "k", 0.5)("i0", PICTURE), LEFT, 2)
    heat = map_column(tmp_path, "k")("i0", PICTURE)
    assert len(np.unique(heat[LEFT], axis=0)) == len(np.unique(heat[~LEFT], axis=0)) == 1
    assert heat[LEFT][0, 0] > heat[~LEFT][0, 0]  # hotter is redder; the own background is no heat


def test_masks_and_truth_are_those_of_the_files(tmp_path: Path) -> None:
    write_mask(tmp_path / "m" / "i0.png", np.where(LEFT, 1, 0).astype(np.uint8))
    coloured(mask_column(tmp_path / "m", 2)("i0", PICTURE), LEFT, 1)
    truth = truth_column(Scenes(tmp_path))  # type: ignore[arg-type]
    coloured(truth("i0", PICTURE), ~LEFT, 2)  # void on the left stays clear
    assert (truth("i4", PICTURE) == PICTURE).all()


def test_rows_are_spread_and_captions_name_labels_or_what_is_asked_for(
    tmp_path: Path, monkeypatch
) -> None:
    scenes = Scenes(tmp_path)
    told: list[tuple[list, list[str], list[str]]] = []
    monkeypatch.setattr("wsss.show.sheets.show_pictures", lambda _, *shown: told.append(shown))
    names = [f"i{n}" for n in range(5)]
    columns = {"twice": lambda name, picture: picture // 2}
    path = tmp_path / "sheet.png"
    assert draw_sheet(scenes, names, 0, columns, path) is None and not path.exists()  # type: ignore[arg-type]
    assert draw_sheet(scenes, [], 3, columns, path) is None  # type: ignore[arg-type]
    assert draw_sheet(scenes, names, 3, columns, path) == path and path.is_file()  # type: ignore[arg-type]
    draw_sheet(scenes, names[:2], 9, columns, path, (), lambda name: [2] if name == "i1" else [])  # type: ignore[arg-type]
    (rows, headings, captions), (_, _, others) = told
    assert headings == ["photograph", "twice"]
    assert captions == ["i0: cat", "i2: cat", "i4: cat"]
    assert [row[0][0, 0, 0] for row in rows] == [0, 80, 160]
    assert [row[1][0, 0, 0] for row in rows] == [0, 40, 80]
    assert others == ["i0: background only", "i1: dog"]
