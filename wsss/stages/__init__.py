"""One file per stage, one public `run(settings)` in each; a new file is a new stage."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from wsss.errors import WsssError

if TYPE_CHECKING:
    from wsss.build.job import Result
    from wsss.build.settings import Settings


def stage_names() -> tuple[str, ...]:
    """Names of all stages, without importing them."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def stage_summary(name: str) -> str:
    """First line of the stage's docstring, without importing it."""
    source = (Path(__path__[0]) / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


def get_stage(name: str) -> Callable[[Settings], Result]:
    """The `run` of a stage.

    Raises:
        WsssError: there is no such stage.
    """
    if name not in stage_names():
        raise WsssError(f"stage={name}: unknown; choose all, {', '.join(stage_names())}")
    return importlib.import_module(f"{__name__}.{name}").run
