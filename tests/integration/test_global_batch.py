"""The same global batch gives the same gradient, whatever number of processes shares it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("global_batch.py")
ROOT = SCRIPT.parents[2]
TRAININGS = runpy.run_path(str(SCRIPT))["TRAININGS"]


def start(rank: int, world: int, scenes: Path, folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, (rank, world, scenes, folder))],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def trained(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and buffers after each training, by one process and by two."""
    folder = tmp_path_factory.mktemp("global_batch")
    for world in (2, 1):
        processes = [start(rank, world, tiny_scenes, folder / str(world)) for rank in range(world)]
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", list(TRAININGS))
def test_one_and_two_processes_agree_to_1e_9(trained: Path, name: str) -> None:
    (one, first, second) = (
        torch.load(trained / f"{world}" / f"{name}_{rank}_of_{world}.pt")
        for world, rank in ((1, 0), (2, 0), (2, 1))
    )
    for key, value in one.items():
        if value.is_floating_point():
            assert value.dtype == torch.float64 and value.isfinite().all(), key
        torch.testing.assert_close(first[key], value, rtol=1e-9, atol=1e-9, msg=key)
        assert torch.equal(first[key], second[key]), key
    if name.startswith("cpal"):  # the warm-up is over and the bank has dropped its oldest
        assert one["branch.bank.cluster_count"].max() == 3
        assert one["branch.bank.count"].max() == 9
