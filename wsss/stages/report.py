"""Gather finished runs in one HTML page and a Markdown table, beside the published numbers."""

from __future__ import annotations

from pathlib import Path

from wsss.build.job import Result
from wsss.build.settings import Settings
from wsss.errors import WsssError
from wsss.files import atomic
from wsss.report.gather import gather
from wsss.report.page import counted, markdown, missing, render
from wsss.report.tables import tables
from wsss.run.group import led
from wsss.run.process import relative, say


@led
def run(s: Settings) -> Result:
    """Write `report.html` and `report.md` of `report.runs` (default: this run's own sweep)."""
    names = [str(name) for name in s.report.runs or [s.run_name]]
    outputs = Path(s.paths.outputs)
    settings = gather([outputs / name for name in names])
    made = tables(settings)
    if not made:
        raise WsssError(
            "stage=report needs a finished stage with scores (eval_cam, crf, irn_masks, psa_masks, "
            f"seg_eval), which there is in no run of {', '.join(names)}"
        )
    title = ", ".join(names)
    folder = s.folder("report")
    pages = {
        "report.md": markdown(title, settings, made),
        "report.html": render(title, settings, made, folder),
    }
    for name, content in pages.items():
        with atomic(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    for table in made:
        say(table.markdown() + "\n")
    jobs = sum(len(setting.jobs) for setting in settings)
    for gap in missing(settings):
        say(f"missing: {gap}")
    say(f"report: {counted(jobs, 'run')} -> {relative(folder / 'report.html')}")
    return Result("report")
