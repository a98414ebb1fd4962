"""Sets in COCO's format: index, contiguous ids, painted masks, oddities, complaints."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO as Reference

from wsss.data import coco_masks
from wsss.data.coco import COCO
from wsss.data.coco_index import INDEX, OUTLINES
from wsss.data.coco_masks import paint, to_rle, unpack, within
from wsss.data.photographs import load_image
from wsss.data.prepare import prepare
from wsss.errors import WsssError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools

# As in COCO: ids with gaps, the largest above the number of classes, listed in no order.
CATEGORIES = {90: "toothbrush", 1: "person", 13: "stop sign"}
CLASSES = ("person", "stop sign", "toothbrush")
ID_OF = {1: 1, 13: 2, 90: 3}  # category id -> class id
HEIGHT, WIDTH = 24, 32


def box(x: int, y: int, width: int, height: int) -> list[list[int]]:
    """A rectangle as COCO's polygons: columns x to x + width - 1, rows y to y + height - 1."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths, column by column, zeros first."""
    counts, value, run = [], 0, 0
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(run)
            value, run = pixel, 0
        run += 1
    return [*counts, run]


def file_name(number: int, split: str = "train") -> str:
    return f"COCO_{split}2014_{number:012d}.jpg"


def save_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), mode: str = "RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(len(path.name)).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize(size).convert(mode).save(path, **options)


def crowd(rows: slice, columns: slice) -> dict[str, Any]:
    region = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    region[rows, columns] = 1
    return {"size": [HEIGHT, WIDTH], "counts": run_lengths(region)}


# image id -> (category id, outline, crowd)
OBJECTS: dict[int, list[tuple[int, Any, int]]] = {
    30: [(1, box(2, 2, 8, 8), 0), (90, box(4, 4, 2, 2), 0)],  # the small one is named last
    9: [(90, box(4, 4, 2, 2), 0), (1, box(2, 2, 8, 8), 0)],  # and here first
    25: [(13, box(1, 1, 3, 20), 0), (1, crowd(slice(5, 15), slice(0, 20)), 1)],
    71: [(13, box(20, 3, 5, 5), 0)],
    6: [],
}
VAL = {3: [(1, box(0, 0, 32, 12), 0)], 8: [(90, box(9, 9, 4, 4), 0)]}


def annotations(objects: dict[int, list[tuple[int, Any, int]]], split: str) -> dict[str, Any]:
    entries, number = [], 1000
    for image, outlines in objects.items():
        for category, outline, iscrowd in outlines:
            number += 1
            entries.append(
                {
                    "segmentation": outline,
                    "area": 1.5,
                    "iscrowd": iscrowd,
                    "image_id": image,
                    "bbox": [0, 0, 1, 1],
                    "category_id": category,
                    "id": number,
                }
            )
    return {
        "info": {"description": "COCO 2014 Dataset", "year": 2014},
        "images": [
            {"license": 5, "file_name": file_name(i, split), "height": HEIGHT, "width": WIDTH,
             "id": i}
            for i in objects
        ],
        "licenses": [{"url": "http://x", "id": 1, "name": "Löwe ]} \" ü"}],
        "annotations": entries,
        "categories": [
            {"supercategory": "thing", "id": i, "name": name} for i, name in CATEGORIES.items()
        ],
    }  # fmt: skip


