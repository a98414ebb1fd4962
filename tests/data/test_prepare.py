"""stage=prepare on a VOC + SBD tree: trainaug, converted masks, the report and its complaints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from wsss.data import mat_reader
from wsss.data import sbd as sbd_module
from wsss.data.masks import read_mask
from wsss.data.prepare import complaint
from wsss.data.prepare import prepare as look
from wsss.data.scenes import Scenes
from wsss.data.voc import VOC
from wsss.errors import WsssError

# Of the eight images of the fixture: VOC train 1-3, VOC val 7-8.
VOC_TRAIN, VOC_VAL = (1, 2, 3), (7, 8)
SBD_TRAIN, SBD_VAL = (3, 4, 7), (5, 6, 8)
TRAINAUG = (1, 2, 3, 4, 5, 6)


def prepare(image_set: VOC, *arguments: Any, **options: Any) -> dict[str, Any]:
    """The report, if there are no problems."""
    report, problems = look(image_set, *arguments, **options)
    if problems:
        raise complaint(repr(image_set), problems)
    return report


def names(numbers: tuple[int, ...]) -> list[str]:
    return [f"2007_{i:06d}" for i in numbers]


def write_list(path: Path, numbers: tuple[int, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names(numbers)))


def size_of(root: Path, name: str) -> tuple[int, int]:
    with Image.open(root / "JPEGImages" / f"{name}.jpg") as image:
        return image.height, image.width


def sbd_mask(root: Path, name: str) -> np.ndarray:
    """Some mask of its image's size, another one for each image."""
    number = int(name[-2:])
    return np.random.default_rng(number).integers(0, 21, size_of(root, name)).astype(np.uint8)


@pytest.fixture
def voc_with_sbd(voc_root: Path, tmp_path: Path) -> VOC:
    lists = voc_root / "ImageSets" / "Segmentation"
    write_list(lists / "train.txt", VOC_TRAIN)
    write_list(lists / "val.txt", VOC_VAL)
    sbd = tmp_path / "sbd" / "dataset"
    write_list(sbd / "train.txt", SBD_TRAIN)
    write_list(sbd / "val.txt", SBD_VAL)
    (sbd / "cls").mkdir()
    for name in names(SBD_TRAIN + SBD_VAL):
        content = {
            "Segmentation": sbd_mask(voc_root, name),
            "CategoriesPresent": np.array([[1]]),
            "Boundaries": np.zeros((20, 1), dtype=object),
        }
        scipy.io.savemat(sbd / "cls" / f"{name}.mat", {"GTcls": content})
    for name in names((4, 5, 6)):
        (voc_root / "SegmentationClass" / f"{name}.png").unlink()
    return VOC(voc_root, sbd_root=tmp_path / "sbd", cache_dir=tmp_path / "cache")


EXPECTED = {"train": 3, "val": 2, "trainaug": 6}


