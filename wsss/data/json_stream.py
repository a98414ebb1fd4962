"""Read the elements of large JSON lists one by one, each with its place in the file."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from wsss.errors import WsssError

CHUNK = 1 << 22  # bytes
LARGEST = 1 << 28  # bytes of one value; a fault of the file shows itself as an endless value
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")


class Element(NamedTuple):
    """One element of a list of the file.

    Attributes:
        key: The top-level key whose list it stands in.
        value: What it is.
        offset: Its first byte in the file.
        length: Its number of bytes.
    """

    key: str
    value: Any
    offset: int
    length: int


def stream_lists(path: Path, keys: Collection[str]) -> Iterator[Element]:
    """Elements of the lists that a JSON object has under `keys`, in the order of the file.

    Only one element and one chunk of the file are held at a time: half a gigabyte is read with a
    few megabytes. Other keys are passed over.

    Raises:
        WsssError: If the file is missing or no such JSON, or a key is missing or holds no list.
    """
    seen = set()
    try:
        with path.open("rb") as file:
            text = _Text(file)
            text.take("{", "the file does not begin with {")
            while text.peek() != "}":
                key = text.value().value
                text.take(":", "a key has no value")
                if key not in keys:
                    text.value()
                else:
                    seen.add(key)
                    text.take("[", f"'{key}' is no list")
                    while text.peek() != "]":
                        element = text.value()
                        yield element._replace(key=key)
                        if text.peek() != "]":
                            text.take(",", f"a comma is missing in '{key}'")
                    text.take("]", "")
                if text.peek() != "}":
                    text.take(",", "a comma is missing between keys")
            text.take("}", "")
            text.end()
    except OSError as error:
        raise WsssError(f"can't read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise WsssError(f"can't read {path} as JSON: {error}") from error
    missing = [key for key in keys if key not in seen]
    if missing:
        raise WsssError(f"{path} has no list '{missing[0]}', which COCO's format asks for")


def read_element(file: BinaryIO, offset: int, length: int) -> Any:
    """The element that `stream_lists` found at a place of the file."""
    file.seek(offset)
    return json.loads(file.read(length))


class _Text:
    """A window on the file that moves on as values are taken from it.

    Bytes are decoded as Latin-1, one character each, so that positions are positions in the file;
    no byte of a longer UTF-8 character looks like one of JSON's signs. Values with such characters
    are decoded again.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.text, self.at, self.base = "", 0, 0
        if file.read(3) != b"\xef\xbb\xbf":  # the mark of UTF-8 that some editors write
            file.seek(0)
        else:
            self.base = 3

    def more(self) -> bool:
        """Read on, twice as much as is left; False at the end of the file."""
        left = len(self.text) - self.at
        if left > LARGEST:
            raise ValueError(f"the value at byte {self.base + self.at} does not end")
        chunk = self.file.read(max(CHUNK, left))
        self.base += self.at
        self.text, self.at = self.text[self.at :] + chunk.decode("latin-1"), 0
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is no white space; it is not taken."""
        while True:
            space = _SPACE.match(self.text, self.at)
            assert space is not None  # the pattern matches nothing, too
            self.at = space.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                raise ValueError("the file ends too early")

    def take(self, sign: str, fault: str) -> None:
        """Take one character."""
        if self.peek() != sign:
            raise ValueError(f"{fault} (byte {self.base + self.at})")
        self.at += 1

    def end(self) -> None:
        """Check that nothing but white space follows."""
        while not self.text[self.at :].strip():
            self.at = len(self.text)
            if not self.more():
                return
        raise ValueError(f"something follows the end (byte {self.base + self.at})")

    def value(self) -> Element:
        """Take one value."""
        while True:
            self.peek()
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                place = self.base + error.pos
                if self.more():
                    continue
                raise ValueError(f"{error.msg} (byte {place})") from error
            length = end - self.at
            if end < len(self.text) or not self.more():  # a number might go on
                break
        written = self.text[self.at : self.at + length]
        if not written.isascii():
            value = json.loads(written.encode("latin-1"))
        offset = self.base + self.at
        self.at += length
        return Element("", value, offset, length)
