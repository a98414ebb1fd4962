"""Gather the scores of finished runs in one table: mean and deviation over seeds."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from wsss import experiment as ex
from wsss.artifacts import atomic
from wsss.errors import WsssError
from wsss.evaluation.tables import gather_seeds, seed_rows_as_markdown

NOTES = (
    "Seeds are scored with image labels known, as in the papers. `best threshold` is chosen on "
    "the scored masks; `arg max` is not."
)


def run(cfg: DictConfig) -> None:
    """Write `report.md` for the runs of `report.runs` (default: this run's own sweep)."""
    names = list(cfg.report.runs or [cfg.run_name])
    outputs = Path(cfg.paths.outputs)
    missing = [name for name in names if not (outputs / name).is_dir()]
    if missing:
        raise WsssError(f"report.runs: there is no run {missing[0]} in {outputs}")
    rows = gather_seeds(outputs / name for name in names)
    if not rows:
        raise WsssError(
            f"stage=report needs stage=eval_cam, which has ended in no run of {', '.join(names)}"
        )
    table = seed_rows_as_markdown(rows)
    path = ex.stage_folder(cfg, "report") / "report.md"
    with atomic(path) as temporary:
        temporary.write_text(f"# {', '.join(names)}\n\n{table}\n\n{NOTES}\n")
    ex.say(table)
    ex.say(f"report: {len(rows)} rows -> {ex.relative(path)}")
