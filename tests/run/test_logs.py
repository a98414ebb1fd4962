"""Logs of a stage: rows of a resumed training, and W&B's run of a stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsss.run.logs import (
    METRICS,
    finish_wandb,
    join_metrics,
    keep_metrics,
    read_metrics,
    wandb_logger,
    write_metrics,
)


@pytest.mark.parametrize("kills", [1, 2, 4])
def test_a_training_killed_any_number_of_times_has_every_row_once(
    tmp_path: Path, kills: int
) -> None:
    """Each start logs steps from its checkpoint on, and some beyond the next checkpoint."""
    path = tmp_path / METRICS
    for start in range(kills + 1):
        at = 3 * start
        if start:
            keep_metrics(tmp_path, at)
            keep_metrics(tmp_path, at)  # killed between keeping and its first row
        rows = [{"step": n, "loss": f"{start}.{n}"} for n in range(at, at + 5)]
        write_metrics(path, rows)
    found = join_metrics(tmp_path)
    assert [int(row["step"]) for row in found] == list(range(3 * kills + 5))
    assert [row["loss"] for row in found[:6]] == ["0.0", "0.1", "0.2", "1.3", "1.4", "1.5"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [METRICS]
    assert read_metrics(path) == found


def test_a_resumed_stage_goes_on_in_its_run_and_a_failed_one_ends_as_such(
    tmp_path: Path, read_wandb
) -> None:
    train, other = tmp_path / "seed=0" / "train", tmp_path / "seed=1" / "train"
    for folder, step, code in ((train, 1, 1), (train, 5, 0), (other, 1, 0)):
        folder.mkdir(parents=True, exist_ok=True)
        logger = wandb_logger(folder, "my_run", "train", offline=True, tags=["a"])
        logger.log_metrics({"train/loss": 1 / step}, step=step)
        finish_wandb(code)
    killed, resumed = read_wandb(train)
    assert killed.run.run_id == resumed.run.run_id
    assert (killed.exit_code, resumed.exit_code) == (1, 0)
    assert killed.logged("trainer/global_step") + resumed.logged("trainer/global_step") == [1, 5]
    assert resumed.run.display_name == "seed=0/train" and list(resumed.run.tags) == ["a"]
    (second,) = read_wandb(other)
    assert second.run.run_id != killed.run.run_id
    assert second.run.run_group == killed.run.run_group == "my_run"


def test_ending_without_a_run_is_nothing() -> None:
    finish_wandb(1)
