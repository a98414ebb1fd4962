"""Generated scenes: a small data set with the methods' troubles built in, made in seconds.

Six classes, one to three objects an image. What makes them hard for class activation maps:

- An object has several parts, of which one tells the class (a head, the wheels, a sail). The
  others take their colors from one palette for all classes, and stones of the same colors lie
  about, so that a classifier does well to look at the telling part only.
- Each class comes in three variants that differ in build.
- Each class has a background that it mostly stands on.

They are written in VOC layout and read by the same code as VOC.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.data.masks import VOID, write_mask
from wsss.data.scene_drawing import DRAW, Canvas, Pen, Points, Rng, draw_background, draw_stones
from wsss.data.voc import VOC
from wsss.errors import WsssError
from wsss.files import part_ending

# Raised whenever the pictures change, so that those of an older version are made anew.
VERSION = 1
MARKER = "scenes.json"
CLASSES = ("bird", "boat", "car", "cat", "house", "plant")
HOME = {
    "bird": "sky",
    "boat": "water",
    "car": "road",
    "cat": "room",
    "house": "meadow",
    "plant": "room",
}
HOME_SHARE = 0.75  # of the images have the background of their first object


class Scenes(VOC):
    """Generated scenes in VOC layout; they are made when they are first asked for."""

    def __init__(
        self,
        root: str | Path,
        cache_dir: str | Path | None = None,
        seed: int = 0,
        n_train: int = 360,
        n_val: int = 90,
        size: int = 144,
    ) -> None:
        """Describe the scenes; see `generate` for the arguments and `VOC` for `cache_dir`."""
        super().__init__(root, cache_dir=cache_dir, classes=CLASSES)
        self.settings = dict(seed=int(seed), n_train=int(n_train), n_val=int(n_val), size=int(size))
        self._made = False

    def check_root(self) -> None:
        """Make the scenes if they are not there."""
        if not self._made:
            generate(self.root, **self.settings)
            self._made = True

    def names(self, split: str) -> list[str]:
        """Names of train, val or trainaug (the same images as train)."""
        self.check_root()
        return super().names(split)

    def labels(self, names: Sequence[str]) -> np.ndarray:
        """Label vectors, (len(names), 6) uint8."""
        self.check_root()
        return super().labels(names)

    def check(self, split: str, need_masks: bool = False) -> None:
        """Check the files of a split.

        Raises:
            WsssError: as `VOC.check`, with the way out: generated scenes are made anew.
        """
        try:
            super().check(split, need_masks)
        except WsssError as error:
            raise WsssError(f"{error}; or delete {self.root} to have it made anew") from error


def generate(
    root: str | Path, seed: int = 0, n_train: int = 360, n_val: int = 90, size: int = 144
) -> bool:
    """Write generated scenes in VOC layout, unless just these are there already.

    Scene i depends on (seed, i) alone. The folder appears whole or not at all, and processes that
    start at once do not disturb each other.

    Args:
        root: folder of the data set. What is in it is replaced only if it was generated, too.
        seed: seed of all scenes.
        n_train: images of the lists train and trainaug.
        n_val: images of the list val.
        size: height and width in pixels.

    Returns:
        Whether anything was written.

    Raises:
        WsssError: if an argument makes no sense, or `root` holds something else.
    """
    root = Path(root).expanduser()
    if min(n_train, n_val) < 1 or size < 64 or seed < 0:
        raise WsssError(
            "scenes need n_train and n_val of at least 1, size of at least 64 and a seed of 0 or "
            f"more; got n_train={n_train}, n_val={n_val}, size={size}, seed={seed}"
        )
    wanted = dict(version=VERSION, seed=seed, n_train=n_train, n_val=n_val, size=size)
    if _marker(root) == wanted:
        return False
    if root.exists() and _marker(root) is None and (root.is_file() or any(root.iterdir())):
        raise WsssError(
            f"{root} holds something that is not generated scenes: give data.root another folder"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(part_ending(), f".{root.name}-", root.parent))
    try:
        draft.chmod(0o755)  # mkdtemp's folder is for its owner only
        _write_scenes(draft, seed, n_train, n_val, size)
        (draft / MARKER).write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        _put_in_place(draft, root, wanted)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return True


def _marker(root: Path) -> dict[str, int] | None:
    """Arguments and version that the scenes at `root` were made with; None if it has none."""
    try:
        return json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _put_in_place(draft: Path, root: Path, wanted: dict[str, int]) -> None:
    """Rename the finished folder to `root`, in place of older scenes."""
    found = _marker(root)
    if found == wanted:
        return  # another process was quicker, with the same scenes
    if found is not None:
        old = draft.with_name(draft.name + "-old")
        os.rename(root, old)
        shutil.rmtree(old, ignore_errors=True)
    try:
        os.rename(draft, root)
    except OSError:
        if _marker(root) != wanted:
            raise


def _write_scenes(root: Path, seed: int, n_train: int, n_val: int, size: int) -> None:
    """Draw all scenes and write images, annotations, masks and lists."""
    lists = root / "ImageSets" / "Segmentation"
    for folder in (root / "JPEGImages", root / "Annotations", lists):
        folder.mkdir(parents=True)
    names = [f"scene_{i:05d}" for i in range(n_train + n_val)]
    for i, name in enumerate(names):
        image, owner, classes = draw_scene(size, np.random.default_rng([seed, i]))
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=92)
        (root / "Annotations" / f"{name}.xml").write_text(
            annotation(name, owner, classes), encoding="utf-8"
        )
        write_mask(root / "SegmentationClass" / f"{name}.png", class_mask(owner, classes))
    members = {"train": names[:n_train], "trainaug": names[:n_train], "val": names[n_train:]}
    for split, listed in members.items():
        (lists / f"{split}.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
    (root / "ImageSets" / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")


def draw_scene(size: int, rng: Rng) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draw one scene.

    Returns:
        Image (size, size, 3) uint8; owner (size, size) int16: 0 background, k the k-th object;
        class names of the objects.
    """
    count = int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))
    while True:
        # Seldom two of one class: image labels should mostly name several classes.
        classes = [CLASSES[i] for i in rng.choice(len(CLASSES), count, replace=rng.random() < 0.15)]
        at_home = rng.random() < HOME_SHARE
        kind = HOME[classes[0]] if at_home else str(rng.choice(sorted(set(HOME.values()))))
        canvas = Canvas(draw_background(kind, size, rng), rng)
        draw_stones(canvas, rng)
        columns = rng.permutation(count)
        alone = np.zeros(count, dtype=int)
        for k, name in enumerate(classes):
            half = size * rng.uniform(*((0.24, 0.4), (0.19, 0.27), (0.15, 0.2))[count - 1])
            x = size * (columns[k] + 0.5 + rng.uniform(-0.12, 0.12)) / count
            y = rng.uniform(max(half, 0.35 * size), size - 0.9 * half)
            DRAW[name](Pen(canvas, k + 1, placement(x, y, half, rng), rng), int(rng.integers(3)))
            alone[k] = int((canvas.owner == k + 1).sum())
        seen = np.bincount(canvas.owner.ravel(), minlength=count + 1)[1:]
        if (seen >= 0.6 * alone).all() and seen.min() >= 60:
            break
    haze = canvas.image * rng.uniform(0.85, 1.1) + rng.uniform(-8, 8)
    image = np.clip(haze + rng.normal(0, 3, haze.shape), 0, 255).astype(np.uint8)
    return image, canvas.owner, classes


