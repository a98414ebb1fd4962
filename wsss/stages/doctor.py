"""Check installation, machine, data and weights; leaves nothing behind."""

from __future__ import annotations

from omegaconf import DictConfig

from wsss.build.doctor import examine
from wsss.run.process import is_main_process


def run(cfg: DictConfig) -> None:
    """Tell what works and what doesn't, each with its remedy.

    Raises:
        WsssError: something stops the program.
    """
    if is_main_process():
        examine(lambda: cfg)