def write_annotations(root: Path, content: dict[str, Any], split: str = "train") -> Path:
    path = root / f"annotations/instances_{split}2014.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def open_set(root: Path, splits: tuple[str, ...] = ("train", "val")) -> COCO:
    return COCO(
        root,
        annotations={s: f"annotations/instances_{s}2014.json" for s in splits},
        images={s: f"{s}2014" for s in splits},
        cache_dir=root.parent / "cache",
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    modes = {9: "L", 25: "CMYK"}
    for objects, split in ((OBJECTS, "train"), (VAL, "val")):
        write_annotations(root, annotations(objects, split), split)
        for i in objects:
            save_image(root / f"{split}2014" / file_name(i, split), mode=modes.get(i, "RGB"))
    return root


def change(root: Path, edit: Any, split: str = "train") -> Path:
    """Edit the annotation file by a function of its content."""
    path = root / f"annotations/instances_{split}2014.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    return write_annotations(root, content, split)


def prepared(root: Path, **options: Any) -> COCO:
    data = open_set(root)
    _, problems = prepare(data, ["train", "val"], **options)
    assert problems == []
    return data


# ---- lists and labels


def test_lists_labels_and_classes(root: Path) -> None:
    data = prepared(root, expected_counts={"train": 4, "val": 2})
    assert data.classes == CLASSES
    assert data.names("train") == [file_name(i)[:-4] for i in (9, 25, 30, 71)]  # 6 has no label
    assert data.names("val") == ["COCO_val2014_000000000003", "COCO_val2014_000000000008"]
    labels = data.labels([file_name(71)[:-4], "COCO_val2014_000000000008", file_name(25)[:-4]])
    # The person in image 25 is a crowd: it is there all the same.
    np.testing.assert_array_equal(labels, [[0, 1, 0], [0, 0, 1], [1, 1, 0]])
    assert data.image_path(file_name(9)[:-4]) == root / "train2014" / file_name(9)
    data.check("train", need_masks=True)


def test_labels_and_masks_are_those_of_pycocotools(root: Path) -> None:
    """The same by the slow way: ask pycocotools for everything, pixel by pixel."""
    data = prepared(root)
    for split in ("train", "val"):
        reference = Reference(str(root / f"annotations/instances_{split}2014.json"))
        order = sorted(reference.getCatIds())
        for entry in reference.loadImgs(reference.getImgIds()):
            found = reference.loadAnns(reference.getAnnIds(imgIds=entry["id"], iscrowd=None))
            if not found:
                continue
            name = entry["file_name"][:-4]
            label = [int(any(a["category_id"] == c for a in found)) for c in order]
            assert data.labels([name])[0].tolist() == label
            masks = [(reference.annToMask(a), a) for a in found]
            expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
            for y in range(HEIGHT):
                for x in range(WIDTH):
                    over = [(m.sum(), a) for m, a in masks if m[y, x]]
                    if over:
                        smallest = min(over, key=lambda pair: pair[0])[1]
                        expected[y, x] = (
                            255 if smallest["iscrowd"] else order.index(smallest["category_id"]) + 1
                        )
            np.testing.assert_array_equal(data.mask(name), expected)


def test_small_instances_stay_visible_and_crowds_are_void(root: Path) -> None:
    data = prepared(root)
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[2:10, 2:10] = 1
    expected[4:6, 4:6] = 3
    for i in (9, 30):  # whichever the file names first
        np.testing.assert_array_equal(data.mask(file_name(i)[:-4]), expected)
    crowded = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    crowded[5:15, 0:20] = 255
    crowded[1:21, 1:4] = 2
    np.testing.assert_array_equal(data.mask(file_name(25)[:-4]), crowded)


def test_any_category_ids_become_contiguous(root: Path) -> None:
    """Ids of the 91-id kind can't get through: other ids of the same order give the same."""
    plain = prepared(root)
    names = plain.names("train")
    labels, masks = plain.labels(names), [plain.mask(name) for name in names]
    other = {1: 0, 13: 4000, 90: 4001}

    def renumber(content: dict[str, Any]) -> None:
        for entry in content["categories"]:
            entry["id"] = other[entry["id"]]
        for entry in content["annotations"]:
            entry["category_id"] = other[entry["category_id"]]

    for split in ("train", "val"):
        change(root, renumber, split)
    data = prepared(root)
    assert data.classes == CLASSES
    np.testing.assert_array_equal(data.labels(names), labels)
    assert data.labels(names).shape[1] == 3 and max(m.max() for m in masks if m is not None) == 255
    for name, mask in zip(names, masks, strict=True):
        np.testing.assert_array_equal(data.mask(name), mask)


def test_ids_may_be_text_and_lists_may_stand_in_any_order(root: Path) -> None:
    before = prepared(root)
    names = before.names("train")
    labels, mask = before.labels(names), before.mask(names[0])

    def shuffle(content: dict[str, Any]) -> None:
        for entry in content["images"]:
            entry["id"] = f"photo {entry['id']}"
        for entry in content["annotations"]:
            entry["image_id"] = f"photo {entry['image_id']}"
        for key in ("categories", "images", "info"):
            content[key] = content.pop(key)

    path = change(root, shuffle)
    assert next(iter(json.loads(path.read_text()))) == "licenses"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(json.loads(path.read_text()), indent=1).encode())
    after = prepared(root)
    assert after.names("train") == names
    np.testing.assert_array_equal(after.labels(names), labels)
    np.testing.assert_array_equal(after.mask(names[0]), mask)


