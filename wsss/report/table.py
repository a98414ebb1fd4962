"""A table of a report, as plain cells, and how Markdown shows it."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, replace

NOT_RUN = "not run"
NONE = "–"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: heading.
        note: what a reader must know to read it.
        columns: their names.
        rows: cells as text.
        numbers: how many columns from the right are aligned as numbers.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: int

    def without_empty_published(self) -> Table:
        """The table without columns `published` in which there is nothing but dashes."""
        kept = [
            i
            for i, name in enumerate(self.columns)
            if name != "published" or any(row[i] != NONE for row in self.rows)
        ]
        return replace(
            self,
            columns=tuple(self.columns[i] for i in kept),
            rows=tuple(tuple(row[i] for i in kept) for row in self.rows),
            numbers=self.numbers - (len(self.columns) - len(kept)),
        )

    def markdown(self) -> str:
        """The table in Markdown, columns aligned."""
        lines = [[escaped(cell) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        shown = [
            "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
            for line in lines
        ]
        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        title = f"## {escaped(self.title)}"
        return "\n".join([title, "", shown[0], rule, *shown[1:], "", escaped(self.note)])


def escaped(text: str) -> str:
    """Text that Markdown shows as it stands: no markup, no HTML, no end of a line or cell."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*|\[\]~])", r"\\\1", text)
