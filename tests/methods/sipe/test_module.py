"""SIPE's module on a network of four convolutions: gradient routes, options, maps, figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.backbones.base import Backbone
from wsss.errors import WsssError
from wsss.methods.sipe.module import SIPE

CLASSES = 3


class FourConvolutions(Backbone):
    """Stages at strides 4, 8, 16, 16, each one convolution of the previous stage."""

    channels = (4, 5, 6, 8)
    strides = (4, 8, 16, 16)
    stem_channels, stem_stride = 3, 1

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *self.channels[:-1])
        self.stages = nn.ModuleList(
            nn.Conv2d(i, o, max(s, 1), s)
            for i, o, s in zip(inputs, self.channels, (4, 2, 2, 1), strict=True)
        )

    def forward_with_stem(self, image: Tensor) -> list[Tensor]:
        features = [image]
        for stage in self.stages:
            features.append(torch.tanh(stage(features[-1])))
        return features


def make(**options: Any) -> SIPE:
    torch.manual_seed(0)
    options = {"side_channels": (3, 4, 5, 6), **options}
    return SIPE(FourConvolutions(), CLASSES, {"lr": 0.1}, **options)


def make_batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    valid = torch.ones(2, 80, 112)
    valid[1, 48:] = 0
    return {
        "image": torch.randn(2, 3, 80, 112, generator=generator) * valid[:, None],
        "label": torch.tensor([[1.0, 0, 1], [0, 1, 0]]),
        "valid": valid,
    }


def gsc(method: SIPE, batch: dict[str, Any]) -> Tensor:
    features, activation = method(batch["image"])
    return method.self_supervision(features, activation, batch)["gsc"]


def trained_by(loss: Tensor, method: SIPE) -> set[str]:
    """Names of the parts with a gradient that is not zero."""
    method.zero_grad()
    loss.backward()
    return {
        name.rpartition(".")[0]
        for name, p in method.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }


NETWORK = {"backbone.stages.0", "backbone.stages.1", "backbone.stages.2", "backbone.stages.3"}
SIDES = {"sides.0", "sides.1", "sides.2", "sides.3"}


def test_gsc_trains_network_classifier_and_side_convolutions() -> None:
    method = make()
    assert trained_by(gsc(method, make_batch()), method) == NETWORK | SIDES | {"classifier"}


def test_with_a_detached_cam_gsc_trains_the_side_convolutions_alone() -> None:
    method = make(detach_cam=True)
    assert trained_by(gsc(method, make_batch()), method) == SIDES


def test_the_cam_side_does_not_reach_the_side_convolutions() -> None:
    """With the semantic feature there is no side convolution: what is left is the CAM side."""
    method = make(features="semantic")
    assert len(method.sides) == 0
    assert trained_by(gsc(method, make_batch()), method) == NETWORK | {"classifier"}


def test_both_sides_add_up_to_the_full_gradient() -> None:
    """The side convolutions' gradient is the same whether the CAM side is a constant or not."""
    batch = make_batch()
    both, detached = make(), make(detach_cam=True)
    gsc(both, batch).backward()
    gsc(detached, batch).backward()
    for a, b in zip(both.sides.parameters(), detached.sides.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_frozen_stages_stay_frozen() -> None:
    method = make()
    method.backbone.freeze(2)
    trained = trained_by(gsc(method, make_batch()), method)
    assert trained == SIDES | {"classifier", "backbone.stages.2", "backbone.stages.3"}


def test_side_convolutions_learn_at_the_rate_of_new_layers() -> None:
    method = make()
    head = {id(p) for p in method.head_parameters()}
    assert {id(p) for p in method.sides.parameters()} < head
    assert not head & {id(p) for p in method.backbone.parameters()}


def test_gsc_weight_scales_the_loss_and_zero_leaves_it_out() -> None:
    batch = make_batch()
    full, half, none = make(), make(gsc_weight=0.5), make(gsc_weight=0)
    torch.testing.assert_close(gsc(half, batch), 0.5 * gsc(full, batch))
    features, activation = none(batch["image"])
    assert none.self_supervision(features, activation, batch) == {}


def test_the_mean_over_present_classes_is_larger_by_the_share_of_absent_ones() -> None:
    """Absent classes are zero on both sides: 8 channels count, of which 5 are present."""
    batch = make_batch()
    every, present = gsc(make(), batch), gsc(make(gsc_classes="present"), batch)
    torch.testing.assert_close(present, every * 8 / 5)


@pytest.mark.parametrize("background", ["prototype", "estimated", "threshold"])
@pytest.mark.parametrize("seeds", ["structure", "argmax", "threshold"])
@pytest.mark.parametrize("features", ["hierarchical", "semantic"])
def test_every_variant_has_a_finite_loss_that_trains(
    background: str, seeds: str, features: str
) -> None:
    method = make(background=background, seeds=seeds, features=features, gsc_classes="present")
    loss = gsc(method, make_batch())
    assert loss.isfinite() and loss > 0
    assert "classifier" in trained_by(loss, method)


def test_a_few_steps_bring_is_cam_nearer_to_a_constant_cam() -> None:
    method, batch = make(detach_cam=True), make_batch()
    optimizer = torch.optim.Adam(method.sides.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        loss = gsc(method, batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_training_under_bfloat16_autocast_stays_close_to_float32() -> None:
    method, batch = make(), make_batch()
    exact = gsc(method, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = gsc(method, batch)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.01)
    assert trained_by(rounded, method) == NETWORK | SIDES | {"classifier"}


def pair() -> Tensor:
    image = torch.randn(3, 80, 112, generator=torch.Generator().manual_seed(5))
    return torch.stack([image, image.flip(-1)])


@pytest.mark.parametrize(
    ("background", "channels"), [("prototype", 3), ("estimated", 3), ("threshold", 2)]
)
def test_maps_hold_the_present_classes_in_order(background: str, channels: int) -> None:
    method = make(background=background).eval()
    label = torch.tensor([1.0, 0, 1])
    maps = method.maps_at_scale(pair(), label)
    assert list(maps) == list(method.kinds) == ["cam", "is_cam"]
    assert maps["cam"].shape == (2, 5, 7) and maps["is_cam"].shape == (channels, 5, 7)
    assert method.kinds["is_cam"] == (channels == 3)
    _, activation = method(pair())
    for k, n in enumerate((0, 2)):
        expected = F.relu(activation[0, n]) + F.relu(activation[1, n]).flip(-1)
        torch.testing.assert_close(maps["cam"][k], expected)


def test_maps_of_the_mirrored_image_are_the_mirrored_maps() -> None:
    method = make().eval()
    label = torch.tensor([1.0, 1, 0])
    maps = method.maps_at_scale(pair(), label)
    mirrored = method.maps_at_scale(pair().flip(0), label)
    for kind in maps:
        torch.testing.assert_close(mirrored[kind], maps[kind].flip(-1), atol=1e-5, rtol=0)


def test_an_image_without_classes_has_a_background_map_only() -> None:
    maps = make().eval().maps_at_scale(pair(), torch.zeros(CLASSES))
    assert maps["cam"].shape == (0, 5, 7) and maps["is_cam"].shape == (1, 5, 7)


def test_is_cam_at_test_time_equals_the_procedure_step_by_step() -> None:
    """The released procedure written out: add, normalize, IoU over g, factor, prototypes."""
    method = make(test={"attenuation": 0.7}).eval()
    label = torch.tensor([0.0, 1, 1])
    with torch.no_grad():
        features, activation = method(pair())
        sides = [
            F.interpolate(side / (side.norm(dim=1, keepdim=True) + 1e-5), (5, 7), mode="bilinear")
            for side in (s(x) for s, x in zip(method.sides, features, strict=True))
        ]
        g = torch.cat(sides, 1)
        g = (g[0] + g[1].flip(-1)).flatten(1)
        cam = F.relu(activation[0] + activation[1].flip(-1)).flatten(1)
    cam = cam / (cam.amax(1, keepdim=True) + 1e-5)
    maps = torch.cat([1 - cam.amax(0, keepdim=True), cam])
    relation = F.relu(F.cosine_similarity(g[:, :, None], g[:, None], dim=0))
    inter = (relation[None] * maps[:, None]).sum(-1)
    iou = inter / (relation.sum(-1)[None] + maps.sum(-1, keepdim=True) - inter)
    iou[0] *= 0.7
    owner = iou.argmax(0)
    expected = []
    for n in (0, 2, 3):  # background and the present classes
        chosen = g[:, owner == n]
        prototype = chosen.mean(1) if chosen.shape[1] else torch.zeros(g.shape[0])
        expected.append(F.relu(F.cosine_similarity(g, prototype[:, None], dim=0)))
    found = method.maps_at_scale(pair(), label)["is_cam"].flatten(1)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=0)


def test_test_options_change_what_they_say() -> None:
    label = torch.tensor([0.0, 1, 0])
    image = pair()[0]
    explored = {
        key: make(test=test).eval().explore_image(image, label)
        for key, test in {
            "released": {},
            "present": {"background_classes": "present"},
            "compete": {"seed_classes": "present"},
            "f": {"structure": "f"},
        }.items()
    }
    released = explored["released"].maps
    torch.testing.assert_close(released[:, 0], 1 - released[:, 1:].amax(1))
    present = explored["present"].maps
    torch.testing.assert_close(present[:, 0], 1 - released[:, 2])
    torch.testing.assert_close(present[:, 1:], released[:, 1:])
    compete = explored["compete"].maps
    torch.testing.assert_close(compete[:, :1], released[:, :1])
    assert compete[:, [1, 3]].abs().max() == 0
    assert explored["released"].structure.shape[1] == 3 + 4 + 5 + 6
    assert explored["f"].structure.shape[1] == 8


def test_training_does_not_depend_on_test_options() -> None:
    batch = make_batch()
    plain, other = make(), make(test={"attenuation": 1.0, "structure": "f"})
    assert torch.equal(gsc(plain, batch), gsc(other, batch))
    assert plain.state_dict().keys() == other.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"seeds": "best"}, "method.seeds=best"),
        ({"background": "none"}, "method.background=none"),
        ({"features": "layer4"}, "method.features=layer4"),
        ({"gsc_classes": "some"}, "method.gsc_classes=some"),
        ({"test": {"structure": "h"}}, "method.test.structure=h"),
        ({"test": {"atenuation": 1}}, "method.test.atenuation"),
        ({"attenuation": -1}, "method.attenuation"),
        ({"side_channels": (1, 2, 3)}, "method.side_channels"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(options: dict[str, Any], key: str) -> None:
    with pytest.raises(WsssError) as caught:
        make(**options)
    assert key in str(caught.value) and "\n" not in str(caught.value)


def test_figures_are_drawn_for_every_sample(tmp_path: Path) -> None:
    samples = [
        {
            "images": [pair()[0]],
            "label": torch.tensor(label),
            "name": name,
            "picture": np.full((80, 112, 3), 128, dtype=np.uint8),
        }
        for name, label in (("one", [1.0, 0, 1]), ("none", [0.0, 0, 0]))
    ]
    files = make().eval().figures(samples, tmp_path / "figures", ("a", "b", "c"))
    assert [file.name for file in files] == ["one.png", "none.png"]
    from matplotlib.image import imread

    heights = [imread(file).shape[0] for file in files]
    assert heights[0] > heights[1]  # three rows against the background's alone
