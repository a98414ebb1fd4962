"""VOC layout: lists, labels and their cache, masks, and what a user is told."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data import voc as voc_module
from wsss.data.photographs import load_image
from wsss.data.voc import VOC, VOC_CLASSES
from wsss.errors import WsssError


def labels_by_regex(root: Path, names: list[str], classes: tuple[str, ...]) -> np.ndarray:
    """Independent of the XML parser: names that directly follow `<object>`."""
    rows = []
    for name in names:
        text = (root / "Annotations" / f"{name}.xml").read_text()
        found = set(re.findall(r"<object>\s*<name>\s*([a-z]+)\s*</name>", text))
        rows.append([int(c in found) for c in classes])
    return np.array(rows, dtype=np.uint8)


def test_labels_hold_every_object_once_difficult_ones_included(voc_root: Path) -> None:
    data = VOC(voc_root)
    names = data.names("all")
    labels = data.labels(names)
    assert labels.shape == (8, 20) and labels.dtype == np.uint8
    assert [tuple(VOC_CLASSES[i] for i in np.flatnonzero(row)) for row in labels] == [
        ("cat",),
        ("cat", "person"),
        ("dog",),
        ("aeroplane",),
        ("person", "tvmonitor"),
        ("sofa",),
        ("cat", "dog", "sofa"),
        ("bird",),
    ]
    np.testing.assert_array_equal(labels, labels_by_regex(voc_root, names, VOC_CLASSES))


def test_cached_labels_follow_changes_of_files_and_lists(
    voc_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    names = VOC(voc_root).names("all")
    first = VOC(voc_root, cache_dir=cache).labels(names[:5])

    read: list[str] = []
    original = voc_module.read_xml_label

    def spy(path: Path, classes: tuple[str, ...]) -> np.ndarray:
        read.append(path.stem)
        return original(path, classes)

    monkeypatch.setattr(voc_module, "read_xml_label", spy)
    np.testing.assert_array_equal(VOC(voc_root, cache_dir=cache).labels(names[:5]), first)
    assert read == []  # all from the cache
    VOC(voc_root, cache_dir=cache).labels(names[::-1])
    assert read == names[:4:-1]  # the new ones only

    annotation = voc_root / "Annotations" / f"{names[0]}.xml"
    annotation.write_text(annotation.read_text().replace("cat", "car"))
    os.utime(annotation, ns=(1, 1))  # the size is unchanged: the time must count
    changed = VOC(voc_root, cache_dir=cache).labels(names)
    np.testing.assert_array_equal(changed, labels_by_regex(voc_root, names, VOC_CLASSES))

    reordered = tuple(reversed(VOC_CLASSES))
    other = VOC(voc_root, cache_dir=cache, classes=reordered).labels(names)
    np.testing.assert_array_equal(other, labels_by_regex(voc_root, names, reordered))


def test_a_damaged_label_cache_is_made_anew(voc_root: Path, tmp_path: Path) -> None:
    """Empty, something else, cut anywhere, bytes overwritten anywhere."""
    data = VOC(voc_root, cache_dir=tmp_path / "cache")
    names = data.names("all")
    expected = data.labels(names)
    path = tmp_path / "cache" / "labels.npz"
    whole = path.read_bytes()
    damages = [b"", b"no archive", b"PK\x03\x04cut"]
    damages += [whole[:length] for length in range(0, len(whole), 23)]
    for start in range(0, len(whole), 23):
        damages.append(whole[:start] + b"\xff" * 23 + whole[start + 23 :])
    for damage in damages:
        path.write_bytes(damage)
        np.testing.assert_array_equal(data.labels(names), expected)
    path.write_bytes(whole[:300])
    data.labels(names)
    assert len(path.read_bytes()) == len(whole)
    assert [entry.name for entry in path.parent.iterdir()] == ["labels.npz"]


def test_labels_without_a_writable_cache(voc_root: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where the folder should be")  # holds for root as well
    data = VOC(voc_root, cache_dir=blocked)
    names = data.names("all")
    np.testing.assert_array_equal(data.labels(names), VOC(voc_root).labels(names))


def test_masks_come_from_the_root_first_then_from_the_cache(voc_root: Path, tmp_path: Path) -> None:
    data = VOC(voc_root, cache_dir=tmp_path / "cache")
    first, second, third = data.names("train")[:3]
    aug = tmp_path / "cache" / "SegmentationClassAug"
    aug.mkdir(parents=True)
    for name in (first, second):
        Image.fromarray(np.full((4, 6), 7, dtype=np.uint8)).save(aug / f"{name}.png")
    (voc_root / "SegmentationClass" / f"{second}.png").unlink()
    (voc_root / "SegmentationClass" / f"{third}.png").unlink()
    official = data.mask(first)
    assert official is not None and official.dtype == np.uint8
    assert official.shape == (40, 70)
    assert (official[5:15, 5:15] == 1).all() and (official[4, 4:16] == 255).all()
    assert official.sum() == 100 + 12 * 255
    np.testing.assert_array_equal(data.mask(second), np.full((4, 6), 7))
    assert data.mask(third) is None and not data.has_mask(third)


def test_mask_that_is_no_label_map_is_named(voc_root: Path) -> None:
    data = VOC(voc_root)
    path = voc_root / "SegmentationClass" / f"{data.names('train')[0]}.png"
    Image.fromarray(np.full((4, 6), 21, dtype=np.uint8)).save(path)
    with pytest.raises(WsssError, match=f"{path.name} holds id 21, but there are 20 classes"):
        data.mask(path.stem)
    Image.fromarray(np.zeros((4, 6, 3), dtype=np.uint8)).save(path)
    with pytest.raises(WsssError, match="mode RGB"):
        data.mask(path.stem)
    path.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(WsssError, match=f"can't read mask .*{path.name}"):
        data.mask(path.stem)


def test_derived_list_in_the_cache_goes_before_the_roots(voc_root: Path, tmp_path: Path) -> None:
    data = VOC(voc_root, cache_dir=tmp_path)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "trainaug.txt").write_text("b\n\na \n")
    assert data.names("trainaug") == ["b", "a"]
    (voc_root / "ImageSets/Segmentation/trainaug.txt").write_text("c\n")
    assert data.names("trainaug") == ["b", "a"]
    assert VOC(voc_root).names("trainaug") == ["c"]


def test_own_classes(voc_root: Path) -> None:
    assert VOC(voc_root).classes == VOC_CLASSES and VOC(voc_root).num_classes == 20
    (voc_root / "ImageSets" / "classes.txt").write_text("cat\ndog\nperson\n")
    data = VOC(voc_root)
    assert data.classes == ("cat", "dog", "person") and data.num_classes == 3
    assert data.labels(data.names("train")[:3]).tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert VOC(voc_root, classes=["sofa"]).classes == ("sofa",)
    assert repr(data) == f"VOC('{voc_root}', 3 classes)"
    with pytest.raises(WsssError, match="names class 'cat' more than once"):
        VOC(voc_root, classes=["cat", "cat"])


def test_lists_and_classes_as_windows_writes_them(voc_root: Path) -> None:
    """A byte-order mark, its line ends, and names with blanks, in images and in classes."""
    lists, name = voc_root / "ImageSets" / "Segmentation", "IMG 0001 (2)"
    for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        old = voc_root / folder / f"2007_000001.{ending}"
        old.rename(old.with_name(f"{name}.{ending}"))
    annotation = voc_root / "Annotations" / f"{name}.xml"
    annotation.write_text(annotation.read_text().replace("cat", "traffic light"))
    (lists / "train.txt").write_bytes(f"\ufeff{name}\r\n2007_000002 \r\n\r\n".encode())
    classes = "\ufeffcat\r\ntraffic light\r\nperson\r\n"
    (voc_root / "ImageSets" / "classes.txt").write_bytes(classes.encode())
    data = VOC(voc_root)
    assert data.classes == ("cat", "traffic light", "person")
    assert data.names("train") == [name, "2007_000002"]
    data.check("train")
    assert data.labels(data.names("train")).tolist() == [[0, 1, 0], [1, 0, 1]]
    assert load_image(data.image_path(name)).shape == (40, 70, 3)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("", "classes.txt names no class"),
        ("cat\nBackground\n", "'Background' is no class, it always has id 0"),
        ("\n".join(f"c{i}" for i in range(255)), "names 255 classes; masks hold 254 at most"),
    ],
)
def test_faulty_class_lists(voc_root: Path, names: str, message: str) -> None:
    (voc_root / "ImageSets" / "classes.txt").write_text(names)
    with pytest.raises(WsssError, match=message):
        VOC(voc_root)


@pytest.mark.parametrize("ending", ["png", "webp", "bmp", "tif", "JPEG"])
def test_images_may_have_other_endings(voc_root: Path, ending: str) -> None:
    data, name = VOC(voc_root), "2007_000003"
    path = data.image_path(name)
    assert path.name == f"{name}.jpg"
    other = path.with_suffix(f".{ending}")
    image = load_image(path)
    Image.fromarray(image).save(other, **({"lossless": True} if ending == "webp" else {}))
    assert data.image_path(name) == path  # the usual one comes first
    path.unlink()
    assert data.image_path(name) == other
    data.check("train")
    if ending != "JPEG":
        np.testing.assert_array_equal(load_image(other), image)
    other.unlink()
    assert data.image_path(name) == path  # the one to be named as missing


def test_an_image_without_objects_has_no_label(voc_root: Path) -> None:
    (voc_root / "Annotations/2007_000001.xml").write_text(
        "<annotation><filename>a.jpg</filename></annotation>"
    )
    assert VOC(voc_root).labels(["2007_000001"]).tolist() == [[0] * 20]


def test_the_fingerprint_sees_what_comes_and_goes(voc_root: Path, tmp_path: Path) -> None:
    data = VOC(voc_root, cache_dir=tmp_path / "cache")
    seen = {data.fingerprint()}
    data.labels(data.names("all"))  # the cache of labels is no part of it
    assert data.fingerprint() in seen
    for change in (
        lambda: (voc_root / "SegmentationClass/2007_000001.png").unlink(),
        lambda: (voc_root / "JPEGImages/2007_000001.jpg").unlink(),
        lambda: (voc_root / "ImageSets/Segmentation/val.txt").write_text("2007_000001"),
        lambda: (tmp_path / "cache/SegmentationClassAug").mkdir(),
        lambda: (tmp_path / "cache/SegmentationClassAug/a.png").write_bytes(b""),
    ):
        change()
        assert data.fingerprint() not in seen
        seen.add(data.fingerprint())


def test_a_damaged_derived_mask_has_a_way_out(voc_root: Path, tmp_path: Path) -> None:
    data = VOC(voc_root, cache_dir=tmp_path)
    (voc_root / "SegmentationClass/2007_000001.png").unlink()
    (tmp_path / "SegmentationClassAug").mkdir()
    path = tmp_path / "SegmentationClassAug/2007_000001.png"
    path.write_bytes(b"")
    with pytest.raises(WsssError, match=f"{path}.*; delete the file and run stage=prepare again"):
        data.mask("2007_000001")


def test_unknown_class_is_named_with_its_file(voc_root: Path) -> None:
    data = VOC(voc_root, classes=["cat", "person"])
    with pytest.raises(WsssError, match=r"2007_000003\.xml has an object of class 'dog'"):
        data.labels(data.names("train"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "<annotation><object>",
        "<?xml version='1.0' encoding='klingon'?><annotation/>",
        "<annotation>\0</annotation>",
    ],
)
def test_broken_annotation_is_named(voc_root: Path, content: str) -> None:
    (voc_root / "Annotations/2007_000002.xml").write_text(content)
    data = VOC(voc_root)
    with pytest.raises(WsssError, match=r"can't read annotation .*2007_000002\.xml"):
        data.labels(data.names("train"))


def test_another_xml_file_is_no_annotation(voc_root: Path) -> None:
    """It would pass for an image without objects."""
    (voc_root / "Annotations/2007_000002.xml").write_text("<html><object/></html>")
    with pytest.raises(WsssError, match=r"2007_000002\.xml is no annotation of VOC: it holds <ht"):
        VOC(voc_root).labels(["2007_000002"])


def test_check_passes_on_a_whole_data_set(voc_root: Path) -> None:
    VOC(voc_root).check("train", need_masks=True)


def test_check_tells_what_is_missing_in_one_line(voc_root: Path, tmp_path: Path) -> None:
    def message(data: VOC, split: str, need_masks: bool = False) -> str:
        with pytest.raises(WsssError) as caught:
            data.check(split, need_masks)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    missing = message(VOC(tmp_path / "nowhere"), "train")
    assert str(tmp_path / "nowhere") in missing and "data.root=" in missing
    shutil.copytree(voc_root, tmp_path / "devkit" / "VOCdevkit" / "VOC2012")
    hint = message(VOC(tmp_path / "devkit"), "train")
    assert f"try data.root={tmp_path / 'devkit' / 'VOCdevkit' / 'VOC2012'}" in hint
    no_list = message(VOC(voc_root), "trainaug")
    assert "trainaug" in no_list and "stage=prepare" in no_list
    no_split = message(VOC(voc_root), "tain")
    assert "'tain'" in no_split and "all, train, val" in no_split

    (voc_root / "SegmentationClass/2007_000004.png").unlink()
    VOC(voc_root).check("train")
    no_mask = message(VOC(voc_root), "train", need_masks=True)
    assert "1 of 6 images have no mask" in no_mask and "2007_000004" in no_mask
    for i in (2, 5):
        (voc_root / f"JPEGImages/2007_00000{i}.jpg").unlink()
    gone = message(VOC(voc_root), "train")
    assert "2 of 6 images are missing" in gone and "2007_000002.jpg" in gone

    with pytest.raises(WsssError, match=r"data\.root="):
        VOC("")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\ufeff\r\n\r\n", "is empty"),
        ("a\nb\na\n", "odd.txt, line 3: 'a' is on line 1 already"),
        ("/JPEGImages/a.jpg\n", "line 1: '/JPEGImages/a.jpg' is not an image name"),
        ("a\nb\0c\n", "line 2"),
        ("a\n".encode("utf-16"), "odd.txt is not UTF-8"),
    ],
)
def test_faulty_list(voc_root: Path, text: str | bytes, message: str) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    (voc_root / "ImageSets/Segmentation/odd.txt").write_bytes(content)
    with pytest.raises(WsssError, match=message):
        VOC(voc_root).names("odd")


@pytest.mark.realdata
def test_real_photographs(voc2007_mini: Path, tmp_path: Path) -> None:
    data = VOC(voc2007_mini, cache_dir=tmp_path)
    counts = {split: len(data.names(split)) for split in ("train_image_level", "train", "trainaug")}
    assert counts == {"train_image_level": 977, "train": 110, "trainaug": 1087}
    data.check("trainaug")
    data.check("train", need_masks=True)
    with pytest.raises(WsssError, match="977 of 1087 images have no mask"):
        data.check("trainaug", need_masks=True)
    names = data.names("trainaug")
    expected = labels_by_regex(voc2007_mini, names, VOC_CLASSES)
    np.testing.assert_array_equal(data.labels(names), expected)
    np.testing.assert_array_equal(data.labels(names), expected)  # now from the cache
    # The figures of the data set's own README.
    image_level = data.labels(data.names("train_image_level"))
    assert image_level.sum(axis=0).min() >= 60
    assert round(float(image_level.sum(axis=1).mean()), 2) == 1.59

    masked = data.names("train")
    labels = data.labels(masked)
    for name, label in zip(masked, labels, strict=True):
        mask = data.mask(name)
        assert mask is not None
        with Image.open(data.image_path(name)) as image:
            assert mask.shape == (image.height, image.width)
        present = set(np.unique(mask).tolist()) - {0, 255}
        assert present <= set((np.flatnonzero(label) + 1).tolist()) and present
    assert data.mask(data.names("train_image_level")[0]) is None
