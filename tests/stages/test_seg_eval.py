"""Scores of the segmentation network: any split, resumed, with and without masks, packed."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from wsss.build.segmenter import find_trained, load_trained
from wsss.data.masks import read_mask
from wsss.data.photographs import load_image
from wsss.data.voc import VOC
from wsss.errors import WsssError
from wsss.files import read_json, write_json
from wsss.refine.crf import CrfSettings, crf_from_probabilities
from wsss.stages import seg_eval
from wsss.stages.seg_eval import class_table

SMALL = (
    "segmentation=demo",
    "segmentation.features=pretrained",
    "segmentation.eval.scales=[1.0,0.5]",
    "segmentation.eval.mirror=true",
)


def slow_mious(
    truths: list[np.ndarray], predictions: list[np.ndarray], labels: int
) -> tuple[float, float]:
    """Mean IoU over labels in truth or prediction, and over those in the truth, label by label."""
    truth = np.concatenate([t.ravel() for t in truths])
    predicted = np.concatenate([p.ravel() for p in predictions])
    truth, predicted = truth[truth != 255], predicted[truth != 255]
    in_either, in_truth = [], []
    for c in range(labels):
        either = ((truth == c) | (predicted == c)).sum()
        if either:
            in_either.append(100 * ((truth == c) & (predicted == c)).sum() / either)
            if (truth == c).any():
                in_truth.append(in_either[-1])
    return float(np.mean(in_either)), float(np.mean(in_truth))


@pytest.fixture
def finished(settings, untrained_network):
    """Settings, folder and manifest of a finished seg_eval on val."""
    s = settings(*SMALL)
    untrained_network(s)
    manifest = seg_eval.run(s).manifest
    return s, s.folder("seg_eval") / "val", manifest


def test_scores_follow_from_the_stored_label_maps_and_these_from_the_network(
    finished, few_scenes
) -> None:
    s, folder, manifest = finished
    metrics = read_json(folder / "metrics.json")
    scenes = VOC(few_scenes)
    names = scenes.names("val")
    truths = [read_mask(few_scenes / "SegmentationClass" / f"{n}.png", 6) for n in names]
    for what, where in (("network", "masks"), ("crf", "masks_crf")):
        stored = [read_mask(folder / where / f"{n}.png", 6) for n in names]
        either, over_truth = slow_mious(truths, stored, 7)
        assert metrics[what]["miou"] == pytest.approx(either)
        assert metrics[what]["miou_truth"] == pytest.approx(over_truth)
        assert sum(map(sum, metrics[what]["confusion"])) == sum((t != 255).sum() for t in truths)
        assert all(Image.open(folder / where / f"{n}.png").mode == "P" for n in names)
    assert metrics["miou"] == manifest["miou"] == metrics["crf"]["miou"]
    assert metrics["image_labels_known"] is False and metrics["initial_weights"] == "none"
    assert metrics["images"] == 4 and metrics["split"] == "val"
    assert (folder / "contact_sheet.png").is_file() and (folder / "confusion.png").is_file()

    segmenter, network = load_trained(s, find_trained(s, "test"), "test")
    name = names[1]
    picture = load_image(scenes.image_path(name))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (network.mean, network.std))
    image = (torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255 - mean) / std
    total = torch.zeros(7, 64, 64)
    with torch.no_grad():
        for side in (64, 32):
            small = torch.nn.functional.interpolate(image, (side, side), mode="bilinear")
            for mirrored in (False, True):
                x = segmenter(small.flip(-1) if mirrored else small)
                x = torch.nn.functional.interpolate(x, (64, 64), mode="bilinear").softmax(1)
                total += (x.flip(-1) if mirrored else x)[0] / 4
    same = read_mask(folder / "masks" / f"{name}.png", 6) == total.argmax(0).numpy()
    assert same.mean() > 0.999
    refined = crf_from_probabilities(
        picture,
        total.numpy(),
        CrfSettings(gaussian_sxy=1, bilateral_sxy=67, bilateral_srgb=3, bilateral_compat=4),
    )
    same = read_mask(folder / "masks_crf" / f"{name}.png", 6) == refined.argmax(0)
    assert same.mean() > 0.99


def test_killed_it_makes_what_is_missing_and_ends_with_the_same(finished, capsys) -> None:
    s, folder, _ = finished
    before = {p.relative_to(folder): p.read_bytes() for p in folder.glob("masks*/*.png")}
    assert len(before) == 8
    scores = read_json(folder / "metrics.json")
    manifest = read_json(folder / "manifest.json")
    (folder / "manifest.json").unlink()
    write_json(folder / "started.json", {k: manifest[k] for k in ("hash", "settings", "inputs")})
    maps = sorted((folder / "masks").iterdir())
    maps[0].unlink()
    (folder / "masks_crf" / maps[1].name).unlink()
    stamp = maps[2].stat().st_mtime_ns
    seg_eval.run(s)
    assert "goes on in" in capsys.readouterr().out
    assert {p.relative_to(folder): p.read_bytes() for p in folder.glob("masks*/*.png")} == before
    assert maps[2].stat().st_mtime_ns == stamp
    assert read_json(folder / "metrics.json") == scores
    seg_eval.run(s)
    assert "finished before" in capsys.readouterr().out


def test_another_split_lies_beside_and_a_finished_one_is_packed_afterwards(
    finished, settings, capsys
) -> None:
    _, folder, _ = finished
    seg_eval.run(settings(*SMALL, "segmentation.eval.split=train"))
    assert read_json(folder.parent / "train" / "metrics.json")["images"] == 6
    assert not list(folder.glob("results*"))
    capsys.readouterr()
    seg_eval.run(settings(*SMALL, "segmentation.eval.archive.write=true"))
    assert "finished before" in capsys.readouterr().out
    for suffix in ("", "_crf"):
        with tarfile.open(folder / f"results_comp6_val{suffix}.tar.gz") as tar:
            found = tar.getnames()
        assert len(found) == 4
        assert found[0].startswith("results/VOC2012/Segmentation/comp6_val_cls/scene_")


def test_a_split_without_masks_is_predicted_and_packed(
    settings, untrained_network, few_scenes, tmp_path, capsys
) -> None:
    import shutil

    root = tmp_path / "scenes"
    shutil.copytree(few_scenes, root)
    names = (root / "ImageSets" / "Segmentation" / "val.txt").read_text()
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text(names)
    (root / "scenes.json").unlink()  # from here on these are somebody's photographs
    for name in names.split():
        (root / "SegmentationClass" / f"{name}.png").unlink()
        (root / "Annotations" / f"{name}.xml").unlink()
    own = (
        *SMALL,
        "data=voc",
        f"data.root={root}",
        "+data.image_set.classes=[bird,boat,car,cat,house,plant]",
        "segmentation.eval.crf.use=false",
    )
    s = settings(*own, "segmentation.eval.split=test")
    untrained_network(s)
    seg_eval.run(s)
    told = capsys.readouterr().out
    assert "seg_eval: no score: split 'test' has no masks" in told
    folder = s.folder("seg_eval") / "test"
    assert len(list((folder / "masks").iterdir())) == 4
    assert "miou" not in read_json(folder / "metrics.json")
    assert (folder / "results_comp6_test.tar.gz").is_file()
    assert (folder / "contact_sheet.png").is_file()
    shutil.copy(
        few_scenes / "SegmentationClass" / f"{names.split()[0]}.png", root / "SegmentationClass"
    )
    seg_eval.run(settings(*own, "segmentation.eval.split=val"))
    assert "3 of 4 images of split 'val' have no mask" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("segmentation.eval.split=dev",), "no list for split 'dev'"),
        (("segmentation.checkpoint=no.ckpt",), "segmentation.checkpoint=no.ckpt: no such file"),
        (
            ("segmentation.network.rates=[1]",),
            "not a checkpoint of segmentation.network.name=backb",
        ),
    ],
)
def test_what_is_not_there_is_one_line(settings, untrained_network, overrides, message) -> None:
    untrained_network(settings(*SMALL))
    with pytest.raises(WsssError, match=message) as caught:
        seg_eval.run(settings(*SMALL, *overrides))
    assert "\n" not in str(caught.value)


def test_a_network_for_other_classes_is_refused(settings, untrained_network) -> None:
    s = settings(*SMALL)
    untrained_network(s)
    path = s.folder("seg_train") / "manifest.json"
    write_json(path, read_json(path) | {"class_names": list("abcdef")})
    with pytest.raises(WsssError, match="last.ckpt: made for other classes"):
        seg_eval.run(s)


def test_without_training_it_says_what_is_missing(settings) -> None:
    with pytest.raises(WsssError, match="stage=seg_eval needs stage=seg_train"):
        seg_eval.run(settings(*SMALL))


def test_the_table_shows_a_dash_where_a_class_does_not_occur() -> None:
    lines = class_table({"network": {"background": 90.0, "cat": None}}).splitlines()
    assert lines[1].split() == ["background", "90.00"] and lines[2].split() == ["cat", "-"]
