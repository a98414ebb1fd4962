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


@pytest.mark.parametrize("damage", [b"", b"no archive", b"PK\x03\x04cut"])
def test_a_broken_label_cache_is_replaced(voc_root: Path, tmp_path: Path, damage: bytes) -> None:
    data = VOC(voc_root, cache_dir=tmp_path / "cache")
    names = data.names("all")
    expected = data.labels(names)
    (tmp_path / "cache" / "labels.npz").write_bytes(damage)
    np.testing.assert_array_equal(data.labels(names), expected)
    assert (tmp_path / "cache" / "labels.npz").read_bytes() != damage


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
    with pytest.raises(WsssError, match="once each"):
        VOC(voc_root, classes=["cat", "cat"])


def test_unknown_class_is_named_with_its_file(voc_root: Path) -> None:
    data = VOC(voc_root, classes=["cat", "person"])
    with pytest.raises(WsssError, match=r"2007_000003\.xml has an object of class 'dog'"):
        data.labels(data.names("train"))


@pytest.mark.parametrize("content", ["", "<annotation><object>"])
def test_broken_annotation_is_named(voc_root: Path, content: str) -> None:
    (voc_root / "Annotations/2007_000002.xml").write_text(content)
    data = VOC(voc_root)
    with pytest.raises(WsssError, match=r"can't read annotation .*2007_000002\.xml"):
        data.labels(data.names("train"))


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
        ("a\nb\na\n", "'a' stands in the list more than once"),
        ("a\nb 1\n", "line 2: 'b 1' is not one image name"),
        ("/JPEGImages/a.jpg\n", "line 1"),
    ],
)
def test_faulty_list(voc_root: Path, text: str, message: str) -> None:
    (voc_root / "ImageSets/Segmentation/odd.txt").write_text(text)
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