def test_it_travels_to_workers_small_and_whole(root: Path) -> None:
    data = prepared(root)
    packed = pickle.dumps(data)
    assert len(packed) < 2000
    name = data.names("train")[1]
    copy = pickle.loads(packed)
    np.testing.assert_array_equal(copy.mask(name), data.mask(name))
    np.testing.assert_array_equal(copy.labels([name]), data.labels([name]))


# ---- photographs as they come


def test_gray_and_cmyk_photographs_are_color_when_loaded(root: Path) -> None:
    data = prepared(root)
    for i, mode in ((9, "L"), (25, "CMYK")):
        path = data.image_path(file_name(i)[:-4])
        with Image.open(path) as file:
            assert file.mode == mode
        assert load_image(path).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("drawn_on", ["seen", "stored"])
def test_masks_are_turned_as_their_photograph(root: Path, orientation: int, drawn_on: str) -> None:
    """A photograph with a bright corner, outlined in one way or the other."""
    if orientation == 3 and drawn_on == "stored":
        return  # nothing tells these apart: what is seen counts
    stored = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    stored[2:8, 4:20] = 255
    path = root / "train2014" / file_name(71)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(path, quality=95, exif=exif)
    seen = load_image(path)
    assert seen.shape[:2] == ((WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH))
    bright = (seen if drawn_on == "seen" else stored)[..., 0] > 127
    ys, xs = np.nonzero(bright)
    outline = box(xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)

    def edit(content: dict[str, Any]) -> None:
        for entry in content["images"]:
            if entry["id"] == 71:
                entry["height"], entry["width"] = bright.shape
        for entry in content["annotations"]:
            if entry["image_id"] == 71:
                entry["segmentation"] = [[int(v) for v in outline[0]]]

    change(root, edit)
    mask = prepared(root).mask(file_name(71)[:-4])
    assert mask is not None
    np.testing.assert_array_equal(mask == 2, seen[..., 0] > 127)


def test_forms_of_outlines() -> None:
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[3:8, 20:25] = 1
    packed = coco_mask.encode(np.asfortranarray(expected))
    forms = [
        box(20, 3, 5, 5),
        box(20, 3, 5, 5)[0],  # not in a list of its own
        [*box(20, 3, 5, 5), [1, 1, 4, 4]],  # two points enclose nothing
        {"size": [HEIGHT, WIDTH], "counts": run_lengths(expected)},
        {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()},
    ]
    for form in forms:
        mask = paint([to_rle(form, (HEIGHT, WIDTH))], [7], (HEIGHT, WIDTH))
        np.testing.assert_array_equal(mask, expected * 7)
    assert not paint([to_rle([[1, 1, 4, 4]], (9, 9))], [7], (9, 9)).any()
    assert not paint([], [], (9, 9)).any()


@pytest.mark.parametrize("seed", range(8))
def test_packed_run_lengths_are_those_that_pycocotools_packed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 90, 2)
    mask = (rng.random((height, width)) < rng.choice([0, 0.02, 0.5, 1])).astype(np.uint8)
    packed = coco_mask.encode(np.asfortranarray(mask))
    assert unpack(packed["counts"].decode()) == run_lengths(mask)
    size = (int(height), int(width))
    again = to_rle({"size": list(size), "counts": packed["counts"].decode()}, size)
    np.testing.assert_array_equal(coco_mask.decode(again), mask)


