"""SIPE on a plain CAM host: gradient routes, options, maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.errors import WsssError
from wsss.methods.network import SeedNetwork
from wsss.methods.sipe.branch import SIPE


@pytest.fixture
def make(make_network):
    """`make(key=value, ...)`: SIPE on the small host."""

    def with_sides(**options: Any) -> SeedNetwork:
        return make_network(SIPE, **{"side_channels": (3, 4, 5, 6), **options})

    return with_sides


def gsc(network: SeedNetwork, batch: dict[str, Any]) -> Tensor:
    seen = network(batch["image"], batch["label"])
    return network.branch.losses(seen, network.host.general(seen), batch)["gsc"]


def trained_by(loss: Tensor, network: SeedNetwork) -> set[str]:
    """Names of the parts with a gradient that is not zero."""
    network.zero_grad()
    loss.backward()
    return {
        name.rpartition(".")[0]
        for name, p in network.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }


NETWORK = {f"host.backbone.stages.{k}" for k in range(4)}
SIDES = {f"branch.sides.{k}" for k in range(4)}
CLASSIFIER = {"host.classifier"}


def test_gsc_trains_network_classifier_and_side_convolutions(make, batch) -> None:
    network = make()
    assert trained_by(gsc(network, batch), network) == NETWORK | SIDES | CLASSIFIER


def test_with_a_detached_cam_gsc_trains_the_side_convolutions_alone(make, batch) -> None:
    network = make(detach_cam=True)
    assert trained_by(gsc(network, batch), network) == SIDES


def test_the_cam_side_does_not_reach_the_side_convolutions(make, batch) -> None:
    """With the semantic feature there is no side convolution: what is left is the CAM side."""
    network = make(features="semantic")
    assert len(network.branch.sides) == 0
    assert trained_by(gsc(network, batch), network) == NETWORK | CLASSIFIER


def test_both_sides_add_up_to_the_full_gradient(make, batch) -> None:
    """The side convolutions' gradient is the same whether the CAM side is a constant or not."""
    both, detached = make(), make(detach_cam=True)
    gsc(both, batch).backward()
    gsc(detached, batch).backward()
    sides = (both.branch.sides.parameters(), detached.branch.sides.parameters())
    for a, b in zip(*sides, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_frozen_stages_stay_frozen(make, batch) -> None:
    network = make()
    network.host.backbone.freeze(2)
    trained = trained_by(gsc(network, batch), network)
    last = {"host.backbone.stages.2", "host.backbone.stages.3"}
    assert trained == SIDES | CLASSIFIER | last


def test_gsc_weight_scales_the_loss_and_zero_leaves_it_out(make, batch) -> None:
    full, half, none = make(), make(gsc_weight=0.5), make(gsc_weight=0)
    torch.testing.assert_close(gsc(half, batch), 0.5 * gsc(full, batch))
    seen = none(batch["image"], batch["label"])
    assert none.branch.losses(seen, none.host.general(seen), batch) == {}


def test_the_mean_over_present_classes_is_larger_by_the_share_of_absent_ones(make, batch) -> None:
    """Absent classes are zero on both sides: 8 channels count, of which 5 are present."""
    every, present = gsc(make(), batch), gsc(make(gsc_classes="present"), batch)
    torch.testing.assert_close(present, every * 8 / 5)


def slow_gsc(network: SeedNetwork, batch: dict[str, Any]) -> float:
    """The loss with the chosen options, image by image and class by class."""
    options = network.branch.options
    seen = network(batch["image"], batch["label"])
    size, total, count = seen.grid, 0.0, 0
    for b in range(2):
        cam = F.relu(seen.activation[b])
        cam = cam / (cam.amax((1, 2), keepdim=True) + 1e-5)
        general = torch.cat([1 - cam.amax(0, keepdim=True), cam])
        general = F.interpolate(general[None], size, mode="bilinear", align_corners=True)[0]
        window = F.interpolate(batch["valid"][b][None, None], size, mode="nearest")[0]
        valid = torch.cat([torch.ones(1), batch["label"][b]])[:, None, None] * window
        general = general * valid
        f = F.interpolate(seen.features[-1][b][None], size, mode="bilinear")[0]
        g = f
        if options.features == "hierarchical":
            sides = [
                side(x[b][None])
                for side, x in zip(network.branch.sides, seen.features, strict=True)
            ]
            sides = [s / (s.norm(dim=1, keepdim=True) + 1e-5) for s in sides]
            g = torch.cat([F.interpolate(s, size, mode="bilinear") for s in sides], 1)[0]
        u = g if options.structure == "g" else f
        u = u.flatten(1)
        scores = general.flatten(1).clone()
        if options.seeds == "structure":
            s = F.relu(F.cosine_similarity(u[:, :, None], u[:, None], dim=0))
            inter = scores @ s
            scores = inter / (s.sum(1) + scores.sum(1, keepdim=True) - inter)
        if options.seeds == "threshold":
            scores[0] = options.seed_threshold
        else:
            scores[0] = scores[0] * options.attenuation
        owner = scores.argmax(0)
        flat, maps = g.flatten(1), []
        for n in range(4):
            chosen = flat[:, (owner == n) & (valid[n].flatten() > 0)]
            mean = chosen.mean(1) if chosen.shape[1] else torch.zeros(len(flat))
            maps.append(F.relu(F.cosine_similarity(flat, mean[:, None], dim=0)))
        specific = torch.stack(maps)
        specific = specific / (specific.amax(1, keepdim=True) + 1e-5)
        if options.background == "estimated":
            specific[0] = 1 - specific[1:].amax(0)
        for n in range(4):
            present = n == 0 or batch["label"][b, n - 1] > 0
            if (n == 0 and options.background == "threshold") or (
                options.gsc_classes == "present" and not present
            ):
                continue
            total += float((general[n].flatten() - specific[n]).abs().mean())
            count += 1
    return total / count


@pytest.mark.parametrize("gsc_classes", ["all", "present"])
@pytest.mark.parametrize("structure", ["f", "g"])
@pytest.mark.parametrize("background", ["prototype", "estimated", "threshold"])
@pytest.mark.parametrize("seeds", ["structure", "argmax", "threshold"])
@pytest.mark.parametrize("features", ["hierarchical", "semantic"])
def test_every_reading_against_loops(
    make, batch, background: str, seeds: str, features: str, structure: str, gsc_classes: str
) -> None:
    options = {"background": background, "seeds": seeds, "features": features}
    network = make(**options, structure=structure, gsc_classes=gsc_classes)
    loss = gsc(network, batch)
    assert loss.item() == pytest.approx(slow_gsc(network, batch), rel=1e-3)
    assert "host.classifier" in trained_by(loss, network)


def test_a_few_steps_bring_is_cam_nearer_to_a_constant_cam(make, batch) -> None:
    network = make(detach_cam=True)
    optimizer = torch.optim.Adam(network.branch.sides.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        loss = gsc(network, batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_training_under_bfloat16_autocast_stays_close_to_float32(make, batch) -> None:
    network = make()
    exact = gsc(network, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = gsc(network, batch)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.01)
    assert trained_by(rounded, network) == NETWORK | SIDES | CLASSIFIER


@pytest.mark.parametrize(
    ("background", "channels"), [("prototype", 3), ("estimated", 3), ("threshold", 2)]
)
def test_maps_hold_the_present_classes_in_order(
    make, image, background: str, channels: int
) -> None:
    network = make(background=background).eval()
    label = torch.tensor([1.0, 0, 1])
    maps = network.maps(image, label)
    assert list(maps) == list(network.kinds) == ["cam", "is_cam"]
    assert maps["cam"].shape == (2, 5, 7) and maps["is_cam"].shape == (channels, 5, 7)
    assert network.kinds["is_cam"] == (channels == 3)
    raw = [network(x[None], label[None]).activation[0] for x in (image, image.flip(-1))]
    for k, n in enumerate((0, 2)):
        expected = F.relu(raw[0][n]) + F.relu(raw[1][n]).flip(-1)
        torch.testing.assert_close(maps["cam"][k], expected)


def test_maps_of_the_mirrored_image_are_the_mirrored_maps(make, image) -> None:
    network = make().eval()
    label = torch.tensor([1.0, 1, 0])
    maps, mirrored = network.maps(image, label), network.maps(image.flip(-1), label)
    for kind in maps:
        torch.testing.assert_close(mirrored[kind], maps[kind].flip(-1), atol=1e-5, rtol=0)


def test_an_image_without_classes_has_a_background_map_only(make, image) -> None:
    maps = make().eval().maps(image, torch.zeros(3))
    assert maps["cam"].shape == (0, 5, 7) and maps["is_cam"].shape == (1, 5, 7)


def test_is_cam_at_test_time_equals_the_procedure_step_by_step(make, image) -> None:
    """The released procedure written out: add, normalize, IoU over g, factor, prototypes."""
    network = make(test={"attenuation": 0.7}).eval()
    label = torch.tensor([0.0, 1, 1])
    with torch.no_grad():
        seen = network(torch.stack([image, image.flip(-1)]), label.expand(2, -1))
        sides = [
            F.interpolate(side / (side.norm(dim=1, keepdim=True) + 1e-5), (5, 7), mode="bilinear")
            for side in (s(x) for s, x in zip(network.branch.sides, seen.features, strict=True))
        ]
        g = torch.cat(sides, 1)
        g = (g[0] + g[1].flip(-1)).flatten(1)
        cam = F.relu(seen.activation[0] + seen.activation[1].flip(-1)).flatten(1)
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
    found = network.maps(image, label)["is_cam"].flatten(1)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=0)


def test_test_options_change_what_they_say(make, image) -> None:
    label = torch.tensor([0.0, 1, 0])
    explored = {}
    for key, test in {
        "released": {},
        "present": {"background_classes": "present"},
        "compete": {"seed_classes": "present"},
        "f": {"structure": "f"},
    }.items():
        network = make(test=test).eval()
        explored[key] = network.branch.explore(*network.see_pair(image, label), label)
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


def test_training_does_not_depend_on_test_options(make, batch) -> None:
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
def test_a_wrong_value_is_named_in_one_line(make, options: dict[str, Any], key: str) -> None:
    with pytest.raises(WsssError) as caught:
        make(**options)
    assert key in str(caught.value) and "\n" not in str(caught.value)
