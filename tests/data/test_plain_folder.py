"""A plain folder of photographs as a data set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from wsss.data.plain_folder import Photographs
from wsss.errors import WsssError


def test_names_are_file_names_without_suffix_unless_two_share_one(tmp_path: Path) -> None:
    files = ("a.jpg", "b.JPG", "b.png", "c.tif", "d.jpg", "d.jpg.png", ".hidden.jpg")
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")  # to read it would be to wait without end
    folder = Photographs(tmp_path, ("cat",))
    assert folder.names("all") == ["a", "b.JPG", "b.png", "c", "d", "d.jpg.png"]
    found = {folder.image_path(name).name for name in folder.names("all")}
    assert found == set(files) - {".hidden.jpg"}
    assert folder.passed_over == ["notes.txt", "pipe.jpg"]
    assert folder.labels(["a"]).tolist() == [[0]] and folder.mask("a") is None


def test_the_listing_changes_with_the_files(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    before = Photographs(tmp_path, ()).listing()
    assert Photographs(tmp_path, ()).listing() == before
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    assert Photographs(tmp_path, ()).listing() != before


def test_a_single_photograph_is_a_folder_of_one(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.txt"):
        (tmp_path / name).write_bytes(b"x")
    one = Photographs(tmp_path / "b.png", ("cat",))
    assert one.names("all") == ["b"] and one.image_path("b") == tmp_path / "b.png"
    assert one.passed_over == [] and set(one.listing()) == {"b"}
    with pytest.raises(WsssError, match=r"input=.*c\.txt: no photograph by its ending \(\.jpg"):
        Photographs(tmp_path / "c.txt", ())


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WsssError, match="input=.*nowhere: no such folder or file"):
        Photographs(tmp_path / "nowhere", ())
    with pytest.raises(WsssError, match="there are no photographs in this folder$"):
        Photographs(tmp_path, ())
    (tmp_path / "inner").mkdir()
    with pytest.raises(WsssError, match="subfolders such as inner are not looked into"):
        Photographs(tmp_path, ())
