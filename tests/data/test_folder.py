"""A folder of one's own: what is read, in which forms, and every complaint with file and line."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from wsss.cli import main
from wsss.data.folder import Folder
from wsss.data.photographs import load_image
from wsss.data.prepare import prepare
from wsss.errors import WsssError

CLASSES = ("apple", "green pear", "Kürbis")
# Names as people give them.
FILES = ("IMG 0001.JPG", "b.c.png", "obst-ä.jpeg", "7.jpg")
LABELS = {
    "IMG 0001.JPG": "apple",
    "b.c": "green pear;apple",
    "obst-ä.jpeg": " Kürbis ; apple;",
    "7": "apple;apple",
}
VECTORS = {
    "IMG 0001": [1, 0, 0],
    "b.c": [1, 1, 0],
    "obst-ä": [1, 0, 1],
    "7": [1, 0, 0],
}
SIZE = (20, 30)  # height, width


def write_image(path: Path, size: tuple[int, int] = SIZE, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)


def write_mask(
    path: Path, ids: tuple[int, ...] = (0, 1, 255), size: tuple[int, int] = SIZE
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.resize(np.array(ids, dtype=np.uint8), size)
    Image.fromarray(pixels).save(path)


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "fruit"
    for file in FILES:
        write_image(root / "images" / file)
    write_lines(root / "classes.txt", [*CLASSES])
    write_lines(root / "labels.csv", [f"{name},{labels}" for name, labels in LABELS.items()])
    write_mask(root / "masks" / "7.png")
    return root


def problems_of(root: Path, splits: tuple[str, ...] = ("train",), **options: Any) -> list[str]:
    """What stage=prepare tells; an error counts by its lines."""
    try:
        return prepare(Folder(root, **options), splits)[1]
    except WsssError as error:
        return str(error).splitlines()


# ---- what is read


def test_names_labels_images_and_masks(root: Path) -> None:
    data = Folder(root)
    assert data.classes == CLASSES and data.num_classes == 3
    names = data.names("train")
    assert names == sorted(VECTORS)
    np.testing.assert_array_equal(data.labels(names), [VECTORS[name] for name in names])
    assert {data.image_path(name).name for name in names} == set(FILES)
    assert all(load_image(data.image_path(name)).shape == (*SIZE, 3) for name in names)
    mask = data.mask("7")
    assert mask is not None and np.unique(mask).tolist() == [0, 1, 255]
    assert data.mask("b.c") is None and not data.has_mask("b.c")
    assert data.names("train_with_masks") == ["7"]
    data.check("train")
    data.check("train_with_masks", need_masks=True)
    report, problems = prepare(data, ["train", "train_with_masks"])
    assert problems == [] and report["warnings"] == [
        f"split 'train_with_masks' has no image of: {', '.join(CLASSES[1:])}"
    ]


def test_the_root_may_be_read_only(root: Path) -> None:
    files = sorted(root.rglob("*"))
    assert problems_of(root) == []
    assert sorted(root.rglob("*")) == files


@pytest.mark.parametrize("form", ["lists", "texts"])
def test_labels_may_be_json(root: Path, form: str) -> None:
    (root / "labels.csv").unlink()
    content: dict[str, Any] = dict(LABELS)
    if form == "lists":
        content = {name: labels.split(";") for name, labels in LABELS.items()}
    (root / "labels.json").write_text(json.dumps(content), encoding="utf-8")
    data = Folder(root)
    names = data.names("train")
    np.testing.assert_array_equal(data.labels(names), [VECTORS[name] for name in names])


@pytest.mark.parametrize(
    "text",
    [
        "name,labels\n{rows}",
        "File,Classes\r\n{rows}",
        "\ufeff{rows}",
        "\n{rows}\n\n",
    ],
)
def test_csv_as_programs_write_it(root: Path, text: str) -> None:
    rows = "\n".join(f'"{name}", "{labels}"' for name, labels in LABELS.items())
    (root / "labels.csv").write_text(text.format(rows=rows), encoding="utf-8", newline="")
    data = Folder(root)
    names = data.names("train")
    np.testing.assert_array_equal(data.labels(names), [VECTORS[name] for name in names])


@pytest.mark.parametrize("sign", [",", ";", "\t"])
@pytest.mark.parametrize("heading", ["", "name{0}classes\n"])
def test_columns_are_parted_by_any_usual_sign(root: Path, sign: str, heading: str) -> None:
    for inner in (";", sign):
        rows = [sign.join([n, labels.replace(";", inner)]) for n, labels in LABELS.items()]
        (root / "labels.csv").write_text(heading.format(sign) + "\n".join(rows))
        data = Folder(root)
        names = data.names("train")
        np.testing.assert_array_equal(data.labels(names), [VECTORS[name] for name in names])


@pytest.mark.parametrize("form", ["csv", "json"])
def test_an_image_may_be_of_no_class(root: Path, form: str) -> None:
    if form == "csv":
        relabel("b.c", "")(root)
    else:
        as_json(json.dumps({**LABELS, "b.c": []}))(root)
    data = Folder(root)
    report, problems = prepare(data, ["train"])
    assert problems == []
    assert any("1 images have no label, e.g. 'b.c'" in line for line in report["warnings"])
    assert report["splits"]["train"]["labels_per_image"]["images"] == {0: 1, 1: 2, 2: 1}
    labels = data.labels(["b.c", "7"])
    np.testing.assert_array_equal(labels, [[0, 0, 0], VECTORS["7"]])


@pytest.mark.parametrize("ending", ["webp", "bmp", "tif", "TIFF", "gif", "ppm", "jp2"])
def test_images_may_be_whatever_pillow_reads(root: Path, ending: str) -> None:
    (root / "images" / "7.jpg").unlink()
    write_image(root / "images" / f"7.{ending}")
    data = Folder(root)
    assert data.names("train") == sorted(VECTORS)
    assert load_image(data.image_path("7")).shape == (*SIZE, 3)
    assert problems_of(root) == []


def test_images_of_one_bit_depth_and_another(root: Path) -> None:
    """A float photograph in 0..1 and a turned one are checked and read like any other."""
    (root / "images" / "7.jpg").unlink()
    gray = np.linspace(0, 1, SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE)
    Image.fromarray(gray).save(root / "images" / "7.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(root / "images" / "b.c.png", exif=exif)
    write_mask(root / "masks" / "b.c.png", size=SIZE[::-1])
    data = Folder(root)
    assert problems_of(root) == []
    np.testing.assert_array_equal(load_image(data.image_path("7"))[..., 0], np.rint(gray * 255))
    mask = data.mask("b.c")
    assert mask is not None and load_image(data.image_path("b.c")).shape[:2] == mask.shape


def test_other_places_and_classes_by_setting(root: Path) -> None:
    (root / "images").rename(root / "photos")
    (root / "labels.csv").rename(root / "what is seen.csv")
    (root / "classes.txt").unlink()
    options = dict(images="photos", labels="what is seen.csv", classes=list(CLASSES[::-1]))
    data = Folder(root, **options)  # type: ignore[arg-type]
    assert data.classes == CLASSES[::-1]
    assert data.labels(["b.c"]).tolist() == [[0, 1, 1]]
    assert problems_of(root, **options) == []


def test_lists(root: Path) -> None:
    write_lines(root / "splits/train.txt", ["7", "obst-ä.jpeg", "", "IMG 0001"])
    write_lines(root / "splits/val.txt", ["b.c.png"])
    data = Folder(root)
    assert data.names("train") == ["7", "obst-ä", "IMG 0001"]
    assert data.names("val") == ["b.c"]
    assert data.names("train_with_masks") == ["7"]
    assert problems_of(root, ("train", "val")) == []
    # An image that is in no list needs no label.
    write_image(root / "images" / "unused.jpg")
    assert problems_of(root, ("train", "val")) == []
    with pytest.raises(WsssError, match="no list .*test.txt for split 'test'.*train, val"):
        data.names("test")


def test_it_travels_to_workers_small_and_whole(root: Path) -> None:
    data = Folder(root)
    names = data.names("train")
    labels = data.labels(names)
    packed = pickle.dumps(data)
    assert len(packed) < 2000
    np.testing.assert_array_equal(pickle.loads(packed).labels(names), labels)
    assert prepare(data, ["train"], workers=2)[1] == []


def test_one_class_and_many(root: Path) -> None:
    (root / "labels.csv").write_text("".join(f"{file},c7\n" for file in FILES), encoding="utf-8")
    for count in (8, 254):
        write_lines(root / "classes.txt", [f"c{i}" for i in range(count)])
        data = Folder(root)
        assert data.labels(["7"]).shape == (1, count) and data.labels(["7"])[0, 7] == 1
    assert Folder(root, classes=["c7"]).labels(["7"]).tolist() == [[1]]


def test_fingerprint_tells_what_has_changed(root: Path) -> None:
    seen = {Folder(root).fingerprint()}
    assert Folder(root).fingerprint() in seen
    for change in (
        lambda: write_lines(root / "labels.csv", [f"{file},apple" for file in FILES]),
        lambda: write_lines(root / "classes.txt", ["apple"]),
        lambda: write_image(root / "images" / "new.jpg"),
        lambda: write_mask(root / "masks" / "b.c.png"),
        lambda: write_lines(root / "splits" / "train.txt", ["7"]),
    ):
        change()
        fingerprint = Folder(root).fingerprint()
        assert fingerprint not in seen
        seen.add(fingerprint)


# ---- bad input: what is done to the folder, and what the one line says


def relabel(name: str, labels: str) -> Callable[[Path], object]:
    """Give an image other labels; it stays on its line."""
    rows = [f"{n},{labels if n == name else old}" for n, old in LABELS.items()]
    return lambda root: write_lines(root / "labels.csv", rows)


def append(line: str) -> Callable[[Path], object]:
    """A fifth line of the label file."""
    rows = [f"{name},{labels}" for name, labels in LABELS.items()]
    return lambda root: write_lines(root / "labels.csv", [*rows, line])


def as_json(text: str) -> Callable[[Path], object]:
    def write(root: Path) -> None:
        (root / "labels.csv").unlink()
        (root / "labels.json").write_text(text, encoding="utf-8")

    return write


def color_mask(root: Path) -> None:
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(root / "masks" / "7.png")


def cut_image(root: Path) -> None:
    path = root / "images" / "7.jpg"
    path.write_bytes(path.read_bytes()[:-400])


BAD: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "image missing": (
        append("gone.jpg,apple"),
        ["labels.csv, line 5", "there is no image 'gone.jpg' in"],
    ),
    "image unreadable": (
        lambda root: (root / "images/7.jpg").write_bytes(b"x"),
        ["can't read image", "images/7.jpg"],
    ),
    "image cut off": (cut_image, ["can't read image", "images/7.jpg", "truncated"]),
    "unknown class": (
        relabel("b.c", "green pear;aple"),
        ["labels.csv, line 2", "unknown class 'aple' (is 'apple' meant?)"],
    ),
    "unknown classes": (
        relabel("b.c", "Apple;x"),
        ["labels.csv, line 2", "unknown classes 'Apple', 'x' (is 'apple' meant?)"],
    ),
    "image without row": (
        lambda root: write_image(root / "images" / "new.jpg"),
        ["images/new.jpg has no label", "labels.csv has no row 'new'"],
    ),
    "row of one column": (append("7"), ["labels.csv, line 5", "write name,class;class"]),
    "column that is no class": (
        relabel("7", "apple,640"),
        ["labels.csv, line 4", "unknown class '640'"],
    ),
    "row without name": (append(",apple"), ["labels.csv, line 5", "no image is named"]),
    "image labeled twice": (
        append("7.jpg,apple"),
        ["labels.csv, line 5", "'7.jpg' has labels already", "labels.csv, line 4"],
    ),
    "two images of one name": (
        lambda root: write_image(root / "images" / "7.png"),
        ["images/7.png", "images/7.jpg", "have the same name '7'"],
    ),
    "mask of another size": (
        lambda root: write_mask(root / "masks/7.png", size=(10, 12)),
        ["mask of '7' is 12 x 10 pixels, its image 30 x 20"],
    ),
    "mask value out of range": (
        lambda root: write_mask(root / "masks/7.png", ids=(0, 4)),
        ["masks/7.png holds id 4, but there are 3 classes"],
    ),
    "mask in colors": (color_mask, ["masks/7.png is a picture of mode RGB"]),
    "mask unreadable": (
        lambda root: (root / "masks/7.png").write_bytes(b"x"),
        ["can't read mask", "masks/7.png"],
    ),
    "mask as JPEG": (
        lambda root: write_image(root / "masks" / "b.c.jpg"),
        ["masks/b.c.jpg is no PNG", "save masks as PNG"],
    ),
    "mask without image": (
        lambda root: write_mask(root / "masks" / "stray.png"),
        ["masks/stray.png belongs to no image"],
    ),
    "list with unknown name": (
        lambda root: write_lines(root / "splits/train.txt", ["7", "gone"]),
        ["splits/train.txt, line 2: there is no image 'gone'"],
    ),
    "list with a name twice": (
        lambda root: write_lines(root / "splits/train.txt", ["7", "b.c", "7.jpg"]),
        ["splits/train.txt, line 3: '7' is on line 1 already"],
    ),
    "list empty": (
        lambda root: write_lines(root / "splits/train.txt", [""]),
        ["the list", "splits/train.txt is empty"],
    ),
    "list not there": (
        lambda root: write_lines(root / "splits/val.txt", ["7"]),
        ["no list", "splits/train.txt for split 'train': lists there: val"],
    ),
    "no image folder": (
        lambda root: (root / "images").rename(root / "photos"),
        ["fruit has no folder images"],
    ),
    "no image": (
        lambda root: [path.unlink() for path in (root / "images").iterdir()],
        ["images holds no image (.jpg .jpeg .jpe", "nothing at all"],
    ),
    "no image that can be read": (
        lambda root: [path.rename(f"{path}.heic") for path in (root / "images").iterdir()],
        ["images holds no image", "but 7.jpg.heic, IMG 0001.JPG.heic, b.c.png.heic"],
    ),
    "no class list": (
        lambda root: (root / "classes.txt").unlink(),
        ["no class list", "classes.txt"],
    ),
    "class list empty": (
        lambda root: write_lines(root / "classes.txt", [""]),
        ["classes.txt names no class"],
    ),
    "class twice": (
        lambda root: write_lines(root / "classes.txt", [*CLASSES, "apple"]),
        ["classes.txt names class 'apple' more than once"],
    ),
    "class with ;": (
        lambda root: write_lines(root / "classes.txt", [*CLASSES, "a;b"]),
        ["classes.txt: class 'a;b' has a ; in it"],
    ),
    "background as a class": (
        lambda root: write_lines(root / "classes.txt", ["Background", *CLASSES]),
        ["classes.txt: 'Background' is no class"],
    ),
    "too many classes": (
        lambda root: write_lines(root / "classes.txt", [f"c{i}" for i in range(255)]),
        ["classes.txt names 255 classes; masks hold 254"],
    ),
    "class list not UTF-8": (
        lambda root: (root / "classes.txt").write_bytes("Kürbis".encode("latin-1")),
        ["classes.txt is not UTF-8"],
    ),
    "no label file": (
        lambda root: (root / "labels.csv").unlink(),
        ["has no labels.csv or labels.json"],
    ),
    "label file empty": (
        lambda root: (root / "labels.csv").write_text("name,labels\n"),
        ["labels.csv holds no image"],
    ),
    "label file not UTF-8": (
        lambda root: (root / "labels.csv").write_bytes("ä,apple".encode("latin-1")),
        ["labels.csv is not UTF-8 (byte 0)"],
    ),
    "JSON broken": (as_json('{"7": '), ["can't read the label file", "labels.json as JSON"]),
    "JSON of another form": (as_json('[["7", "apple"]]'), ["labels.json must be an object"]),
    "JSON without end": (as_json("[" * 100_000), ["can't read the label file", "labels.json as"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_names_it(root: Path, case: str) -> None:
    spoil, parts = BAD[case]
    spoil(root)
    problems = problems_of(root)
    assert len(problems) == 1, problems
    assert all(part in problems[0] for part in parts), problems[0]


@pytest.mark.parametrize("case", BAD)
def test_a_user_sees_one_line_and_exit_code_1(
    root: Path,
    tmp_path: Path,
    case: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same through the command line, in this process."""
    spoil, parts = BAD[case]
    spoil(root)
    command = f"data=folder stage=prepare hydra/job_logging=none paths.outputs={tmp_path / 'out'}"
    monkeypatch.setattr("sys.argv", ["run.py", *command.split(), f"data.root={root}"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as ended:
        main()
    GlobalHydra.instance().clear()
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert shown.err.count("error: ") == 1
    lines = [line for line in (shown.out + shown.err).splitlines() if "warning" not in line]
    lines = [line for line in lines if all(part in line for part in parts)]
    assert len(lines) == 1, shown
    assert "Traceback" not in shown.out + shown.err


def test_json_rows_are_named(root: Path) -> None:
    as_json('{"7": ["apple"], "7.jpg": ["apple"], "b.c": {}, "IMG 0001": ["apple", 5]}')(root)
    problems = problems_of(root)
    assert "labels.json, '7.jpg': '7.jpg' has labels already" in problems[0]
    assert problems[1].endswith("labels.json, 'b.c': the labels must be a list of class names")
    assert problems[2].endswith("labels.json, 'IMG 0001': the labels must be a list of class names")
    assert len(problems) == 4 and "'obst-ä'" in problems[3]


def test_every_problem_is_told_at_once(root: Path) -> None:
    for case in (
        "image unreadable",
        "mask without image",
        "mask as JPEG",
        "image without row",
        "two images of one name",
        "list with a name twice",
    ):
        BAD[case][0](root)
    write_lines(root / "splits/train.txt", ["7", "7", "b.c", "new", "IMG 0001"])
    write_lines(root / "labels.csv", ["7,apple", "b.c,cucumber", "IMG 0001,", "x,apple"])
    problems = problems_of(root)
    for part in (
        "have the same name '7'",
        "splits/train.txt, line 2: '7' is on line 1 already",
        "labels.csv, line 2: unknown class 'cucumber'",
        "labels.csv, line 4: there is no image 'x'",
        "masks/stray.png belongs to no image",
        "masks/b.c.jpg is no PNG",
        "can't read image",
        "new.jpg has no label",
    ):
        assert sum(part in line for line in problems) == 1, part
    assert len(problems) == 8


def test_training_stops_at_what_it_needs(root: Path) -> None:
    append("gone.jpg,apple")(root)
    Folder(root).check("train")  # a row too many does no harm
    assert Folder(root).labels(Folder(root).names("train")).shape == (4, 3)
    relabel("7", "aple")(root)
    with pytest.raises(WsssError, match=r"labels.csv, line 4: unknown class 'aple'"):
        Folder(root).labels(["7"])
    write_lines(root / "splits/train.txt", ["gone"])
    with pytest.raises(WsssError, match=r"splits/train.txt, line 1.*stage=prepare lists all"):
        Folder(root).check("train")


def test_missing_root_and_masks_are_named(tmp_path: Path, root: Path) -> None:
    with pytest.raises(WsssError, match=r"data\.root=/path"):
        Folder("")
    with pytest.raises(WsssError, match="does not exist: give data.root"):
        Folder(tmp_path / "nowhere").check("train")
    (root / "masks/7.png").unlink()
    assert Folder(root).names("train_with_masks") == Folder(root).names("train")
    with pytest.raises(WsssError, match="4 of 4 images have no mask"):
        Folder(root).check("train", need_masks=True)


def test_odd_files_are_told_but_do_no_harm(root: Path) -> None:
    (root / "images/Thumbs.db").write_bytes(b"")
    (root / "images/more").mkdir()
    (root / "images/.DS_Store").write_bytes(b"")
    (root / "labels.json").write_text("{}")
    report, problems = prepare(Folder(root), ["train"])
    assert problems == []
    assert any("2 entries of" in w and "Thumbs.db" in w for w in report["warnings"])
    assert any("labels.csv is read" in w for w in report["warnings"])
