"""A seed network from its file alone answers as the stages do with all settings at hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open

import wsss
from wsss.build import compose
from wsss.data.masks import read_mask
from wsss.data.photographs import load_image
from wsss.errors import WsssError
from wsss.maps.files import read_class_maps
from wsss.stages import crf, make_cam, train

HOSTS = [
    ("method=cam",),
    ("method=sipe", "method.side_channels=[8,8,8,8]"),
    ("method=cpal", "method.projection_dim=8"),
    (
        "method=several",
        "method.branches.sipe.side_channels=[8,8,8,8]",
        "method.branches.cpal.side_channels=[8,8,8,8]",
        "method.branches.cpal.test.refresh_bank=false",
    ),
    ("host=mctformer_tiny",),
    ("host=mctformer_tiny", "method=sipe", "method.side_channels=[8,8,8,8]"),
    ("host=amn",),
    ("host=given", "method=sipe", "method.side_channels=[8,8,8,8]"),
]


@pytest.mark.parametrize("overrides", HOSTS, ids=lambda o: " ".join(o[:2]))
def test_a_file_of_any_host_and_method_answers_as_make_cam_does(
    written, settings, beside, files, labels, tmp_path, monkeypatch, overrides: tuple[str, ...]
) -> None:
    given = None
    if overrides[0] in ("host=amn", "host=given"):
        key = "labels" if overrides[0] == "host=amn" else "maps"
        given = beside[key]
        overrides = (*overrides, f"host.{key}={given}")
    _, checkpoint = written(*overrides)
    stage = settings(*overrides, f"checkpoint={checkpoint}", "make_cam.dtype=float16", run="stage")
    make_cam.run(stage)

    monkeypatch.setattr(compose, "CONF", tmp_path / "nowhere")
    model = wsss.load(checkpoint)
    one_file = model.save(tmp_path / "model.safetensors")
    checkpoint.unlink()
    with safe_open(one_file, "pt") as file:
        assert str(tmp_path) not in json.dumps(file.metadata())  # no path of this machine
    again = wsss.load(one_file)
    assert isinstance(again, wsss.SeedModel) and again.classes == model.classes

    for found in (
        model.predict(files, labels, given=given),
        again.predict(files, labels, given=given),
    ):
        for one in found:
            stored = read_class_maps(stage.folder("make_cam") / "maps" / f"{one.name}.npz")
            assert one.maps is not None and one.maps.classes.tolist() == stored.classes.tolist()
            assert one.maps.maps.keys() == stored.maps.keys()
            for kind, values in stored.maps.items():
                torch.testing.assert_close(
                    torch.from_numpy(one.maps.maps[kind]),
                    torch.from_numpy(values),
                    atol=2e-3,
                    rtol=0,
                )


def test_clip_es_learns_nothing_and_is_one_file_that_needs_no_weights_of_clip(
    settings, files, labels, tmp_path
) -> None:
    s = settings("host=clip_es_tiny", "data.scales=[1.0]", "make_cam.dtype=float16")
    train.run(s)
    make_cam.run(s)
    model = wsss.load(s.folder("train"))
    torch.manual_seed(5)  # the tower of a new one is another
    again = wsss.load(model.save(tmp_path / "clip.safetensors"))
    for one in again.predict(files, labels):
        stored = read_class_maps(s.folder("make_cam") / "maps" / f"{one.name}.npz")
        for kind, values in stored.maps.items():
            assert np.abs(one.maps.maps[kind] - values).max() < 2e-3
    with pytest.raises(WsssError, match="CLIPES does not classify photographs; give their classes"):
        again.predict(files[0])


def test_a_refreshed_bank_gives_the_maps_of_make_cam_and_is_saved(
    written, settings, files, labels, tmp_path
) -> None:
    small = ("method=cpal", "method.test.refresh_bank=true", "method.projection_dim=8")
    _, checkpoint = written(*small)
    stage = settings(*small, f"checkpoint={checkpoint}", "make_cam.dtype=float16", run="stage")
    make_cam.run(stage)
    model = wsss.load(checkpoint)
    with pytest.warns(UserWarning, match="model.refresh"):
        stale = model.predict(files, labels)
    model.refresh(files, labels)
    again = wsss.load(model.save(tmp_path / "model.safetensors"))
    for found in (model.predict(files, labels), again.predict(files, labels)):
        for one in found:
            stored = read_class_maps(stage.folder("make_cam") / "maps" / f"{one.name}.npz")
            assert np.abs(one.maps.maps["pacam"] - stored.maps["pacam"]).max() < 5e-3
    changes = [
        np.abs(one.maps.maps["pacam"] - before.maps.maps["pacam"]).max()
        for one, before in zip(found, stale, strict=True)
    ]
    assert max(changes) > 0.05


def test_labels_that_are_not_given_are_those_that_the_classifier_scores_above_a_half(
    written, files
) -> None:
    _, checkpoint = written()
    model = wsss.load(checkpoint)
    seen = set()
    for path in files:
        pixels = np.asarray(Image.open(path).convert("RGB")) / 255.0
        host = model.network.host
        image = torch.from_numpy((pixels - host.mean) / host.std).float().permute(2, 0, 1)
        with torch.no_grad():
            logits = [
                F.conv2d(host.backbone(one[None])[-1], host.classifier.weight).mean((2, 3))[0]
                for one in (image, image.flip(-1))
            ]
        scores = torch.stack(logits).sigmoid().mean(0).numpy()
        found = model.classify(path)
        assert list(found) == list(model.classes)
        np.testing.assert_allclose(list(found.values()), scores, atol=1e-4)
        predicted = model.predict(path)
        assert (predicted.maps.classes - 1).tolist() == np.flatnonzero(scores > 0.5).tolist()
        seen |= set(predicted.maps.classes)
    assert seen


def test_a_photograph_in_any_form_gives_the_same(written, files, labels, tmp_path) -> None:
    _, checkpoint = written()
    model = wsss.load(checkpoint)
    path = files[0]
    known = labels[path.stem]
    expected = model.predict(path, known)
    pixels = load_image(path)
    turned = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 3  # lies upside down in the file
    Image.fromarray(pixels[::-1, ::-1].copy()).save(turned, exif=exif)
    for form in (str(path), Image.open(path), Image.open(turned), pixels):
        found = model.predict(form, known)
        assert np.array_equal(found.labels, expected.labels)
        assert np.array_equal(found.picture, pixels)
    with_alpha = np.concatenate([pixels, np.zeros_like(pixels[..., :1])], axis=2)
    assert np.array_equal(model.predict(with_alpha, known).labels, expected.labels)
    folder = model.predict(path.parent, labels={p.stem: known for p in path.parent.iterdir()})
    assert {one.name for one in folder} == {p.stem for p in path.parent.iterdir()}
    assert isinstance(model.predict([path], [known]), list)
    two = model.predict([pixels, pixels], [known, known])
    assert [one.name for one in two] == ["image0", "image1"]


def test_labels_come_from_a_label_file_too(written, files, labels, tmp_path) -> None:
    _, checkpoint = written()
    model = wsss.load(checkpoint)
    table = tmp_path / "labels.csv"
    rows = [f"{path.name},{';'.join(labels[path.stem])}" for path in files]
    table.write_text("\n".join([*rows, "elsewhere.jpg,cat"]))
    for one in model.stream(files, table):
        names = [model.classes[i - 1] for i in one.maps.classes]
        assert sorted(names) == sorted(labels[one.name])
    table.write_text(f"{files[0].name},unicorn")
    with pytest.raises(WsssError, match=r"labels.csv, line 1: unknown class 'unicorn'"):
        model.predict(files[:1], str(table))


def test_seeds_and_the_crf_are_those_of_the_stages(written, settings, files, labels) -> None:
    terms = ("eval_cam.background=0.3", "refine.crf.iterations=3", "make_cam.stride=1")
    wanted = (*terms, "make_cam.dtype=float16")
    _, checkpoint = written(*wanted)
    stage = settings(*wanted, f"checkpoint={checkpoint}", run="stage")
    make_cam.run(stage)
    crf.run(stage)
    model = wsss.load(checkpoint)
    seeds = model.predict(files, labels)
    for one, refined in zip(seeds, model.predict(files, labels, crf=True), strict=True):
        maps = one.maps.maps["cam"]
        ids = np.array([0, *one.maps.classes])
        by_hand = ids[np.concatenate([np.full((1, 64, 64), 0.3), maps]).argmax(0)]
        assert np.array_equal(one.labels, by_hand)
        stored = read_mask(stage.folder("crf") / "masks" / f"{one.name}.png", 6)
        assert (refined.labels == stored).mean() > 0.99
    model.settings = replace(model.settings, background=1.0)
    assert not model.predict(files[0], labels[files[0].stem]).found
    assert wsss.load(model.save(checkpoint.parent / "m.safetensors")).settings == model.settings


def test_what_is_wrong_is_one_line(written, files, tmp_path) -> None:
    _, checkpoint = written()
    model = wsss.load(checkpoint)
    (tmp_path / "empty").mkdir()
    wrong = {
        "'cta' is no class of this model; is 'cat' meant?": lambda: model.predict(
            files[0], ["cta"]
        ),
        "give their classes|must be a list of class names": lambda: model.predict(
            files, ["cat"] * 6
        ),
        "2 are given for 6 photographs": lambda: model.predict(files, [["cat"], ["car"]]),
        "nothing is given for": lambda: model.predict(files, {files[0].stem: ["cat"]}),
        "no.jpg does not exist": lambda: model.predict("no.jpg", ["cat"]),
        "there are no photographs": lambda: model.predict(tmp_path / "empty", {}),
        "int is no photograph": lambda: model.predict([3], [["cat"]]),
        r"\(H, W, 3\) uint8": lambda: model.predict(np.zeros((4, 4, 3)), ["cat"]),
        "CAM reads nothing beside": lambda: model.predict(files[0], ["cat"], given=files[0]),
        "no finished model": lambda: wsss.load(tmp_path / "empty"),
        "no such file or folder": lambda: wsss.load(tmp_path / "no.ckpt"),
        "a model is saved as .safetensors": lambda: model.save(tmp_path / "model.pt"),
    }
    for told, call in wrong.items():
        with pytest.raises(WsssError, match=told) as caught:
            call()
        assert "\n" not in str(caught.value)
