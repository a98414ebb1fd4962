"""The network's shape, its freezing, its invariances and its training step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from wsss.backbones import ResNet, Timm
from wsss.backbones.base import Backbone
from wsss.data.datamodule import WholeSet
from wsss.data.transforms import Pyramid
from wsss.errors import WsssError
from wsss.refine.affinity import affinity_labels, affinity_loss, displacement_loss
from wsss.refine.irn import (
    EdgeDisplacement,
    IRNModule,
    IRNOptimizer,
    IRNSettings,
    edge_map,
    mean_displacement,
)
from wsss.refine.paths import path_index
from wsss.settings import resolve


class SmallBackbone(Backbone):
    """Five convolutions; `stem_stride` 4 as a ResNet, or 2 as timm's small networks."""

    def __init__(self, stem_stride: int = 4) -> None:
        super().__init__()
        self.channels, self.strides = (6, 8, 10, 12), (4, 8, 16, 16)
        self.stem_channels, self.stem_stride = 5, stem_stride
        steps = (stem_stride, 4 // stem_stride, 2, 2, 1)
        widths = (3, 5, 6, 8, 10, 12)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, max(s, 1), stride=s)
            for a, b, s in zip(widths[:-1], widths[1:], steps, strict=True)
        )
        self.norm = nn.BatchNorm2d(12)

    def forward_with_stem(self, image: Tensor) -> list[Tensor]:
        features = []
        for layer in self.layers:
            image = torch.relu(layer(image))
            features.append(image)
        features[-1] = self.norm(features[-1])
        return features


