"""From a trained network to maps, scores and refined seeds: each option against a slow version."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from wsss.build.objects import load_network
from wsss.build.settings import Settings
from wsss.data.masks import read_mask
from wsss.data.photographs import load_image
from wsss.data.voc import VOC
from wsss.errors import WsssError
from wsss.files import read_json
from wsss.maps.files import read_class_maps
from wsss.refine.crf import CrfSettings, crf_from_probabilities
from wsss.run.logs import read_metrics
from wsss.stages import crf, eval_cam, export_cam, figures, import_cam, make_cam, train

LABELS = 7  # of the scenes: six classes and background


@pytest.fixture
def scenes(few_scenes) -> VOC:
    return VOC(few_scenes)


def truth_of(scenes: VOC, name: str) -> np.ndarray:
    mask = scenes.mask(name)
    assert mask is not None
    return mask


def slow_maps(s: Settings, scenes: VOC, name: str, stride: int) -> np.ndarray:
    """CAM of an image written out: each scale and its mirror image by themselves."""
    network = load_network(s, s.folder("train") / "last.ckpt", scenes.classes)
    host = network.host.eval()
    picture = Image.fromarray(load_image(scenes.image_path(name)))
    height, width = picture.height, picture.width
    present = np.flatnonzero(scenes.labels([name])[0])
    grid = (-(-height // stride), -(-width // stride))
    total = torch.zeros(len(present), *grid)
    for scale in s.data.scales:
        size = (round(width * scale), round(height * scale))
        pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) / 255.0
        image = torch.from_numpy((pixels - host.mean) / host.std).float().permute(2, 0, 1)[None]
        with torch.no_grad():
            straight, mirrored = (
                F.relu(host.classifier(host.backbone(one)[-1])) for one in (image, image.flip(-1))
            )
        both = (straight + mirrored.flip(-1))[:, present]
        total += F.interpolate(both, grid, mode="bilinear", align_corners=False)[0]
    return (total / (total.amax((1, 2), keepdim=True) + 1e-5)).numpy()


@pytest.mark.parametrize(
    ("stride", "dtype", "step"), [(4, "uint8", 1 / 255), (1, "float16", 1e-3), (3, "float16", 1e-3)]
)
def test_stored_maps_are_the_sum_over_scales_at_the_stride_wanted(
    lend, settings, scenes: VOC, stride: int, dtype: str, step: float
) -> None:
    lend("train")
    s = settings(f"make_cam.stride={stride}", f"make_cam.dtype={dtype}")
    manifest = make_cam.run(s).manifest
    assert manifest["kinds"] == {"cam": False} and manifest["images"] == 6
    maps = s.folder("make_cam") / "maps"
    assert {p.stem for p in maps.iterdir()} == set(scenes.names("train"))
    deviations = []
    for name in scenes.names("train"):
        stored = read_class_maps(maps / f"{name}.npz")
        with np.load(maps / f"{name}.npz") as raw:
            assert raw["map_cam"].dtype == dtype
        expected = slow_maps(s, scenes, name, stride)
        deviations.append(expected.std())
        assert stored.maps["cam"].shape == expected.shape and stored.size == (64, 64)
        # Pillow resizes in bytes otherwise than torchvision, by 2 of 255 at most.
        difference = np.abs(stored.maps["cam"] - expected)
        assert difference.mean() < step + 0.005 and difference.max() < 0.08
    assert max(deviations) > 0.05  # the maps show something


def slow_matrix(scenes: VOC, s: Settings, background: float) -> np.ndarray:
    matrix = np.zeros((LABELS, LABELS), dtype=np.int64)
    for name in scenes.names("train"):
        stored = read_class_maps(s.folder("make_cam") / "maps" / f"{name}.npz")
        maps = torch.from_numpy(stored.maps["cam"])[None]
        maps = F.interpolate(maps, stored.size, mode="bilinear", align_corners=False)[0].numpy()
        best = np.array(stored.classes)[maps.argmax(0)]
        predicted = np.where(maps.max(0) > background, best, 0)
        truth = truth_of(scenes, name)
        for t, p in zip(truth.ravel(), predicted.ravel(), strict=True):
            if t != 255:
                matrix[t, p] += 1
    return matrix


RANGE = (0.2, 0.5, 0.8)


def slow_miou(matrix: np.ndarray) -> float:
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return float(np.mean(100 * np.diag(matrix)[union > 0] / union[union > 0]))


def test_scores_and_their_curve_are_those_of_a_slow_count(lend, settings, scenes: VOC) -> None:
    lend("train", "make_cam")
    s = settings("eval_cam.background=0.35", "eval_cam.thresholds=[0.2,0.8,0.3]")
    manifest = eval_cam.run(s).manifest
    metrics = read_json(s.folder("eval_cam") / "metrics.json")
    matrix = slow_matrix(scenes, s, 0.35)
    assert metrics["cam"]["confusion"] == matrix.tolist()
    assert metrics["miou"] == manifest["miou"] == pytest.approx(slow_miou(matrix))
    curve = metrics["cam"]["curve"]
    assert curve["threshold"] == [0.2, 0.5, 0.8]
    by_hand = [slow_miou(slow_matrix(scenes, s, t)) for t in (0.2, 0.5, 0.8)]
    assert curve["miou"] == pytest.approx(by_hand)
    assert metrics["cam"]["miou_best_threshold"] == pytest.approx(max(by_hand))
    assert metrics["cam"]["best_threshold"] == curve["threshold"][int(np.argmax(by_hand))]
    assert (s.folder("eval_cam") / "contact_sheet.png").is_file()


@pytest.mark.parametrize(("best", "told"), [(0.2, True), (0.5, False), (0.8, True)])
def test_a_best_threshold_at_the_edge_of_the_range_is_remarked(best: float, told: bool) -> None:
    figures = {"best_threshold": best, "absent": []}
    lines = eval_cam.remarks({"cam": figures, "pacam": {**figures, "best_threshold": 0.5}}, RANGE)
    assert len(lines) == told and all("cam: best at the edge" in line for line in lines)


@pytest.mark.parametrize(("background", "power"), [(0.35, 1.0), (0.5, 3.0)])
def test_refined_seeds_are_the_crf_of_the_maps_as_probabilities(
    lend, settings, scenes: VOC, background: float, power: float
) -> None:
    lend("train", "make_cam")
    wide = ("bilateral_sxy=20", "bilateral_srgb=15", "bilateral_compat=4", "iterations=3")
    s = settings(
        f"eval_cam.background={background}",  # the CRF's follows it
        f"refine.crf.power={power}",
        *(f"refine.crf.{one}" for one in wide),
    )
    crf.run(s)
    terms = CrfSettings(bilateral_sxy=20, bilateral_srgb=15, bilateral_compat=4, iterations=3)
    for name in scenes.names("train"):
        stored = read_class_maps(s.folder("make_cam") / "maps" / f"{name}.npz")
        maps = torch.from_numpy(stored.maps["cam"])[None]
        maps = F.interpolate(maps, stored.size, mode="bilinear", align_corners=False)[0].numpy()
        scores = np.concatenate([np.full((1, 64, 64), background), maps])
        scores = np.maximum(scores, 1e-5) ** power
        picture = load_image(scenes.image_path(name))
        probabilities = (scores / scores.sum(0)).astype(np.float32)
        labels = crf_from_probabilities(picture, probabilities, terms).argmax(0)
        expected = np.array([0, *stored.classes])[labels]
        found = read_mask(s.folder("crf") / "masks" / f"{name}.png", 6)
        assert (found == expected).mean() > 0.999
    metrics = read_json(s.folder("crf") / "metrics.json")
    seeds = slow_matrix(scenes, s, background)
    assert metrics["seed"]["miou"] == pytest.approx(slow_miou(seeds))
    assert metrics["main"] == "crf" and metrics["miou"] == metrics["crf"]["miou"]


def test_exported_maps_come_back_as_class_maps(lend, settings) -> None:
    s = lend("train", "make_cam")
    export_cam.run(s)
    back = settings(f"refine.npy={s.folder('export_cam') / 'npy'}", run="back")
    assert import_cam.run(back).manifest["kinds"] == {"cam": False}
    for path in (s.folder("make_cam") / "maps").iterdir():
        ours = read_class_maps(path)
        theirs = read_class_maps(back.folder("make_cam") / "maps" / path.name)
        assert theirs.classes.tolist() == ours.classes.tolist() and theirs.size == ours.size
        assert np.abs(theirs.maps["cam"] - ours.maps["cam"]).max() <= 1.5 / 255


def test_a_training_logs_every_step_and_tells_what_it_was(lend, settings, capsys) -> None:
    s = lend("train")
    manifest = read_json(s.folder("train") / "manifest.json")
    assert manifest["steps"] == 4 and manifest["images"] == 6  # two epochs of two steps
    assert manifest["class_names"] == ["bird", "boat", "car", "cat", "house", "plant"]
    rows = [row for row in read_metrics(s.folder("train") / "metrics.csv") if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert float(row["train/loss"]) == pytest.approx(float(row["train/loss_cls"]))
    assert train.run(s).manifest == manifest
    assert "train: finished before" in capsys.readouterr().out


def test_a_host_without_a_method_has_no_figures(lend, capsys) -> None:
    assert figures.run(lend("train")).manifest["files"] == []
    assert "method=cam has no figures of its own" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stage", "overrides", "told"),
    [
        (make_cam, (), "stage=make_cam needs stage=train"),
        (eval_cam, (), "stage=eval_cam needs stage=make_cam"),
        (crf, (), "stage=crf needs stage=make_cam"),
        (export_cam, (), "stage=export_cam needs stage=make_cam"),
        (figures, (), "stage=figures needs stage=train"),
        (import_cam, (), "stage=import_cam needs refine.npy=DIR"),
        (make_cam, ("checkpoint=no.ckpt",), "checkpoint=no.ckpt: no such file"),
        (train, ("data.train_split=dev",), "no list for split 'dev'"),
        (train, ("data.batch_size=7",), "data.batch_size=7 is more than the 6 images"),
        (train, ("backbone.weights=no.pth",), "backbone.weights=no.pth: no such file"),
    ],
)
def test_what_is_missing_is_one_line(settings, stage, overrides: tuple[str, ...], told) -> None:
    with pytest.raises(WsssError) as caught:
        stage.run(settings(*overrides))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_maps_of_another_kind_or_network_are_refused_by_name(lend, settings) -> None:
    lend("train", "make_cam")
    with pytest.raises(WsssError, match="refine.kind=is_cam: there are maps of kind cam"):
        crf.run(settings("refine.kind=is_cam"))
    other = settings("backbone.name=test_byobnet", "overwrite=true")
    with pytest.raises(WsssError, match="not a checkpoint of host=cam method=cam"):
        make_cam.run(other)


def test_a_missing_photograph_is_found_before_training(settings, few_scenes, tmp_path) -> None:
    import shutil

    root = shutil.copytree(few_scenes, tmp_path / "scenes")
    (root / "scenes.json").unlink()  # from here on these are somebody's photographs
    sorted((root / "JPEGImages").iterdir())[1].unlink()
    s = settings("data=voc", f"data.root={root}", "data.train_split=train")
    with pytest.raises(WsssError, match="1 of 6 images are missing"):
        train.run(s)
    assert not list(s.folder("train").glob("*.ckpt"))
