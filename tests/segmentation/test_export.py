"""The exported file answers as the network does, at any size."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import AvgPool2dSame, Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import nn

from wsss.backbones import Backbone, ResNet, SmallResNet, Timm
from wsss.errors import WsssError
from wsss.segmentation import export as subject
from wsss.segmentation.base import SegmentationNetwork
from wsss.segmentation.deeplabv2 import DeepLabV2Backbone
from wsss.segmentation.export import (
    FORMATS,
    ExportedSegmenter,
    check_format,
    disagreement,
    export,
    for_any_size,
    load_exported,
)
from wsss.segmentation.module import Segmenter


class Small(SegmentationNetwork):
    """As MSRA's stem: stride 8 with a pooling in ceil mode, then a wide dilation."""

    num_classes, output_stride = 5, 8
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 7, stride=2, padding=3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 5, 3, padding=6, dilation=6),
        )
        self.finish()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


class Coarse(Small):
    """As a backbone with an output stride of 16 or 32."""

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        self.output_stride = output_stride
        times = (output_stride // 8).bit_length() - 1
        halving = (nn.Conv2d(5, 5, 3, stride=2, padding=1) for _ in range(times))
        self.layers = nn.Sequential(*self.layers, *halving)


def program(msc: bool = True, network: SegmentationNetwork | None = None) -> ExportedSegmenter:
    network = network or Small()
    segmenter = Segmenter(network, optimizer={"lr": 0.1}, msc=msc)
    return ExportedSegmenter(segmenter, network.mean, network.std).eval()


@pytest.mark.parametrize("msc", [True, False])
def test_the_file_read_back_gives_the_same_label_maps_at_other_sizes(tmp_path, msc: bool) -> None:
    original = program(msc)
    before = {k: v.clone() for k, v in original.state_dict().items()}
    export(original, tmp_path / "s.pt2")
    exported = load_exported(tmp_path / "s.pt2")
    for height, width in ((64, 64), (33, 101), (120, 75), (375, 500)):
        image = torch.rand(1, 3, height, width)
        with torch.no_grad():
            expected, found = original(image), exported(image)
        assert found.shape == (1, 5, height, width)
        assert torch.equal(found.argmax(1), expected.argmax(1))
    assert original.state_dict().keys() == before.keys()
    assert any(getattr(m, "ceil_mode", False) for m in original.modules())  # left as it was


@pytest.mark.parametrize(("stride", "smallest"), [(16, 64), (32, 128)])
def test_a_coarse_network_is_exported_from_the_least_size_that_it_tells(
    tmp_path, stride: int, smallest: int
) -> None:
    original = program(msc=True, network=Coarse(stride))
    assert original.smallest == smallest
    export(original, tmp_path / "s.pt2")
    exported = load_exported(tmp_path / "s.pt2")
    for size in ((smallest, smallest), (smallest + 1, 333)):
        image = torch.rand(1, 3, *size)
        with torch.no_grad():
            assert disagreement(original(image), exported(image)) == 0
    with pytest.raises(Exception, match=str(smallest)):
        exported(torch.rand(1, 3, smallest - 1, 333))


def test_the_exported_network_normalizes_itself(tmp_path: Path) -> None:
    network = Small()
    original = program(msc=False)
    image = torch.rand(1, 3, 40, 48)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (network.mean, network.std))
    logits = network.eval()((image - mean) / std)
    full = nn.functional.interpolate(logits, (40, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(original(image), full)


POOLS = {
    "max 3": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "max 2": nn.MaxPool2d(2, 2, ceil_mode=True),
    "mean 2": nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    "mean 1": nn.AvgPool2d(2, 1, ceil_mode=True, count_include_pad=False),
    "same conv": Conv2dSame(3, 4, 3, stride=2),
    "same wide": Conv2dSame(3, 3, 5, stride=2, groups=3, bias=False),
    "same point": Conv2dSame(3, 4, 1, stride=2),
    "same max": MaxPool2dSame(3, 2),
    "same mean": AvgPool2dSame(2, 1, ceil_mode=True, count_include_pad=False),
}


@pytest.mark.parametrize("layer", POOLS.values(), ids=POOLS)
def test_a_layer_for_any_size_gives_the_same_values(layer: nn.Module) -> None:
    before = nn.Sequential(copy.deepcopy(layer))
    after = copy.deepcopy(before)
    for_any_size(after)
    assert not any(getattr(m, "ceil_mode", False) for m in after.modules() if m is not after)
    for size in ((7, 8), (8, 7), (3, 2), (2, 33), (64, 65)):
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(after(x), before(x), atol=1e-6, rtol=1e-6)


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "resnet18": lambda: ResNet(18),
    "tf_efficientnet_lite0": lambda: Timm("tf_efficientnet_lite0", freeze_depthwise=True),
    "test_resnet": lambda: Timm("test_resnet"),
    "demo": lambda: SmallResNet(),
    "test_convnext": lambda: Timm("test_convnext"),
}


# As a program of torch.export EfficientNet-Lite0 takes half a minute; its layers are below.
CASES = [("torch", name) for name in BACKBONES if name != "tf_efficientnet_lite0"]
CASES += [("onnx", "tf_efficientnet_lite0"), ("onnx", "test_resnet")]


@pytest.mark.slow
@pytest.mark.parametrize(("file_format", "name"), CASES)
def test_a_network_on_any_backbone_is_exported_for_any_size(
    tmp_path: Path, file_format: str, name: str
) -> None:
    if file_format == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    original = program(msc=False, network=DeepLabV2Backbone(5, BACKBONES[name]()))
    path = tmp_path / FORMATS[file_format]
    export(original, path, file_format)
    exported = load_exported(path)
    smallest = original.smallest
    for size in ((smallest, smallest), (smallest + 1, 133), (96, smallest + 2), (161, 111)):
        image = torch.rand(1, 3, *size)
        with torch.no_grad():
            assert disagreement(original(image), exported(image)) == 0


class SamePadding(Small):
    """As EfficientNet's stem, with pools that round up."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Conv2dSame(3, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
            Conv2dSame(8, 8, 5, stride=2, groups=8),
            nn.Conv2d(8, 5, 3, padding=1),
        )
        self.finish()


def test_same_padding_is_exported_at_several_scales(tmp_path: Path) -> None:
    original = program(msc=True, network=SamePadding())
    export(original, tmp_path / "s.pt2")
    exported = load_exported(tmp_path / "s.pt2")
    for size in ((32, 32), (33, 101), (34, 75), (121, 63)):
        image = torch.rand(1, 3, *size)
        with torch.no_grad():
            assert disagreement(original(image), exported(image)) == 0


def test_the_readmes_script_runs_an_exported_file_without_this_package(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    original = program(msc=False)
    export(original, tmp_path / "segmenter.onnx", "onnx")
    (tmp_path / "segmenter.json").write_text('{"labels": ["background", "a", "b", "c", "d"]}')
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=100)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (script,) = (s for s in re.findall(r"```python\n(.*?)```", readme, re.S) if "onnxruntime" in s)
    code = f"import sys\nsys.modules['wsss'] = None\n{script}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    photo = np.array(Image.open(tmp_path / "photo.jpg"))
    image = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = original(image).argmax(1)[0].numpy()
    found = np.array(Image.open(tmp_path / "labels.png"))
    assert (found == expected).mean() > 0.999
    assert len(done.stdout.splitlines()) == len(np.unique(found)) > 1


def test_a_difference_is_seen_unless_it_is_a_near_tie() -> None:
    expected = torch.zeros(1, 3, 2, 2)
    expected[0, 1] = 10.0
    found = expected.clone()
    assert disagreement(expected, found) == 0
    found[0, 2, 0, 0] = 11.0
    assert disagreement(expected, found) == 0.25
    expected[0, 2, 0, 0] = 9.9999
    assert disagreement(expected, found) == 0
    with pytest.raises(WsssError, match="instead of"):
        disagreement(expected, found[:, :2])


def test_what_cannot_be_exported_is_told_in_a_line(tmp_path: Path) -> None:
    class Odd(Small):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if image.mean() > 0:  # depends on the values
                return self.layers(image)
            return -self.layers(image)

    network = Odd()
    odd = ExportedSegmenter(
        Segmenter(network, optimizer={"lr": 0.1}, msc=False), network.mean, network.std
    )
    with pytest.raises(WsssError, match="can't be exported as torch: ") as caught:
        export(odd, tmp_path / "s.pt2")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_cannot_be_written_is_told_before_the_work(monkeypatch) -> None:
    with pytest.raises(WsssError, match="format=tflite: choose torch or onnx"):
        check_format("tflite")
    monkeypatch.setattr(subject.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WsssError, match="needs onnx and onnxscript: pip install"):
        check_format("onnx")


def test_a_broken_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "s.pt2").write_bytes(b"no")
    with pytest.raises(WsssError, match="can't be read as an exported program"):
        load_exported(tmp_path / "s.pt2")
