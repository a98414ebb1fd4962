"""Class maps in the files of other projects: pickled `.npy` dictionaries.

IRN writes `keys` (0-based class ids), `cam` (stride 4) and `high_res` (image size), partly as torch
tensors; AMN (`wsss.maps.amn_npy`) the same, but with the background's channel first. SIPE writes
`keys` (0 for the background, then 1-based ids) and `IS_CAM` (image size, with its own background
first). MCTformer (`wsss.maps.mctformer_npy`) writes one map (image size) by class id, CLIP-ES has
names of its own (`wsss.maps.clip_es_npy`).

Such a file is a pickle, which can run any code when it is loaded. Here it is read by an unpickler
that knows arrays and tensors and nothing else.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from wsss.data.base import missing_files
from wsss.errors import WsssError
from wsss.files import atomic
from wsss.maps import amn_npy, clip_es_npy, mctformer_npy
from wsss.maps.files import ClassMaps
from wsss.maps.fuse import enlarge

FORMATS = ("irn", "amn", "mctformer", "clip_es", "sipe")
# Names by which the versions of NumPy and PyTorch call what rebuilds arrays and tensors.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("collections", "OrderedDict"),
}


def read_npy_maps(path: Path, size: tuple[int, int] | None = None) -> ClassMaps:
    """Read the class maps of one image as IRN, AMN, MCTformer or SIPE stored them.

    Args:
        path: the `.npy` file.
        size: (height, width) of the photograph; needed only for files without a map of its size.

    Returns:
        Class maps of kind `cam` (IRN), `amn_cam` (AMN, without its background), `refined`
        (MCTformer) or `is_cam` (SIPE), at the resolution they are stored in (the first two at
        stride 4), with 1-based class ids.

    Raises:
        WsssError: if the file is missing, broken, of another content, or holds anything but arrays
            and tensors.
    """
    try:
        return _class_maps(_read_dictionary(path), size)
    except FileNotFoundError as error:
        raise WsssError(f"{path}: no such class-map file") from error
    except Exception as error:  # a broken pickle can fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WsssError(
            f"{path}: {reason}; write it again with the program that it comes from, or correct "
            "refine.npy"
        ) from error


def _class_maps(content: dict[str, Any], size: tuple[int, int] | None) -> ClassMaps:
    """Class maps from the content of a file; `ValueError` says what is wrong with it."""
    kind = "is_cam" if "IS_CAM" in content else "cam"
    if amn_npy.is_amn(content):
        kind, content = amn_npy.KIND, amn_npy.to_irn(content)
    elif (clip_es := clip_es_npy.kind_of(content)) is not None:
        kind, content = clip_es, clip_es_npy.to_irn(content)
    elif mctformer_npy.is_mctformer(content):
        kind, content = mctformer_npy.KIND, mctformer_npy.to_irn(content)
    if kind == "is_cam":
        maps = full = content["IS_CAM"]
    else:
        full = content.get("high_res")
        maps = content.get("cam", full)
    if maps is None or "keys" not in content:
        raise ValueError(
            "no class maps of IRN, AMN (keys, cam, high_res), SIPE (keys, IS_CAM) or MCTformer"
        )
    # Shapes are compared before anything is copied: they may claim more than the file holds.
    (count, *grid), number = np.shape(maps), len(content["keys"])
    if len(grid) != 2 or count != number or np.shape(content["keys"]) != (number,):
        raise ValueError(f"maps of shape {tuple(np.shape(maps))} for {number} keys")
    if full is None and size is None:
        raise ValueError("holds no map of the photograph's size, and none was given")
    height, width = size if full is None else np.shape(full)[1:]  # type: ignore[misc]
    if size is not None and (height, width) != tuple(size):
        raise ValueError(f"maps of {height} x {width} for a photograph of {size[0]} x {size[1]}")
    if grid[0] > height or grid[1] > width:
        raise ValueError(f"maps of {grid[0]} x {grid[1]} for a photograph of {height} x {width}")

    keys = _array(content["keys"])
    if keys.dtype.kind not in "iu" and len(keys):
        raise ValueError(f"keys of type {keys.dtype} are no class ids")
    keys = keys.astype(np.int64)
    if kind == "is_cam" and (not len(keys) or keys[0] != 0):
        raise ValueError("SIPE's keys must begin with 0, the background")
    classes = keys[1:] if kind == "is_cam" else keys + 1
    if len(classes) and (len(set(classes.tolist())) < len(classes) or classes.min() < 1):
        raise ValueError(f"keys {keys.tolist()} are no distinct class ids")
    values = _array(maps)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"maps of type {values.dtype} are no numbers")
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("maps that are not finite")
    order, extra = np.argsort(classes), len(keys) - len(classes)
    rows = np.concatenate([np.arange(extra), order + extra]).astype(np.int64)
    return ClassMaps(classes[order], (int(height), int(width)), {kind: values[rows]})


def write_npy_maps(path: Path, maps: ClassMaps, kind: str, form: str) -> None:
    """Write class maps as IRN, AMN, MCTformer or SIPE read them, whole or not at all.

    `high_res` is what the stored maps are, enlarged: with `make_cam.stride=1` the scales were
    fused at the photograph's size, as IRN does, otherwise at the stride.

    Args:
        path: the `.npy` file.
        maps: class maps of one image; they are enlarged to the photograph's size.
        kind: which of its kinds.
        form: `irn`, `amn`, `mctformer`, `clip_es` (these leave a background channel out) or `sipe`.

    Raises:
        WsssError: if the form is unknown, or `sipe` is asked for maps without a background.
    """
    if form not in FORMATS:
        raise WsssError(f"format of exported maps: {form}; choose {', '.join(FORMATS)}")
    own_background = maps.has_background(kind)
    stored = maps.maps[kind].astype(np.float32)
    content: dict[Any, Any]
    if form == "sipe":
        if not own_background:
            raise WsssError(
                f"maps of kind {kind} have no background channel, which SIPE's files need; "
                "export them as irn"
            )
        keys = np.concatenate([[0], maps.classes]).astype(np.int64)
        content = {"keys": keys, "IS_CAM": enlarge(stored, maps.size)}
    else:
        foreground = stored[1:] if own_background else stored
        grid = ((maps.size[0] - 1) // 4 + 1, (maps.size[1] - 1) // 4 + 1)
        content = {
            # IRN moves `cam` to the GPU as it is, so it has to be a tensor.
            "keys": torch.from_numpy(maps.classes.astype(np.int64) - 1),
            "cam": torch.from_numpy(enlarge(foreground, grid)),
            "high_res": enlarge(foreground, maps.size),
        }
        if form == "amn":
            content = amn_npy.from_irn(content)
        elif form == "mctformer":
            content = mctformer_npy.from_irn(content)
        elif form == "clip_es":
            content = clip_es_npy.from_irn(content)
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, content)  # type: ignore[arg-type]  # an object array of one dictionary


def npy_files(folder: Path, names: list[str]) -> list[Path]:
    """The file of each image in a folder of `.npy` dictionaries.

    Raises:
        WsssError: if some are missing; the message counts them and names one.
    """
    paths = [folder / f"{name}.npy" for name in names]
    missing = missing_files(paths)
    if missing:
        raise WsssError(
            f"{folder}: {len(missing)} of {len(paths)} class-map files are missing, "
            f"for instance {missing[0].name}"
        )
    return paths


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles dictionaries, lists, numbers, arrays and tensors; refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _load_storage
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is neither array nor tensor")
        return super().find_class(module, name)


def _load_storage(content: bytes) -> Any:
    """A tensor's storage; `torch.storage._load_from_bytes` would unpickle it without limits."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _read_dictionary(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise ValueError("no regular file")
    with path.open("rb") as file:
        _skip_header(file)
        try:
            content = _ArrayUnpickler(file).load()
        except Exception as error:
            raise ValueError(f"not read, since it is broken or unsafe ({error})") from error
    if isinstance(content, np.ndarray) and content.shape == () and content.dtype == object:
        content = content.item()
    if not isinstance(content, dict):
        raise ValueError("holds no dictionary of class maps")
    return content


def _skip_header(file: BinaryIO) -> None:
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        dtype = read(file)[2]
    except Exception as error:
        raise ValueError(f"not read, since it is broken ({error})") from error
    if not dtype.hasobject:
        raise ValueError(f"a plain array of {dtype}, not IRN's or SIPE's dictionary")


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
