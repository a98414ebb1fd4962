"""The training of a segmentation network against closed forms, loops, and a task it must learn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wsss.backbones import Backbone
from wsss.errors import WsssError
from wsss.segmentation.base import SegmentationNetwork
from wsss.segmentation.deeplabv2 import build_network
from wsss.segmentation.module import Segmenter, poly_factor
from wsss.segmentation.settings import OptimizerSettings, SegmentationSettings
from wsss.settings import resolve

SGD = OptimizerSettings(lr=0.01)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These tensors are so small that threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Tiny(Backbone):
    """Four convolutions; the last stage has stride 4."""

    channels, strides = (8, 8, 8, 8), (1, 2, 4, 4)
    stem_channels, stem_stride = 8, 1
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, stride, 1), nn.ReLU()) for stride in (1, 2, 2, 1)
        )

    def forward_with_stem(self, image: Tensor) -> list[Tensor]:
        features = [self.stem(image)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features


def tiny(num_classes: int = 3) -> SegmentationNetwork:
    torch.manual_seed(0)
    return build_network("backbone", num_classes, backbone=Tiny(), rates=[1, 2])


class Squares(torch.utils.data.Dataset):
    """Images whose red parts are class 1, green ones 2, all else background; the border is void."""

    def __init__(self, count: int, side: int = 32) -> None:
        self.count, self.side = count, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        image = 0.1 * torch.randn(3, self.side, self.side, generator=generator)
        target = torch.zeros(self.side, self.side, dtype=torch.int64)
        half = self.side // 2
        for label in (1, 2):
            places = 8 * torch.randint(0, half // 8 + 1, (2,), generator=generator)
            top, left = places.tolist()  # on the network's grid: coarse logits can tell them apart
            window = (slice(top, top + half), slice(left, left + half))
            image[(slice(None), *window)] = -1.0
            image[(label - 1, *window)] = 1.0
            target[window] = label
        target[:2] = 255
        return {"image": image, "target": target}


def fit(segmenter: Segmenter, steps: int, accumulate: int = 1, **options) -> pl.Trainer:
    trainer = pl.Trainer(
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(segmenter, DataLoader(Squares(4 * steps * accumulate), batch_size=4))
    return trainer


def test_the_rate_is_that_of_deeplabs_own_loop() -> None:
    total, power, lr = 200, 0.9, 2.5e-4
    for every in (10, 1, 7):
        rate, used = lr, []
        for iteration in range(1, total + 1):
            used.append(rate)  # the optimizer's step
            if iteration % every == 0:  # the scheduler's step
                rate = lr * (1 - iteration / total) ** power
        got = [lr * poly_factor(step, total, power, every) for step in range(total)]
        assert got == pytest.approx(used)
    assert [poly_factor(step, 20000, 0.9, 10) for step in range(10)] == [1.0] * 10
    assert poly_factor(10, 20000, 0.9, 10) == pytest.approx((1 - 10 / 20000) ** 0.9)
    assert poly_factor(200, 200, 0.9, 1) == 0 and poly_factor(300, 200, 0.9, 1) == 0


def test_rates_in_training_follow_the_schedule_per_optimizer_step() -> None:
    seen: list[list[float]] = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
            seen.append([group["lr"] for group in optimizer.param_groups])

    segmenter = Segmenter(tiny(), optimizer=replace(SGD, poly_every=2))
    trainer = fit(segmenter, 5, accumulate=2, callbacks=[Watch()])
    factors = [(1 - k / 5) ** 0.9 for k in (0, 0, 2, 2, 4)]
    expected = [[0.01 * f, 0.1 * f, 0.2 * f] for f in factors]
    assert [r for rates in seen for r in rates] == pytest.approx(
        [r for rates in expected for r in rates]
    )
    groups = trainer.optimizers[0].param_groups
    assert [g["name"] for g in groups] == ["body", "aspp_weight", "aspp_bias"]
    assert [g["weight_decay"] for g in groups] == [5e-4, 5e-4, 0.0]
    assert {g["momentum"] for g in groups} == {0.9}
    assert trainer.callback_metrics["train/lr"].item() == pytest.approx(0.01 * factors[-1])


def test_the_loss_is_the_sum_over_three_scales_and_their_maximum() -> None:
    segmenter = Segmenter(tiny(), optimizer=SGD)
    batch = next(iter(DataLoader(Squares(2), batch_size=2)))
    network = segmenter.network
    by_scale = [
        network(F.interpolate(batch["image"], (side, side), mode="bilinear"))
        if side < 32
        else network(batch["image"])
        for side in (32, 24, 16)
    ]
    assert [logits.shape[-1] for logits in by_scale] == [8, 6, 4]
    largest = by_scale[0]
    for logits in by_scale[1:]:
        enlarged = F.interpolate(logits, (8, 8), mode="bilinear", align_corners=False)
        largest = torch.where(enlarged > largest, enlarged, largest)
    total = 0.0
    for logits in (*by_scale, largest):
        step = 32 / logits.shape[-1]
        index = [math.floor((i + 0.5) * step) for i in range(logits.shape[-1])]
        target = batch["target"][:, index][:, :, index]
        losses = [
            -logits[b, :, y, x].log_softmax(0)[target[b, y, x]]
            for b in range(2)
            for y in range(len(index))
            for x in range(len(index))
            if target[b, y, x] != 255
        ]
        total += torch.stack(losses).mean().item()
    segmenter.log = lambda *a, **k: None
    segmenter.trainer = type("T", (), {"optimizers": [torch.optim.SGD(network.parameters())]})()
    found = segmenter.training_step(batch, 0)
    assert found["loss"].item() == pytest.approx(total, rel=1e-5)
    assert list(found["terms"]) == ["x1", "x0.75", "x0.5", "max"]
    assert sum(map(float, found["terms"].values())) == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(segmenter.logits(batch["image"]), largest)

    single = Segmenter(network, optimizer=SGD, msc=False)
    torch.testing.assert_close(single.logits(batch["image"]), by_scale[0])
    assert list(single.outputs(batch["image"])) == ["x1"]
    assert list(segmenter.outputs(batch["image"])) == ["x1", "x0.75", "x0.5", "max"]


def test_enlarged_logits_are_compared_with_every_label() -> None:
    segmenter = Segmenter(tiny(), optimizer=SGD, msc=False, enlarge_logits=True)
    batch = next(iter(DataLoader(Squares(2), batch_size=2)))
    logits = segmenter.logits(batch["image"])
    assert logits.shape[-1] == 8
    full = F.interpolate(logits, (32, 32), mode="bilinear", align_corners=False)
    losses = [
        -full[b, :, y, x].log_softmax(0)[batch["target"][b, y, x]]
        for b in range(2)
        for y in range(32)
        for x in range(32)
        if batch["target"][b, y, x] != 255
    ]
    segmenter.log = lambda *a, **k: None  # type: ignore[method-assign]
    optimizers = [torch.optim.SGD(segmenter.parameters())]
    segmenter.trainer = type("T", (), {"optimizers": optimizers})()
    expected = torch.stack(losses).mean().item()
    assert segmenter.training_step(batch, 0)["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["ce", "balanced", "balanced_dsrg"])
def test_a_trivial_pattern_is_learnt_in_a_few_steps(loss: str) -> None:
    optimizer = OptimizerSettings(lr=0.02, weight_decay=0.0, poly_every=1)
    segmenter = Segmenter(tiny(), optimizer=optimizer, loss=loss, class_names=("red", "green"))
    trainer = fit(segmenter, 100, gradient_clip_val=5.0)
    assert trainer.callback_metrics["train/loss"].isfinite()
    segmenter.eval()
    hits = pixels = 0
    for index in range(1000, 1020):
        sample = Squares(1)[index]
        with torch.no_grad():
            logits = segmenter.logits(sample["image"][None])
        answer = F.interpolate(logits, (32, 32), mode="bilinear").argmax(1)[0]
        valid = sample["target"] != 255
        hits += int((answer == sample["target"])[valid].sum())
        pixels += int(valid.sum())
    assert hits / pixels > 0.85  # all background: 0.55


def test_a_crop_in_which_all_is_ignored_changes_nothing() -> None:
    segmenter = Segmenter(tiny(), optimizer=OptimizerSettings(lr=0.1, weight_decay=0.0))
    before = {n: p.clone() for n, p in segmenter.named_parameters()}
    sample = Squares(1)[0]
    bare = {"image": sample["image"], "target": torch.full_like(sample["target"], 255)}
    trainer = pl.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(segmenter, DataLoader([bare, bare], batch_size=1))
    assert trainer.callback_metrics["train/loss"] == 0
    for name, parameter in segmenter.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_training_leaves_batch_normalization_as_it_was() -> None:
    segmenter = Segmenter(tiny(), optimizer=SGD)
    norm = segmenter.network.backbone.stem[1]
    before = {n: v.clone() for n, v in norm.state_dict().items()}
    fit(segmenter, 3)
    assert not norm.training and segmenter.training
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_training_in_bfloat16_gives_finite_losses_and_float32_logits() -> None:
    segmenter = Segmenter(tiny(), optimizer=SGD)
    trainer = fit(segmenter, 3, precision="bf16-mixed")
    assert trainer.callback_metrics["train/loss"].isfinite()
    with torch.autocast("cpu", torch.bfloat16):
        assert segmenter.logits(torch.randn(1, 3, 32, 32)).dtype == torch.float32


def test_a_checkpoint_loads_as_plain_weights_and_says_what_it_is(tmp_path: Path) -> None:
    segmenter = Segmenter(tiny(), optimizer=SGD, class_names=("red", "green"))
    trainer = fit(segmenter, 2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["segmentation"]["class_names"] == ["red", "green"]
    assert state["segmentation"]["initial_weights"] == "those of the backbone"
    other = Segmenter(tiny(), optimizer=SGD)
    other.load_state_dict(state["state_dict"])
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(other.logits(image), segmenter.logits(image), rtol=0, atol=0)
    # It serves as initial weights as well, with its head where the classes are as many.
    network = build_network(
        "backbone", 3, backbone=Tiny(), rates=[1, 2], weights=tmp_path / "last.ckpt"
    )
    assert network.initial_weights == "last.ckpt (head included)"
    torch.testing.assert_close(network(image), segmenter.network(image), rtol=0, atol=0)


def test_scales_or_classes_that_do_not_fit_and_nothing_to_learn_are_refused() -> None:
    network = tiny()
    with pytest.raises(WsssError, match=r"msc_scales=\[0\.5\]"):
        Segmenter(network, optimizer=SGD, train_scales=(0.5,))
    with pytest.raises(WsssError, match="1 class names for a network of 2 classes"):
        Segmenter(network, optimizer=SGD, class_names=("red",))
    network.requires_grad_(False)
    with pytest.raises(WsssError, match="no parameter learns"):
        fit(Segmenter(network, optimizer=SGD), 1)


def test_steps_with_nesterov_and_momentum_follow_the_formula() -> None:
    """v = m v + g; p -= lr (g + m v) with Nesterov, lr v without; g with decay."""
    for nesterov in (False, True):
        options = OptimizerSettings(
            lr=0.1, momentum=0.5, weight_decay=0.01, nesterov=nesterov, poly_every=1
        )
        torch.manual_seed(0)
        segmenter = Segmenter(tiny(), optimizer=options, msc=False)
        gradients: list[Tensor] = []
        weight = next(p for p in segmenter.network.parameters() if p.requires_grad and p.dim() == 4)
        expected, velocity = weight.detach().clone(), torch.zeros_like(weight)

        class Watch(pl.Callback):
            def on_before_optimizer_step(
                self, trainer, module, optimizer, weight=weight, gradients=gradients
            ) -> None:
                gradients.append(weight.grad.clone())

        fit(segmenter, 3, callbacks=[Watch()])
        for step, gradient in enumerate(gradients):
            rate = 0.1 * (1 - step / 3) ** 0.9
            gradient = gradient + 0.01 * expected
            velocity = 0.5 * velocity + gradient
            expected = expected - rate * (gradient + 0.5 * velocity if nesterov else velocity)
        torch.testing.assert_close(weight.detach(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"loss": "dice"}, r"^segmentation\.loss=dice: must be 'ce', 'balanced' or"),
        ({"optimizer": {"head_lr": 2}}, r"^segmentation\.optimizer\.head_lr: unknown key"),
        ({"optimizer": {"lr": None}}, r"^segmentation\.optimizer\.lr=null: must be a valid number"),
        ({"optimizer": {"lr": 0}}, r"^segmentation\.optimizer\.lr=0: must be greater than 0"),
        ({"optimizer": {"poly_every": 0}}, r"^segmentation\.optimizer\.poly_every=0: "),
        (
            {"optimizer": {"momentum": 1.0}},
            r"^segmentation\.optimizer\.momentum=1.0: .*less than 1",
        ),
        ({"msc_scales": [0.5]}, r"^segmentation\.msc_scales=\[0\.5\]: give different .* 1 among"),
        ({"network": {"name": "unet"}}, r"^segmentation\.network\.name=unet: "),
        (
            {"features": "random"},
            r"^segmentation\.features=random: must be 'pretrained' or 'method'",
        ),
        ({"features": "method"}, r"^segmentation\.features=method needs .*network.name=backbone"),
        ({"train": {"max_epochs": 3}}, r"max_steps=20000 and max_epochs=3; give one of the two"),
        ({"train": {"max_steps": None}}, r"max_steps=None and max_epochs=None; give one"),
        (
            {"train": {"max_steps": None, "max_epochs": 0}},
            r"^segmentation\.train\.max_epochs=0: must be greater than or equal to 1",
        ),
        ({"train": {"crop_size": 0}}, r"^segmentation\.train\.crop_size=0: "),
        ({"train": {"scales": []}}, r"^segmentation\.train: give scales or scale_range"),
        ({"train": {"scales": None}}, r"^segmentation\.train: give scales or scale_range"),
        ({"train": {"scale_range": [0.5, 1]}}, r"^segmentation\.train: give scales or scale_range"),
        ({"train": {"scales": [1.0, -1.0]}}, r"^segmentation\.train\.scales\.1=-1\.0: .*than 0"),
        (
            {"train": {"scales": None, "scale_range": [1.0, 0.5]}},
            r"^segmentation\.train\.scale_range=\[1\.0, 0\.5\]: must be \[smallest",
        ),
        ({"train": {"pad_label": 7}}, r"^segmentation\.train\.pad_label=7: must be 0 or 255"),
        ({"eval": {"fuse": "sum"}}, r"^segmentation\.eval\.fuse=sum: must be 'mean' or 'max'"),
        ({"eval": {"scales": []}}, r"^segmentation\.eval\.scales=\[\]: give at least one"),
        ({"eval": {"archive": {"write": "maybe"}}}, r"^segmentation\.eval\.archive\.write=maybe: "),
        (
            {"eval": {"archive": {"competition": "comp7"}}},
            r"^segmentation\.eval\.archive\.competition=comp7: must be 'comp5' or 'comp6'",
        ),
        ({"export": {"format": "exe"}}, r"^segmentation\.export\.format=exe: must be 'torch' or"),
    ],
)
def test_wrong_settings_are_one_line_with_their_key(given: dict[str, object], told: str) -> None:
    with pytest.raises(WsssError, match=told) as caught:
        resolve(SegmentationSettings, given, "segmentation")
    assert "\n" not in str(caught.value)
