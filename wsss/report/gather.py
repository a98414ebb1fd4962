"""What lies in the folders of finished runs: stages, scores, settings, by setting and seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wsss.errors import WsssError
from wsss.files import flatten, read_json
from wsss.run.folder import MANIFEST, STARTED

ORDER = (
    "prepare",
    "train",
    "make_cam",
    "import_cam",
    "eval_cam",
    "crf",
    "irn_labels",
    "irn_train",
    "irn_masks",
    "seg_train",
    "seg_eval",
)
FAILURE = "failed.json"  # left in the folder of a job that failed
# Keys that name places, looks and hardware: no part of what was tried.
ASIDE = (
    "hydra",
    "paths",
    "stage",
    "pipeline",
    "run_name",
    "seed",
    "overwrite",
    "checkpoint",
    "report",
    "figures",
    "logger",
    "callbacks",
    "debug",
    "experiment",
    "published",
    "input",
    "method.seed",
)


@dataclass(frozen=True)
class Stage:
    """One stage of one job.

    Attributes:
        name: of the stage; `seg_eval/val` for a stage with a folder for each split.
        folder: where its results lie.
        manifest: what it wrote when it ended, or None.
        metrics: its `metrics.json`, or nothing.
        failure: one line on why it did not end, where that is known.
    """

    name: str
    folder: Path
    manifest: dict[str, Any] | None
    metrics: dict[str, Any]
    failure: str | None = None

    @property
    def state(self) -> str:
        """`finished`, `failed` or `unfinished`."""
        if self.manifest is not None:
            return "finished"
        return "failed" if self.failure else "unfinished"

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """Rows of figures by name, each with `miou`; those of kinds of maps for `eval_cam`."""
        rows = self.metrics.get("kinds", self.metrics)
        return {k: v for k, v in rows.items() if isinstance(v, dict) and "miou" in v}

    @property
    def main(self) -> str:
        """The row of scores that stands for the stage."""
        for name in (self.metrics.get("main"), self.name):
            if name in self.scores:
                return str(name)
        return list(self.scores)[-1]


@dataclass(frozen=True)
class Job:
    """All stages of one setting with one seed: a folder `outputs/<run>/<overrides>`."""

    folder: Path
    stages: tuple[Stage, ...]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The composed settings of the stage that was run last, flat; empty if not recorded."""
        return {
            key: value
            for key, value in flatten(self._raw("config.yaml")).items()
            if not key.startswith(tuple(f"{a}." for a in ASIDE)) and key not in ASIDE
        }

    @cached_property
    def choices(self) -> dict[str, Any]:
        """Which option of each configuration group was taken."""
        recorded = self._raw("hydra.yaml")
        choices = recorded.get("hydra", {}).get("runtime", {}).get("choices", {})
        return {str(k): v for k, v in choices.items()}

    @property
    def seed(self) -> int | None:
        """The seed, where a setting was recorded."""
        return self._raw("config.yaml").get("seed")

    def stage(self, name: str) -> Stage | None:
        """The stage of that name, if it was begun."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def _raw(self, file: str) -> dict[str, Any]:
        # Not those of a report on this or other runs, which may have been asked for differently.
        folders = [self.folder / "all", *(stage.folder for stage in self.stages)]
        there = {path for folder in folders for path in folder.rglob(f".hydra/{file}")}
        found = sorted(there, key=lambda path: path.stat().st_mtime)
        if not found:
            return {}
        try:
            loaded = OmegaConf.load(found[-1])
        except Exception as error:
            raise WsssError(f"{found[-1]}: can't be read ({error})") from error
        assert isinstance(loaded, DictConfig)
        content = OmegaConf.to_container(loaded, resolve=False)
        assert isinstance(content, dict)
        return {str(key): value for key, value in content.items()}


@dataclass(frozen=True)
class Setting:
    """One setting of one run, over its seeds.

    Attributes:
        run: name of the run.
        overrides: what its folder is named by, the seed left out.
        jobs: one for each seed, in the order of their folders.
    """

    run: str
    overrides: str
    jobs: tuple[Job, ...]

    @property
    def title(self) -> str:
        """Run and overrides."""
        return f"{self.run} {self.overrides}".strip()

    @property
    def experiment(self) -> str | None:
        """The recipe that was run."""
        return self.jobs[0].choices.get("experiment")

    @property
    def data(self) -> str | None:
        """Name of the data set."""
        return self.jobs[0].config.get("data.name")

    def stage_names(self) -> list[str]:
        """Stages that any of its seeds has, in the order in which they run."""
        names = {stage.name for job in self.jobs for stage in job.stages}
        return sorted(names, key=_rank)

    def scored_whole(self, stage: str) -> bool:
        """Whether no seed was scored on fewer or more images than the data set has in that split.

        Where a count or what to expect was not recorded, it is taken to be right.
        """
        split = stage.partition("/")[2]
        for job in self.jobs:
            one = job.stage(stage)
            if one is None or one.state != "finished":
                continue
            of = split or job.config.get("data.eval_split")
            expected = job.config.get(f"data.expected_counts.{of}")
            scored = one.metrics.get("images")
            if expected is not None and scored is not None and scored != expected:
                return False
        return True

    def values(self, stage: str, row: str, figure: str = "miou") -> list[float]:
        """A figure of every seed whose stage has ended."""
        found = []
        for one in self._ended(stage):
            value = one.scores.get(row, {}).get(figure)
            if value is not None:
                found.append(float(value))
        return found

    def main(self, stage: str) -> str:
        """The row of scores that stands for a stage; empty if no seed has scores."""
        return next((one.main for one in self._ended(stage)), "")

    def averaged(self, stage: str) -> dict[str, Any]:
        """The main scores of a stage, means over the seeds that have ended it.

        Returns:
            `miou` and, where all seeds have them for the same classes and thresholds, `iou` and
            `iou_spread` by class and `curve` with `threshold`, `miou` and `miou_spread`; the
            spreads are sample standard deviations, 0 for a single seed. Empty if there is none.
        """
        scores = [one.scores[one.main] for one in self._ended(stage)]
        if not scores:
            return {}
        found: dict[str, Any] = {"miou": statistics.fmean(one["miou"] for one in scores)}
        if all("iou" in one for one in scores) and len({tuple(one["iou"]) for one in scores}) == 1:
            columns = {name: [one["iou"][name] for one in scores] for name in scores[0]["iou"]}
            known = {k: [v for v in values if v is not None] for k, values in columns.items()}
            found["iou"] = {k: statistics.fmean(v) if v else None for k, v in known.items()}
            found["iou_spread"] = {k: _deviation(v) for k, v in known.items()}
        curves = [one["curve"] for one in scores if "curve" in one]
        same = all(c["threshold"] == curves[0]["threshold"] for c in curves)
        if len(curves) == len(scores) and same:
            points = list(zip(*(c["miou"] for c in curves), strict=True))
            found["curve"] = {
                "threshold": curves[0]["threshold"],
                "miou": [statistics.fmean(p) for p in points],
                "miou_spread": [_deviation(p) for p in points],
            }
        return found

    def rows(self, stage: str) -> list[str]:
        """Names of the rows of scores that a stage has in any seed."""
        names: dict[str, None] = {}
        for one in self._ended(stage):
            names.update(dict.fromkeys(one.scores))
        return list(names)

    def _ended(self, stage: str) -> list[Stage]:
        """A stage of each seed that has ended it with scores."""
        found = (job.stage(stage) for job in self.jobs)
        return [one for one in found if one and one.state == "finished" and one.scores]

    def gaps(self) -> list[str]:
        """A line for each stage that was begun and did not end, or that other seeds have."""
        lines = []
        for job in self.jobs:
            for stage in job.stages:
                if stage.state != "finished":
                    why = f": {stage.failure}" if stage.failure else ""
                    lines.append(f"{job.folder.name}/{stage.name} {stage.state}{why}")
            behind = [name for name in self.stage_names() if job.stage(name) is None]
            if behind:
                lines.append(f"{job.folder.name}: {', '.join(behind)} not run")
        return lines


def without_seed(overrides: str) -> str:
    """A job's overrides without `seed=...`, which only numbers repetitions."""
    kept = [item for item in overrides.split(",") if not item.startswith("seed=")]
    return "" if kept in ([], ["default"]) else ",".join(kept)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _rank(name: str) -> tuple[int, str]:
    first = name.partition("/")[0]
    return (ORDER.index(first) if first in ORDER else len(ORDER), name)


