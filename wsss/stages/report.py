"""Gather finished runs in one HTML page and a Markdown table, beside the published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from wsss.build import objects as ex
from wsss.errors import WsssError
from wsss.files import atomic
from wsss.report.gather import gather
from wsss.report.page import NOTES, render
from wsss.report.tables import tables


def run(cfg: DictConfig) -> dict[str, Any] | None:
    """Write `report.html` and `report.md` of `report.runs` (default: this run's own sweep)."""
    if not ex.is_main_process():
        return None
    names = [str(name) for name in cfg.report.runs or [cfg.run_name]]
    outputs = Path(cfg.paths.outputs)
    settings = gather([outputs / name for name in names])
    made = tables(settings)
    if not made:
        raise WsssError(
            "stage=report needs a finished stage with scores (eval_cam, crf, irn_masks, seg_eval), "
            f"which there is in no run of {', '.join(names)}"
        )
    title = ", ".join(names)
    folder = ex.stage_folder(cfg, "report")
    gaps = [f"{setting.run}: {line}" for setting in settings for line in setting.gaps()]
    missing = ["\n".join(["## Missing", "", *(f"- {gap}" for gap in gaps)])] if gaps else []
    text = "\n\n".join([f"# {title}", *(table.markdown() for table in made), NOTES, *missing])
    pages = {"report.md": f"{text}\n", "report.html": render(title, settings, made)}
    for name, content in pages.items():
        with atomic(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    for table in made:
        ex.say(table.markdown() + "\n")
    jobs = sum(len(setting.jobs) for setting in settings)
    for gap in gaps:
        ex.say(f"missing: {gap}")
    ex.say(f"report: {jobs} runs -> {ex.relative(folder / 'report.html')}")
    return None
