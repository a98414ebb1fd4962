"""Logs of a stage: rows of a resumed training, and W&B's run of a stage."""

from __future__ import annotations

from pathlib import Path

from wsss.run.logs import finish_wandb, join_metrics, read_metrics, wandb_logger, write_metrics


def test_the_rows_of_an_interrupted_training_stand_before_the_resumed_ones(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert read_metrics(path) == []
    earlier = [{"step": str(step), "train/loss": str(9 - step), "lr": ""} for step in range(5)]
    write_metrics(path, [{"step": step, "train/loss": 0.5, "bank": 1} for step in (3, 4)])
    join_metrics(earlier, path, resumed_at=3)
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row["train/loss"] for row in rows] == ["9", "8", "7", "0.5", "0.5"]
    assert rows[0]["bank"] == "" and rows[3]["bank"] == "1"


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
