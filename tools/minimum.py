"""Run the quick tests with the oldest versions that pyproject.toml claims to work with.

    python tools/minimum.py [PYTEST ARGUMENTS]

The versions go to .venv-minimum, several GB. Takes what each requirement calls its floor, `>=`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".venv-minimum"
QUICK = ["tests", "--ignore=tests/integration", "--deselect=tests/test_packaging.py"]


def floors(requirements: list[str]) -> list[str]:
    """The requirements, each at its floor; what follows a semicolon stays."""
    return [re.sub(r">=([\w.]+)(,[^;]*)?", r"==\1", r) for r in requirements]


def main() -> None:
    """Make the environment where there is none, then test."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = floors(project["dependencies"] + project["optional-dependencies"]["dev"])
    python = FOLDER / "bin" / "python"
    marker = FOLDER / "wanted.txt"
    if not marker.is_file() or marker.read_text(encoding="utf-8") != "\n".join(wanted):
        venv.create(FOLDER, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "--no-deps", "-e", str(ROOT)], check=True
        )
        marker.write_text("\n".join(wanted), encoding="utf-8")
    command = [python, "-m", "pytest", "-q", "-n", "logical", "--dist", "loadfile"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    sys.exit(
        subprocess.run([*command, *(sys.argv[1:] or QUICK)], cwd=ROOT, env=environment).returncode
    )


if __name__ == "__main__":
    main()
