"""From prepare to seeds on images of one's own: a folder with a CSV, and COCO's format.

Both are written from the generated scenes, so that all that follows must come out the same as from
their VOC layout.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from wsss.data.voc import VOC
from wsss.files import read_json

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools
CATEGORY_IDS = (2, 3, 5, 44, 90, 1001)  # of the scenes' six classes


def labels_of(data: VOC, name: str) -> list[str]:
    return [data.classes[i] for i in np.flatnonzero(data.labels([name])[0])]


@pytest.fixture(scope="session")
def folder_root(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes as a folder; labels in a CSV, masks as gray PNG."""
    data, root = VOC(tiny_scenes), tmp_path_factory.mktemp("folder")
    shutil.copytree(tiny_scenes / "JPEGImages", root / "images")
    (root / "masks").mkdir()
    (root / "splits").mkdir()
    rows = ["name,classes"]
    for split in ("train", "val"):
        names = data.names(split)
        (root / "splits" / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            rows.append(f"{name}.jpg,{';'.join(labels_of(data, name))}")
            mask = data.mask(name)
            assert mask is not None
            Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    (root / "labels.csv").write_text("\n".join(rows))
    (root / "classes.txt").write_text("\n".join(data.classes))
    return root


def region(pixels: np.ndarray) -> dict[str, Any]:
    packed = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": list(pixels.shape), "counts": packed["counts"].decode()}


@pytest.fixture(scope="session")
def coco_root(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes in COCO's format; their void outlines are crowd regions."""
    data, root = VOC(tiny_scenes), tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        images, entries = [], []
        for number, name in enumerate(data.names(split)):
            (root / split).mkdir(exist_ok=True)
            shutil.copy(data.image_path(name), root / split)
            mask = data.mask(name)
            assert mask is not None
            height, width = mask.shape
            images.append(
                {"id": number, "file_name": f"{name}.jpg", "height": height, "width": width}
            )
            present = [int(i) + 1 for i in np.flatnonzero(data.labels([name])[0])]
            for class_id in [*present, 255]:
                crowd = class_id == 255
                entries.append(
                    {
                        "id": len(entries),
                        "image_id": number,
                        "category_id": CATEGORY_IDS[present[0] - 1 if crowd else class_id - 1],
                        "segmentation": region(mask == class_id),
                        "iscrowd": int(crowd),
                    }
                )
        categories = [
            {"id": i, "name": name} for i, name in zip(CATEGORY_IDS, data.classes, strict=True)
        ]
        content = {"images": images, "annotations": entries, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def result(out: Path, run: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and scores of a run."""
    (checkpoint,) = (out / run).rglob("last.ckpt")
    (metrics,) = (out / run).rglob("eval_cam/metrics.json")
    return torch.load(checkpoint, weights_only=True)["state_dict"], read_json(metrics)


def test_the_format_of_a_data_set_changes_nothing(program, folder_root, coco_root) -> None:
    """The smallest network end to end, in the three formats."""
    seeds = "-m", "stage=train,make_cam,eval_cam"
    own = "-m", "stage=prepare,train,make_cam,eval_cam"
    program("run_name=voc", *seeds)
    settings = ("experiment=tiny_own",)
    shown = program(*settings, "run_name=folder", f"data.root={folder_root}", *own).stdout
    assert "6 classes" in shown and "prepare: nothing is wrong" in shown
    program(*settings, "run_name=coco", "data=coco_format", f"data.root={coco_root}", *own)
    weights, scores = result(program.out, "voc")
    for run in ("folder", "coco"):
        other_weights, other_scores = result(program.out, run)
        for key, value in weights.items():
            assert torch.equal(value, other_weights[key]), key
        assert other_scores["cam"]["confusion"] == scores["cam"]["confusion"]
        assert other_scores["miou"] == scores["miou"]
        for stage in ("prepare", "eval_cam"):
            (sheet,) = (program.out / run).rglob(f"{stage}/contact_sheet.png")
            assert len(np.unique(np.asarray(Image.open(sheet)))) > 50


def test_sipe_on_coco_format(program, coco_root) -> None:
    stages = "prepare,train,make_cam,eval_cam,crf,figures"
    settings = ("experiment=tiny_own", "data=coco_format", "method=sipe", "run_name=sipe")
    done = program(*settings, f"data.root={coco_root}", "-m", f"stage={stages}")
    assert "is_cam *" in done.stdout
    assert len(list((program.out / "sipe").rglob("manifest.json"))) == 6


def test_cpal_and_irn_on_a_folder_with_two_classes(program, folder_root, tmp_path) -> None:
    """Any number of classes: two of the six are known, images of others are left out."""
    root = tmp_path / "two"
    shutil.copytree(folder_root, root)
    classes = (root / "classes.txt").read_text().split()
    rows = [row.split(",") for row in (root / "labels.csv").read_text().splitlines()[1:]]
    counts = {c: sum(c in labels.split(";") for _, labels in rows[:12]) for c in classes}
    kept = sorted(counts, key=lambda c: -counts[c])[:2]
    known = {name: [c for c in kept if c in labels.split(";")] for name, labels in rows[:12]}
    known = {name: labels for name, labels in known.items() if labels}
    assert len(known) >= 4
    (root / "classes.txt").write_text("\n".join(kept))
    (root / "labels.csv").write_text("\n".join(f"{n},{';'.join(c)}" for n, c in known.items()))
    (root / "splits" / "train.txt").write_text("\n".join(known))
    (root / "splits" / "val.txt").unlink()
    shutil.rmtree(root / "masks")
    (root / "masks").mkdir()
    for name in known:
        Image.new("L", (64, 64), 2).save(root / "masks" / f"{Path(name).stem}.png")
    stages = "prepare,train,make_cam,eval_cam,figures,irn_labels,irn_train,irn_masks"
    settings = ("experiment=tiny_own", "method=cpal", "run_name=two", f"data.root={root}")
    done = program(*settings, "-m", f"stage={stages}")
    assert "2 classes" in done.stdout
    (masks,) = (program.out / "two").rglob("irn_masks/masks")
    assert {path.stem for path in masks.iterdir()} == {Path(name).stem for name in known}
    assert all(np.asarray(Image.open(path)).max() <= 2 for path in masks.iterdir())


def test_a_folder_without_masks_gets_its_pictures(program, folder_root, tmp_path) -> None:
    root = tmp_path / "bare"
    shutil.copytree(folder_root, root)
    shutil.rmtree(root / "masks")
    settings = ("experiment=tiny_own", "run_name=bare", f"data.root={root}")
    program(*settings, "-m", "stage=prepare,train,make_cam,crf")
    (sheet,) = (program.out / "bare").rglob("crf/contact_sheet.png")
    assert len(np.unique(np.asarray(Image.open(sheet)))) > 50
    assert not list((program.out / "bare").rglob("crf/metrics.json"))


SMALL = (
    *("backbone.name=test_resnet", "backbone.weights=null", "backbone.frozen_stages=0"),
    *("trainer=cpu", "data.crop_size=64", "data.long_side=[56,80]", "data.infer_long_side=64"),
    *("data.scales=[1.0]", "segmentation.train.crop_size=64", "segmentation.long_side=64"),
    *("segmentation.eval.scales=[1.0]", "training.max_epochs=1"),
)


def test_from_photographs_and_labels_to_overlays_by_one_command(
    program, folder_root, tmp_path
) -> None:
    root = tmp_path / "My Bücher, #1 (new)"
    shutil.copytree(folder_root / "images", root / "images")
    for file in ("labels.csv", "classes.txt"):
        shutil.copy(folder_root / file, root)
    own = ("experiment=folder_segmentation", f"data.root={root}", *SMALL)
    done = program(*own, "segmentation.train.max_epochs=1")
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("settings for")]
    assert "16 photographs" in told and "data.batch_size=8" in told and "refine.masks=crf" in told
    assert "max_epochs" not in told  # both are given
    assert "eval_cam: left out" in done.stdout and "seg_eval: left out" in done.stdout
    (overlays,) = (program.out / "folder_segmentation").rglob("overlays")
    names = {path.stem for path in (root / "images").iterdir()}
    assert {path.stem for path in overlays.iterdir()} == names
    # Another length of the last training alone: all before it is there, and one photograph will do.
    one = next(iter((root / "images").iterdir()))
    sweep = ("-m", "stage=seg_train,seg_predict", f"input={one}")
    again = program(*own, "segmentation.train.max_epochs=2", *sweep)
    assert "crf: taken from " in again.stdout and "1 photograph in" in again.stdout


def append(file: str, text: str) -> Any:
    def change(root: Path) -> None:
        path = root / file
        path.write_text(path.read_text() + text)

    return change


@pytest.mark.parametrize(
    ("data", "stage", "spoil", "message"),
    [
        ("folder", "prepare", append("labels.csv", "\nx.jpg,cat"), "labels.csv, line 18: there is"),
        ("folder", "train", append("labels.csv", "\nscene_00003,cat"), "has labels already"),
        ("folder", "train", append("classes.txt", "\ncat"), "names class 'cat' more than once"),
        ("coco_format", "train", append("labels.csv", ""), "with stage=prepare first"),
        ("coco_format", "prepare", append("annotations/instances_train.json", "}"), "as JSON"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(
    program, folder_root, coco_root, tmp_path, data: str, stage: str, spoil: Any, message: str
) -> None:
    root = tmp_path / "bad"
    shutil.copytree(folder_root if data == "folder" else coco_root, root)
    if data == "coco_format":
        (root / "labels.csv").touch()
    spoil(root)
    settings = ("experiment=tiny_own", f"data={data}", f"data.root={root}")
    done = program(*settings, f"stage={stage}", check=False)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], done.stderr
