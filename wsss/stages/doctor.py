"""Check installation, machine, data and weights; leaves nothing behind."""

from __future__ import annotations

from wsss.build.doctor import examine
from wsss.build.job import Result
from wsss.build.settings import Settings
from wsss.run.group import led


@led
def run(s: Settings) -> Result:
    """Tell what works and what doesn't, each with its remedy.

    Raises:
        WsssError: something stops the program.
    """
    examine(lambda: s)
    return Result("doctor")