@pytest.fixture(autouse=True)
def one_thread():
    """With tensors as small as these, a second thread waits more than it works."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network() -> EdgeDisplacement:
    torch.manual_seed(0)
    return EdgeDisplacement(SmallBackbone())


def count(parameters: list[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def test_parameter_counts_on_a_resnet50_are_the_published_ones() -> None:
    network = EdgeDisplacement(ResNet(depth=50))
    assert count(network.edge_parameters()) == 125_409
    assert count(network.displacement_parameters()) == 1_269_120
    trainable = [p for p in network.parameters() if p.requires_grad]
    assert count(trainable) == 125_409 + 1_269_120


@pytest.mark.parametrize("stem_stride", [2, 4])
def test_both_outputs_lie_on_the_stride_4_grid(stem_stride: int) -> None:
    network = EdgeDisplacement(SmallBackbone(stem_stride))
    edge, field = network(torch.randn(2, 3, 48, 80))
    assert edge.shape == (2, 12, 20)
    assert field is not None and field.shape == (2, 2, 12, 20)


@pytest.mark.parametrize(
    "backbone",
    [lambda: ResNet(depth=18), lambda: Timm("tf_efficientnet_lite0")],
    ids=["resnet18", "lite0"],
)
def test_any_backbone_will_do(backbone) -> None:
    network = EdgeDisplacement(backbone()).eval()
    edge = edge_map(network, torch.randn(3, 50, 37))
    assert edge.shape == (13, 10)
    assert ((edge >= 0) & (edge <= 1)).all()


def test_the_edge_head_against_its_definition(network: EdgeDisplacement) -> None:
    """conv, norm, enlarge, cut, ReLU for each feature; then one convolution with bias."""
    image = torch.randn(1, 3, 32, 48)
    taps = network.backbone.forward_with_stem(image)
    parts = []
    for head, feature, factor in zip(network.edge, taps, (1, 1, 2, 4, 4), strict=True):
        x = F.conv2d(feature, head.conv.weight)
        x = F.group_norm(x, 4, head.norm.weight, head.norm.bias)
        if factor > 1:
            x = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
        parts.append(F.relu(x))
    expected = F.conv2d(torch.cat(parts, 1), network.edge_out.weight, network.edge_out.bias)[:, 0]
    assert torch.allclose(network(image)[0], expected, atol=1e-5)


def test_the_backbone_neither_learns_nor_moves() -> None:
    torch.manual_seed(1)
    network = EdgeDisplacement(SmallBackbone()).train()
    assert not network.backbone.training
    before = {k: v.clone() for k, v in network.backbone.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    edge, field = network(torch.randn(2, 3, 32, 32))
    (edge.sum() + field.abs().sum()).backward()
    optimizer.step()
    assert all(p.grad is None for p in network.backbone.parameters())
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, before[key])
    for name, parameter in network.named_parameters():
        assert name.startswith("backbone.") or parameter.grad is not None, name


def test_heads_are_independent_and_the_displacement_can_be_left_out() -> None:
    torch.manual_seed(2)
    both = EdgeDisplacement(SmallBackbone())
    alone = EdgeDisplacement(both.backbone, displacement=False)
    state = both.heads_state()
    alone.load_heads({k: v for k, v in state.items() if not k.startswith("field")})
    image = torch.randn(1, 3, 32, 32)
    edge, field = alone(image)
    assert field is None and alone.displacement_parameters() == []
    assert torch.equal(edge, both(image)[0])
    assert not any(key.startswith("backbone") for key in state)
    with pytest.raises(RuntimeError, match="field"):
        alone.load_heads(state)


def test_mean_shift_acts_in_evaluation_only(network: EdgeDisplacement) -> None:
    image = torch.randn(1, 3, 32, 32)
    raw = network.train()(image)[1]
    network.mean_shift.copy_(torch.tensor([1.5, -2.0]))
    try:
        assert torch.equal(network.train()(image)[1], raw)
        shifted = network.eval()(image)[1]
        assert torch.allclose(shifted[:, 0], raw[:, 0] - 1.5, atol=1e-5)
        assert torch.allclose(shifted[:, 1], raw[:, 1] + 2.0, atol=1e-5)
    finally:
        network.mean_shift.zero_()


@pytest.mark.parametrize("size", [(32, 48), (37, 50), (1, 1), (65, 15)])
def test_edge_maps_of_any_size(network: EdgeDisplacement, size: tuple[int, int]) -> None:
    """Against the definition with each of the two images run by itself."""
    height, width = size
    image = torch.randn(3, *size)
    network.eval()
    found = edge_map(network, image)
    logits = []
    for one in (image, image.flip(-1)):
        padded = torch.zeros(1, 3, -(-height // 16) * 16, -(-width // 16) * 16)
        padded[0, :, :height, :width] = one
        logit = network(padded)[0][0, : (height + 3) // 4, : (width + 3) // 4]
        logits.append(logit)
    expected = torch.sigmoid((logits[0] + logits[1].flip(-1)) / 2)
    assert found.shape == ((height - 1) // 4 + 1, (width - 1) // 4 + 1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_edge_map_mirrors_with_the_image(network: EdgeDisplacement) -> None:
    image = torch.randn(3, 32, 48)
    network.eval()
    expected = edge_map(network, image).flip(-1)
    assert torch.allclose(edge_map(network, image.flip(-1)), expected, atol=1e-5)


def test_sizes_that_do_not_divide_are_refused(network: EdgeDisplacement) -> None:
    with pytest.raises(WsssError, match="multiples of 16"):
        network(torch.randn(1, 3, 40, 32))


def test_training_step_is_the_mean_of_the_two_pairs_of_losses(network: EdgeDisplacement) -> None:
    module = IRNModule(network, 3, IRNOptimizer())
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    network.train()
    image = torch.randn(2, 3, 48, 48)
    label = torch.randint(0, 3, (2, 48, 48))
    label[:, :, :10] = 255
    edge, field = network(image)
    index = path_index(3)
    pairs = affinity_labels(label[:, 2::4, 2::4], index)
    a, d = affinity_loss(edge, pairs, index), displacement_loss(field, pairs, index)
    expected = (a["positive"] + a["negative"]) / 2 + (d["foreground"] + d["background"]) / 2
    found = module.training_step({"image": image, "target": label}, 0)
    assert float(found["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert len(found["terms"]) == 4 and not any(t.requires_grad for t in found["terms"].values())
    terms = sum(float(term) for term in found["terms"].values())
    assert terms / 2 == pytest.approx(float(expected.detach()), rel=1e-5)


def test_edges_learn_where_the_classes_meet() -> None:
    """Left half one class, right half another: the edge must come up between them."""
    torch.manual_seed(0)
    network = EdgeDisplacement(SmallBackbone(), displacement=False).train()
    module = IRNModule(network, 3, IRNOptimizer())
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    image = torch.randn(2, 3, 64, 64) * 0.1
    label = torch.zeros(2, 64, 64, dtype=torch.int64)
    for b, border in enumerate((24, 40)):
        image[b, :, :, border:] += 2
        label[b, :, border:] = 1
    optimizer = torch.optim.SGD(network.edge_parameters(), lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        module.training_step({"image": image, "target": label}, 0)["loss"].backward()
        optimizer.step()
    edge = torch.sigmoid(network(image)[0].detach())
    for b, border in enumerate((6, 10)):
        near = edge[b, 2:-2, border - 1 : border + 1].amax(-1).mean()
        away = torch.cat([edge[b, 2:-2, 1 : border - 2], edge[b, 2:-2, border + 2 : -1]], 1).mean()
        assert near > 0.6 and near > away + 0.15, (near, away)


def test_the_mean_displacement_counts_every_image_once_at_its_upper_left_corner(
    tmp_path: Path,
) -> None:
    """Five images in batches of two: the last one weighs as much as the others."""
    torch.manual_seed(3)
    network = EdgeDisplacement(SmallBackbone())
    network.mean_shift.fill_(7.0)  # of an earlier measurement: it must not be subtracted
    rng = np.random.default_rng(0)
    for n in range(5):
        pixels = rng.integers(0, 255, (30 + 4 * n, 50 - 6 * n, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"i{n}.png")

    class Bare:
        def image_path(self, name: str) -> Path:
            return tmp_path / f"{name}.png"

    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    whole = WholeSet(Bare(), [f"i{n}" for n in range(5)], Pyramid(mean, std))  # type: ignore[arg-type]
    found = mean_displacement(network, whole, 32, 2, torch.device("cpu"))
    expected = []
    for n in range(5):
        picture = np.asarray(Image.open(tmp_path / f"i{n}.png"))[:32, :32] / 255.0
        square = np.zeros((32, 32, 3))
        square[: picture.shape[0], : picture.shape[1]] = (picture - mean) / std
        image = torch.from_numpy(square).float().permute(2, 0, 1)[None]
        field = network.train()(image)[1]
        expected.append(field.detach().mean(dim=(0, 2, 3)))
    torch.testing.assert_close(found, torch.stack(expected).mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"crop_size": 40}, r"^refine\.irn\.crop_size=40: must be a multiple of 16"),
        ({"crop_size": 0}, r"^refine\.irn\.crop_size=0: "),
        ({"scale": (1.0, 0.5)}, r"^refine\.irn\.scale=\[1\.0, 0\.5\]: must be"),
        ({"radius": 1}, r"^refine\.irn\.radius=1: "),
        ({"features": "random"}, r"^refine\.irn\.features=random: .*'pretrained' or 'method'"),
        ({"optimizer": {"lr_edge": -1}}, r"^refine\.irn\.optimizer\.lr_edge=-1: "),
    ],
)
def test_bad_settings_are_named(given: dict[str, object], told: str) -> None:
    with pytest.raises(WsssError, match=told) as caught:
        resolve(IRNSettings, given, "refine.irn")
    assert "\n" not in str(caught.value)
