"""The gallery: its data against scores counted anew, its pictures by pixel, its page at work."""

from __future__ import annotations

import html
import html.parser
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from wsss.build.settings import ReportSettings, Settings
from wsss.data.masks import voc_palette
from wsss.data.voc import VOC
from wsss.errors import WsssError
from wsss.maps.files import read_class_maps
from wsss.maps.fuse import enlarge
from wsss.report.gallery import PAGE, Shelf, Step, write_gallery
from wsss.stages import gallery

BACKGROUND = 0.3
RUNS = ("first & <b>", "second")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture
def two_runs(lend, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of the gallery of two runs: CAM with CRF, SIPE without."""
    outputs = tmp_path / "outputs"
    given = (f"eval_cam.background={BACKGROUND}",)
    recorded = {"seed": 0, "data": {"name": "scenes"}, "eval_cam": {"background": BACKGROUND}}
    for run, method, stages in (
        (RUNS[0], "cam", ("make_cam", "eval_cam", "crf")),
        (RUNS[1], "sipe", ("make_cam", "eval_cam")),
    ):
        s = lend("train", *stages, of=(f"method={method}", *given), run=f"lent_{method}")
        folder = outputs / run / "default"
        shutil.copytree(Path(s.paths.run), folder)
        (folder / "train" / ".hydra").mkdir()
        OmegaConf.save(recorded, folder / "train" / ".hydra" / "config.yaml")
    report = ReportSettings(runs=RUNS)
    paths = replace(s.paths, outputs=str(outputs), run=str(outputs / "all" / "default"))
    return replace(s, paths=paths, report=report, run_name="all")


@pytest.fixture
def made(two_runs, capsys) -> Path:
    """The folder of a gallery of both runs."""
    gallery.run(two_runs)
    folder = two_runs.folder("gallery")
    assert capsys.readouterr().out.endswith(
        f"gallery: 6 images of 2 runs -> {folder / 'index.html'}\n"
    )
    return folder


def content(folder: Path) -> dict[str, Any]:
    text = (folder / "data.js").read_text("ascii")
    return json.loads(text.removeprefix("const GALLERY = ").removesuffix(";\n"))


def iou_by_hand(truth: np.ndarray, label: np.ndarray) -> dict[str, float]:
    found = {}
    for c in range(7):
        both = union = 0
        for t, p in zip(truth.ravel().tolist(), label.ravel().tolist(), strict=True):
            both += t == p == c
            union += t != 255 and c in (t, p)
        if union:
            found[str(c)] = 100 * both / union
    return found


def seeds_by_hand(path: Path, kind: str) -> np.ndarray:
    stored = read_class_maps(path, kind)
    maps = enlarge(stored.maps[kind], stored.size)
    if len(maps) == len(stored.classes):
        maps = np.concatenate([np.full((1, *stored.size), BACKGROUND, np.float32), maps])
    return np.array([0, *stored.classes])[maps.argmax(0)]


def test_scores_and_pictures_are_those_of_the_stages(made: Path, few_scenes: Path) -> None:
    data, scenes = content(made), VOC(few_scenes)
    assert [run["title"] for run in data["runs"]] == list(RUNS)
    steps = [[step["name"] for step in run["steps"]] for run in data["runs"]]
    assert steps == [
        ["cam", "cam seed", "+ CRF"],
        ["cam", "cam seed", "is_cam", "is_cam seed"],
    ]
    assert data["classes"] == list(scenes.classes)
    assert [image["name"] for image in data["images"]] == sorted(scenes.names("train"))
    listed = {"index.html", "data.js"}
    palette = voc_palette()
    for image in data["images"]:
        name, truth = image["name"], scenes.mask(image["name"])
        assert image["size"] == image["whole"] == [64, 64]
        assert set(np.unique(truth).tolist()) - {0, 255} <= set(image["classes"])
        listed |= {f"{image['file']}.jpg", f"{image['file']}-truth.png"}
        with Image.open(made / f"{image['file']}-truth.png") as file:
            assert np.array_equal(np.asarray(file), np.where(truth == 255, 0, truth))
        for r, run in enumerate(RUNS):
            folder = made.parents[2] / run / "default"
            for s, step in enumerate(steps[r]):
                stem, shown = f"{image['file']}-{r}-{s}", image["shown"][r][s]
                maps = folder / "make_cam" / "maps" / f"{name}.npz"
                if step in ("cam", "is_cam"):
                    stored = read_class_maps(maps, step)
                    assert shown == stored.classes.tolist() and image["iou"][r][s] is None
                    for c, values in zip(shown, stored.maps[step][-len(shown) :], strict=True):
                        listed.add(f"{stem}-{c}.png")
                        with Image.open(made / f"{stem}-{c}.png") as file:
                            pixels = np.asarray(file.convert("RGBA")).astype(float)
                        assert (pixels[..., :3] == palette[c]).all()
                        assert np.abs(pixels[..., 3] / 255 - 0.9 * values).max() < 0.01
                    continue
                listed.add(f"{stem}.png")
                if step == "+ CRF":
                    label = np.asarray(Image.open(folder / "crf" / "masks" / f"{name}.png"))
                else:
                    label = seeds_by_hand(maps, step.removesuffix(" seed"))
                with Image.open(made / f"{stem}.png") as file:
                    assert np.array_equal(np.asarray(file), label)
                    clear = np.asarray(file.convert("RGBA"))[..., 3] == 0
                assert np.array_equal(clear, label == 0)
                assert shown == np.unique(label).tolist()
                assert image["iou"][r][s] == pytest.approx(iou_by_hand(truth, label), abs=0.006)
    there = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert there == listed


def test_a_gallery_is_made_anew_and_runs_of_other_data_are_refused(made, two_runs) -> None:
    stale = made / "pictures" / "0" / "99.jpg"
    stale.touch()
    alone = replace(two_runs, report=ReportSettings(runs=(RUNS[1],), picture_side=32))
    gallery.run(alone)
    data = content(made)
    assert not stale.exists() and [run["title"] for run in data["runs"]] == [RUNS[1]]
    with Image.open(made / f"{data['images'][0]['file']}.jpg") as file:
        assert file.size == (32, 32)
    assert data["images"][0]["size"] == [32, 32] and data["images"][0]["whole"] == [64, 64]
    other = replace(two_runs, data=replace(two_runs.data, name="voc"))
    with pytest.raises(WsssError, match=r"run first & <b> is of data.name=scenes.* is voc"):
        gallery.run(other)


def test_nothing_to_show_is_one_line(two_runs, tmp_path) -> None:
    (tmp_path / "outputs" / "empty" / "default").mkdir(parents=True)
    with pytest.raises(WsssError, match="needs a finished stage with pictures"):
        gallery.run(replace(two_runs, report=ReportSettings(runs=("empty",))))


def test_the_page_has_what_its_script_asks_for() -> None:
    text = PAGE.read_text()
    ids: list[str] = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            ids.extend(value or "" for key, value in attrs if key == "id")
            for key, value in attrs:
                assert key not in ("src", "href") or value == "data.js", "nothing from elsewhere"

    Reader().feed(text)
    asked = set(re.findall(r'\$\("([\w-]+)"\)', text))
    assert asked <= set(ids) and len(ids) == len(set(ids))
    assert {"class", "name", "sort", "by", "against", "steps", "images", "big"} <= set(ids)
    assert "http" not in text and "innerHTML" not in text


# What a user does, and what the page then shows, as JSON in an attribute of <body>.
DRIVE = """<script>{
const names = () => [...document.querySelectorAll("article")].map(one => one.dataset.name);
const set = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("input")); };
const told = { all: names(), wide: document.documentElement.scrollWidth - innerWidth };
told.cells = document.querySelector("article").querySelectorAll(".cell").length;
told.lazy = [...document.querySelectorAll("article img")].every(one => one.loading === "lazy");
set("class", CLASS); told.filtered = names(); told.address = location.hash;
set("class", 0); set("sort", "worst"); set("by", "0.2"); told.worst = names();
set("sort", "gain"); set("by", "1.3"); set("against", "0.1"); told.gain = names();
set("sort", "order"); set("name", NAME); told.named = names(); set("name", "");
document.querySelectorAll("#steps input")[0].click();
told.fewer = document.querySelector("article").querySelectorAll(".cell").length;
document.querySelectorAll(".cell")[1].click();
told.large = [$("big").open, $("caption").textContent];
$("after").click(); told.after = $("caption").textContent;
told.broken = [...document.querySelectorAll("dialog img")].map(one => one.getAttribute("src"));
$("close").click(); told.closed = !$("big").open;
document.body.dataset.told = JSON.stringify(told);
}</script></body>"""


def mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is there")
@pytest.mark.parametrize("width", [500, 1280])
def test_a_user_filters_sorts_and_enlarges(made: Path, width: int) -> None:
    data = content(made)
    images, some = data["images"], data["images"][0]["classes"][0]
    drive = DRIVE.replace("CLASS", str(some)).replace("NAME", json.dumps(images[2]["name"][-3:]))
    page = made / "driven.html"
    page.write_text((made / "index.html").read_text().replace("</body>", drive))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={made / 'profile'}", f"--window-size={width},900"]
    command += ["--virtual-time-budget=3000", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    told = re.search(r'data-told="([^"]*)"', done.stdout)
    assert told, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(html.unescape(told[1]))
    names = [image["name"] for image in images]
    assert found["all"] == names and found["lazy"]
    assert found["wide"] <= 0, "the page scrolls sideways"
    count = 2 + sum(
        len(shown) if step["maps"] else 1
        for run, row in zip(data["runs"], images[0]["shown"], strict=True)
        for step, shown in zip(run["steps"], row, strict=True)
    )
    assert found["cells"] == count
    hidden = sum(len(row[0]) for row in images[0]["shown"])  # "cam", the first step of both
    assert found["fewer"] == count - hidden
    assert found["filtered"] == [i["name"] for i in images if some in i["classes"]]
    assert f"class={some}" in found["address"]
    assert found["worst"] == sorted(
        names, key=lambda name: mean(images[names.index(name)]["iou"][0][2])
    )
    gain = {i["name"]: mean(i["iou"][1][3]) - mean(i["iou"][0][1]) for i in images}
    assert found["gain"] == sorted(names, key=lambda name: -gain[name])
    assert found["named"] == [name for name in names if images[2]["name"][-3:] in name]
    assert found["large"] == [True, f"{names[0]} · truth"]
    assert found["after"].startswith(f"{names[0]} · {RUNS[0]}, cam seed ")
    assert all((made / src).is_file() for src in found["broken"]) and found["closed"]


def test_an_image_that_a_step_does_not_have_is_left_out_there(tmp_path, few_scenes) -> None:
    scenes = VOC(few_scenes)
    first, second = scenes.names("train")[:2]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, names in zip(folders, ([first], [first, second]), strict=True):
        folder.mkdir()
        for name in names:
            shutil.copy(few_scenes / "SegmentationClass" / f"{name}.png", folder)
    shelf = Shelf("run", tuple(Step(folder.name, folder) for folder in folders))
    assert write_gallery(tmp_path / "out", "t", scenes, [shelf], 48) == 2
    one, other = content(tmp_path / "out")["images"]
    assert one["shown"][0][0] is not None and other["shown"][0][0] is None
    assert one["iou"] == [[None, None]]
