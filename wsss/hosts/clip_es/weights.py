"""CLIP's weights from a file, read without running anything that the file carries.

OpenAI publishes a TorchScript archive: a zip with a pickle of the modules' tree, a file for each
tensor's values, and code. The tree is read by an unpickler that knows tensors and nothing else;
the code stays unread.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsss.errors import WsssError

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights by OpenAI's names, in float32.

    Args:
        path: OpenAI's archive, a state dict (bare or under `state_dict`), or `.safetensors`. The
            names may begin with `module.` or, those of the text tower, with `text.`.

    Raises:
        WsssError: the file is missing, broken, or of another content.
    """
    if not path.is_file():
        raise WsssError(f"host.weights={path}: no such file; give OpenAI's ViT-B-16.pt or openai")
    try:
        content = _content(path)
    except Exception as error:  # a broken file can fail in any way
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WsssError(f"{path}: can't be read as weights of CLIP ({first[:200]})") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise WsssError(f"{path}: holds no weights by name")
    return {
        str(name).removeprefix("module.").removeprefix("text."): value.float()
        for name, value in content.items()
        if isinstance(value, Tensor)
    }


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                return read_archive(archive)
    return torch.load(path, map_location="cpu", weights_only=True)


def read_archive(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """All tensors of a TorchScript archive, by their place in the tree of modules.

    Raises:
        pickle.UnpicklingError: the tree holds anything but modules, tensors and plain values.
    """
    (tree,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    with archive.open(tree) as file:
        root = _TreeUnpickler(file, archive, tree.removesuffix("data.pkl")).load()
    return dict(_tensors(root, ()))


class _Module:
    """A module of the archive: what it holds, by name, and none of its code."""

    parts: dict[str, Any]

    def __new__(cls) -> _Module:
        """Unpickling calls no `__init__`, and no `__setstate__` where there is no state."""
        self = super().__new__(cls)
        self.parts = {}
        return self

    def __setstate__(self, state: Any) -> None:
        self.parts = dict(state)


def _tensors(part: Any, place: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(part, Tensor):
        yield ".".join(place), part
    elif isinstance(part, _Module):
        for name, inner in part.parts.items():
            yield from _tensors(inner, (*place, str(name)))


def _rebuild(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *ignored: Any
) -> Tensor:
    """A tensor from its values; what PyTorch calls `_rebuild_tensor_v2`."""
    return storage.as_strided(size, stride, offset).clone()


def _plain_list(values: Any) -> list[Any]:
    return list(values)


def _untagged(value: Any, type_name: Any) -> Any:
    return value


class _TreeUnpickler(pickle.Unpickler):
    """Unpickles modules, tensors and plain values; refuses all else."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive, self._folder = archive, folder
        self._known: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return _plain_list
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return _untagged
        raise pickle.UnpicklingError(f"{module}.{name} is neither module nor tensor")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        if key not in self._known:
            values = bytearray(self._archive.read(f"{self._folder}data/{key}"))
            self._known[key] = (
                torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)
            )
        return self._known[key]
