"""Make what is derived from a raw data set, and check all of it before hours are spent on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from wsss.data.base import ImageSet
from wsss.data.masks import VOID
from wsss.data.photographs import checked_size
from wsss.errors import WsssError
from wsss.run.pool import parallel

SHOWN = 20  # problems that are written out; the rest is counted


@dataclass(frozen=True)
class Finding:
    """What was found out about one image.

    Attributes:
        size: (height, width) upright, or None if the image can't be read.
        mask_ids: class ids in its mask, without background and void; None without a mask.
        problems: one line each.
    """

    size: tuple[int, int] | None
    mask_ids: tuple[int, ...] | None
    problems: tuple[str, ...]


def prepare(
    image_set: ImageSet,
    splits: Sequence[str],
    expected_counts: Mapping[str, int] | None = None,
    held_out: Sequence[str] = ("val", "test"),
    workers: int = 0,
    optional: Sequence[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Derive lists and masks, then check lists, images, labels and masks of some splits.

    It can be interrupted and run again: derived files that are there are kept.

    Args:
        image_set: the data set.
        splits: splits to check. An unlabeled one (test) is passed over if it has no list.
        expected_counts: number of images that a split must have.
        held_out: splits that must share no image with any other of `splits`.
        workers: number of processes; 0: this one, -1: one for each core.
        optional: splits that are passed over, too, if they have no list.

    Returns:
        A report of plain numbers, strings, lists and dictionaries: `data_set`, `classes`,
        `derived`, `splits` (per split: images, expected, masks, smallest, median and largest
        size as [height, width], labels_per_image, images_per_class) and `warnings`. And the
        problems: a line for everything that must be put right before the data set is used.

    Raises:
        WsssError: if the data set can't be looked at at all.
    """
    derived = image_set.derive(workers)
    classes = list(image_set.classes)  # without them nothing else can be looked at
    problems, warnings = (list(lines) for lines in image_set.review())
    members: dict[str, list[str]] = {}
    for split in dict.fromkeys(splits):
        try:
            members[split] = image_set.names(split)
        except WsssError as error:
            if split in image_set.unlabeled_splits or split in optional:
                warnings.append(f"split '{split}' is passed over: {error}")
            else:
                problems.append(str(error))
    problems += _list_problems(members, expected_counts or {}, held_out)

    every = list(dict.fromkeys(name for names in members.values() for name in names))
    inspected = parallel(partial(inspect, image_set=image_set), every, "images", workers)
    findings = dict(zip(every, inspected, strict=True))
    problems += [line for name in every for line in findings[name].problems]

    report: dict[str, Any] = {
        "data_set": repr(image_set),
        "classes": classes,
        "derived": derived,
        "splits": {},
        "warnings": warnings,
    }
    checked_labels: dict[str, np.ndarray] = {}
    for split, names in members.items():
        labeled = split not in image_set.unlabeled_splits
        if labeled:
            fresh = [name for name in names if name not in checked_labels]
            found, wrong = collect_labels(image_set, fresh)
            checked_labels |= found
            problems += wrong
        labels = {name: checked_labels[name] for name in names if name in checked_labels}
        expected = (expected_counts or {}).get(split)
        report["splits"][split] = _summary(classes, names, findings, labels, expected)
        warnings += _label_warnings(split, classes, findings, labels)
    return report, list(dict.fromkeys(problems))


def complaint(subject: str, problems: Sequence[str]) -> WsssError:
    """The error that tells of problems: the first of them, a line each, and how many there are."""
    if len(problems) == 1:
        return WsssError(problems[0])
    shown = list(problems[:SHOWN])
    if len(problems) > SHOWN:
        shown.append(f"... and {len(problems) - SHOWN} more")
    return WsssError("\n".join([f"{subject} has {len(problems)} problems:", *shown]))


