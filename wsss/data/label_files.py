"""Image labels written by hand: one CSV or JSON file that names images and their classes."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from wsss.errors import WsssError

HEADINGS = ("name", "image", "file", "filename", "file_name")


@dataclass(frozen=True)
class Row:
    """The labels of one image as they are written.

    Attributes:
        place: file and line, for messages.
        key: the image's name or file name.
        labels: class names.
        fault: what is wrong with the row itself, or an empty string.
    """

    place: str
    key: str
    labels: tuple[str, ...]
    fault: str = ""


def read_rows(path: Path) -> list[Row]:
    """Rows of a label file, CSV or JSON by its ending.

    Raises:
        WsssError: if it can't be read, or holds nothing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise WsssError(f"can't read the label file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WsssError(
            f"the label file {path} is not UTF-8 (byte {error.start}): save it with that encoding"
        ) from error
    rows = json_rows(text, path) if path.suffix.lower() == ".json" else csv_rows(text, path)
    if not rows:
        raise WsssError(f"the label file {path} holds no image")
    return rows


def csv_rows(text: str, path: Path) -> list[Row]:
    """Rows of an image's name and its classes, or of `name,` for an image of no class.

    Columns are parted by commas, tabs or semicolons, the same in the whole file; classes stand in
    one column with ; between them, in columns of their own, or both. A first row whose name is a
    heading is passed over.

    Raises:
        WsssError: it is no CSV.
    """
    rows: list[Row] = []
    lines = text.splitlines()
    reader = csv.reader(lines, delimiter=_separator(lines), skipinitialspace=True)
    try:
        for fields in reader:
            name, *columns = [field.strip() for field in fields] or [""]
            if not (name or any(columns)) or (not rows and name.lower() in HEADINGS):
                continue
            fault = "" if name else "no image is named"
            if not columns:
                fault = "no classes; write name,class;class, or name, for an image of no class"
            labels = tuple(label for column in columns for label in _split(column))
            rows.append(Row(f"{path}, line {reader.line_num}", name, labels, fault))
    except csv.Error as error:
        raise WsssError(f"{path}, line {reader.line_num}: {error}") from error
    return rows


def _separator(lines: Sequence[str]) -> str:
    """What parts the columns: a comma where there is any, else what every row has."""
    rows = [line for line in lines if line.strip()]
    for sign in ("\t", ";"):
        if rows and all(sign in line and "," not in line for line in rows):
            return sign
    return ","


def json_rows(text: str, path: Path) -> list[Row]:
    """Rows of `{"name": ["class", "class"], ...}`; `"class;class"` will do for the list."""
    try:
        # Pairs: a name that stands twice would be lost in a dictionary.
        pairs = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise WsssError(f"can't read the label file {path} as JSON: {error}") from error
    if not isinstance(pairs, tuple):
        raise WsssError(f'{path} must be an object: {{"image name": ["class", ...], ...}}')
    return [_json_row(name, value, path) for name, value in pairs]


def _json_row(name: str, value: Any, path: Path) -> Row:
    place = f"{path}, '{name}'"
    if isinstance(value, str):
        return Row(place, name, _split(value))
    if isinstance(value, list) and all(isinstance(label, str) for label in value):
        return Row(place, name, tuple(label.strip() for label in value if label.strip()))
    return Row(place, name, (), "the labels must be a list of class names")


def _split(labels: str) -> tuple[str, ...]:
    return tuple(label.strip() for label in labels.split(";") if label.strip())


@dataclass(frozen=True)
class Labels:
    """Labels by image name, and what is wrong with the file.

    Attributes:
        of: class names of each image whose row is good; there may be none.
        faults: one line for each image whose row is not; `labels` raises it.
        problems: every line, in the order of the file.
    """

    of: dict[str, tuple[str, ...]]
    faults: dict[str, str]
    problems: list[str]


def match_rows(
    rows: Sequence[Row], files: Mapping[str, str], classes: Sequence[str], folder: Path
) -> Labels:
    """Match the rows of a label file with image files and classes.

    Args:
        rows: the rows.
        files: file name of each image name.
        classes: known class names.
        folder: folder of the images, for messages.
    """
    name_of = {file: name for name, file in files.items()}
    known = set(classes)
    found: dict[str, Row] = {}
    of: dict[str, tuple[str, ...]] = {}
    faults: dict[str, str] = {}
    problems: list[str] = []

    def wrong(name: str | None, line: str) -> None:
        problems.append(line)
        if name is not None:
            faults.setdefault(name, line)

    for row in rows:
        name = name_of.get(row.key, row.key if row.key in files else None)
        if row.fault:
            wrong(name, f"{row.place}: {row.fault}")
            continue
        if name is None:
            wrong(None, f"{row.place}: there is no image '{row.key}' in {folder}")
            continue
        if name in found:
            wrong(name, f"{row.place}: '{row.key}' has labels already ({found[name].place})")
            continue
        found[name] = row
        unknown = [label for label in dict.fromkeys(row.labels) if label not in known]
        if unknown:
            wrong(name, f"{row.place}: {_unknown(unknown, classes)}")
        else:
            of[name] = row.labels
    return Labels({n: labels for n, labels in of.items() if n not in faults}, faults, problems)


def _unknown(labels: Sequence[str], classes: Sequence[str]) -> str:
    named = ", ".join(f"'{label}'" for label in labels)
    lower = {name.lower(): name for name in classes}
    close = get_close_matches(labels[0].lower(), list(lower), n=1)
    hint = f" (is '{lower[close[0]]}' meant?)" if close else ""
    return f"unknown class{'es' if len(labels) > 1 else ''} {named}{hint}"
