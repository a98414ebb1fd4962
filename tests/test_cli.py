from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from wsss.cli import quote_paths


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("checkpoint=outputs/x/seed=0/train/last.ckpt", ["outputs/x/seed=0/train/last.ckpt"]),
        ("checkpoint=a/seed=0/l.ckpt,a/seed=1/l.ckpt", ["a/seed=0/l.ckpt", "a/seed=1/l.ckpt"]),
        ("checkpoint='a/seed=0/l.ckpt'", ["a/seed=0/l.ckpt"]),
        ("seed=0,1", [0, 1]),
        ("data.scales=[1.0,0.5]", [[1.0, 0.5]]),
    ],
)
def test_values_with_an_equals_sign_reach_hydra_whole(override: str, values: list[object]) -> None:
    parsed = OverridesParser.create().parse_override(quote_paths(override))
    if parsed.is_sweep_override():
        found = list(parsed.sweep_iterator())
        assert [getattr(f, "text", f) for f in found] == values
    else:
        assert parsed.value() == values[0]


def test_a_path_that_exists_is_one_value_whatever_it_holds(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = "x/data.scales=[1.0,0.5],seed=0/last.ckpt"
    Path(path).parent.mkdir(parents=True)
    Path(path).touch()
    parsed = OverridesParser.create().parse_override(quote_paths(f"checkpoint={path}"))
    assert not parsed.is_sweep_override() and parsed.value() == path
    absent = f"checkpoint={path}s"
    assert quote_paths(absent) == absent  # no such file: left for Hydra to read
