"""The loaders: what is in a batch, its order, its independence of masks, workers and ranks."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from wsss.data.base import ImageSet
from wsss.data.datamodule import EpochSampler, WSSSDataModule, loader_workers
from wsss.data.voc import VOC
from wsss.errors import WsssError

SETTINGS = dict(
    train_split="all",
    infer_split="all",
    crop_size=32,
    long_side=(24, 48),
    batch_size=4,
    num_workers=0,
    scales=(1.0, 0.5),
)


def module(root: Path, **settings: object) -> WSSSDataModule:
    return WSSSDataModule(VOC(root), **(SETTINGS | settings))  # type: ignore[arg-type]


def as_rank(data: WSSSDataModule, rank: int, world: int) -> WSSSDataModule:
    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank, world_size=world, fit_loop=SimpleNamespace(epoch_progress=progress)
    )
    return data


def epoch_batches(data: WSSSDataModule, epochs: int = 1) -> list[dict]:
    loader = data.train_dataloader()
    batches = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def assert_same(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a["name"] == b["name"]
        for key in ("image", "label", "size", "valid"):
            assert torch.equal(a[key], b[key]), key


class Recorder(pl.LightningModule):
    """Writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[str], float]] = []

    def training_step(self, batch: dict, index: int) -> torch.Tensor:
        value = float(batch["image"].double().sum())
        self.seen.append((self.current_epoch, batch["name"], value))
        return self.weight.sum()

    def predict_step(self, batch: dict, index: int) -> None:
        assert [type(batch[k]) for k in ("images", "name")] == [list, str]
        self.seen.append((0, [batch["name"]], float(batch["size"][0])))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(root: Path, epochs: int = 1, **options: object) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=root,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,  # type: ignore[arg-type]
    )


# ---- what is in a batch


def test_training_batch_keeps_the_contract(voc_root: Path) -> None:
    data = module(voc_root)
    truth = VOC(voc_root)
    batches = epoch_batches(data)
    assert len(batches) == 2
    for batch in batches:
        assert sorted(batch) == ["image", "label", "name", "size", "valid"]
        assert batch["image"].shape == (4, 3, 32, 32) and batch["image"].dtype == torch.float32
        assert batch["valid"].shape == (4, 32, 32) and batch["valid"].dtype == torch.float32
        assert batch["label"].shape == (4, 20) and batch["label"].dtype == torch.float32
        assert batch["size"].shape == (4, 2) and batch["size"].dtype == torch.int64
        np.testing.assert_array_equal(batch["label"].numpy(), truth.labels(batch["name"]))
        for name, size in zip(batch["name"], batch["size"].tolist(), strict=True):
            with Image.open(truth.image_path(name)) as image:
                assert size == [image.height, image.width]
        assert (batch["image"] * (1 - batch["valid"])[:, None]).abs().max() == 0
    assert sorted(n for b in batches for n in b["name"]) == sorted(truth.names("all"))
    assert (data.num_classes, data.class_names) == (20, truth.classes)


def test_prediction_sample_keeps_the_contract(voc_root: Path) -> None:
    data = module(voc_root, infer_long_side=40)
    samples = list(data.predict_dataloader())
    truth = VOC(voc_root)
    assert [s["name"] for s in samples] == truth.names("all")
    for sample in samples:
        assert sorted(sample) == ["images", "label", "name", "size"]
        assert [max(i.shape[1:]) for i in sample["images"]] == [40, 20]
        assert sample["images"][0].shape[0] == 3 and sample["images"][0].dtype == torch.float32
        np.testing.assert_array_equal(sample["label"], truth.labels([sample["name"]])[0])
        with Image.open(truth.image_path(sample["name"])) as image:
            assert sample["size"].tolist() == [image.height, image.width]


def test_prediction_can_be_restricted_to_what_is_missing(voc_root: Path) -> None:
    data = module(voc_root)
    names = VOC(voc_root).names("all")
    some = [names[5], names[1], "not in the split"]
    assert [s["name"] for s in data.only(some).predict_dataloader()] == [names[1], names[5]]
    assert list(data.only([]).predict_dataloader()) == []
    assert len(list(data.only(None).predict_dataloader())) == 8


def test_unlabelled_split_is_predicted_without_annotations(voc_root: Path) -> None:
    shutil.rmtree(voc_root / "Annotations")
    shutil.copy(
        voc_root / "ImageSets/Segmentation/val.txt", voc_root / "ImageSets/Segmentation/test.txt"
    )
    samples = list(module(voc_root, infer_split="test").predict_dataloader())
    assert len(samples) == 2 and all(s["label"].sum() == 0 for s in samples)
    with pytest.raises(WsssError, match="no annotation"):
        module(voc_root).predict_dataloader()