def placement(x: float, y: float, half: float, rng: Rng) -> Callable[[Points], Points]:
    """Map from an object's coordinates to pixels: mirrored or not, leaning, stretched a little."""
    side = 1 if rng.random() < 0.5 else -1
    lean, stretch = rng.uniform(-0.16, 0.16), rng.uniform(0.88, 1.12)
    cos, sin = np.cos(lean), np.sin(lean)
    matrix = half * np.array([[cos * side * stretch, -sin], [sin * side * stretch, cos]])
    return lambda points: points @ matrix.T + (x, y)


def class_mask(owner: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Mask, (H, W) uint8, with a void line on the outlines, as annotators of VOC leave it."""
    ids = np.array([0, *(CLASSES.index(name) + 1 for name in classes)], dtype=np.uint8)
    mask = ids[owner]
    edge = np.zeros(owner.shape, dtype=bool)
    edge[:, 1:] |= owner[:, 1:] != owner[:, :-1]
    edge[1:] |= owner[1:] != owner[:-1]
    mask[edge] = VOID
    return mask


def annotation(name: str, owner: np.ndarray, classes: Sequence[str]) -> str:
    """The VOC annotation of a scene, as XML text; box coordinates count from 1."""
    height, width = owner.shape
    lines = [
        "<annotation>",
        f"  <filename>{name}.jpg</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "  <segmented>1</segmented>",
    ]
    for k, label in enumerate(classes):
        ys, xs = np.nonzero(owner == k + 1)
        box = dict(xmin=xs.min(), ymin=ys.min(), xmax=xs.max(), ymax=ys.max())
        corners = "".join(f"<{key}>{value + 1}</{key}>" for key, value in box.items())
        facts = f"<name>{label}</name><difficult>0</difficult><bndbox>{corners}</bndbox>"
        lines.append(f"  <object>{facts}</object>")
    return "\n".join([*lines, "</annotation>", ""])
