"""Small data sets in VOC layout, written file by file and without the package's own writers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NAMES = tuple(f"2007_{i:06d}" for i in range(1, 9))
# Objects of each image: repeated, difficult and partly annotated ones among them.
OBJECTS: dict[str, tuple[str, ...]] = {
    name: objects
    for name, objects in zip(
        NAMES,
        (
            ("cat",),
            ("person", "cat"),
            ("dog", "dog"),
            ("aeroplane",),
            ("tvmonitor", "person"),
            ("sofa",),
            ("cat", "sofa", "dog"),
            ("bird",),
        ),
        strict=True,
    )
}
SIZES = {name: (40 + 5 * i, 70 - 3 * i) for i, name in enumerate(NAMES)}  # (H, W)


def xml_text(name: str, objects: Sequence[str], difficult: bool = False) -> str:
    items = "".join(
        f"<object><name>{o}</name><difficult>{int(difficult)}</difficult>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        "<part><name>head</name></part></object>"
        for o in objects
    )
    return f"<annotation><filename>{name}.jpg</filename>{items}</annotation>"


def write_palette_png(path: Path, mask: np.ndarray) -> None:
    image = Image.new("P", (mask.shape[1], mask.shape[0]))
    image.putdata(mask.ravel().tolist())
    image.putpalette([v for i in range(256) for v in (i, 255 - i, (i * 7) % 256)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def build_voc(root: Path, masked: Sequence[str] = NAMES) -> Path:
    """Eight small images; train = the first six, val = the last two, all = every one."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for i, name in enumerate(NAMES):
        height, width = SIZES[name]
        coarse = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(
            root / f"JPEGImages/{name}.jpg", quality=95
        )
        (root / f"Annotations/{name}.xml").write_text(
            xml_text(name, OBJECTS[name], difficult=i == 3)
        )
        if name in masked:
            mask = np.zeros((height, width), dtype=np.uint8)
            mask[5:15, 5:15] = i % 20 + 1
            mask[4, 4:16] = 255
            write_palette_png(root / f"SegmentationClass/{name}.png", mask)
    lists = {"train": NAMES[:6], "val": NAMES[6:], "all": NAMES}
    for split, members in lists.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(members) + "\n")
    return root


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    return build_voc(tmp_path / "voc")


@pytest.fixture
def make_voc() -> Callable[..., Path]:
    return build_voc