def test_any_number_of_classes(voc_root: Path) -> None:
    """The whole interface that a data set of one's own needs, with two classes."""

    class TwoClasses(ImageSet):
        classes = ("odd", "even")

        def names(self, split: str) -> list[str]:
            return VOC(voc_root).names(split)

        def image_path(self, name: str) -> Path:
            return VOC(voc_root).image_path(name)

        def labels(self, names):  # type: ignore[no-untyped-def]
            odd = np.array([int(name) % 2 for name in names], dtype=np.uint8)
            return np.stack([odd, 1 - odd], axis=1)

        def mask(self, name: str) -> None:
            raise AssertionError("a loader has read a mask")

    data = WSSSDataModule(TwoClasses(), **SETTINGS)  # type: ignore[arg-type]
    for batch in epoch_batches(data):
        assert batch["label"].tolist() == [[int(n) % 2, 1 - int(n) % 2] for n in batch["name"]]
    assert next(iter(data.predict_dataloader()))["label"].shape == (2,)


# ---- masks


def test_training_and_prediction_never_read_a_mask(
    voc_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def samples() -> tuple[list[dict], list[dict]]:
        data = module(voc_root)
        data.prepare_data()
        return epoch_batches(data, epochs=2), list(data.predict_dataloader())

    train, predict = samples()
    for path in (voc_root / "SegmentationClass").iterdir():
        path.write_bytes(b"unreadable")
    broken_train, broken_predict = samples()
    assert_same(train, broken_train)
    shutil.rmtree(voc_root / "SegmentationClass")
    monkeypatch.setattr(VOC, "mask", None)
    monkeypatch.setattr(VOC, "mask_path", None)
    bare_train, bare_predict = samples()
    assert_same(train, bare_train)
    for before, *after in zip(predict, broken_predict, bare_predict, strict=True):
        for sample in after:
            assert all(
                torch.equal(a, b) for a, b in zip(before["images"], sample["images"], strict=True)
            )


# ---- order and randomness


def test_epochs_differ_and_repeat_exactly(voc_root: Path) -> None:
    first = epoch_batches(module(voc_root), epochs=2)
    assert_same(first, epoch_batches(module(voc_root), epochs=2))
    names = [[n for b in epoch for n in b["name"]] for epoch in (first[:2], first[2:])]
    assert names[0] != names[1] and sorted(names[0]) == sorted(names[1])
    images = [{n: i for b in e for n, i in zip(b["name"], b["image"], strict=True)}
              for e in (first[:2], first[2:])]  # fmt: skip
    assert not any(torch.equal(images[0][n], images[1][n]) for n in names[0])
    other = epoch_batches(module(voc_root, seed=1))
    assert [b["name"] for b in other] != [b["name"] for b in first[:2]]


def test_workers_give_the_same_samples(voc_root: Path) -> None:
    alone = epoch_batches(module(voc_root), epochs=3)
    assert_same(alone, epoch_batches(module(voc_root, num_workers=2), epochs=3))


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_training_sees_what_an_uninterrupted_one_sees(
    voc_root: Path, tmp_path: Path, workers: int
) -> None:
    whole = Recorder()
    trainer(tmp_path / "whole", 3).fit(whole, datamodule=module(voc_root, num_workers=workers))
    assert [epoch for epoch, _, _ in whole.seen] == [0, 0, 1, 1, 2, 2]

    checkpoint = pl.callbacks.ModelCheckpoint(
        tmp_path / "kept", filename="epoch0", every_n_epochs=1, save_on_train_epoch_end=True
    )
    part = Recorder()
    trainer(tmp_path, 1, callbacks=[checkpoint]).fit(part, datamodule=module(voc_root))
    assert part.seen == whole.seen[:2]
    rest = Recorder()
    trainer(tmp_path / "rest", 3).fit(
        rest,
        datamodule=module(voc_root, num_workers=workers),
        ckpt_path=tmp_path / "kept" / "epoch0.ckpt",
        weights_only=True,
    )
    assert rest.seen == whole.seen[2:]


def test_predict_through_lightning_gives_each_image_once(voc_root: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    data = module(voc_root, num_workers=2, train_split="missing")  # prediction needs no train list
    trainer(tmp_path).predict(recorder, datamodule=data)
    assert [names[0] for _, names, _ in recorder.seen] == VOC(voc_root).names("all")


# ---- several processes


@pytest.mark.parametrize(
    ("length", "batch", "world"), [(23, 6, 3), (8, 4, 2), (16, 16, 4), (5, 1, 1)]
)
def test_ranks_share_each_global_batch(length: int, batch: int, world: int) -> None:
    alone = list(EpochSampler(length, batch, seed=3, epoch=2))
    assert len(alone) == length // batch * batch
    assert len(set(alone)) == len(alone)  # nothing twice
    assert {epoch for epoch, _ in alone} == {2}
    shares = [list(EpochSampler(length, batch, 3, 2, rank, world)) for rank in range(world)]
    local = batch // world
    for share in shares:
        assert len(share) == len(EpochSampler(length, batch, 3, 2, 0, world)) == len(alone) // world
    for step in range(length // batch):
        together = [key for share in shares for key in share[step * local : (step + 1) * local]]
        assert Counter(together) == Counter(alone[step * batch : (step + 1) * batch])


def test_order_is_uniform() -> None:
    first = Counter(list(EpochSampler(5, 1, seed=0, epoch=e))[0][1] for e in range(1000))
    assert set(first) == set(range(5)) and min(first.values()) > 140 and max(first.values()) < 260


def test_loaders_of_two_ranks(voc_root: Path) -> None:
    alone = epoch_batches(module(voc_root))
    ranks = [epoch_batches(as_rank(module(voc_root), rank, 2)) for rank in (0, 1)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        samples = {n: i for p in parts for n, i in zip(p["name"], p["image"], strict=True)}
        assert sorted(samples) == sorted(whole["name"]) and len(samples) == 4
        for name, image in zip(whole["name"], whole["image"], strict=True):
            assert torch.equal(samples[name], image)


@pytest.mark.parametrize("world", [1, 2, 3, 8, 11])
def test_prediction_is_partitioned_without_repeats(voc_root: Path, world: int) -> None:
    names = [
        s["name"]
        for rank in range(world)
        for s in as_rank(module(voc_root), rank, world).predict_dataloader()
    ]
    assert sorted(names) == sorted(VOC(voc_root).names("all"))


def test_batch_must_be_divisible_by_the_processes(voc_root: Path) -> None:
    with pytest.raises(WsssError, match="batch_size=4 .* divisible by the 3 processes"):
        as_rank(module(voc_root), 0, 3).train_dataloader()


# ---- bad input


def test_batch_larger_than_the_data_set(voc_root: Path) -> None:
    with pytest.raises(WsssError, match="batch_size=9 is larger than the 8 images of split 'all'"):
        module(voc_root, batch_size=9).train_dataloader()
    assert len(epoch_batches(module(voc_root, batch_size=8))) == 1


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"crop_size": 0}, "data.crop_size"),
        ({"batch_size": 0}, "data.batch_size"),
        ({"num_workers": -2}, "data.num_workers"),
        ({"long_side": (48, 24)}, "data.long_side"),
        ({"long_side": (48,)}, "data.long_side"),
        ({"scales": ()}, "data.scales"),
        ({"scales": (1.0, 0.0)}, "data.scales"),
        ({"infer_long_side": 0}, "data.infer_long_side"),
        ({"std": (1.0, 0.0, 1.0)}, "data.std"),
        ({"mean": (1.0, 0.0)}, "data.mean"),
        ({"seed": -1}, "seed"),
    ],
)
def test_senseless_settings_name_their_key(voc_root: Path, settings: dict, key: str) -> None:
    with pytest.raises(WsssError, match=key):
        module(voc_root, **settings)


