"""Typed settings: frozen dataclasses that are checked once, key by key, before anything is loaded.

A room describes what can be set in it as a class under `@settings`, with the types and ranges of
its fields; `resolve` makes one of it from the plain content of a configuration. What is wrong ends
in one line that names the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, TypeVar, dataclass_transform

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from wsss.errors import WsssError

T = TypeVar("T")

Count = Annotated[int, Ge(1)]  # how many: 1 or more
Whole = Annotated[int, Ge(0)]  # 0 or more
Workers = Annotated[int, Ge(-1)]  # processes; -1: one per core
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]  # a part of a whole
Below1 = Annotated[float, Ge(0), Lt(1)]
Color = tuple[float, float, float]  # one number per RGB channel


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make a class of fields a frozen dataclass that `resolve` can check."""
    cls.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


def resolve(kind: type[T], content: Mapping[str, Any], key: str = "") -> T:
    """Settings of a kind from plain content.

    Args:
        kind: a class under `@settings`.
        content: values by name; nested mappings for nested settings.
        key: what stands before the names in messages, e.g. `method`.

    Raises:
        WsssError: an unknown or missing key, a wrong type, or a value out of range: one line for
            the first one.
    """
    try:
        return _checker(kind).validate_python(dict(content))  # type: ignore[arg-type]
    except ValidationError as error:
        raise WsssError(_line(error, kind, key)) from error


@cache
def _checker(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)  # costs a hundred times what a check does


def _line(error: ValidationError, kind: type, key: str) -> str:
    """The first fault as one line: key, value, what is wanted."""
    # An unknown key first: it is often the reason for another one that is missing.
    faults = sorted(
        error.errors(), key=lambda fault: fault["type"] != "unexpected_keyword_argument"
    )
    fault = faults[0]
    # Of a union every member complains; its names are no part of the key.
    place = [str(part) for part in fault["loc"] if _is_key(part)]
    name = ".".join([*([key] if key else []), *place])
    if fault["type"] == "unexpected_keyword_argument":
        known = _known(kind, place[:-1])
        close = get_close_matches(place[-1], known, n=1)
        hint = f"; is '{close[0]}' meant?" if close else f"; there are {', '.join(known) or 'none'}"
        return f"{name}: unknown key{hint}"
    if fault["type"] in ("missing", "missing_argument"):
        return f"{name}: is not given"
    wishes = [f["msg"] for f in faults if [str(p) for p in f["loc"] if _is_key(p)] == place]
    wanted = " or ".join(dict.fromkeys(_wish(wish) for wish in wishes))
    return f"{name}={_shown(fault['input'])}: {wanted}"


def _is_key(part: int | str) -> bool:
    return isinstance(part, int) or (part.replace("_", "a").isalnum() and part not in _UNION_PARTS)


# What pydantic puts into a place for the members of a union.
_UNION_PARTS = frozenset(("int", "float", "str", "bool", "none", "tuple", "list"))


def _wish(message: str) -> str:
    """`Input should be a valid integer` as `must be a valid integer`."""
    message = message.partition(", unable to parse")[0].partition(", got a number")[0]
    return message.replace("Input should be", "must be").replace("Value error, ", "")


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _known(kind: Any, place: list[str]) -> list[str]:
    """Names of the fields at a place of nested settings."""
    from typing import get_args, get_type_hints

    for name in place:
        hint = get_type_hints(kind).get(name, kind)
        kind = next(
            (h for h in (hint, *get_args(hint)) if hasattr(h, "__dataclass_fields__")), kind
        )
    return [field.name for field in fields(kind)]
