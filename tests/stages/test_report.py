"""The report stage: what it writes, what it says, and when it has nothing to tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsss.build.settings import ReportSettings, Settings
from wsss.errors import WsssError
from wsss.files import write_json
from wsss.stages import report


@pytest.fixture
def mine(settings) -> Callable[..., Settings]:
    """`mine(outputs, "RUN", ...)`: settings of a report of some runs, in the run `mine`."""

    def make(outputs: Path, *runs: str) -> Settings:
        s = settings("run_name=mine")
        paths = replace(s.paths, outputs=str(outputs), run=str(outputs / "mine" / "default"))
        return replace(s, paths=paths, report=ReportSettings(runs=runs or None))

    return make


def scored(outputs: Path, run: str, seed: int, miou: float) -> None:
    """A finished `crf` of a run with one seed."""
    folder = outputs / run / f"seed={seed}" / "crf"
    write_json(folder / "manifest.json", {"stage": "crf", "images": 3})
    row = {"miou": miou, "iou": {"background": 60.0, "cat": 2 * miou - 60.0}}
    write_json(folder / "metrics.json", {"seed": {**row, "miou": miou - 1}, "crf": row})


def test_runs_are_gathered_in_a_page_and_a_table_and_gaps_are_told(mine, tmp_path, capsys) -> None:
    values = {"mine": [40.0, 43.0, 41.5], "other": [50.0]}
    for run, ours in values.items():
        for seed, value in enumerate(ours):
            scored(tmp_path, run, seed, value)
    write_json(tmp_path / "other" / "seed=0" / "irn_train" / "failed.json", {"reason": "no disk"})
    report.run(mine(tmp_path, "mine", "other"))
    folder = tmp_path / "mine" / "default" / "report"
    page, text = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    said = capsys.readouterr().out
    mean = f"{np.mean(values['mine']):.2f} ± {np.std(values['mine'], ddof=1):.2f}"
    for where in (page, text, said):
        assert mean in where and "50.00" in where
    for where in (page, text, said):
        assert "other: seed=0/irn_train failed: no disk" in where
    assert said.endswith(f"report: 4 runs -> {folder / 'report.html'}\n")
    report.run(mine(tmp_path))  # this run alone; the earlier report is none of its stages
    alone = (folder / "report.html").read_text()
    assert mean in alone and "50.00" not in alone and "<td>report" not in alone


def test_nothing_to_report_is_one_line(mine, tmp_path) -> None:
    (tmp_path / "mine" / "default").mkdir(parents=True)
    with pytest.raises(WsssError, match="needs a finished stage with scores.*mine"):
        report.run(mine(tmp_path))
    with pytest.raises(WsssError, match="there is no run elsewhere"):
        report.run(mine(tmp_path, "elsewhere"))
