"""One of several processes of a job, as `test_group.py` starts them; WHAT does it do?"""

from __future__ import annotations

import os
import signal
import sys
import time

from wsss.errors import WsssError
from wsss.run import group as groups
from wsss.run.group import group_of, lead, wait_for_all
from wsss.run.pool import cores, parallel
from wsss.run.process import rank

groups.SILENT = 4


def square(n: int) -> int:
    return n * n


def who(n: int) -> int:
    return rank()


def fails(n: int) -> int:
    if n == 4:
        raise WsssError(f"item {n} is broken")
    return n


def dies(n: int) -> int:
    if n == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def work(what: str) -> object:
    if what == "share":
        found = lead(lambda: [parallel(square, range(n), "work") for n in (0, 1, 2, 7, 500)])
        found.append(lead(lambda: parallel(square, range(20), "work", 2)))
        found.append(lead(lambda: lead(lambda: parallel(who, range(7), "who"))))
        return found
    if what == "cores":
        return cores()
    if what == "slow":  # main is at work for longer than silence is borne
        return lead(lambda: time.sleep(6) or "done")
    if what == "fail":  # in the share of process 1
        return lead(lambda: parallel(fails, range(6), "work"))
    if what == "die":
        return lead(lambda: parallel(dies, range(6), "work"))
    if what == "main dies":
        return lead(lambda: os.kill(os.getpid(), signal.SIGKILL))
    if what == "alone":  # one dies while the others are far from it
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    wait_for_all()
    return None


def main() -> int:
    for number, what in enumerate(sys.argv[1:]):
        group = None
        try:
            with group_of(f"job {number}", False) as group:
                print(work(what), flush=True)
        except Exception as error:
            assert group is not None
            end = group.fail(str(error), 1, error)
            print(f"error: {end.line}", flush=True)
            if number + 1 == len(sys.argv[1:]):
                return end.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