def test_trainaug_and_its_masks_are_derived(voc_with_sbd: VOC, tmp_path: Path) -> None:
    data = voc_with_sbd
    with pytest.raises(WsssError, match="stage=prepare"):
        data.names("trainaug")
    report = prepare(data, ["train", "val", "trainaug"], EXPECTED)
    assert data.names("trainaug") == names(TRAINAUG)
    assert not (
        data.root / "ImageSets/Segmentation/trainaug.txt"
    ).exists()  # the root may be read-only
    assert report["derived"] == {"trainaug": 6, "masks_converted": 3, "masks_found": 3}

    aug = tmp_path / "cache" / "SegmentationClassAug"
    assert sorted(p.name for p in aug.iterdir()) == [f"{name}.png" for name in names((4, 5, 6))]
    for name in names((4, 5, 6)):
        with Image.open(aug / f"{name}.png") as file:
            assert file.mode == "P"
            np.testing.assert_array_equal(np.array(file), sbd_mask(data.root, name))
        np.testing.assert_array_equal(data.mask(name), sbd_mask(data.root, name))
    official = read_mask(data.root / "SegmentationClass" / f"{names((3,))[0]}.png", 20)
    np.testing.assert_array_equal(data.mask(names((3,))[0]), official)  # not the one of SBD
    data.check("trainaug", need_masks=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_report(voc_with_sbd: VOC, workers: int) -> None:
    report = prepare(voc_with_sbd, ["train", "val", "trainaug"], EXPECTED, workers=workers)
    assert json.loads(json.dumps(report))["data_set"] == repr(voc_with_sbd)
    for name in names((4, 5, 6)):
        np.testing.assert_array_equal(voc_with_sbd.mask(name), sbd_mask(voc_with_sbd.root, name))
    trainaug = report["splits"]["trainaug"]
    assert (trainaug["images"], trainaug["expected"], trainaug["masks"]) == (6, 6, 6)
    # cat | cat person | dog | aeroplane | person tvmonitor | sofa
    assert trainaug["labels_per_image"] == {"mean": 1.333, "images": {1: 4, 2: 2}}
    counts = {name: n for name, n in trainaug["images_per_class"].items() if n}
    assert counts == {"cat": 2, "person": 2, "dog": 1, "aeroplane": 1, "tvmonitor": 1, "sofa": 1}
    assert report["splits"]["train"]["smallest"] == [40, 70]
    assert report["splits"]["train"]["largest"] == [50, 64]
    assert any("train" in line and "sheep" in line for line in report["warnings"])


def test_interrupted_conversion_goes_on(
    voc_with_sbd: VOC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, read = sbd_module.read_mat_mask, []

    def dies_at_the_second(path: Path) -> np.ndarray:
        if len(read) == 1:
            raise KeyboardInterrupt
        read.append(path.stem)
        return original(path)

    monkeypatch.setattr(sbd_module, "read_mat_mask", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        prepare(voc_with_sbd, ["train"])
    assert read == names((4,))

    monkeypatch.setattr(
        sbd_module, "read_mat_mask", lambda path: read.append(path.stem) or original(path)
    )
    derived = prepare(voc_with_sbd, ["train"])["derived"]
    assert read == names((4, 5, 6))
    assert derived == {"trainaug": 6, "masks_converted": 2, "masks_found": 4}
    assert prepare(voc_with_sbd, ["train"])["derived"]["masks_converted"] == 0


def test_both_layouts_of_sbd_are_found(voc_with_sbd: VOC) -> None:
    assert voc_with_sbd.sbd_root is not None
    inner = voc_with_sbd.sbd_root / "dataset"
    data = VOC(voc_with_sbd.root, sbd_root=inner, cache_dir=voc_with_sbd.cache_dir)
    prepare(data, ["trainaug"], {"trainaug": 6})
    with pytest.raises(WsssError, match=r"data\.sbd_root="):
        prepare(VOC(data.root, sbd_root=data.root, cache_dir=data.cache_dir), ["train"])
    with pytest.raises(WsssError, match="cache_dir"):
        prepare(VOC(data.root, sbd_root=inner), ["train"])


def test_broken_sbd_file_is_named(voc_with_sbd: VOC) -> None:
    assert voc_with_sbd.sbd_root is not None
    cls = voc_with_sbd.sbd_root / "dataset" / "cls"
    (cls / "2007_000005.mat").write_bytes(b"no matlab file")
    (cls / "2007_000006.mat").unlink()
    with pytest.raises(WsssError, match=r"2007_000005\.mat.*and 1 more file"):
        prepare(voc_with_sbd, ["train"])
    scipy.io.savemat(cls / "2007_000005.mat", {"GTcls": {"Segmentation": np.full((4, 4), 33)}})
    with pytest.raises(WsssError, match=r"2007_000005\.mat holds ids from 33 to 33"):
        prepare(voc_with_sbd, ["train"])


def test_a_file_that_crashes_its_reader_is_named(
    voc_with_sbd: VOC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that dies of one file, as scipy's does of some damaged ones; others are read."""
    (tmp_path / "scipy").mkdir()
    (tmp_path / "scipy" / "__init__.py").touch()
    (tmp_path / "scipy" / "io.py").write_text(
        "import os, signal\n"
        "def loadmat(path, variable_names):\n"
        "    if '000005' in path:\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    import numpy\n"
        "    mask = numpy.full((3, 4), 7, dtype='uint8')\n"
        "    cell = numpy.empty((1, 1), dtype=object)\n"
        "    cell[0, 0] = mask\n"
        "    return {'GTcls': {'Segmentation': cell}}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    mat_reader.close_reader()
    try:
        with pytest.raises(WsssError) as caught:
            prepare(voc_with_sbd, ["train"])
    finally:
        mat_reader.close_reader()
    path = voc_with_sbd.sbd_root / "dataset/cls/2007_000005.mat"  # type: ignore[operator]
    assert str(caught.value) == (
        f"can't read the class mask GTcls.Segmentation of {path}: it is damaged and crashes the "
        "reader; get it again"
    )
    assert (voc_with_sbd.mask("2007_000004") == 7).all()
    assert (voc_with_sbd.mask("2007_000006") == 7).all()  # by the next reader
    assert not voc_with_sbd.has_mask("2007_000005")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((4, 4), 1.5), "something else than whole numbers"),
        (np.full((4, 4), np.nan), "something else than whole numbers"),
        (np.zeros((4, 4, 3)), r"the shape \(4, 4, 3\)"),
        (np.full((4, 4), 300), "holds ids from 300 to 300"),
        (np.full((4, 4), -1), "holds ids from -1 to -1"),
    ],
)
def test_other_contents_of_sbd_are_named(voc_with_sbd: VOC, mask: Any, message: str) -> None:
    path = voc_with_sbd.sbd_root / "dataset/cls/2007_000005.mat"  # type: ignore[operator]
    scipy.io.savemat(path, {"GTcls": {"Segmentation": mask}})
    with pytest.raises(WsssError, match=rf"2007_000005\.mat.*{message}"):
        prepare(voc_with_sbd, ["train"])


def test_damaged_files_of_sbd_are_one_line(tmp_path: Path) -> None:
    """Cut and overwritten anywhere: the mask, another one of that size, or a reason."""
    path, refused = tmp_path / "a.mat", 0
    mask = np.random.default_rng(0).integers(0, 21, (40, 50)).astype(np.uint8)
    content = {"GTcls": {"Segmentation": mask, "CategoriesPresent": np.array([[1]])}}
    scipy.io.savemat(path, content, do_compression=True)
    whole = path.read_bytes()
    np.testing.assert_array_equal(mat_reader.read_mat_mask(path), mask)
    rng = np.random.default_rng(0)
    for attempt in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(100, len(whole), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged if attempt % 2 else whole[: rng.integers(len(whole))])
        try:
            mat_reader.read_mat_mask(path)
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50
    path.write_bytes(whole)
    np.testing.assert_array_equal(mat_reader.read_mat_mask(path), mask)


def test_a_picture_that_is_too_large_or_a_pipe_is_a_problem(voc_root: Path) -> None:
    for name in names((1, 2)):
        (voc_root / "JPEGImages" / f"{name}.jpg").unlink()
    Image.new("1", (13_000, 13_000)).save(voc_root / "JPEGImages" / f"{names((1,))[0]}.png")
    os.mkfifo(voc_root / "JPEGImages" / f"{names((2,))[0]}.jpg")
    _, problems = look(VOC(voc_root), ["train"])
    assert len(problems) == 2
    assert "2007_000001.png has more than 89,478,485 pixels" in problems[0]
    assert "2007_000002.jpg is no regular file" in problems[1]


def test_wrong_counts_name_both_numbers(voc_with_sbd: VOC) -> None:
    with pytest.raises(WsssError) as caught:
        prepare(voc_with_sbd, ["train", "val", "trainaug"], {"train": 1464, "trainaug": 10582})
    assert "split 'train' has 3 images, expected 1464" in str(caught.value)
    assert "split 'trainaug' has 6 images, expected 10582" in str(caught.value)
    assert "2 problems" in str(caught.value)


def test_held_out_split_must_be_disjoint(voc_root: Path) -> None:
    lists = voc_root / "ImageSets" / "Segmentation"
    write_list(lists / "trainaug.txt", (1, 2, 7, 8))
    with pytest.raises(WsssError) as caught:
        prepare(VOC(voc_root), ["trainaug", "train", "val"])
    assert "2 images of split 'val' are in split 'trainaug' as well" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    prepare(VOC(voc_root), ["trainaug", "train", "val"], held_out=())


def test_all_problems_are_listed_at_once(voc_root: Path) -> None:
    (voc_root / "JPEGImages/2007_000001.jpg").unlink()
    whole = (voc_root / "JPEGImages/2007_000002.jpg").read_bytes()
    (voc_root / "JPEGImages/2007_000002.jpg").write_bytes(whole[:-400])
    (voc_root / "Annotations/2007_000003.xml").write_text("<broken")
    (voc_root / "Annotations/2007_000005.xml").unlink()
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(voc_root / "SegmentationClass/2007_000004.png")
    Image.fromarray(np.full((65, 55), 99, np.uint8)).save(
        voc_root / "SegmentationClass/2007_000006.png"
    )
    with pytest.raises(WsssError) as caught:
        prepare(VOC(voc_root), ["train", "nowhere"])
    head, *lines = str(caught.value).splitlines()
    assert "7 problems" in head and len(lines) == 7
    for line, parts in zip(
        lines,
        [
            ("nowhere",),
            ("2007_000001.jpg does not exist",),
            ("can't read image", "2007_000002.jpg"),
            ("mask of '2007_000004' is 3 x 3 pixels, its image 61 x 55",),
            ("2007_000006.png holds id 99",),
            ("can't read annotation", "2007_000003.xml"),
            ("no annotation", "2007_000005.xml"),
        ],
        strict=True,
    ):
        assert all(part in line for part in parts), line


def test_many_problems_are_cut_to_twenty(voc_root: Path) -> None:
    many = [f"gone_{i}" for i in range(30)]
    (voc_root / "ImageSets/Segmentation/train.txt").write_text("\n".join(many))
    with pytest.raises(WsssError) as caught:
        prepare(VOC(voc_root), ["train"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 22 and "60 problems" in lines[0] and lines[-1] == "... and 40 more"


def test_oddities_are_warnings(voc_root: Path) -> None:
    (voc_root / "Annotations/2007_000001.xml").write_text("<annotation></annotation>")
    report = prepare(VOC(voc_root), ["train", "test"])
    assert any("1 images have no label, e.g. '2007_000001'" in w for w in report["warnings"])
    # The fixture's masks show class i at image i, which the annotations do not name.
    assert any("class in the mask that is not among" in w for w in report["warnings"])
    assert any("'test' is passed over" in w for w in report["warnings"])
    assert "test" not in report["splits"]


def test_optional_splits_may_be_wanting_and_empty_masks_are_told(voc_root: Path) -> None:
    for path in (voc_root / "SegmentationClass").iterdir():
        with Image.open(path) as mask:
            Image.new("L", mask.size, 255).save(path)
    report = prepare(VOC(voc_root), ["train", "nowhere"], optional=["nowhere"])
    assert list(report["splits"]) == ["train"]
    assert any("'nowhere' is passed over" in line for line in report["warnings"])
    assert any("no mask shows any object" in line for line in report["warnings"])


def test_unlabeled_split_is_checked_without_annotations(voc_root: Path) -> None:
    write_list(voc_root / "ImageSets/Segmentation/test.txt", (7, 8))
    for name in names((7, 8)):
        (voc_root / "Annotations" / f"{name}.xml").unlink()
        (voc_root / "SegmentationClass" / f"{name}.png").unlink()
    report = prepare(VOC(voc_root), ["train", "test"], {"test": 2})
    assert report["splits"]["test"]["images"] == 2
    assert "images_per_class" not in report["splits"]["test"]


def test_generated_scenes_pass(tmp_path: Path) -> None:
    scenes = Scenes(tmp_path / "s", n_train=4, n_val=2, size=64)
    report = prepare(scenes, ["trainaug", "train", "val"], {"train": 4, "val": 2})
    assert report["splits"]["train"]["masks"] == 4
    assert report["splits"]["val"]["median"] == [64, 64]
    assert not any("in the mask" in w or "no label" in w for w in report["warnings"])


@pytest.mark.realdata
def test_real_photographs(voc2007_mini: Path, tmp_path: Path) -> None:
    data = VOC(voc2007_mini, cache_dir=tmp_path)
    expected = {"train": 110, "train_image_level": 977, "trainaug": 1087}
    report = prepare(data, list(expected), expected)
    splits = report["splits"]
    assert report["derived"] == {} and report["warnings"] == []
    assert {split: entry["masks"] for split, entry in splits.items()} == {
        "train": 110,
        "train_image_level": 0,
        "trainaug": 110,
    }
    for name, count in splits["trainaug"]["images_per_class"].items():
        parts = (splits[s]["images_per_class"][name] for s in ("train", "train_image_level"))
        assert count == sum(parts) >= 60