def test_missing_files_are_found_before_training(voc_root: Path, tmp_path: Path) -> None:
    next((voc_root / "JPEGImages").iterdir()).unlink()
    with pytest.raises(WsssError, match="1 of 8 images are missing"):
        trainer(tmp_path).fit(Recorder(), datamodule=module(voc_root))
    with pytest.raises(WsssError, match="data.root="):
        trainer(tmp_path).fit(Recorder(), datamodule=module(tmp_path / "nowhere"))


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_is_named_from_within_a_worker(voc_root: Path, workers: int) -> None:
    (voc_root / "JPEGImages/2007_000003.jpg").write_bytes(b"broken")
    with pytest.raises(WsssError, match=r"can't read image .*2007_000003\.jpg"):
        epoch_batches(module(voc_root, num_workers=workers))


def test_chosen_workers_are_within_reason() -> None:
    assert 0 <= loader_workers() <= 4


@pytest.mark.realdata
def test_real_photographs(voc2007_mini: Path) -> None:
    data = WSSSDataModule(
        VOC(voc2007_mini), crop_size=64, long_side=(56, 104), infer_split="train", num_workers=0
    )
    loader = data.train_dataloader()
    assert len(loader) == 1087 // 16
    batch = next(iter(loader))
    assert batch["image"].shape == (16, 3, 64, 64) and (batch["label"].sum(dim=1) >= 1).all()
    # Photographs that are normalized as they should be have about mean 0 and deviation 1.
    inside = batch["image"].permute(1, 0, 2, 3)[:, batch["valid"] == 1]
    assert inside.mean().abs() < 0.5 and 0.7 < inside.std() < 1.4
    assert len(data.predict_dataloader()) == 110