def inspect(name: str, image_set: ImageSet) -> Finding:
    """Read one image and its mask, if it has one, and say what is wrong with them."""
    problems: list[str] = []
    size = None
    try:
        size = checked_size(image_set.image_path(name))
    except WsssError as error:
        problems.append(str(error))
    mask_ids = None
    try:
        mask = image_set.mask(name)
    except WsssError as error:
        problems.append(str(error))
    else:
        if mask is not None:
            mask_ids = tuple(int(i) for i in np.unique(mask) if i not in (0, VOID))
            if size is not None and mask.shape != size:
                problems.append(
                    f"the mask of '{name}' is {mask.shape[1]} x {mask.shape[0]} pixels, its image "
                    f"{size[1]} x {size[0]}"
                )
    return Finding(size, mask_ids, tuple(problems))


def collect_labels(
    image_set: ImageSet, names: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Labels of the images that have good ones, by name, and a line for each of the others.

    The names are halved until the bad ones stand alone: few calls where few are bad.
    """
    if not names:
        return {}, []
    try:
        return dict(zip(names, image_set.labels(names), strict=True)), []
    except WsssError as error:
        if len(names) == 1:
            return {}, [str(error)]
    middle = len(names) // 2
    first, first_wrong = collect_labels(image_set, names[:middle])
    second, second_wrong = collect_labels(image_set, names[middle:])
    return first | second, first_wrong + second_wrong


def _list_problems(
    members: Mapping[str, Sequence[str]], expected: Mapping[str, int], held_out: Sequence[str]
) -> list[str]:
    """Wrong counts, and images of a held-out split that stand in another one, too."""
    problems = [
        f"split '{split}' has {len(members[split])} images, expected {count} "
        "(a part of the data set: data.expected_counts=null switches the check off)"
        for split, count in expected.items()
        if split in members and len(members[split]) != count
    ]
    for held in held_out:
        for split, names in members.items():
            common = sorted(set(names) & set(members.get(held, ()))) if split != held else []
            if common and not (split in held_out and split < held):  # each pair once
                problems.append(
                    f"{len(common)} images of split '{held}' are in split '{split}' as well, "
                    f"for instance '{common[0]}'"
                )
    return problems


def _summary(
    classes: Sequence[str],
    names: Sequence[str],
    findings: Mapping[str, Finding],
    labels: Mapping[str, np.ndarray],
    expected: int | None,
) -> dict[str, Any]:
    """The report's entry of one split."""
    sizes = sorted(
        (size for name in names if (size := findings[name].size)), key=lambda s: s[0] * s[1]
    )
    summary: dict[str, Any] = {
        "images": len(names),
        "expected": expected,
        "masks": sum(findings[name].mask_ids is not None for name in names),
    }
    if sizes:
        picks = {"smallest": 0, "median": len(sizes) // 2, "largest": len(sizes) - 1}
        summary |= {key: list(sizes[i]) for key, i in picks.items()}
    if labels:
        table = np.stack(list(labels.values())).astype(int)
        histogram = Counter(table.sum(axis=1).tolist())
        summary["labels_per_image"] = {
            "mean": round(float(table.sum(axis=1).mean()), 3),
            "images": {number: histogram[number] for number in sorted(histogram)},
        }
        summary["images_per_class"] = dict(zip(classes, table.sum(axis=0).tolist(), strict=True))
    return summary


def _label_warnings(
    split: str,
    classes: Sequence[str],
    findings: Mapping[str, Finding],
    labels: Mapping[str, np.ndarray],
) -> list[str]:
    """What is odd about a split's labels, but may be meant so."""

    def line(names: Sequence[str], what: str) -> list[str]:
        return [f"split '{split}': {len(names)} images {what}, e.g. '{names[0]}'"] if names else []

    if not labels:
        return []
    bare = [name for name, label in labels.items() if not label.any()]
    unnamed = [
        name
        for name, label in labels.items()
        if any(not label[i - 1] for i in findings[name].mask_ids or () if 1 <= i <= len(classes))
    ]
    shown = [ids for name in labels if (ids := findings[name].mask_ids) is not None]
    counts = np.sum(list(labels.values()), axis=0)
    absent = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    return [
        *line(bare, "have no label"),
        *line(unnamed, "have a class in the mask that is not among their labels"),
        *(
            [f"split '{split}': no mask shows any object, all is 0 or 255 (void)"]
            if shown and not any(shown)
            else []
        ),
        *([f"split '{split}' has no image of: {', '.join(absent)}"] if absent else []),
    ]