def far_and_near(points: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each pixel's middle lies in a polygon, by crossings of a ray; and away from edges."""
    ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
    inside, distance = np.zeros(size, dtype=bool), np.full(size, np.inf)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (ys < y0) != (ys < y1)
            inside ^= crosses & (xs < x0 + (ys - y0) * (x1 - x0) / (y1 - y0))
        length = np.hypot(x1 - x0, y1 - y0) or 1
        along = ((xs - x0) * (x1 - x0) + (ys - y0) * (y1 - y0)) / length**2
        nearest = np.clip(along, 0, 1)
        distance = np.minimum(
            distance, np.hypot(xs - x0 - nearest * (x1 - x0), ys - y0 - nearest * (y1 - y0))
        )
    return inside, distance > 1


@pytest.mark.parametrize("reach", [1e2, 1e4, 1e9])
def test_outlines_that_reach_far_beyond_the_image_are_painted_right(reach: float) -> None:
    """Against crossings counted pixel by pixel; edges keep their slope where they are cut."""
    size, seen = (40, 60), 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        points = rng.uniform(0, 1, (rng.integers(3, 8), 2)) * size[::-1]
        far = rng.random(len(points)) < 0.6
        points[far] += rng.uniform(-reach, reach, (int(far.sum()), 2))
        rle = to_rle([points.ravel().tolist()], size)
        inside, clear = far_and_near(points, size)
        np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool)[clear], inside[clear])
        seen += int(inside.any() and not inside.all())
    assert seen > 10


def test_outlines_within_the_margin_are_left_as_they_are() -> None:
    points = np.array([[-60.0, 3], [120, 80], [7.3, -40]])
    assert within(points, (40, 60)) is points
    assert len(within(points + np.array([1000, 0]), (40, 60))) == 0
    assert not coco_mask.decode(to_rle([[900, 900, 990, 900, 990, 1e9]], (40, 60))).any()


