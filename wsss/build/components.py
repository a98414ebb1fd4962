"""Parts chosen by `_target_`: looked up and checked once, built when they are needed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from wsss.errors import WsssError
from wsss.settings import resolve

TARGET = "_target_"


@dataclass(frozen=True)
class Component:
    """A class or function and the options that it is called with.

    Attributes:
        target: its dotted name.
        make: the class or function itself.
        options: checked keyword arguments; `options` alone for a kind with typed `Settings`.
    """

    target: str
    make: Callable[..., Any]
    options: Mapping[str, Any]

    def __call__(self, *args: Any, **more: Any) -> Any:
        """Build it, with what else it takes; `more` goes over the options."""
        return self.make(*args, **{**self.options, **more})

    def takes(self, name: str) -> bool:
        """Whether it has a parameter of that name."""
        return name in inspect.signature(self.make).parameters


def component(content: Mapping[str, Any] | None, key: str, kind: type = object) -> Component:
    """A component from its part of the configuration.

    Args:
        content: `_target_` and options; None, where it is missing, is an error.
        key: what the part is called, e.g. `backbone`.
        kind: what it has to build: a class of this kind, or a function whose annotation says so.

    Raises:
        WsssError: there is no such target, it is of another kind, an unknown key, or a value of a
            wrong type.
    """
    if not isinstance(content, Mapping):
        shown = "null" if content is None else content
        raise WsssError(f"{key}={shown}: must be a choice of its group, or give {TARGET} and keys")
    options = {
        name: _parts(value, f"{key}.{name}")
        for name, value in content.items()
        if name not in (TARGET, "name")
    }
    target = str(content.get(TARGET))
    module, _, name = target.rpartition(".")
    try:
        make = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise WsssError(f"{key}._target_={target}: can't be imported ({_last(error)})") from error
    made = make if inspect.isclass(make) else get_type_hints(make).get("return")
    if not issubclass(made if inspect.isclass(made) else object, kind):
        raise WsssError(f"{key}._target_={target}: builds no {kind.__name__}")
    typed = getattr(make, "Settings", None)
    if typed is not None:
        return Component(target, make, {"options": resolve(typed, options, key)})
    if "name" in content and "name" in inspect.signature(make).parameters:
        options["name"] = content["name"]
    return Component(target, make, check_call(make, options, key))


def _parts(value: Any, key: str) -> Any:
    """A value with the components in it."""
    if not isinstance(value, Mapping):
        return value
    if TARGET in value:
        return component(value, key)
    return {name: _parts(one, f"{key}.{name}") for name, one in value.items()}


def check_call(make: Callable[..., Any], options: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Keyword arguments checked against a callable's signature; a value of None is left to it.

    Raises:
        WsssError: an unknown key, or a value of a wrong type.
    """
    parameters = inspect.signature(make).parameters
    hints = get_type_hints(make.__init__ if inspect.isclass(make) else make)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    checked = dict(options)
    for name, value in options.items():
        if name not in parameters:
            if open_ended:
                continue
            close = get_close_matches(name, parameters, n=1)
            hint = (
                f"is '{close[0]}' meant?"
                if close
                else f"there are {', '.join(parameters) or 'none'}"
            )
            raise WsssError(f"{key}.{name}: unknown key; {hint}")
        if value is None or name not in hints:
            continue
        try:
            adapter = TypeAdapter(hints[name], config=ConfigDict(arbitrary_types_allowed=True))
            checked[name] = adapter.validate_python(value)
        except ValidationError as error:
            wanted = error.errors()[0]["msg"].replace("Input should be", "must be")
            raise WsssError(f"{key}.{name}={value}: {wanted.partition(', unable')[0]}") from error
    return checked


def _last(error: BaseException) -> str:
    """The innermost cause, as one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
