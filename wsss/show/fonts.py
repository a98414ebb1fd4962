"""Text in any alphabet: DejaVu Sans, a font of the system where it has no glyph, or words for it.

DejaVu Sans comes with Matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew and more. What no font on
the machine can show is never drawn as an empty box: a class is then called by its id, and in any
other text the character is written as its code.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.font_manager import findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

DEJAVU = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
BLANKS = ("lastresort", "adobeblank")  # fonts that have a box for every character there is
SPACES = "\t\n\r\x0b\x0c"


class Faces:
    """The fonts that text is drawn with: DejaVu Sans, and others as characters ask for them.

    Attributes:
        families: their names, in the order in which they are tried.
    """

    def __init__(self) -> None:
        dejavu = FT2Font(str(DEJAVU))
        self.families = [dejavu.family_name]
        self._file: dict[str, Path | None] = {chr(code): DEJAVU for code in _codes(dejavu)}

    def of(self, character: str) -> Path | None:
        """File of a font that can show a character; None if there is none on this machine."""
        self.cover(character)
        return self._file[character]

    def cover(self, text: str) -> None:
        """Look for fonts of the system that have what is still missing of a text.

        Upright ones of normal weight come first, then those that have most of it.
        """
        missing = {c for c in text if c not in self._file}
        self._file.update(dict.fromkeys(missing))
        if not missing:
            return
        able = []
        for path in map(Path, sorted(findSystemFonts())):
            if any(word in path.stem.lower() for word in BLANKS):
                continue
            try:
                font = FT2Font(str(path))
            except (OSError, RuntimeError):  # a broken file
                continue
            has = missing & {chr(code) for code in _codes(font)} if font.scalable else set()
            if has:
                able.append((bool(font.style_flags), -len(has), path, font.family_name, has))
        for _, _, path, family, has in sorted(able, key=lambda one: one[:3]):
            new = {c for c in has if self._file[c] is None}
            if new:
                self._file.update(dict.fromkeys(new, path))
                self.families.append(family)
                fontManager.addfont(path)


@cache
def faces() -> Faces:
    """The fonts of this process."""
    return Faces()


def readable(text: str) -> str:
    """Text that can be drawn; what no font can show stands as its code, `\\u725b`.

    Accents that stand alone after their letter are joined with it, any blank is a space.
    """
    text = unicodedata.normalize("NFC", text.translate({ord(c): " " for c in SPACES}))
    faces().cover(text)
    return "".join(c if faces().of(c) else c.encode("unicode_escape").decode() for c in text)


def class_name(label: int, name: str) -> str:
    """A class's name as it can be drawn; `class 3` if a character of it can't be."""
    shown = readable(name)
    return shown if len(shown) == len(unicodedata.normalize("NFC", name)) else f"class {label}"


def class_names(names: Sequence[str]) -> list[str]:
    """`class_name` of the foreground classes in the order of their ids, from 1."""
    faces().cover(unicodedata.normalize("NFC", "".join(names)))
    return [class_name(n, name) for n, name in enumerate(names, start=1)]


def text_width(text: str, size: int) -> float:
    """Pixels that a line of `readable` text takes."""
    return sum(_font(path, size).getlength(run) for path, run in _runs(text))


def draw_text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, fill: str = "black"
) -> None:
    """Draw a line of `readable` text.

    Args:
        draw: where.
        place: x and y of the left end of its top edge.
        text: the line.
        size: font size in pixels.
        fill: its color.
    """
    x, y = place
    baseline = y + _font(DEJAVU, size).getmetrics()[0]
    for path, run in _runs(text):
        font = _font(path, size)
        draw.text((x, baseline), run, fill=fill, font=font, anchor="ls")
        x += font.getlength(run)


def shortened(text: str, size: int, width: float) -> str:
    """`readable` text that fits into a width, its end left out where it does not."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(f"{text}…", size) > width:
        text = text[:-1]
    return f"{text}…"


def wrapped(text: str, size: int, width: float) -> list[str]:
    """`readable` text in lines that fit into a width, broken between words."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [shortened(line, size, width) for line in lines]


def _runs(text: str) -> Iterator[tuple[Path, str]]:
    """A text in parts of one font each."""
    path, run = DEJAVU, ""
    for character in text:
        own = faces().of(character) or DEJAVU
        if own != path and run:
            yield path, run
            run = ""
        path, run = own, run + character
    if run:
        yield path, run


def _codes(font: FT2Font) -> set[int]:
    """Code points that a font has glyphs for, control characters apart."""
    there = (code for code, glyph in font.get_charmap().items() if glyph)
    return {code for code in there if unicodedata.category(chr(code)) != "Cc"}


@cache
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)
