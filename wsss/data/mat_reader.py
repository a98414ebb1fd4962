"""SBD's `.mat` files, read in a process of its own: some damaged ones crash scipy's reader.

This file is also the program of that process; it gets paths and answers with masks or with what is
wrong. It imports nothing of the package, so that it is there at once and needs little memory.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np


def read_mat_mask(path: Path) -> np.ndarray:
    """`GTcls.Segmentation` of one of SBD's `cls/ID.mat`, (H, W) class ids.

    Raises:
        ValueError: if the file is missing, of another content or so damaged that it ends its
            reader.
    """
    reader = _reader(os.getpid())
    assert reader.stdin is not None and reader.stdout is not None  # both are pipes
    try:
        pickle.dump(str(path), reader.stdin)
        reader.stdin.flush()
        answer = pickle.load(reader.stdout)
    except (EOFError, OSError, pickle.UnpicklingError) as error:
        close_reader()  # the next file gets a new one
        raise ValueError("it is damaged and crashes the reader") from error
    if isinstance(answer, str):
        raise ValueError(answer)
    return answer


def close_reader() -> None:
    """End this process's reader, if there is one."""
    if _reader.cache_info().currsize:
        _reader(os.getpid()).kill()
        _reader(os.getpid()).communicate()
        _reader.cache_clear()


@lru_cache(maxsize=1)
def _reader(process: int) -> subprocess.Popen[bytes]:
    """The reader of this process alone; it ends with it, since its input then does.

    A process that was forked from another one has another number and so gets its own.
    """
    return subprocess.Popen(
        [sys.executable, "-P", __file__],  # -P: the modules beside this file are not its own
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _serve() -> None:
    """Answer each path that comes in until there are no more."""
    from scipy.io import loadmat

    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever is printed must not get among the answers
    while True:
        try:
            path = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: np.ndarray | str
        try:
            found = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
            answer = np.array(found) if found.ndim == 2 else f"it has the shape {found.shape}"
            if found.dtype.kind not in "iuf" or not np.array_equal(found, np.rint(found)):
                answer = "it holds something else than whole numbers"
        except Exception as error:  # a damaged file can fail in any way
            answer = " ".join(str(error).split()) or type(error).__name__
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
