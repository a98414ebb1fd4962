"""What lies in the folders of finished runs: stages, scores, settings, by setting and seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import yaml

from wsss.errors import WsssError
from wsss.evaluation.paired import over_seeds
from wsss.evaluation.per_image import CONFUSIONS, REMADE, Confusions, read_confusions
from wsss.files import digest, flatten, read_json
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
    "psa_labels",
    "psa_train",
    "psa_masks",
    "seg_train",
    "seg_eval",
)
FAILURE = "failed.json"  # left in the folder of a job that failed
LARGEST = 2**20  # bytes of recorded settings; ours are a few thousand
LONGEST = 130  # characters of overrides in a title
DEEPEST = 50  # levels of nesting in them
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
        if not isinstance(rows, dict):
            return {}
        return {k: v for k, v in rows.items() if isinstance(v, dict) and is_number(v.get("miou"))}

    @property
    def main(self) -> str:
        """The row of scores that stands for the stage."""
        for name in (self.metrics.get("main"), self.name):
            if name in self.scores:
                return str(name)
        return list(self.scores)[-1]

    def confusions(self, row: str) -> Confusions | None:
        """Confusion matrices image by image of a row of scores, where the stage has kept them.

        Raises:
            WsssError: the file is damaged, or does not add up to what the stage reports.
        """
        path = self.folder / CONFUSIONS
        found = read_confusions(path).get(row) if path.is_file() else None
        total = self.scores.get(row, {}).get("confusion")
        if found is not None and total is not None and found.total().tolist() != total:
            raise WsssError(f"{path}: does not add up to {row} of metrics.json beside it; {REMADE}")
        return found


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
            for key, value in flatten(self._config).items()
            if not key.startswith(tuple(f"{a}." for a in ASIDE)) and key not in ASIDE
        }

    @cached_property
    def choices(self) -> dict[str, Any]:
        """Which option of each configuration group was taken."""
        return {str(k): v for k, v in _at(self._hydra, "runtime", "choices").items()}

    @property
    def seed(self) -> int | None:
        """The seed, where a setting was recorded."""
        seed = self._config.get("seed")
        return seed if isinstance(seed, int) else None

    @cached_property
    def overrides(self) -> str:
        """What was set beside the recipe: all that names the folder, but for the seed.

        The folder's own name will not do: of long ones it holds but a hash, of the seed as well.
        """
        given = _at(self._hydra, "overrides").get("task")
        if not isinstance(given, list):
            return without_seed(self.folder.name)
        aside = _at(self._hydra, "job", "config", "override_dirname").get("exclude_keys") or []
        keys = {str(one): str(one).lstrip("+~").partition("=")[0] for one in given}
        kept = [one for one, key in keys.items() if key != "seed" and key not in aside]
        return ",".join(sorted(kept, key=keys.__getitem__))

    def stage(self, name: str) -> Stage | None:
        """The stage of that name, if it was begun."""
        return next((stage for stage in self.stages if stage.name == name), None)

    @cached_property
    def _config(self) -> dict[str, Any]:
        return self._recorded("config.yaml")

    @cached_property
    def _hydra(self) -> dict[str, Any]:
        return _at(self._recorded("hydra.yaml"), "hydra")

    def _recorded(self, file: str) -> dict[str, Any]:
        # Not those of a report on this or other runs, which may have been asked for differently.
        names = {"all", *(stage.name.partition("/")[0] for stage in self.stages)} - {
            "report",
            "gallery",
        }
        paths = [self.folder / name / ".hydra" / file for name in names]
        there = [path for path in paths if path.is_file()]
        return read_recorded(max(there, key=lambda path: path.stat().st_mtime)) if there else {}


def read_recorded(path: Path) -> dict[str, Any]:
    """Settings as Hydra has recorded them, interpolations as they stand.

    A report may read runs of others: what OmegaConf never writes is refused before it is built.
    Aliases are among it, with which a small file can stand for more than any memory.

    Raises:
        WsssError: the file can't be read, or holds something else than settings.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"larger than {LARGEST >> 10} KiB")
        text = path.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("holds aliases")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"nested deeper than {DEEPEST} levels")
        content = yaml.load(text, Loader=loader)  # of SafeLoader's kind
        if not isinstance(content, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        what = " ".join(str(error).split())
        raise WsssError(
            f"{path}: no recorded settings ({what}); remove the file, or leave its run out of "
            "report.runs"
        ) from error
    return {str(key): value for key, value in content.items()}


def _at(content: Any, *keys: str) -> dict[str, Any]:
    """A mapping inside nested ones; empty where there is none."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}


class Gap(NamedTuple):
    """Something that a run lacks; `where` and `what`, one after the other, are a line."""

    where: str
    what: str


@dataclass(frozen=True)
class Setting:
    """One setting of one run, over its seeds.

    Attributes:
        run: name of the run.
        overrides: what was set beside its recipe, the seed left out.
        jobs: one for each seed, in their order.
        repeated: further jobs of a seed that has one already; they count nowhere.
    """

    run: str
    overrides: str
    jobs: tuple[Job, ...]
    repeated: tuple[Job, ...] = ()

    @property
    def title(self) -> str:
        """Run and overrides; long ones are cut and end in a hash."""
        shown = self.overrides
        if len(shown) > LONGEST:
            shown = f"{shown[:LONGEST]}~{digest(shown)}"
        return f"{self.run} {shown}".strip()

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

    @property
    def mask_stage(self) -> str:
        """The stage that made its pseudo masks by affinities: PSA's where it was run, or IRN's."""
        return "psa_masks" if "psa_masks" in self.stage_names() else "irn_masks"

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

    def measured_on(self, stage: str) -> tuple[str, tuple[str, ...]]:
        """What a stage's scores were measured on: in words, and the classes.

        Scores of two settings may stand in one table only where it is the same.
        """
        ended = self._ended(stage)
        split = stage.partition("/")[2] or self.jobs[0].config.get("data.eval_split")
        counts = sorted({str(n) for one in ended if (n := one.metrics.get("images")) is not None})
        parts = [" ".join(str(part) for part in (self.data, split) if part)]
        parts += [f"{'/'.join(counts)} images"] if counts else []
        classes = {tuple(one.scores[one.main].get("iou", ())) for one in ended}
        return ", ".join(part for part in parts if part), max(classes, default=())

    def values(self, stage: str, row: str, figure: str = "miou") -> list[float]:
        """A figure of every seed whose stage has ended."""
        scores = (one.scores.get(row, {}) for one in self._ended(stage))
        return [float(one[figure]) for one in scores if is_number(one.get(figure))]

    def by_seed(self, stage: str) -> dict[int, Stage]:
        """A stage of each seed that has ended it with scores, where the seed is known."""
        found = ((job.seed, job.stage(stage)) for job in self.jobs)
        return {
            seed: one
            for seed, one in found
            if seed is not None and one and one.state == "finished" and one.scores
        }

    def main(self, stage: str) -> str:
        """The row of scores that stands for a stage; empty if no seed has scores."""
        return next((one.main for one in self._ended(stage)), "")

    def averaged(self, stage: str) -> dict[str, Any]:
        """The main scores of a stage, means over the seeds that have ended it.

        Returns:
            `miou` and, where all seeds have them for the same classes and thresholds, `iou` and
            `iou_spread` by class and `curve` with `threshold`, `miou` and `miou_spread`; the
            spreads are half the 95 % t-intervals, 0 for a single seed. Empty if there is none.
        """
        scores = [one.scores[one.main] for one in self._ended(stage)]
        if not scores:
            return {}
        found: dict[str, Any] = {"miou": statistics.fmean(one["miou"] for one in scores)}
        found["absent"] = scores[0].get("absent", [])  # a matter of the masks, not of seeds
        if all("iou" in one for one in scores) and len({tuple(one["iou"]) for one in scores}) == 1:
            columns = {name: [one["iou"][name] for one in scores] for name in scores[0]["iou"]}
            known = {k: [v for v in values if v is not None] for k, values in columns.items()}
            found["iou"] = {k: statistics.fmean(v) if v else None for k, v in known.items()}
            found["iou_spread"] = {k: _half(v) for k, v in known.items()}
        curves = [one["curve"] for one in scores if "curve" in one]
        same = all(c["threshold"] == curves[0]["threshold"] for c in curves)
        if len(curves) == len(scores) and same:
            points = list(zip(*(c["miou"] for c in curves), strict=True))
            found["curve"] = {
                "threshold": curves[0]["threshold"],
                "miou": [statistics.fmean(p) for p in points],
                "miou_spread": [_half(p) for p in points],
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

    def gaps(self) -> list[Gap]:
        """Stages that were begun and did not end, or that other seeds have."""
        found = []
        for job in self.jobs:
            where = f"{self.run}: {job.folder.name}"
            for stage in job.stages:
                if stage.state != "finished":
                    why = f": {stage.failure}" if stage.failure else ""
                    found.append(Gap(where, f"/{stage.name} {stage.state}{why}"))
            behind = [name for name in self.stage_names() if job.stage(name) is None]
            if behind:
                found.append(Gap(where, f": {', '.join(behind)} not run"))
        for job in self.repeated:
            what = f": has seed {job.seed} once more, left out"
            found.append(Gap(f"{self.run}: {job.folder.name}", what))
        return found


def without_seed(overrides: str) -> str:
    """A job's overrides without `seed=...`, which only numbers repetitions."""
    kept = [item for item in overrides.split(",") if not item.startswith("seed=")]
    return "" if kept in ([], ["default"]) else ",".join(kept)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether something read from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _half(values: Sequence[float]) -> float:
    """Half the 95 % interval of a mean over seeds; 0 for a single one."""
    if len(values) < 2:
        return 0.0
    interval = over_seeds(values)
    return interval.high - interval.mean


def _rank(name: str) -> tuple[int, str]:
    first = name.partition("/")[0]
    return (ORDER.index(first) if first in ORDER else len(ORDER), name)


def _stage(folder: Path, name: str) -> Stage:
    def read(file: str) -> dict[str, Any] | None:
        if not (folder / file).is_file():
            return None
        content = read_json(folder / file)
        if not isinstance(content, dict):
            raise WsssError(f"{folder / file}: no mapping; {REMADE}")
        return content

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
        jobs = [read_job(path) for path in run.iterdir() if path.is_dir()]
        for job in sorted((job for job in jobs if job.stages), key=_order):
            found.setdefault((run.name, job.overrides), []).append(job)
    return [_setting(run, overrides, jobs) for (run, overrides), jobs in found.items()]


def _order(job: Job) -> tuple[str, float, str]:
    return job.overrides, math.inf if job.seed is None else job.seed, job.folder.name


def _setting(run: str, overrides: str, jobs: Sequence[Job]) -> Setting:
    """Of jobs with the same seed (`default` and `seed=0`) the one that has come furthest counts."""
    kept: dict[Any, Job] = {}
    for job in jobs:
        key = job.folder if job.seed is None else job.seed
        if key not in kept or _finished(job) > _finished(kept[key]):
            kept[key] = job
    chosen = tuple(kept.values())
    return Setting(run, overrides, chosen, tuple(job for job in jobs if job not in chosen))


def _finished(job: Job) -> int:
    return sum(stage.state == "finished" for stage in job.stages)


def differing(settings: Sequence[Setting]) -> dict[str, list[Any]]:
    """Keys whose values are not the same in all settings, each with its value in every setting."""
    configs = [setting.jobs[0].config for setting in settings]
    if len(configs) < 2:
        return {}
    keys = sorted({key for config in configs for key in config})
    values = {key: [config.get(key, "–") for config in configs] for key in keys}
    return {k: v for k, v in values.items() if any(str(x) != str(v[0]) for x in v[1:])}
