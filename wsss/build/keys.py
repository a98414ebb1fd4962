"""Every key of the configuration with what its comment says: for help on a recipe, and the docs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

COLUMN = 46  # where comments begin


def comments_of(path: Path) -> dict[str, str]:
    """What the comments of a configuration file say, by key, nested keys joined by dots.

    A comment stands behind its key on the same line and goes on in the lines below that hold
    nothing but a comment which begins no further to the left.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    root = yaml.compose(text)
    found: dict[str, str] = {}
    if isinstance(root, yaml.MappingNode):
        for name, key, value in _entries(root):
            line = key.start_mark.line
            # Behind the value where it ends on this line, else behind the colon.
            same = value.end_mark.line == line and value.start_mark.line == line
            begin = value.end_mark.column if same else key.end_mark.column
            if not same and value.start_mark.line == line and not _is_block(value):
                line, begin = value.end_mark.line, value.end_mark.column  # a list of many lines
            if comment := _comment(lines, line, begin):
                found[name] = comment
    return found


def head_of(path: Path) -> list[str]:
    """The comment lines at the head of a configuration file, without `#` and `@package`."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            found.append(line[1:].removeprefix(" ").rstrip())
    return found


def _entries(
    node: yaml.MappingNode, prefix: str = ""
) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        yield name, key, value
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _entries(value, f"{name}.")


def _is_block(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and not node.flow_style


def _comment(lines: Sequence[str], number: int, begin: int) -> str:
    """The comment of a line from a column on, and of the lines below that go on with it."""
    found = re.search(r"(?:^|\s)#\s?(.*)$", lines[number][begin:])
    if found is None:
        return ""
    column = begin + found.start(0) + len(found.group(0)) - len(found.group(0).lstrip())
    parts = [found.group(1).strip()]
    for line in lines[number + 1 :]:
        more = re.fullmatch(r"(\s*)#\s?(.*)", line)
        if more is None or len(more.group(1)) < column:
            break
        parts.append(more.group(2).strip())
    return " ".join(part for part in parts if part)


def comments_of_choice(conf: Path, group: str, name: str) -> dict[str, str]:
    """Comments of a choice of a group: its own file's over those of the files it begins with."""
    path = conf / group / f"{name}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    found: dict[str, str] = {}
    for entry in content.get("defaults") or []:
        if isinstance(entry, str) and entry != "_self_":
            parent, _, place = entry.partition("@")  # CHOICE, or CHOICE@PLACE below a key
            prefix = f"{place}." if place else ""
            inner = comments_of_choice(conf, group, parent)
            found |= {prefix + key: text for key, text in inner.items()}
    return found | comments_of(path)


def all_comments(conf: Path, choices: Mapping[str, str | None]) -> dict[str, str]:
    """Comments of every key of a composition.

    Args:
        conf: the folder of the configuration.
        choices: the choice of each group; those of `experiment` stand at the root.
    """
    found = comments_of(conf / "config.yaml")
    for group, name in choices.items():
        if name is None or not (conf / group / f"{name}.yaml").is_file():
            continue
        prefix = "" if group in ("experiment", "sweep", "debug") else f"{group}."
        of_choice = comments_of_choice(conf, group, name)
        found |= {prefix + key: text for key, text in of_choice.items()}
    return found


def written(content: Mapping[str, Any], comments: Mapping[str, str], marked: set[str]) -> str:
    """A configuration as YAML with the comment of each key behind it.

    Args:
        content: plain content.
        comments: by dotted key.
        marked: keys that get a star before their line.
    """
    return "\n".join(_written(content, comments, marked))


def _written(
    content: Mapping[str, Any],
    comments: Mapping[str, str],
    marked: set[str],
    prefix: str = "",
) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for key, value in content.items():
        name = f"{prefix}{key}"
        inner = isinstance(value, Mapping) and bool(value)
        star = "* " if name in marked and not inner else "  "
        line = f"{star}{indent}{key}:" + ("" if inner else f" {shown(value)}")
        comment = comments.get(name, "")
        yield f"{line:<{COLUMN - 2}}  # {comment}" if comment else line
        if inner:
            yield from _written(value, comments, marked, f"{name}.")


def shown(value: Any) -> str:
    """A value as it stands in YAML, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.strip().removesuffix("...").strip()
