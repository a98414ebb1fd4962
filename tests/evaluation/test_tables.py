"""Tables of several runs."""

from __future__ import annotations

import pytest

from wsss.artifacts import write_json
from wsss.evaluation.tables import gather_seeds, seed_rows_as_markdown, spread, without_seed


def finished(folder, miou: float, ended: bool = True) -> None:
    figures = {"miou": miou, "miou_best_threshold": miou + 1, "best_threshold": miou / 100}
    write_json(folder / "eval_cam" / "metrics.json", {"kinds": {"cam": figures}})
    if ended:
        write_json(folder / "eval_cam" / "manifest.json", {})


def test_seeds_of_equal_settings_are_gathered_and_unfinished_ones_left_out(tmp_path) -> None:
    run = tmp_path / "sweep"
    finished(run / "seed=0", 40.0)
    finished(run / "seed=1", 42.0)
    finished(run / "method.tau=0.2,seed=0", 30.0)
    finished(run / "seed=2", 99.0, ended=False)
    rows = gather_seeds([run])
    assert {(r.settings, r.argmax) for r in rows} == {
        ("", (40.0, 42.0)),
        ("method.tau=0.2", (30.0,)),
    }
    table = seed_rows_as_markdown(rows)
    assert "41.00 ± 1.41" in table and "0.40–0.42" in table
    assert len({len(line) for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    ("settings", "left"),
    [("default", ""), ("seed=3", ""), ("a=1,seed=3,b=2", "a=1,b=2"), ("my_seed=1", "my_seed=1")],
)
def test_only_the_seed_is_left_out(settings: str, left: str) -> None:
    assert without_seed(settings) == left


def test_a_single_value_has_no_deviation() -> None:
    assert spread([41.234]) == "41.23"
