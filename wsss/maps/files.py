"""Class-map files: what make_cam writes and every later stage reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsss.errors import WsssError
from wsss.files import atomic

MAPS = "maps"  # folder of class-map files inside that of stage=make_cam


@dataclass(frozen=True)
class ClassMaps:
    """The class maps of one image.

    Attributes:
        classes: ids of the image's foreground classes, ascending, 1-based, (K,).
        size: height and width of the photograph.
        maps: by kind (`cam`, `is_cam`, `pacam`, ...), float32 in [0, 1], (K, h, w); a kind with a
            background map of its own has it first, (K+1, h, w).
    """

    classes: np.ndarray
    size: tuple[int, int]
    maps: dict[str, np.ndarray]

    def has_background(self, kind: str) -> bool:
        """Whether maps of this kind carry their own background channel."""
        return len(self.maps[kind]) == len(self.classes) + 1


def write_class_maps(path: Path, maps: ClassMaps, dtype: str = "uint8") -> None:
    """Write class maps as a compressed `.npz` that is read without pickle.

    Args:
        path: file to write.
        maps: values in [0, 1].
        dtype: `uint8` (steps of 1/255) or `float16`.

    Raises:
        WsssError: another dtype.
        ValueError: a map has neither K nor K+1 channels.
    """
    if dtype not in ("uint8", "float16"):
        raise WsssError(f"make_cam.dtype={dtype}: choose uint8 or float16")
    arrays: dict[str, np.ndarray] = {
        "classes": np.asarray(maps.classes, dtype=np.int16),
        "size": np.asarray(maps.size, dtype=np.int32),
    }
    for kind, values in maps.maps.items():
        if len(values) - len(maps.classes) not in (0, 1):
            raise ValueError(f"{kind}: {len(values)} channels for {len(maps.classes)} classes")
        if not np.isfinite(values).all():
            raise WsssError(
                f"{path.stem}: the class maps of kind {kind} hold values that are no numbers: the "
                "weights are those of a training that has diverged, or precision is too low "
                "(trainer.precision=32-true)"
            )
        if dtype == "uint8":
            arrays[f"map_{kind}"] = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
        else:
            arrays[f"map_{kind}"] = values.astype(np.float16)
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_class_maps(path: Path, kind: str | None = None) -> ClassMaps:
    """Read a class-map file, all kinds or one of them.

    Raises:
        WsssError: the file is missing, broken or holds what no class map is, or not `kind`.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = [name for name in stored.files if name.startswith("map_")]
            if kind is not None:
                if f"map_{kind}" not in names:
                    there = ", ".join(name[4:] for name in names)
                    raise WsssError(f"{path}: holds no map of kind {kind} (it has {there})")
                names = [f"map_{kind}"]
            height, width = (int(n) for n in stored["size"])
            classes = stored["classes"].astype(np.int64)
            maps = {}
            for name in names:
                shape = _claimed_shape(stored, name)
                if len(shape) != 3 or shape[1] > height or shape[2] > width:
                    raise ValueError(f"maps of {shape} for a photograph of {height} x {width}")
                values = stored[name]
                scale = 255 if values.dtype == np.uint8 else 1
                maps[name[4:]] = values.astype(np.float32) / scale
                if len(values) - len(classes) not in (0, 1):
                    raise ValueError(f"{len(values)} channels for {len(classes)} classes")
                if not np.isfinite(maps[name[4:]]).all():
                    raise ValueError("values that are no numbers")
            return ClassMaps(classes, (height, width), maps)
    except FileNotFoundError as error:
        raise WsssError(f"{path}: no class maps; run stage=make_cam first") from error
    except WsssError:
        raise
    except Exception as error:  # a damaged archive can fail in any way
        text = " ".join(str(error).split()) or type(error).__name__
        raise WsssError(
            f"{path}: broken class-map file ({text}); delete it and run stage=make_cam again"
        ) from error


def _claimed_shape(stored: Any, name: str) -> tuple[int, ...]:
    """Shape that an array of an `.npz` claims, read from its head before it is unpacked."""
    with stored.zip.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        return read(file)[0]


@dataclass(frozen=True)
class MapSource:
    """Where a refining stage finds its class maps.

    Attributes:
        folder: folder of class-map files.
        kind: which of their kinds.
        hash: stands for how they were made.
    """

    folder: Path
    kind: str
    hash: str

    def read(self, name: str) -> ClassMaps:
        """The class maps of one image, of this kind only."""
        return read_class_maps(self.folder / f"{name}.npz", self.kind)
