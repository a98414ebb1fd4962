"""From photographs to a segmentation network that is scored, applied and exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from wsss.data.masks import read_mask
from wsss.data.photographs import load_image
from wsss.data.voc import VOC
from wsss.evaluation import confusion, scores

CHAIN = "stage=train,make_cam,crf,seg_train,seg_eval,seg_predict,seg_export"


def masks_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_chain_ends_with_a_network_that_is_the_same_everywhere(
    program, tiny_scenes, tmp_path
) -> None:
    scenes = VOC(tiny_scenes)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for name in scenes.names("val"):
        shutil.copy(scenes.image_path(name), photographs)
    (photographs / "broken.jpg").write_bytes(b"no picture")
    done = program("experiment=tiny_segmentation", "-m", CHAIN, f"input={photographs}")
    (run,) = {path.parent for path in program.out.glob("*/*/seg_train")}
    assert "initial weights: the cam classifier of this run -> " in done.stdout
    assert "1 of 5 photographs could not be read" in done.stdout

    # Scores follow from the stored label maps.
    folder = run / "seg_eval" / "val"
    result = json.loads((folder / "metrics.json").read_text())
    for what, where in (("network", "masks"), ("crf", "masks_crf")):
        matrix = np.zeros((7, 7), dtype=np.int64)
        for name in scenes.names("val"):
            matrix += confusion(scenes.mask(name), read_mask(folder / where / f"{name}.png", 6), 7)
        assert result[what]["confusion"] == matrix.tolist()
        there = matrix.sum(1) > 0
        assert result[what]["miou_truth"] == pytest.approx(scores(matrix).iou[there].mean())
        assert result[what]["miou"] == pytest.approx(scores(matrix).miou)
    assert f"mIoU network {result['network']['miou']:.2f}, crf {result['miou']:.2f}" in done.stdout

    # As a plain folder the same photographs get the same label maps.
    (predicted,) = (run / "seg_predict").glob("photographs-*")
    assert masks_of(predicted / "masks") == masks_of(folder / "masks")
    assert len(list((predicted / "overlays").glob("*.jpg"))) == 4

    # The exported file, read back without this project's network, answers as the stored maps do.
    exported = torch.export.load(run / "seg_export" / "torch" / "segmenter.pt2").module()
    for name in scenes.names("val"):
        picture = load_image(scenes.image_path(name))
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        total = torch.zeros(1, 7, *picture.shape[:2])
        for side in (64, 32):
            x = torch.nn.functional.interpolate(image, (side, side), mode="bilinear")
            for mirrored in (False, True):
                y = exported(x.flip(-1) if mirrored else x)
                y = torch.nn.functional.interpolate(y, picture.shape[:2], mode="bilinear")
                total += (y.flip(-1) if mirrored else y).softmax(1)
        stored = read_mask(folder / "masks" / f"{name}.png", 6)
        # Scaled before it is normalized and enlarged in two steps: borders may move by a pixel.
        assert (total[0].argmax(0).numpy() == stored).mean() > 0.97


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_and_score_each_photograph_once(program, tiny_scenes, tmp_path) -> None:
    scenes = VOC(tiny_scenes)
    masks = tmp_path / "masks"
    shutil.copytree(tiny_scenes / "SegmentationClass", masks)  # stand for pseudo masks
    common = (
        "experiment=tiny_segmentation",
        "stage=all",
        f"segmentation.masks={masks}",
        "segmentation.features=pretrained",
        # So quick that the processes do not wait for one another by chance.
        "backbone=timm",
        "backbone.name=test_resnet",
    )
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    photographs = tiny_scenes / "JPEGImages"
    pipeline = "pipeline=[seg_train,seg_eval,seg_predict]"
    program(*common, *two, "run_name=two", pipeline, f"input={photographs}", fresh=True)
    (checkpoint,) = program.out.glob("two/*/seg_train/last.ckpt")
    # A comma in a path would be read as a list.
    trained = shutil.copytree(checkpoint.parent, tmp_path / "trained") / "last.ckpt"
    program(*common, "run_name=one", "pipeline=[seg_eval]", f"segmentation.checkpoint={trained}")
    (a,), (b,) = (list(program.out.glob(f"{run}/*/seg_eval/val")) for run in ("two", "one"))
    for where in ("masks", "masks_crf"):
        assert masks_of(a / where) == masks_of(b / where)
        assert len(masks_of(a / where)) == 4
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (a, b)]
    assert metrics[0]["network"] == metrics[1]["network"]
    assert metrics[0]["crf"] == metrics[1]["crf"]
    counted = sum(int((scenes.mask(name) != 255).sum()) for name in scenes.names("val"))
    assert sum(map(sum, metrics[0]["network"]["confusion"])) == counted
    (predicted,) = program.out.glob("two/*/seg_predict/*/masks")
    assert len(masks_of(predicted)) == 16
    manifest = json.loads((checkpoint.parent / "manifest.json").read_text())
    assert manifest["steps"] == 9 and manifest["images"] == 12