def test_annotations_without_outline_are_labels(root: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            if entry["image_id"] == 71:
                entry["segmentation"] = []

    change(root, edit)
    data = open_set(root)
    report, problems = prepare(data, ["train", "val"])
    assert problems == []
    assert data.labels([file_name(71)[:-4]]).tolist() == [[0, 1, 0]]
    assert not np.asarray(data.mask(file_name(71)[:-4])).any()
    assert any("1 annotations have no outline" in line for line in report["warnings"])


# ---- preparing


def test_report_counts_what_is_left_out(root: Path) -> None:
    report, problems = prepare(open_set(root), ["train", "val"], {"train": 4, "val": 2})
    assert problems == []
    assert report["derived"]["train"] == {
        "images_in_file": 5,
        "images_without_label": 1,
        "annotations": 7,
        "crowd_regions": 1,
        "annotations_without_outline": 0,
        "masks_painted": 4,
        "masks_found": 0,
    }
    assert any("1 of 5 images have no annotation" in line for line in report["warnings"])
    assert report["splits"]["train"]["images_per_class"] == {
        "person": 3,
        "stop sign": 2,
        "toothbrush": 2,
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_painting_goes_on(
    root: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, written = coco_masks.write_mask, []

    def dies_at_the_third(path: Path, mask: np.ndarray) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.stem)
        original(path, mask)

    monkeypatch.setattr(coco_masks, "write_mask", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        open_set(root).derive()
    monkeypatch.undo()
    # What is there is used: neither the annotations nor painted outlines are read again.
    monkeypatch.setattr("wsss.data.coco.build_index", None)
    derived: Any = open_set(root).derive(workers)
    assert (derived["train"]["masks_found"], derived["train"]["masks_painted"]) == (2, 2)
    assert (derived["val"]["masks_found"], derived["val"]["masks_painted"]) == (0, 2)
    data = open_set(root)
    assert all(data.has_mask(name) for name in data.names("train") + data.names("val"))
    # When all is painted the outlines are not needed any more; for a lost mask they come back.
    assert not list((root.parent / "cache").rglob(OUTLINES))
    monkeypatch.undo()
    lost = data.mask_path(data.names("train")[1])
    assert lost is not None
    content = lost.read_bytes()
    lost.unlink()
    derived = open_set(root).derive(workers)
    assert (derived["train"]["masks_found"], derived["train"]["masks_painted"]) == (3, 1)
    assert lost.read_bytes() == content


def test_cut_outlines_are_written_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsss.data.coco.parallel", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        open_set(root).derive()
    monkeypatch.undo()
    (cut,) = (root.parent / "cache").glob(f"train-*/{OUTLINES}")
    cut.write_bytes(cut.read_bytes()[:-300])
    assert open_set(root).derive()["train"]["masks_painted"] == 4
    test_small_instances_stay_visible_and_crowds_are_void(root)


def overwrite(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[: middle - 40] + b"\xff" * 80 + content[middle + 40 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"no archive",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-30],
        overwrite,
        lambda content: content[:60] + b"\0" * 30 + content[90:],
    ],
)
def test_a_damaged_index_is_made_anew(root: Path, damage: Any) -> None:
    data = prepared(root)
    names, labels = data.names("train"), data.labels(data.names("train"))
    fingerprint = data.fingerprint()
    path = data.folder("train") / INDEX
    path.write_bytes(damage(path.read_bytes()))
    assert open_set(root).fingerprint() != fingerprint  # stage=prepare looks at all again
    fresh = open_set(root)
    assert fresh.names("train") == names
    np.testing.assert_array_equal(fresh.labels(names), labels)
    path.write_bytes(damage(path.read_bytes()))
    assert open_set(root).derive()["train"]["masks_found"] == 4
    assert not list((root.parent / "cache").rglob(OUTLINES))


def test_a_damaged_mask_is_named_and_made_anew(root: Path) -> None:
    data = prepared(root)
    name = data.names("train")[0]
    path, mask, fingerprint = data.mask_path(name), data.mask(name), data.fingerprint()
    assert path is not None
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(WsssError, match=f"can't read mask {path}.*delete the file and run stage="):
        data.mask(name)
    path.unlink()
    assert open_set(root).fingerprint() != fingerprint
    np.testing.assert_array_equal(prepared(root).mask(name), mask)


def test_images_of_one_name_in_two_splits_are_two_images(root: Path) -> None:
    """0001.jpg in train/ and in val/: each with its own file, label and mask."""

    def rename(split: str, image: int) -> None:
        def edit(content: dict[str, Any]) -> None:
            for entry in content["images"]:
                if entry["id"] == image:
                    entry["file_name"] = "0001.jpg"

        change(root, edit, split)
        (root / f"{split}2014" / file_name(image, split)).rename(root / f"{split}2014/0001.jpg")

    rename("train", 71)
    rename("val", 8)
    data = prepared(root, held_out=["val"])
    train, val = data.names("train"), data.names("val")
    assert train[0] == "train__0001" and val[0] == "val__0001"
    assert train[1:] == [file_name(i)[:-4] for i in (9, 25, 30)]  # the others keep their names
    assert data.image_path("train__0001") == root / "train2014/0001.jpg"
    assert data.image_path("val__0001") == root / "val2014/0001.jpg"
    assert data.labels(["val__0001", "train__0001"]).tolist() == [[0, 0, 1], [0, 1, 0]]
    expected = np.zeros((2, HEIGHT, WIDTH), dtype=np.uint8)
    expected[0, 3:8, 20:25] = 2
    expected[1, 9:13, 9:13] = 3
    np.testing.assert_array_equal(data.mask("train__0001"), expected[0])
    np.testing.assert_array_equal(data.mask("val__0001"), expected[1])
    with pytest.raises(WsssError, match="image '0001' has no annotation"):
        data.labels(["0001"])
    copy = pickle.loads(pickle.dumps(data))
    assert copy.image_path("val__0001") == root / "val2014/0001.jpg"


def test_names_that_the_split_can_not_tell_apart_are_refused(root: Path) -> None:
    change(root, put("images", file_name="0001.jpg"))
    change(root, lambda c: c["images"][1].update(file_name="val/0001.jpg"))
    change(root, put("images", file_name="0001.jpg"), "val")
    _, problems = prepare(open_set(root), ["train", "val"])
    assert problems and all("two images are called 'val__0001'; rename" in p for p in problems)
    with pytest.raises(WsssError, match="two images are called 'val__0001'; rename a file"):
        open_set(root).check("train")


def test_an_image_that_is_in_two_splits_is_found_out(root: Path) -> None:
    """The same file under the same name is no other image: held-out splits must not share it."""
    data = COCO(
        root,
        annotations=dict.fromkeys(("train", "val"), "annotations/instances_val2014.json"),
        images=dict.fromkeys(("train", "val"), "val2014"),
        cache_dir=root.parent / "cache",
    )
    _, problems = prepare(data, ["train", "val"])
    assert data.names("val") == data.names("train") == [file_name(i, "val")[:-4] for i in (3, 8)]
    assert any("2 images of split 'val' are in split 'train' as well" in p for p in problems)


def test_changed_annotations_are_prepared_anew(root: Path) -> None:
    data = prepared(root)
    name = file_name(71)[:-4]
    before, fingerprint = data.mask(name), data.fingerprint()

    def edit(content: dict[str, Any]) -> None:
        content["annotations"][-1]["segmentation"] = box(0, 0, 2, 2)
        content["annotations"][-1]["category_id"] = 90

    change(root, edit)
    fresh = open_set(root)
    assert fresh.fingerprint() != fingerprint
    with pytest.raises(WsssError, match="annotations have changed since stage=prepare"):
        fresh.names("train")
    assert fresh.names("val")
    fresh = prepared(root)
    assert fresh.labels([name]).tolist() == [[0, 0, 1]]
    assert np.asarray(fresh.mask(name)).sum() == 4 * 3
    assert not np.array_equal(before, fresh.mask(name))
    assert len(list((root.parent / "cache").iterdir())) == 2  # the old one is gone


def test_the_root_may_be_read_only(root: Path) -> None:
    files = sorted(root.rglob("*"))
    prepared(root)
    assert sorted(root.rglob("*")) == files


# ---- bad input


def remove(key: str, entry: str = "annotations") -> Any:
    return lambda content: content[entry][0].pop(key)


def put(entry: str, **values: Any) -> Any:
    return lambda content: content[entry][0].update(values)


WRONG_ANNOTATIONS = {
    "no image_id": (remove("image_id"), ["annotations, id 1001: has no image_id"]),
    "no category_id": (remove("category_id"), ["id 1001: has no category_id"]),
    "unknown category": (
        put("annotations", category_id=91),
        ["1 annotations (the first: id 1001) have category_id 91", "not among the categories"],
    ),
    "unknown image": (
        put("annotations", image_id=404),
        ["1 annotations (the first: id 1001) have image_id 404", "not among the images"],
    ),
    "image without file": (remove("file_name", "images"), ["images, id 30: has no file_name"]),
    "image outside": (put("images", file_name="../x.jpg"), ["'../x.jpg' is no path inside"]),
    "image without size": (put("images", height=0), ["images, id 30: height and width are 0"]),
    "image id twice": (put("images", id=9), ["images, id 9: the id is given to two images"]),
    "image name twice": (
        put("images", file_name=file_name(9)),
        ["2 images are called 'COCO_train2014_000000000009'"],
    ),
    "category id twice": (put("categories", id=1), ["categories, id 1: the id is given to two"]),
    "category name twice": (
        put("categories", name="person"),
        ["(categories) names class 'person' more than once"],
    ),
    "category without name": (remove("name", "categories"), ["categories, id 90: has no name"]),
    "no categories": (
        lambda c: c.update(categories=[]),
        ["no list 'categories'", "or it is empty"],
    ),
    "too many categories": (
        lambda c: c["categories"].extend({"id": i, "name": f"x{i}"} for i in range(100, 360)),
        ["(categories) names 263 classes; masks hold 254"],
    ),
    "no annotations": (
        lambda c: c.update(annotations=[]),
        ["no list 'annotations'", "or it is empty"],
    ),
    "not an object": (
        lambda c: c["annotations"].append(7),
        ["annotations, number 8", "is no object"],
    ),
    "list missing": (lambda c: c.pop("images"), ["has no list 'images'"]),
    "not a list": (lambda c: c.update(images={"a": 1}), ["no list 'images'"]),
    "image name with NUL": (
        put("images", file_name="a\0b.jpg"),
        ["images, id 30: file_name 'a\\x00b.jpg' can't be the name of a file"],
    ),
    "image name without end": (
        put("images", file_name="x" * 5000 + ".jpg"),
        ["images, id 30: file_name 'xxxxx", "can't be the name of a file"],
    ),
    "image of no name": (
        put("images", file_name=".jpg"),
        ["images, id 30: file_name '.jpg' can't be the name of a file"],
    ),
    "image of 1e30 pixels": (
        put("images", height=1e30),
        ["images, id 30: height and width are 1e+30 and 32"],
    ),
    "image of 2e18 pixels": (
        put("images", height=2**60),
        ["images, id 30: height and width, 1152921504606846976 and 32, are more than 89,478,485"],
    ),
    "category name with NUL": (
        put("categories", name="a\0"),
        ["categories, id 90: the name 'a\\x00' is no text"],
    ),
}


@pytest.mark.parametrize("case", WRONG_ANNOTATIONS)
def test_wrong_annotations_are_named(root: Path, case: str) -> None:
    edit, parts = WRONG_ANNOTATIONS[case]
    path = change(root, edit)
    with pytest.raises(WsssError) as caught:
        prepare(open_set(root), ["train"])
    line = next(line for line in str(caught.value).splitlines() if parts[0] in line)
    assert all(part in line for part in (str(path), *parts)), line
    with pytest.raises(WsssError, match="not prepared.*stage=prepare first"):
        open_set(root).names("train")


def test_all_faults_of_the_annotations_are_told_at_once(root: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["images"][0]["height"] = "tall"
        content["annotations"][0]["category_id"] = 91
        content["annotations"][3].pop("image_id")

    change(root, edit)
    change(root, put("categories", name=""), "val")
    with pytest.raises(WsssError) as caught:
        prepare(open_set(root), ["train"])
    head, *lines = str(caught.value).splitlines()
    assert head.endswith("has 4 problems:") and len(lines) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "premature EOF"),
        ("[]", "no list 'images'"),
        ('{"images": [{"id": 1}', "premature EOF"),
        ('{"images": [{"id": 1,, }]}', "id"),
        ('{"images": [{"id": 1} {"id": 2}]}', '"id": 1}'),
        ('{"images" [', "images"),
        ('{"images": []} {', "trailing garbage"),
        ('{"images": [{"id": 1, "height": NaN}]}', "height"),
        ("\x00\xff\x00", "as JSON"),
        ('{"images": ' + "[" * 30_000 + "]" * 30_000 + "}", "nested too deep"),
    ],
)
def test_a_broken_file_is_named(root: Path, text: str, message: str) -> None:
    path = root / "annotations/instances_train2014.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(WsssError, match=message) as caught:
        prepare(open_set(root), ["train"])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ([[1, 2, 3, 4, 5]], "odd number of coordinates"),
        ([[1, 2, 3, 4, "x", 6]], "a coordinate is no number"),
        ([[1, 2, 3, 4, "5", 6]], "a coordinate is no number"),
        ([[1, 2, 3, 4, 1e300, 6]], "far beyond any image"),
        ([[1, 2, 3, 4, [5], 6]], "no outline can be read"),
        ([7, [8]], "no outline can be read"),
        ([None], "no outline can be read"),
        ("polygon", "segmentation is a str"),
        ({"size": [3, 3], "counts": [9]}, "run lengths for"),
        ({"size": [HEIGHT, WIDTH], "counts": [9]}, "run lengths make 9 pixels of 768"),
        ({"size": [HEIGHT, WIDTH], "counts": [-1, 769]}, "no whole number from 0 on"),
        ({"size": [HEIGHT, WIDTH], "counts": [0.5, 767.5]}, "no whole number from 0 on"),
        ({"size": [HEIGHT, WIDTH], "counts": ["768"]}, "no whole number from 0 on"),
        ({"size": [HEIGHT, WIDTH], "counts": "0\0"}, "packed run lengths are damaged"),
        ({"size": [HEIGHT, WIDTH], "counts": "PPPPPPPPPPPPPPPPP0"}, "run lengths are damaged"),
        ({"size": [HEIGHT, WIDTH], "counts": "P"}, "packed run lengths are cut off"),
        ({"size": [HEIGHT, WIDTH], "counts": "00O"}, "no whole number from 0 on"),
        ({"size": [HEIGHT, WIDTH], "counts": "1"}, "run lengths make 1 pixels of 768"),
        ({"size": HEIGHT, "counts": [768]}, "no outline can be read"),
        ({"size": [HEIGHT, WIDTH]}, "no outline can be read"),
    ],
)
def test_outlines_that_can_not_be_painted_are_problems(
    root: Path, outline: Any, message: str
) -> None:
    change(root, put("annotations", segmentation=outline))
    (root / "train2014" / file_name(71)).unlink()
    _, problems = prepare(open_set(root), ["train"])
    assert len(problems) == 2  # with what else is wrong
    assert "annotations, id 1001: no outline can be read" in problems[0] and message in problems[0]
    assert "\n" not in problems[0]
    assert "does not exist" in problems[1]


