"""Notebooks run from nothing, each in a folder of its own, and are stored without outputs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def content(name: str) -> dict:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 3


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_stored_without_outputs_for_any_kernel(name: str) -> None:
    book = content(name)
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    assert set(book["metadata"]["language_info"]) == {"name"}  # no version of Python
    assert book["cells"][0]["cell_type"] == "markdown"
    for cell in book["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_calls_the_library_and_names_no_place_of_a_machine(name: str) -> None:
    for cell in content(name)["cells"]:
        source = "".join(cell["source"])
        assert not re.search(r"(^|[\"'\s])(/[a-z]+/|~/|[A-Z]:\\)", source), source
        if cell["cell_type"] == "code":
            assert not re.search(r"^\s*[!%]|subprocess|os\.system", source, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "notebooks" / name
    copy.parent.mkdir()
    shutil.copy(FOLDER / name, copy)
    options = ["-q", "--nbmake", "--nbmake-timeout=500", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", f"--rootdir={copy.parent}", *options, copy.name],
        cwd=copy.parent,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": ""},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "1 passed" in done.stdout
    # All that it writes is among the results, beside the folder of notebooks.
    assert [path.name for path in copy.parent.iterdir()] == [name]
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["notebooks"]