def _stage(folder: Path, name: str) -> Stage:
    def read(file: str) -> dict[str, Any] | None:
        return read_json(folder / file) if (folder / file).is_file() else None

    failure = read(FAILURE) or {}
    return Stage(name, folder, read(MANIFEST), read("metrics.json") or {}, failure.get("reason"))


def read_job(folder: Path) -> Job:
    """The stages in a job's folder, in the order in which they run."""
    stages = []
    for sub in sorted(path for path in folder.iterdir() if path.is_dir()):
        marks = (MANIFEST, STARTED, FAILURE)
        if any((sub / mark).is_file() for mark in marks):
            stages.append(_stage(sub, sub.name))
        for split in sorted(path for path in sub.iterdir() if path.is_dir()):
            if any((split / mark).is_file() for mark in marks):
                stages.append(_stage(split, f"{sub.name}/{split.name}"))
    return Job(folder, tuple(sorted(stages, key=lambda stage: _rank(stage.name))))


def gather(runs: Sequence[Path]) -> list[Setting]:
    """The settings of some runs with at least one stage begun, seeds put together.

    Args:
        runs: folders `outputs/<run>`.

    Raises:
        WsssError: if one of them is not there.
    """
    found: dict[tuple[str, str], list[Job]] = {}
    for run in runs:
        if not run.is_dir():
            raise WsssError(f"report.runs: there is no run {run.name} in {run.parent}")
        folders = (path for path in run.iterdir() if path.is_dir())
        for folder in sorted(folders, key=lambda path: (without_seed(path.name), path.name)):
            job = read_job(folder)
            if job.stages:
                found.setdefault((run.name, without_seed(folder.name)), []).append(job)
    return [Setting(run, overrides, tuple(jobs)) for (run, overrides), jobs in found.items()]


def differing(settings: Sequence[Setting]) -> dict[str, list[Any]]:
    """Keys whose values are not the same in all settings, each with its value in every setting."""
    configs = [setting.jobs[0].config for setting in settings]
    if len(configs) < 2:
        return {}
    keys = sorted({key for config in configs for key in config})
    values = {key: [config.get(key, "–") for config in configs] for key in keys}
    return {k: v for k, v in values.items() if any(str(x) != str(v[0]) for x in v[1:])}
