"""Loggers of a run, and the rows of an interrupted training's `metrics.csv`."""

from __future__ import annotations

import csv
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from wsss.files import atomic
from wsss.run.process import is_main_process

METRICS = "metrics.csv"
EARLIER = "metrics.earlier.csv"  # rows of former starts of a training
WANDB_ID = "run_id.txt"


def csv_logger(folder: Path, run_name: str, stage: str) -> Logger:
    """Metrics as `metrics.csv` in the stage's folder."""
    return CSVLogger(save_dir=folder, name="", version="", flush_logs_every_n_steps=10)


def tensorboard_logger(folder: Path, run_name: str, stage: str) -> Logger:
    """TensorBoard event files in the stage's folder."""
    return _TensorBoard(save_dir=folder, name="", version="tensorboard", default_hp_metric=False)


class _TensorBoard(TensorBoardLogger):
    """Shows a run's settings beside its mIoU; Lightning's own way logs a metric `hp_metric`, -1."""

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Keep settings in `hparams.yaml`, and show them under HPARAMS."""
        from torch.utils.tensorboard.summary import hparams

        super().log_hyperparams(params, metrics, step)
        told = {
            key: v if isinstance(v, bool | int | float) else str(v) for key, v in params.items()
        }
        for summary in hparams(told, {"eval/miou": 0.0}):  # names the metric, without a value
            self.experiment.file_writer.add_summary(summary)


def wandb_logger(
    folder: Path,
    run_name: str,
    stage: str,
    project: str = "wsss",
    entity: str | None = None,
    offline: bool = False,
    tags: Sequence[str] = (),
) -> Logger:
    """One Weights & Biases run for this stage; runs of one name form a group.

    A stage that is resumed goes on in its run, and one begun anew (`overwrite=true`) has a new
    one: the run's id lies in the stage's folder.

    Args:
        folder: the stage's folder.
        run_name: name of the group.
        stage: type of the job.
        project: W&B's project.
        entity: user or team; null is the account's default.
        offline: write to `folder/wandb` only; `wandb sync` uploads it later.
        tags: the run's tags.
    """
    import wandb  # an import of seconds

    return WandbLogger(
        project=project,
        entity=entity,
        offline=offline,
        tags=list(tags),
        save_dir=folder,
        name=f"{folder.parent.name}/{stage}",
        group=run_name,
        job_type=stage,
        id=wandb_id(folder),
        resume="allow",
        settings=wandb.Settings(silent=True),  # its lines are many; the stage says where it is
    )


def wandb_id(folder: Path) -> str | None:
    """Id of the W&B run of a stage's folder: drawn once, then kept in `wandb/run_id.txt`.

    It is not a hash of the folder's path, since two machines may use one path in one project.
    """
    path = folder / "wandb" / WANDB_ID
    if not path.is_file() and is_main_process():
        with atomic(path) as temporary:
            temporary.write_text(f"{secrets.token_hex(6)}\n")
    return path.read_text().strip() if path.is_file() else None


def finish_wandb(exit_code: int) -> None:
    """End the open W&B run, if any, so that the next job of a sweep begins its own."""
    import sys

    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=exit_code)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of a `metrics.csv`; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_metrics(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the union of their columns."""
    columns: dict[str, None] = {}
    for row in rows:
        columns.update(dict.fromkeys(row))
    with atomic(path, durable=True) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)


def keep_metrics(folder: Path, resumed_at: int) -> None:
    """Put the rows of an interrupted training aside before its logger begins a new file.

    They lie in a file of their own until `join_metrics`, so that any number of kills loses none.

    Args:
        folder: the stage's folder.
        resumed_at: step of the checkpoint; later rows are made again.
    """
    rows = [*read_metrics(folder / EARLIER), *read_metrics(folder / METRICS)]
    kept = [row for row in rows if row.get("step") and int(row["step"]) < resumed_at]
    # A kill between the two files leaves rows in both.
    once = {tuple(sorted((k, v) for k, v in row.items() if v)): row for row in kept}
    if once:
        write_metrics(folder / EARLIER, list(once.values()))
    (folder / METRICS).unlink(missing_ok=True)


def join_metrics(folder: Path) -> list[dict[str, str]]:
    """All rows of a training that has ended, in one `metrics.csv`."""
    earlier, new = read_metrics(folder / EARLIER), read_metrics(folder / METRICS)
    if earlier:
        last = max(int(row["step"]) for row in earlier)
        rows = [*earlier, *(row for row in new if int(row.get("step") or 0) > last)]
        write_metrics(folder / METRICS, rows)
        (folder / EARLIER).unlink()
    return read_metrics(folder / METRICS)
