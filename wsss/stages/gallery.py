"""Show every image of finished runs in the browser, methods side by side, as static files."""

from __future__ import annotations

from pathlib import Path

from wsss.build.job import Result
from wsss.build.objects import build_image_set
from wsss.build.settings import Settings
from wsss.report.gallery import shelves, write_gallery
from wsss.report.gather import gather
from wsss.report.page import counted
from wsss.run.process import is_main_process, relative, say


def run(s: Settings) -> Result:
    """Write the gallery of `report.runs` (default: this run), the first seed of each setting."""
    if not is_main_process():
        return Result("gallery")
    names = [str(name) for name in s.report.runs or [s.run_name]]
    runs = shelves(gather([Path(s.paths.outputs) / name for name in names]), s.data.name)
    folder = s.folder("gallery")
    folder.mkdir(parents=True, exist_ok=True)
    side, workers = s.report.picture_side, s.eval_cam.workers
    count = write_gallery(folder, ", ".join(names), build_image_set(s), runs, side, workers)
    say(
        f"gallery: {counted(count, 'image')} of {counted(len(runs), 'run')} -> "
        f"{relative(folder / 'index.html')}"
    )
    return Result("gallery")
