"""Files that appear whole or not at all, and JSON without what it has no word for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsss.errors import WsssError
from wsss.files import atomic, read_json, remove_parts, write_json


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"loss": float("nan"), "more": [1.5, (float("-inf"), "x")]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "loss": None,
        "more": [1.5, [None, "x"]],
    }


def test_broken_json_is_named_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(WsssError, match=r"b\.json: can't be read as JSON.*delete it"):
        read_json(tmp_path / "b.json")


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from wsss.files import atomic\n"
        "with atomic(Path(sys.argv[1]) / 'a.npz') as part: part.write_text('half'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "deep")], check=False)
    (half,) = (tmp_path / "deep").iterdir()
    (tmp_path / "deep" / half.name.replace("a.npz", "draft") / "images").mkdir(parents=True)
    with atomic(tmp_path / "deep" / "mine.npz") as part:  # of a process that lives: this one
        part.write_text("half")
        (tmp_path / "deep" / f".other.{os.getpid()}.txt").write_text("kept")
        remove_parts(tmp_path)
        assert part.exists()
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == [
        f".other.{os.getpid()}.txt",
        "mine.npz",
    ]