def test_an_image_of_another_size_is_a_problem(root: Path) -> None:
    save_image(root / "train2014" / file_name(71), (50, 40))
    _, problems = prepare(open_set(root), ["train"])
    assert len(problems) == 1
    assert f"'{file_name(71)[:-4]}' are for 32 x 24 pixels, the image has 50 x 40" in problems[0]


def test_unreadable_images_and_wrong_counts_are_problems(root: Path) -> None:
    (root / "train2014" / file_name(9)).write_bytes(b"no image")
    (root / "val2014" / file_name(3, "val")).unlink()
    _, problems = prepare(open_set(root), ["train", "val"], {"train": 82081, "val": 2})
    assert len(problems) == 3
    assert "split 'train' has 4 images, expected 82081" in problems[0]
    assert "can't read image" in problems[1] and "does not exist" in problems[2]


def test_splits_must_have_the_same_categories(root: Path) -> None:
    change(root, put("categories", name="tooth brush"), "val")
    with pytest.raises(WsssError, match=r"categories of .*train2014.json and .*val2014.json diff"):
        prepare(open_set(root), ["train"])
    with pytest.raises(WsssError, match="differ"):
        open_set(root).names("train")


def test_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(WsssError, match=r"data\.root=/path"):
        COCO("", annotations={}, images={}, cache_dir=tmp_path)
    with pytest.raises(WsssError, match="does not exist: give data.root"):
        open_set(tmp_path / "nowhere").derive()
    with pytest.raises(WsssError, match="has no annotations"):
        open_set(tmp_path).derive()
    with pytest.raises(WsssError, match="is not prepared; .*stage=prepare first"):
        open_set(root).check("train")
    with pytest.raises(WsssError, match="is not prepared"):
        open_set(root).num_classes  # noqa: B018
    with pytest.raises(WsssError, match="there is no split 'test'; there are train, val"):
        open_set(root).names("test")
    with pytest.raises(WsssError, match=r"no image folder: give data\.image_set\.images\.train"):
        COCO(root, annotations={"train": "x.json"}, images={}, cache_dir=tmp_path)
    data = prepared(root)
    with pytest.raises(WsssError, match="image 'stranger' has no annotation"):
        data.labels(["stranger"])
    with pytest.raises(WsssError, match="4 of 4 images are missing"):
        os.rename(root / "train2014", root / "elsewhere")
        data.check("train")


def test_a_split_without_annotations_does_no_harm_to_the_others(root: Path) -> None:
    (root / "annotations/instances_val2014.json").unlink()
    data = open_set(root)
    _, problems = prepare(data, ["train"])
    assert problems == [] and len(data.names("train")) == 4
    with pytest.raises(WsssError, match=r"no annotations .*val2014.json for split 'val'"):
        data.names("val")


def test_folders_in_file_names_become_part_of_the_name(root: Path) -> None:
    change(root, put("images", file_name="south\\a.b.jpeg"))
    save_image(root / "train2014" / "south" / "a.b.jpeg")
    data = prepared(root)
    assert "south__a.b" in data.names("train")
    assert data.image_path("south__a.b").is_file()
    assert data.has_mask("south__a.b")
