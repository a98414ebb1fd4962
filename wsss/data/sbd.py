"""From the Semantic Boundaries Dataset: the list trainaug and its masks for evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from wsss.data.base import read_list
from wsss.data.masks import write_mask
from wsss.data.mat_reader import read_mat_mask
from wsss.errors import WsssError
from wsss.files import atomic
from wsss.run.pool import parallel


def sbd_folder(sbd_root: Path) -> Path:
    """The folder with `cls`, `train.txt` and `val.txt`: `sbd_root` or its folder `dataset`.

    Raises:
        WsssError: if neither is one.
    """
    for folder in (sbd_root / "dataset", sbd_root):
        if (folder / "cls").is_dir():
            return folder
    raise WsssError(
        f"{sbd_root} has no folder cls or dataset/cls: give data.sbd_root=/path/to/SBD "
        "(benchmark_RELEASE of the Semantic Boundaries Dataset)"
    )


def derive_trainaug(
    sbd: Path, voc_train: Iterable[str], voc_val: Iterable[str], target: Path
) -> list[str]:
    """Write the list trainaug = (VOC train + SBD train + SBD val) without VOC val.

    Args:
        sbd: what `sbd_folder` found.
        voc_train: names of VOC's train.
        voc_val: names of VOC's val.
        target: list to write.

    Returns:
        The names, sorted.

    Raises:
        WsssError: if a list is missing.
    """
    names = {*voc_train, *read_list(sbd / "train.txt"), *read_list(sbd / "val.txt")}
    derived = sorted(names - set(voc_val))
    with atomic(target) as temporary:
        temporary.write_text("\n".join(derived) + "\n", encoding="utf-8")
    return derived


def convert_masks(
    sbd: Path, names: Sequence[str], target: Path, num_classes: int, workers: int = 0
) -> None:
    """Write `target/NAME.png` from SBD's masks.

    Args:
        sbd: what `sbd_folder` found.
        names: images whose mask is wanted.
        target: folder of the masks.
        num_classes: number of foreground classes.
        workers: number of processes, 0 for this one.

    Raises:
        WsssError: if a file of SBD is missing or broken; the others are converted.
    """
    convert = partial(convert_mask, source=sbd / "cls", target=target, num_classes=num_classes)
    problems = [line for line in parallel(convert, names, "masks of SBD", workers) if line]
    if problems:
        more = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
        raise WsssError(problems[0] + more)


def convert_mask(name: str, source: Path, target: Path, num_classes: int) -> str | None:
    """Convert one mask: `GTcls.Segmentation` of `source/name.mat` to `target/name.png`.

    Returns:
        None, or one line that says what is wrong.
    """
    path = source / f"{name}.mat"
    try:
        mask = read_mat_mask(path)
    except ValueError as error:
        return f"can't read the class mask GTcls.Segmentation of {path}: {error}; get it again"
    if not 0 <= mask.min(initial=0) <= mask.max(initial=0) <= num_classes:
        ids = f"{mask.min():g} to {mask.max():g}"
        return f"{path} holds ids from {ids}, but there are {num_classes} classes"
    write_mask(target / f"{name}.png", mask.astype(int))
    return None
