"""From the Semantic Boundaries Dataset: the list trainaug and its masks for evaluation."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError

from wsss.data.base import read_list
from wsss.data.masks import write_mask
from wsss.errors import WsssError
from wsss.run.pool import parallel

if TYPE_CHECKING:
    from wsss.data.voc import VOC


# What scipy raises for files that are missing, cut, no .mat or of another structure.
_UNREADABLE = (
    OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError, MatReadError,
    zlib.error,
)  # fmt: skip


def sbd_folder(sbd_root: Path) -> Path:
    """The folder with `cls`, `train.txt` and `val.txt`: `sbd_root` or its folder `dataset`.

    Raises:
        WsssError: If neither is one.
    """
    for folder in (sbd_root / "dataset", sbd_root):
        if (folder / "cls").is_dir():
            return folder
    raise WsssError(
        f"{sbd_root} has no folder cls or dataset/cls: give data.sbd_root=/path/to/SBD "
        "(benchmark_RELEASE of the Semantic Boundaries Dataset)"
    )


def derive_trainaug(image_set: VOC) -> list[str]:
    """Write the list trainaug = (VOC train + SBD train + SBD val) without VOC val.

    Returns:
        The names, sorted; they are in `cache_dir/lists/trainaug.txt`.

    Raises:
        WsssError: If a list is missing or there is no folder to write to.
    """
    if image_set.cache_dir is None or image_set.sbd_root is None:
        raise WsssError("trainaug needs data.sbd_root and a data.image_set.cache_dir to write to")
    sbd = sbd_folder(image_set.sbd_root)
    names = set(image_set.names("train"))
    for split in ("train", "val"):
        names.update(read_list(sbd / f"{split}.txt"))
    derived = sorted(names - set(image_set.names("val")))
    path = image_set.cache_dir / "lists" / "trainaug.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join(derived) + "\n", encoding="utf-8")
    temporary.replace(path)
    return derived


def convert_masks(image_set: VOC, names: Sequence[str], workers: int = 0) -> dict[str, int]:
    """Write `cache_dir/SegmentationClassAug/ID.png` for the images without an official mask.

    Masks that are there already are kept, so that an interrupted run goes on where it was.

    Args:
        image_set: VOC with `sbd_root` and `cache_dir`.
        names: Images that need a mask.
        workers: Number of processes, 0 for this one.

    Returns:
        How many masks were converted and how many were there.

    Raises:
        WsssError: If a file of SBD is missing or broken.
    """
    if image_set.cache_dir is None or image_set.sbd_root is None:
        raise WsssError("SBD's masks need data.sbd_root and a data.image_set.cache_dir to write to")
    todo = [name for name in names if not image_set.has_mask(name)]
    convert = partial(
        convert_mask,
        source=sbd_folder(image_set.sbd_root) / "cls",
        target=image_set.cache_dir / "SegmentationClassAug",
        num_classes=image_set.num_classes,
    )
    problems = [line for line in parallel(convert, todo, "masks of SBD", workers) if line]
    if problems:
        more = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
        raise WsssError(problems[0] + more)
    return {"masks_converted": len(todo), "masks_found": len(names) - len(todo)}


def convert_mask(name: str, source: Path, target: Path, num_classes: int) -> str | None:
    """Convert one mask: `GTcls.Segmentation` of `source/name.mat` to `target/name.png`.

    Returns:
        None, or one line that says what is wrong.
    """
    path = source / f"{name}.mat"
    try:
        mask = read_sbd_mask(path)
    except _UNREADABLE as error:
        return f"can't read the class mask GTcls.Segmentation of {path}: {error}"
    if not 0 <= mask.min(initial=0) <= mask.max(initial=0) <= num_classes:
        ids = f"{mask.min()} to {mask.max()}"
        return f"{path} holds ids from {ids}, but there are {num_classes} classes"
    write_mask(target / f"{name}.png", mask)
    return None


def read_sbd_mask(path: Path) -> np.ndarray:
    """`GTcls.Segmentation` of one of SBD's `cls/ID.mat`, (H, W) class ids."""
    content = scipy.io.loadmat(str(path), variable_names=["GTcls"])
    mask = content["GTcls"]["Segmentation"][0, 0]
    if mask.ndim != 2:
        raise ValueError(f"it has the shape {mask.shape}")
    return mask
