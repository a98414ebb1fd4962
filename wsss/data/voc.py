"""PASCAL VOC 2012 (with SBD), and any data set laid out like it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from wsss.data.base import (
    ImageSet,
    class_problems,
    fingerprint_of,
    list_files,
    read_lines,
    read_list,
)
from wsss.data.masks import read_derived_mask, read_mask
from wsss.data.photographs import IMAGE_ENDINGS
from wsss.data.sbd import convert_masks, derive_trainaug, sbd_folder
from wsss.errors import WsssError
from wsss.files import atomic

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip

CONVERTED = "SegmentationClassAug"  # folder of masks converted from SBD, in the cache
# Raised when the meaning of the cached label vectors changes.
_CACHE_VERSION = 1


class VOC(ImageSet):
    """A data set in the layout of the VOC devkit.

    `JPEGImages/ID.jpg`, `Annotations/ID.xml`, `SegmentationClass/ID.png` and
    `ImageSets/Segmentation/SPLIT.txt` under one root. What is derived from them (the list
    trainaug, masks of SBD, label vectors) lies in `cache_dir`, so that the root may be read-only.
    """

    def __init__(
        self,
        root: str | Path,
        sbd_root: str | Path | None = None,
        cache_dir: str | Path | None = None,
        classes: Sequence[str] | None = None,
        unlabeled_splits: Sequence[str] = ("test",),
    ) -> None:
        """Describe the data set; no file is needed before it is used.

        Args:
            root: folder with `JPEGImages` (`VOCdevkit/VOC2012`).
            sbd_root: folder of the Semantic Boundaries Dataset, with `cls` or `dataset/cls`.
            cache_dir: folder for derived files; it belongs to this data set alone. None: nothing
                is kept.
            classes: foreground class names in the order of their ids. Default: the lines of
                `ImageSets/classes.txt` if there is one, else the 20 classes of VOC.
            unlabeled_splits: splits without annotations.

        Raises:
            WsssError: if `root` is not given or something is wrong with the class names.
        """
        if not root:
            raise WsssError("the folder of the data set is not set: give data.root=/path/to/VOC")
        self.root = Path(root).expanduser()
        self.sbd_root = Path(sbd_root).expanduser() if sbd_root else None
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else None
        self.unlabeled_splits = tuple(unlabeled_splits)
        self.class_file = self.root / "ImageSets" / "classes.txt"
        where: object = "data.image_set.classes"
        if classes is not None:
            self.classes = tuple(classes)
        elif self.class_file.is_file():
            where = self.class_file
            self.classes = tuple(line for _, line in read_lines(self.class_file, "class list"))
        else:
            self.classes = VOC_CLASSES
        problems = class_problems(self.classes, where)
        if problems:
            raise WsssError(problems[0])

    def __repr__(self) -> str:
        sbd = f", sbd_root={str(self.sbd_root)!r}" if self.sbd_root else ""
        return f"{type(self).__name__}({str(self.root)!r}{sbd}, {self.num_classes} classes)"

    def check(self, split: str, need_masks: bool = False) -> None:
        """Check root, list, image files and, if asked, masks of a split.

        Raises:
            WsssError: one line that names what is missing and the way out.
        """
        self.check_root()
        super().check(split, need_masks)

    def check_root(self) -> None:
        """Check that the root is a VOC folder.

        Raises:
            WsssError: one line with the key `data.root` and, if it can be seen, the right value.
        """
        if (self.root / "JPEGImages").is_dir():
            return
        if not self.root.is_dir():
            raise WsssError(
                f"the data folder {self.root} does not exist: give data.root=/path/to/VOC2012 "
                "(the folder with JPEGImages), or data=scenes to run without a download"
            )
        inner = sorted(self.root.glob("*/JPEGImages")) + sorted(self.root.glob("*/*/JPEGImages"))
        hint = f"try data.root={inner[0].parent}" if inner else "give the folder that holds it"
        raise WsssError(f"{self.root} has no folder JPEGImages: {hint} (data.root=...)")

    def list_path(self, split: str) -> Path | None:
        """File of a split's list: the derived one if there is one, else the root's, else None."""
        candidates = [self.root / "ImageSets" / "Segmentation" / f"{split}.txt"]
        if self.cache_dir is not None:
            candidates.insert(0, self.cache_dir / "lists" / f"{split}.txt")
        return next((path for path in candidates if path.is_file()), None)

    def names(self, split: str) -> list[str]:
        """Names of a split from its list.

        Raises:
            WsssError: if the list is missing or faulty.
        """
        path = self.list_path(split)
        if path is None:
            self.check_root()
            folder = self.root / "ImageSets" / "Segmentation"
            known = sorted(p.stem for p in folder.glob("*.txt"))
            way = (
                "run stage=prepare with data.sbd_root=/path/to/SBD, which derives it"
                if split == "trainaug"
                else f"lists there: {', '.join(known) or 'none'}"
            )
            raise WsssError(f"no list for split '{split}' ({folder / split}.txt): {way}")
        return read_list(path)

    def image_path(self, name: str) -> Path:
        """`JPEGImages/name.jpg`; if there is none, a file of that name with another ending."""
        folder = self.root / "JPEGImages"
        for endings in ((".jpg",), IMAGE_ENDINGS):
            files, _ = list_files(folder, endings)
            if name in files:
                return folder / files[name]
        return folder / f"{name}.jpg"

    def mask_path(self, name: str) -> Path | None:
        """The official mask, else the one converted from SBD, else None."""
        candidates = [self.root / "SegmentationClass" / f"{name}.png"]
        if self.cache_dir is not None:
            candidates.append(self.cache_dir / CONVERTED / f"{name}.png")
        return next((path for path in candidates if path.is_file()), None)

    def has_mask(self, name: str) -> bool:
        """Whether there is a mask file."""
        return self.mask_path(name) is not None

    def mask(self, name: str) -> np.ndarray | None:
        """Ground truth, (H, W) uint8 with 255 = void; None if the image has no mask."""
        path = self.mask_path(name)
        if path is None:
            return None
        derived = path.parent.name == CONVERTED
        return (read_derived_mask if derived else read_mask)(path, self.num_classes)

    def labels(self, names: Sequence[str]) -> np.ndarray:
        """Label vectors from the object names of the XML files, difficult objects included.

        They are kept in `cache_dir/labels.npz`; an XML file is read again when its size or time
        has changed.

        Returns:
            (len(names), N) uint8.

        Raises:
            WsssError: if an annotation is missing or broken or names an unknown class.
        """
        cache = self._read_label_cache()
        result = np.zeros((len(names), self.num_classes), dtype=np.uint8)
        fresh: dict[str, tuple[tuple[int, int], np.ndarray]] = {}
        for row, name in enumerate(names):
            path = self.root / "Annotations" / f"{name}.xml"
            try:
                status = os.stat(path)
            except OSError as error:
                self.check_root()
                raise WsssError(
                    f"no annotation {path} for image '{name}': image-level labels are read from it"
                ) from error
            stamp = (status.st_size, status.st_mtime_ns)
            if name in cache and cache[name][0] == stamp:
                result[row] = cache[name][1]
            else:
                result[row] = read_xml_label(path, self.classes)
                fresh[name] = (stamp, result[row])
        if fresh:
            self._write_label_cache(cache | fresh)
        return result

    def derive(self, workers: int = 0) -> dict[str, object]:
        """Derive the list trainaug and the masks of SBD, if `sbd_root` is given."""
        if self.sbd_root is None:
            return {}
        if self.cache_dir is None:
            raise WsssError("trainaug and its masks need a data.image_set.cache_dir to write to")
        sbd = sbd_folder(self.sbd_root)
        trainaug = derive_trainaug(
            sbd, self.names("train"), self.names("val"), self.cache_dir / "lists" / "trainaug.txt"
        )
        todo = [name for name in trainaug if not self.has_mask(name)]
        convert_masks(sbd, todo, self.cache_dir / CONVERTED, self.num_classes, workers)
        found = len(trainaug) - len(todo)
        return {"trainaug": len(trainaug), "masks_converted": len(todo), "masks_found": found}

    def fingerprint(self) -> str:
        """Changes when a list or the classes do, or an image, annotation or mask comes or goes."""
        texts = [self.class_file, *sorted((self.root / "ImageSets/Segmentation").glob("*.txt"))]
        folders = [self.root / part for part in ("JPEGImages", "Annotations", "SegmentationClass")]
        if self.sbd_root is not None:
            texts += [
                self.sbd_root / inner / f"{split}.txt"
                for inner in ("", "dataset")
                for split in ("train", "val")
            ]
        if self.cache_dir is not None:
            folders.append(self.cache_dir / CONVERTED)
        return fingerprint_of(texts, folders)

    def _cache_identity(self) -> str:
        """What the cached labels depend on beside the XML files themselves."""
        annotations = str((self.root / "Annotations").resolve())
        facts = json.dumps([_CACHE_VERSION, annotations, self.classes])
        return hashlib.sha256(facts.encode()).hexdigest()

    def _read_label_cache(self) -> dict[str, tuple[tuple[int, int], np.ndarray]]:
        """Cached {name: ((size, time in ns) of the XML, label)}; empty if there is none to use."""
        if self.cache_dir is None:
            return {}
        try:
            with np.load(self.cache_dir / "labels.npz", allow_pickle=False) as file:
                if str(file["identity"]) != self._cache_identity():
                    return {}
                names, stamps, labels = file["names"], file["stamps"], file["labels"]
                if labels.shape != (len(names), self.num_classes):
                    return {}
                kept = zip((tuple(stamp) for stamp in stamps.tolist()), labels, strict=True)
                return dict(zip(names.tolist(), kept, strict=True))
        except Exception:  # whatever is wrong with it, it is made anew
            return {}

    def _write_label_cache(self, cache: dict[str, tuple[tuple[int, int], np.ndarray]]) -> None:
        """Keep label vectors; a folder that can't be written is no error, only slower."""
        if self.cache_dir is None:
            return
        path = self.cache_dir / "labels.npz"
        with suppress(OSError), atomic(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                identity=np.array(self._cache_identity()),
                names=np.array(list(cache)),
                stamps=np.array([stamp for stamp, _ in cache.values()], dtype=np.int64),
                labels=np.stack([label for _, label in cache.values()]),
            )


def read_xml_label(path: Path, classes: Sequence[str]) -> np.ndarray:
    """Label vector, (N,) uint8, of one VOC annotation: the classes of its objects.

    Objects marked difficult count; there may be none. Names of an object's parts (head, hand) are
    no classes.

    Raises:
        WsssError: if the file is no XML or an object's class is not in `classes`.
    """
    label = np.zeros(len(classes), dtype=np.uint8)
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise WsssError(f"can't read annotation {path}: {error}") from error
    if root.tag != "annotation":
        raise WsssError(f"{path} is no annotation of VOC: it holds <{root.tag}>")
    for item in root.findall("object"):
        name = (item.findtext("name") or "").strip()
        if name not in classes:
            raise WsssError(
                f"annotation {path} has an object of class '{name}', which is not among the "
                f"{len(classes)} classes (data.image_set.classes or ImageSets/classes.txt)"
            )
        label[classes.index(name)] = 1
    return label
