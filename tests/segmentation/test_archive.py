"""The archive for VOC's server: its layout, palette PNGs, the same bytes again."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data.masks import voc_palette, write_mask
from wsss.errors import WsssError
from wsss.segmentation.archive import write_archive

NAMES = ["2008_000006", "2008_000011", "2008_000012"]


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in NAMES:
        write_mask(tmp_path / "masks" / f"{name}.png", rng.integers(0, 21, (7, 9)).astype(np.uint8))
    return tmp_path / "masks"


def members(path: Path) -> dict[str, bytes]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as packed:
            return {name: packed.read(name) for name in packed.namelist()}
    with tarfile.open(path, "r:gz") as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]


@pytest.mark.parametrize("file_format", ["tar.gz", "zip"])
@pytest.mark.parametrize("competition", ["comp5", "comp6"])
def test_the_layout_is_the_servers(masks: Path, file_format: str, competition: str) -> None:
    path = masks.parent / f"r.{file_format}"
    write_archive(path, masks, NAMES[::-1], "test", 21, competition, file_format)
    found = members(path)
    folder = f"results/VOC2012/Segmentation/{competition}_test_cls"
    assert list(found) == [f"{folder}/{name}.png" for name in NAMES]
    for name, data in found.items():
        image = Image.open(io.BytesIO(data))
        assert image.mode == "P"
        assert image.getpalette()[:63] == voc_palette()[:21].ravel().tolist()
        stored = Image.open(masks / Path(name).name)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(stored))
    again = write_archive(
        masks / f"s.{file_format}", masks, NAMES, "test", 21, competition, file_format
    )
    assert again.read_bytes() == path.read_bytes()


def test_what_the_server_would_refuse_is_refused_and_leaves_nothing(masks: Path) -> None:
    path = masks.parent / "r.tar.gz"
    broken = masks / f"{NAMES[1]}.png"
    whole = broken.read_bytes()
    for spoil, message in (
        (lambda: broken.unlink(), "can't read label map"),
        (lambda: Image.new("L", (9, 7)).save(broken), "mode L; the server wants palette PNG"),
        (
            lambda: write_mask(broken, np.full((7, 9), 255, dtype=np.uint8)),
            "holds label 255, beyond the 21 classes",
        ),
    ):
        spoil()
        with pytest.raises(WsssError, match=message):
            write_archive(path, masks, NAMES, "test", 21)
        broken.write_bytes(whole)
    assert [p.name for p in masks.parent.iterdir()] == ["masks"]
    with pytest.raises(WsssError, match="competition=comp4: choose comp5 or comp6"):
        write_archive(path, masks, NAMES, "test", 21, "comp4")
    with pytest.raises(WsssError, match="format=rar: choose tar.gz or zip"):
        write_archive(path, masks, NAMES, "test", 21, "comp6", "rar")
