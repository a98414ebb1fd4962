"""Text in any alphabet, against the fonts' own tables and the pixels that are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw

from wsss.show.fonts import (
    DEJAVU,
    class_names,
    draw_text,
    faces,
    readable,
    shortened,
    text_width,
    wrapped,
)


def drawn(text: str, size: int = 20) -> np.ndarray:
    """Whether each pixel of a line of text is inked."""
    picture = Image.new("L", (300, 40), "white")
    draw_text(ImageDraw.Draw(picture), (10, 5), text, size)
    return np.asarray(picture) < 128


def test_what_dejavu_has_stands_and_all_else_is_its_code(system_fonts) -> None:
    there = TTFont(DEJAVU).getBestCmap()
    some = [*range(0x20, 0x7F), *range(0xC0, 0x180), 0x5D0, 0x645, 0x905, 0x725B, 0x1F404]
    for code in some:
        expected = chr(code) if code in there else chr(code).encode("unicode_escape").decode()
        assert readable(chr(code)) == expected
    assert readable("Kühe 牛") == "Kühe \\u725b"
    assert readable("a\tb\nc\x01") == "a b c\\x01"
    assert readable("u\u0308ber") == "über"


def test_a_class_without_glyphs_is_called_by_its_id(system_fonts) -> None:
    assert class_names(["Kuh", "牛", "ß", "u\u0308", "牛a"]) == [
        "Kuh",
        "class 2",
        "ß",
        "ü",
        "class 5",
    ]


def test_a_font_of_the_system_shows_what_dejavu_lacks(system_fonts) -> None:
    system_fonts("Oxen", "牛馬")
    assert class_names(["牛", "Kuh", "猫"]) == ["牛", "Kuh", "class 3"]
    assert faces().families == ["DejaVu Sans", "Oxen"]
    square = drawn("牛")
    assert square.sum() == 400 and square[:, 10:30].any(axis=1).sum() == 20
    assert text_width("牛馬", 20) == 40
    # The letters around it are DejaVu's, on the same line.
    both = drawn("l牛l")
    alone = drawn("l")
    left = round(text_width("l", 20))
    assert (both[:, 10 : 10 + left] == alone[:, 10 : 10 + left]).all()
    assert (both.any(axis=0)[10 + left : 30 + left]).all()


def test_fonts_that_have_a_box_for_everything_are_passed_over(system_fonts) -> None:
    system_fonts("LastResortHE", "牛")
    assert class_names(["牛"]) == ["class 1"]


def test_a_broken_font_file_is_passed_over(system_fonts, tmp_path: Path) -> None:
    system_fonts("Broken", "牛").write_bytes(b"no font")
    system_fonts("Whole", "牛")
    assert class_names(["牛"]) == ["牛"]


def test_long_text_is_cut_and_wrapped(system_fonts) -> None:
    text = "a rather long heading of a column"
    assert shortened(text, 12, 1000) == text
    cut = shortened(text, 12, 100)
    assert cut.endswith("…") and text.startswith(cut[:-1]) and text_width(cut, 12) <= 100
    lines = wrapped(text, 12, 100)
    assert " ".join(lines) == text and len(lines) > 1
    assert all(text_width(line, 12) <= 100 for line in lines)
    assert wrapped("x" * 80, 12, 100)[0].endswith("…")
