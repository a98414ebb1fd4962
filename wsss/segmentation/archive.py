"""Label maps packed as PASCAL VOC's evaluation server takes them."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.errors import WsssError
from wsss.files import atomic
from wsss.run.progress import track

COMPETITIONS = ("comp5", "comp6")  # trained on VOC's own data only, or on other data as well
FORMATS = ("tar.gz", "zip")


def archive_folder(competition: str, split: str) -> str:
    """Folder inside the archive that the server looks for."""
    return f"results/VOC2012/Segmentation/{competition}_{split}_cls"


def check_archive(competition: str, file_format: str) -> None:
    """Check the keys before long work begins.

    Raises:
        WsssError: if one has an unknown value.
    """
    if competition not in COMPETITIONS:
        raise WsssError(
            f"segmentation.eval.archive.competition={competition}: "
            f"choose {' or '.join(COMPETITIONS)}"
        )
    if file_format not in FORMATS:
        raise WsssError(
            f"segmentation.eval.archive.format={file_format}: choose {' or '.join(FORMATS)}"
        )


def checked_png(path: Path, num_labels: int) -> bytes:
    """The bytes of a label map that the server will take.

    Raises:
        WsssError: if it is no palette PNG or holds a label that is no class.
    """
    try:
        with Image.open(path) as file:
            mode, kind, highest = file.mode, file.format, int(np.asarray(file).max())
    except (OSError, SyntaxError) as error:
        raise WsssError(f"can't read label map {path}: {error}") from error
    if kind != "PNG" or mode != "P":
        raise WsssError(f"label map {path} is {kind} of mode {mode}; the server wants palette PNG")
    if highest >= num_labels:
        raise WsssError(f"label map {path} holds label {highest}, beyond the {num_labels} classes")
    return path.read_bytes()


def write_archive(
    path: Path,
    masks: Path,
    names: Sequence[str],
    split: str,
    num_labels: int,
    competition: str = "comp6",
    file_format: str = "tar.gz",
) -> Path:
    """Pack label maps; the same label maps give the same bytes.

    Args:
        path: file to write.
        masks: folder of palette PNGs, NAME.png.
        names: images of the split, in any order.
        split: name of the split, `test`.
        num_labels: labels, background included; others are refused.
        competition: comp5 or comp6.
        file_format: tar.gz or zip.

    Raises:
        WsssError: if a key is unknown, or a label map is missing or not as the server wants it.
    """
    check_archive(competition, file_format)
    folder = archive_folder(competition, split)
    with atomic(path) as temporary, _opened(temporary, file_format) as add:
        for name in track(sorted(names), f"archive {path.name}"):
            add(f"{folder}/{name}.png", checked_png(masks / f"{name}.png", num_labels))
    return path


@contextmanager
def _opened(path: Path, file_format: str) -> Iterator[Callable[[str, bytes], None]]:
    """A function that adds a file to the archive at `path`."""
    if file_format == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as packed:  # PNG is compressed
            yield lambda name, data: packed.writestr(zipfile.ZipInfo(name), data)
        return
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):

        def add(name: str, data: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))

        yield add
