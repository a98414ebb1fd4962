"""CPAL as a seed method: losses, maps, refilled bank, figures."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from wsss.methods.cpal.module import CPAL

from wsss.backbones.base import Backbone
from wsss.errors import WsssError
from wsss.maps.functional import classification_loss, normalize_cam
from wsss.methods.cpal.figures import aligned_points, component_maps, draw, draw_bank_history

N = 3
OPTIMIZER = {"lr": 0.1, "head_lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "poly_power": 0.9}


class ToyBackbone(Backbone):
    channels, strides = (4, 5, 6, 7), (4, 8, 16, 16)
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self):
        super().__init__()
        widths = (3, *self.channels)
        self.stages = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=s, padding=1)
            for a, b, s in zip(widths, self.channels, (4, 2, 2, 1), strict=False)
        )

    def forward(self, image):
        features = []
        for stage in self.stages:
            image = stage(image).relu()
            features.append(image)
        return features


def make_method(**options) -> CPAL:
    torch.manual_seed(0)
    options = {"projection_dim": 8, "neighbours": 2, "bank": {"size": 12, "clusters": 3}, **options}
    return CPAL(ToyBackbone(), N, OPTIMIZER, **options)


def make_batch(images: int = 4):
    generator = torch.Generator().manual_seed(2)
    label = (torch.arange(images)[:, None] % N == torch.arange(N)).float()
    label[0] = 1
    return {
        "image": torch.randn(images, 3, 64, 64, generator=generator),
        "label": label,
        "valid": torch.ones(images, 64, 64),
    }


def filled(**options) -> CPAL:
    method = make_method(**options)
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        batch = make_batch()
        batch["image"] = torch.randn(batch["image"].shape, generator=generator)
        features, activation = method(batch["image"])
        method.self_supervision(features, activation, batch)
        method.branch.bank.push(*method.branch.take_anchors())
    method.branch.bank.recluster(0)
    assert method.branch.bank.cluster_count.min() > 0
    return method


def test_losses_are_weighted():
    batch = make_batch()
    losses = {}
    for weight in (1.0, 3.0):
        method = filled(lambda_self=weight, lambda_cls=weight)
        features, activation = method(batch["image"])
        losses[weight] = method.self_supervision(features, activation, batch)
    assert set(losses[1.0]) == {"self"} and set(losses[3.0]) == {"self", "cls"}
    torch.testing.assert_close(losses[3.0]["self"], 3 * losses[1.0]["self"])
    torch.testing.assert_close(
        losses[3.0]["cls"], 3 * classification_loss(activation, batch["label"])
    )


def test_without_self_supervision_the_bank_still_fills():
    method, batch = make_method(lambda_self=0.0), make_batch()
    features, activation = method(batch["image"])
    assert method.self_supervision(features, activation, batch) == {}
    anchors, _ = method.branch.take_anchors()
    assert len(anchors) > 0 and not anchors.requires_grad


def test_head_holds_classifier_and_projection():
    names = {n for n, _ in make_method().named_parameters() if not n.startswith("backbone.")}
    assert names == {"classifier.weight", "branch.projection.0.weight"}


@pytest.mark.parametrize("features", ["layer4", "hierarchical"])
@torch.no_grad()
def test_maps_combine_the_image_and_its_mirror_image(features):
    method = filled(features=features)
    image = torch.randn(3, 48, 64, generator=torch.Generator().manual_seed(4))
    label = torch.tensor([1.0, 0, 1])
    maps = method.maps_at_scale(torch.stack([image, image.flip(-1)]), label)
    raw = [method(x[None])[1][0] for x in (image, image.flip(-1))]
    cam = raw[0].relu() + raw[1].flip(-1).relu()
    torch.testing.assert_close(maps["cam"], cam[[0, 2]])
    # Raw maps are added before the ReLU, features are averaged.
    joint = normalize_cam((raw[0] + raw[1].flip(-1))[None])
    z = [method.branch.project(method(x[None])[0]) for x in (image, image.flip(-1))]
    u = [method(x[None])[0][-1] for x in (image, image.flip(-1))]
    answer = method.branch.predict(
        (z[0] + z[1].flip(-1)) / 2, joint, label[None], (u[0] + u[1].flip(-1)) / 2
    )
    torch.testing.assert_close(maps["pacam"], answer.pacam[0, [0, 1, 3]])
    assert maps["pacam"].shape == (3, 3, 4)
    torch.testing.assert_close(maps["pacam"][0], 1 - maps["pacam"][1:].amax(0))


@torch.no_grad()
def test_mirrored_image_gives_mirrored_maps():
    method = filled()
    image, label = torch.randn(3, 64, 64), torch.ones(N)
    straight = method.maps_at_scale(torch.stack([image, image.flip(-1)]), label)
    mirrored = method.maps_at_scale(torch.stack([image.flip(-1), image]), label)
    for kind in method.kinds:
        torch.testing.assert_close(straight[kind], mirrored[kind].flip(-1))


def photographs(folder, number: int = 5) -> SimpleNamespace:
    """What `refill` uses of a data module, over a few JPEGs."""
    rng = np.random.default_rng(0)
    names = [f"photo{i}" for i in range(number)]
    for name in names:
        pixels = rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.jpg")
    labels = {name: np.eye(N)[i % N] for i, name in enumerate(names)}
    image_set = SimpleNamespace(
        names=lambda split: names,
        labels=lambda wanted: np.array([labels[name] for name in wanted]),
        image_path=lambda name: folder / f"{name}.jpg",
    )
    crop = SimpleNamespace(mean=(0.5,) * 3, std=(0.5,) * 3)
    return SimpleNamespace(
        image_set=image_set, train_split="trainaug", crop=crop, infer_long_side=64
    )


def test_refilled_bank_holds_the_training_images_under_the_current_weights(tmp_path):
    data = photographs(tmp_path)
    method = filled(test={"refresh_bank": True}).train()
    stale = method.branch.bank.entries.clone()
    method.before_maps(data)
    bank = method.branch.bank
    assert method.training and int(bank.count.sum()) <= 5
    assert bank.cluster_count.tolist() == bank.count.clamp(max=3).tolist()
    assert not torch.equal(bank.entries, stale)
    # Photo 3 has class 0, as photo 0 before it: its anchor is the last of that class.
    picture = Image.open(tmp_path / "photo3.jpg").resize((64, 51), Image.Resampling.BICUBIC)
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        features, activation = method((image - 0.5) / 0.5)
    cam, z = normalize_cam(activation)[0, 0], method.branch.project(features)[0].detach()
    expected = z[:, cam > method.branch.tau].mean(1)
    torch.testing.assert_close(bank.ordered(0)[-1], expected, atol=1e-5, rtol=1e-4)
    again = bank.entries.clone()
    method.before_maps(data)
    assert torch.equal(again, bank.entries)


def test_bank_is_left_alone_without_refresh(tmp_path):
    method = filled()
    before = method.branch.bank.entries.clone()
    method.before_maps(photographs(tmp_path))
    assert torch.equal(method.branch.bank.entries, before)
    assert method.map_notes()["refresh_bank"] is False
    assert method.map_notes()["classes_without_prototypes"] == 0


def test_checkpoint_carries_bank_and_prototypes(tmp_path):
    method = filled()
    torch.save(method.state_dict(), tmp_path / "state.pt")
    other = make_method()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    image = torch.randn(2, 3, 64, 64)
    ours, theirs = (m.maps_at_scale(image, torch.ones(N)) for m in (method, other))
    torch.testing.assert_close(ours["pacam"], theirs["pacam"])


def test_bfloat16_autocast_leaves_the_branch_in_float32():
    method, batch = filled(), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        features, activation = method(batch["image"])
        loss = method.self_supervision(features, activation, batch)["self"]
    anchors, _ = method.branch.take_anchors()
    assert loss.dtype == anchors.dtype == torch.float32
    features, activation = method(batch["image"])
    exact = method.self_supervision(features, activation, batch)["self"]
    torch.testing.assert_close(loss, exact, rtol=0.1, atol=0.01)


def test_wrong_options_are_named():
    for options, named in [
        ({"test": {"aligment": "off"}}, "method.test.aligment"),
        ({"lambda_self": -1.0}, "method.lambda_self=-1.0"),
    ]:
        with pytest.raises(WsssError, match=named):
            make_method(**options)


def sample(name: str, label: torch.Tensor) -> dict:
    image = torch.randn(3, 64, 64)
    picture = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)
    return {"images": [image], "label": label, "name": name, "picture": picture}


def test_figures_are_drawn(tmp_path):
    method = filled().eval()
    samples = [sample("one", torch.tensor([1.0, 0, 1])), sample("two", torch.tensor([0, 1.0, 0]))]
    files = draw(method, samples, tmp_path / "figures", ["cat", "dog", "cow"])
    assert [file.name for file in files] == [
        "tsne.png",
        "prototypes_one.png",
        "components_one.png",
        "prototypes_two.png",
        "components_two.png",
        "bank.png",
    ]
    for file in files:
        with Image.open(file) as picture:
            picture.load()
            assert min(picture.size) > 200


def test_figures_of_an_empty_bank_are_left_out(tmp_path):
    files = draw(make_method().eval(), [sample("one", torch.tensor([1.0, 0, 0]))], tmp_path)
    names = {file.name for file in files}
    assert "components_one.png" in names
    assert not names & {"prototypes_one.png", "bank.png"}


def test_aligned_points_are_moved_by_their_classs_shift():
    method, label = filled().eval(), torch.tensor([1.0, 0, 1])
    images = torch.randn(2, 3, 64, 64)
    seen = [method.observe(images), method.observe(images.flip(0))]
    before, after, owner = aligned_points(method.branch, seen, [label, label])
    assert set(owner.tolist()) == {0, 2}
    bank = method.branch.bank.mean()
    for n in (0, 2):
        anchors = [
            method.branch.anchors(one.z, one.cam, F.one_hot(torch.tensor([n]), N), one.structure)[0]
            for one in seen
        ]
        shift = bank[n] - torch.cat(anchors).mean(0)
        moved = (after - before)[owner == n]
        torch.testing.assert_close(moved, shift.expand_as(moved), atol=1e-5, rtol=1e-4)


def test_component_maps_leave_the_branch_as_it_was():
    method, label = filled().eval(), torch.tensor([1.0, 0, 1])
    seen = method.observe(torch.randn(2, 3, 64, 64))
    maps = dict(component_maps(method.branch, seen, label))
    assert list(maps) == ["CAM", "context prototypes", "+ prototype-aware", "+ alignment"]
    assert method.branch.neighbours == 2 and method.branch.positiveness
    plain = method.branch.predict(seen.z, seen.cam, label[None], seen.structure).pacam[0]
    torch.testing.assert_close(maps["+ prototype-aware"], plain)
    assert not torch.allclose(maps["context prototypes"], plain)
    assert not torch.allclose(maps["+ alignment"], plain)


def test_bank_history_is_read_from_the_csv_log(tmp_path):
    metrics = tmp_path / "metrics.csv"
    metrics.write_text(
        "epoch,bank/fill_mean,bank/fill_min,bank/cluster_size_mean,bank/cluster_size_max,step\n"
        "0,3.5,1,0,0,3\n0,,,,,4\n1,6.5,2,2.5,4,7\n"
    )
    file = draw_bank_history(metrics, tmp_path / "history.png")
    with Image.open(file) as picture:
        assert picture.size[0] > 500
    metrics.write_text("epoch,step\n0,1\n")
    with pytest.raises(WsssError, match="not the log of a CPAL run"):
        draw_bank_history(metrics, file)
    with pytest.raises(WsssError, match="absent.csv"):
        draw_bank_history(tmp_path / "absent.csv", file)
