"""The pages of the site: whole sections, each with its place in the navigation."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from wsss.stages import stage_names

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def docs(tmp_path: Path, monkeypatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs", ROOT / "tools" / "docs.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PAGES", tmp_path / "pages")
    monkeypatch.setattr(module, "with_math", lambda text: text)  # its package is an extra
    return module


TEXT = """# Title

first

## One

    code first

```python
# no heading
```

### Inner

more

## Two

last
"""


def test_a_section_goes_to_the_next_heading_of_its_rank_and_keeps_its_code(docs) -> None:
    assert docs.section(TEXT, "Title") == "first"
    one = docs.section(TEXT, "One")
    assert one.startswith("    code first") and one.endswith("more")
    assert docs.without(one, {"Inner"}).endswith("```") and "# no heading" in one
    assert docs.raised(one, 2).count("## Inner") == 1 and "### Inner" not in docs.raised(one, 2)
    with pytest.raises(SystemExit, match="no heading 'Three'"):
        docs.section(TEXT, "Three")


def pages(nav: list[Any]) -> list[str]:
    found = []
    for entry in nav:
        for value in entry.values():
            found += pages(value) if isinstance(value, list) else [value]
    return found


def test_every_page_is_in_the_navigation_and_every_key_and_stage_on_a_page(docs) -> None:
    docs.main()
    written = {p.relative_to(docs.PAGES).as_posix(): p for p in docs.PAGES.rglob("*.md")}
    nav = pages(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    assert sorted(nav) == sorted(written)
    chain = written["chain.md"].read_text()
    assert all(f"## {name}\n" in chain for name in stage_names())
    for path in (ROOT / "conf" / "method").glob("*.yaml"):
        page = written["configuration/method.md"].read_text()
        keys = [k for k in yaml.safe_load(path.read_text()) if k != "defaults"]
        assert all(f"`method.{key}" in page for key in keys)
    recipes = written["configuration/experiment.md"].read_text()
    assert all(f"## {p.stem}\n" in recipes for p in (ROOT / "conf" / "experiment").glob("*.yaml"))
