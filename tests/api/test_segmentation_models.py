"""A segmentation network from its file alone labels photographs as stage=seg_predict does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import wsss
from wsss.build import compose
from wsss.data.masks import read_mask
from wsss.errors import WsssError
from wsss.maps.files import read_class_maps
from wsss.refine.crf import crf_from_probabilities
from wsss.stages import seg_predict
from wsss.stages.seg_predict import folder_name

SMALL = (
    "segmentation=demo",
    "segmentation.features=pretrained",
    "segmentation.predict.max_side=80",
)
SCALES = ("segmentation.eval.scales=[1.0,0.5]", "segmentation.eval.mirror=true")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    root.mkdir()
    for number, (height, width) in enumerate(((40, 60), (64, 48), (200, 90))):
        cells = np.random.default_rng(number).integers(0, 255, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((width, height)).save(root / f"p{number}.png")
    return root


def test_label_maps_are_those_of_seg_predict(
    settings, untrained_network, photographs: Path, tmp_path, monkeypatch
) -> None:
    s = settings(*SMALL, *SCALES, f"input={photographs}")
    untrained_network(s)
    seg_predict.run(s)
    masks = s.folder("seg_predict") / folder_name(photographs) / "masks"
    monkeypatch.setattr(compose, "CONF", tmp_path / "nowhere")
    model = wsss.load(tmp_path / "run")  # the network where there is one
    again = wsss.load(model.save(tmp_path / "model.safetensors"))
    assert isinstance(again, wsss.SegmentationModel)
    assert again.classes == ("bird", "boat", "car", "cat", "house", "plant")
    for found in (model.predict(photographs), again.predict(photographs)):
        assert [one.name for one in found] == ["p0", "p1", "p2"]
        for one in found:
            expected = read_mask(masks / f"{one.name}.png", 6)
            assert expected.shape == one.labels.shape
            assert (one.labels == expected).mean() > 0.999
            np.testing.assert_allclose(one.probabilities.sum(0), 1, atol=1e-4)
    assert found[2].probabilities.shape == (7, 80, 36)


def test_the_crf_is_that_of_the_probabilities(
    settings, untrained_network, photographs: Path
) -> None:
    s = settings(*SMALL, "segmentation.eval.crf.iterations=3")
    untrained_network(s)
    model = wsss.load(s.folder("seg_train") / "last.ckpt")
    raw, refined = (model.predict(photographs / "p0.png", crf=crf) for crf in (False, True))
    shares = crf_from_probabilities(raw.picture, raw.probabilities, s.segmentation.eval.crf)
    assert np.array_equal(refined.labels, shares.argmax(0))
    wide = replace(model.settings.eval, scales=(1.0, 1.5))
    model.settings = replace(model.settings, eval=wide)
    again = wsss.load(model.save(photographs / "m.safetensors"))
    assert again.settings.eval == wide


def test_a_prediction_shows_and_writes_what_it_is(
    settings, untrained_network, photographs: Path, tmp_path
) -> None:
    s = settings(*SMALL)
    untrained_network(s)
    one = wsss.load(s.folder("seg_train")).predict(photographs / "p1.png")
    area = {name: (one.labels == n).sum() for n, name in enumerate(one.classes, 1)}
    assert list(one.found) == sorted((n for n in area if area[n]), key=lambda n: -area[n])
    assert repr(one) == f"Prediction(p1, 64 x 48: {', '.join(one.found)})"
    assert one.overlay().width >= 48 and one._repr_png_()[:4] == b"\x89PNG"
    np.testing.assert_array_equal(one.map_of("background"), one.probabilities[0])
    assert one.overlay("car").size == (48, 64)
    files = one.save(tmp_path / "out")
    assert sorted(path.name for path in files) == ["p1.jpg", "p1.png"]
    assert np.array_equal(read_mask(tmp_path / "out" / "p1.png", 6), one.labels)
    assert Image.open(tmp_path / "out" / "p1.jpg").format == "JPEG"
    with pytest.raises(WsssError, match="no class maps"):
        one.save(tmp_path / "x.npz")
    with pytest.raises(WsssError, match="give .png"):
        one.save(tmp_path / "x.bmp")
    with pytest.raises(WsssError, match="no map of 'dog'; there are background, bird"):
        one.map_of("dog")


def test_class_maps_of_a_prediction_are_written_as_the_stages_read_them(
    written, files, labels, tmp_path
) -> None:
    _, checkpoint = written("method=sipe", "method.side_channels=[8,8,8,8]")
    path = files[0]
    one = wsss.load(checkpoint).predict(path, labels[path.stem])
    one.save(tmp_path / "out")
    stored = read_class_maps(tmp_path / "out" / f"{path.stem}.npz")
    assert stored.classes.tolist() == one.maps.classes.tolist() and stored.size == (64, 64)
    for kind, values in one.maps.maps.items():
        assert np.abs(stored.maps[kind] - values).max() < 1e-3
    first = labels[path.stem][0]
    row = one.maps.classes.tolist().index(one.classes.index(first) + 1)
    maps = torch.from_numpy(one.maps.maps["cam"])[None, row : row + 1]
    larger = torch.nn.functional.interpolate(maps, (64, 64), mode="bilinear")[0, 0]
    np.testing.assert_allclose(one.map_of(first, "cam"), larger, atol=1e-6)
    assert one.map_of("background").shape == (64, 64)
    with pytest.raises(WsssError, match="no map of 'background'"):
        one.map_of("background", "cam")
    with pytest.raises(WsssError, match="kind=pacam: there are cam, is_cam"):
        one.map_of(first, "pacam")
