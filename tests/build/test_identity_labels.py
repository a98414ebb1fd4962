"""The label maps that a host reads are an input of its stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss.build.components import Component
from wsss.build.identity import given_of, host_identity
from wsss.errors import WsssError
from wsss.files import write_json
from wsss.hosts.amn.host import AMN, AMNSettings
from wsss.hosts.cam import CAM

NAMES = ["a", "b", "c"]


class Images:
    """Three images of two classes."""

    classes = ("cat", "dog")

    def names(self, split: str) -> list[str]:
        return NAMES


def settings(folder: Path, labels: object = "labels") -> Any:
    path = str(folder / labels) if isinstance(labels, str) else labels
    host = Component("AMN", AMN, {"options": AMNSettings(labels=path)})
    return SimpleNamespace(host=host, paths=SimpleNamespace(cache=str(folder / "cache")))


def write(folder: Path, name: str, label: int = 0) -> None:
    (folder / "labels").mkdir(exist_ok=True)
    Image.fromarray(np.full((4, 5), label, np.uint8)).save(folder / "labels" / f"{name}.png")


def found(folder: Path) -> dict[str, str]:
    return given_of(settings(folder), Images(), "train", "train")  # type: ignore[arg-type]


def test_they_are_known_by_their_content(tmp_path: Path) -> None:
    for name in NAMES:
        write(tmp_path, name)
    before = found(tmp_path)
    assert list(before) == ["label maps of train"]
    assert found(tmp_path) == before
    write(tmp_path, "z")  # of another image
    assert found(tmp_path) == before
    write(tmp_path, "b", label=2)
    assert found(tmp_path) != before
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in NAMES:
        write(moved, name)
    assert found(moved) == before


def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, "a")
    with pytest.raises(WsssError, match=r"host\.labels=.*labels: 2 of 3 .* for instance b\.png"):
        found(tmp_path)
    with pytest.raises(WsssError, match=r"host\.labels: is not given"):
        given_of(settings(tmp_path, None), Images(), "train", "train")  # type: ignore[arg-type]


def test_those_of_other_classes_are_refused(tmp_path: Path) -> None:
    for name in NAMES:
        write(tmp_path, name)
    write_json(tmp_path / "manifest.json", {"class_names": ["dog", "cat"]})
    with pytest.raises(WsssError, match="in another order"):
        found(tmp_path)
    write_json(tmp_path / "manifest.json", {"class_names": ["cat", "dog"]})
    assert found(tmp_path)


def test_other_hosts_have_none_and_where_they_lie_is_no_setting(tmp_path: Path) -> None:
    s = settings(tmp_path)
    assert "labels" not in host_identity(s)
    assert host_identity(s)["smoothing"] == 0.4
    s.host = replace(s.host, make=CAM)
    assert given_of(s, Images(), "train", "train") == {}  # type: ignore[arg-type]
