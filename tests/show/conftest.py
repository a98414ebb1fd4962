"""Fonts as if the machine had none but DejaVu Sans, or one more that the test makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from wsss.show import fonts


def square_font(path: Path, family: str, characters: str, style: str = "Regular") -> None:
    """A font whose every glyph is a black square as high as the line."""
    pen = TTGlyphPen(None)
    for place, corner in enumerate([(0, 0), (0, 1000), (1000, 1000), (1000, 0)]):
        (pen.lineTo if place else pen.moveTo)(corner)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"u{ord(c):x}" for c in characters)]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"u{ord(c):x}" for c in characters})
    builder.setupGlyf({name: square for name in names})
    builder.setupHorizontalMetrics({name: (1000, 0) for name in names})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": family, "styleName": style})
    builder.setupOS2(sTypoAscender=1000, usWinAscent=1000)
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def system_fonts(monkeypatch, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """`system_fonts("Name", "牛")` puts a font of these characters on a machine without fonts."""
    there: list[str] = []
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: list(there))
    fonts.faces.cache_clear()

    def add(family: str, characters: str) -> Path:
        path = tmp_path / f"{family}.ttf"
        square_font(path, family, characters)
        there.append(str(path))
        fonts.faces.cache_clear()
        return path

    yield add
    fonts.faces.cache_clear()
