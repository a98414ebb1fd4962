"""One stage at work: how it begins, tells of itself and ends is the same for all."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from wsss.build.settings import Settings, plain
from wsss.build.sources import other_folders, taken
from wsss.data.base import ImageSet, missing_files
from wsss.errors import WsssError
from wsss.evaluation.per_image import CONFUSIONS, write_confusions
from wsss.evaluation.scoring import Score, tally
from wsss.files import flatten, write_json
from wsss.run.folder import StageFolder, revision
from wsss.run.group import lead
from wsss.run.pool import each
from wsss.run.process import is_main_process, rank, relative, say
from wsss.run.progress import duration
from wsss.show.dashboard import show_facts, show_scores, wandb_runs
from wsss.show.sheets import Drawing, draw_sheet

METRICS = "metrics.json"
SHEET = "contact_sheet.png"


@dataclass(frozen=True)
class Result:
    """What a stage answers.

    Attributes:
        stage: its name.
        manifest: what it wrote when it ended.
    """

    stage: str
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def miou(self) -> float | None:
        """Its main figure, percent, where it has one; what a search maximizes."""
        return self.manifest.get("miou")


class Job:
    """The folder of one stage of this run, opened.

    Opened again with the same identity it is finished; interrupted, it goes on where it was; with
    another identity it is refused unless `overwrite` is set. Where nothing was begun, what other
    overrides of this run's name have made with the same identity is taken.

    Args:
        s: the settings.
        stage: the stage's name.
        identity: all that its result depends on, as plain content.
        inputs: hashes of the stages that it reads, by name.
        part: a folder inside the stage's own, for a stage with several results.
        needs: files of the folder without which the stage is not finished; where some are gone,
            it goes on.

    Attributes:
        path: the folder.
        main: whether this process speaks and writes what all have made.
        finished: whether the same work is done already.

    Raises:
        WsssError: the folder holds results of another identity and `overwrite` is false.
    """

    def __init__(
        self,
        s: Settings,
        stage: str,
        identity: Mapping[str, Any],
        inputs: Mapping[str, str] | None = None,
        part: str | None = None,
        needs: Callable[[Path], Iterable[Path]] = lambda path: (),
    ) -> None:
        self.settings, self.stage = s, stage
        path = s.folder(stage) / part if part else s.folder(stage)
        self.folder = StageFolder(path, stage, dict(identity), dict(inputs or {}))
        self.path, self.main = path, is_main_process()
        others = other_folders(s, stage)

        def opened() -> tuple[bool, bool, Path | None, str]:
            folder = self.folder.open(s.overwrite, lambda: missing_files(needs(path)), others)
            return folder.finished, folder.resumed, folder.taken, folder.hash

        self.finished, resumed, taken_from, mains = lead(opened)
        if mains != self.hash:
            raise WsssError(
                f"{stage}: process {rank()} on {platform.node()} reads other data or settings than "
                "the main one; give all machines the same files and the same command"
            )
        if taken_from:
            say(taken(stage, taken_from))
        elif self.finished:
            say(f"{stage}: finished before in {relative(path)} (overwrite=true redoes it)")
        elif resumed:
            say(f"{stage}: goes on in {relative(path)}")
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was opened."""
        return time.monotonic() - self.start

    @property
    def hash(self) -> str:
        """Stands for what it makes."""
        return self.folder.hash

    @cached_property
    def loggers(self) -> list[Logger]:
        """The configured loggers, told all settings."""
        s = self.settings
        loggers = [
            entry(folder=self.path, run_name=s.run_name, stage=self.stage)
            for entry in s.logger.values()
        ]
        if loggers:
            told = {**flatten(plain(s)), "revision": revision()}
            for logger in loggers:
                logger.log_hyperparams(told)
            for run in wandb_runs(loggers):
                where = f"offline in {relative(Path(run.dir).parent)}" if run.offline else run.url
                say(f"{self.stage}: W&B run {where}")
        return loggers

    def scores(
        self,
        scores: Mapping[str, Score],
        names: Sequence[str],
        main: str,
        workers: int,
        **facts: Any,
    ) -> dict[str, dict[str, Any]]:
        """Score some images, keep `metrics.json` and `confusions.npz`, draw and log.

        Args:
            scores: what counts the pixels of an image, by row.
            names: the images.
            main: the row that the stage is about.
            workers: worker processes; -1: one per core.
            facts: what else is to be known of the scores.

        Returns:
            Figures by row.
        """
        totals = {
            row: tally(one, each(one, names, f"{self.stage}: score {row}", workers))
            for row, one in scores.items()
        }
        rows = {row: total.figures() for row, total in totals.items()}
        write_confusions(self.path / CONFUSIONS, {r: t.confusions() for r, t in totals.items()})
        content = {**rows, "main": main, "miou": rows[main]["miou"], "images": len(names), **facts}
        write_json(self.path / METRICS, content)
        show_scores(self.loggers, self.path, rows, main)
        return rows

    def facts(self, facts: Mapping[str, float | None]) -> None:
        """Log what a stage without scores has to tell."""
        show_facts(self.loggers, self.stage, facts)

    def sheet(
        self,
        image_set: ImageSet,
        names: Sequence[str],
        count: int,
        columns: Mapping[str, Drawing],
        classes_of: Callable[[str], Sequence[int]] | None = None,
    ) -> Path | None:
        """Draw `contact_sheet.png` of some of the images, see `draw_sheet`."""
        path = self.path / SHEET
        return draw_sheet(image_set, names, count, columns, path, self.loggers, classes_of)

    def close(self, text: str, made: Path, **facts: Any) -> Result:
        """Write the manifest and say what was made and where.

        Args:
            text: the main figure and what was made, with `{time}` where the duration goes.
            made: where it lies.
            facts: for the manifest.
        """
        seconds = self.seconds

        def closed() -> None:
            self.folder.close(**facts, seconds=seconds)
            told = text.replace("{time}", duration(seconds))
            say(f"{self.stage}: {told} -> {relative(made)}")

        lead(closed)
        return self.result()

    def result(self) -> Result:
        """What was made, now or before."""
        return lead(lambda: Result(self.stage, self.folder.manifest))
