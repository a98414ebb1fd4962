"""Who a process is, by what each launcher puts into the environment."""

from __future__ import annotations

import pytest

from wsss.run.process import Place, place

STEP = {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({}, Place(), id="alone"),
        pytest.param(
            {
                **{"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
                **{"GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2"},
            },
            Place(3, 4, 1, 2, 1, 2, "torchrun"),
            id="torchrun: the second process of the second of two nodes",
        ),
        pytest.param(
            {
                **{"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
                **{"GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2"},
            },
            Place(1, 2, 0, 1, 1, 2, "torchrun"),
            id="torchrun: the first process of the second node is not main",
        ),
        pytest.param(
            {
                **STEP,
                **{"SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "4", "SLURM_LOCALID": "0"},
                **{"SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"},
            },
            Place(4, 5, 0, 1, 2, 3, "srun"),
            id="srun without --ntasks-per-node, nodes of 2, 2 and 1 tasks",
        ),
        pytest.param(
            {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
            Place(),
            id="sbatch --ntasks=2: its script is one process",
        ),
        pytest.param(
            {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
            Place(),
            id="srun of one task",
        ),
        pytest.param(
            {
                **STEP,
                **{"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
                **{"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
                **{"GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2"},
            },
            Place(2, 4, 0, 2, 1, 2, "torchrun"),
            id="torchrun started by srun on each node",
        ),
    ],
)
def test_the_place_is_what_the_launcher_says(environment: dict[str, str], expected: Place) -> None:
    assert place(environment) == expected
