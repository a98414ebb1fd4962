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
from wsss.data.datamodule import (
    EpochData,
    EpochSampler,
    EpochSet,
    WholeSet,
    labels_of,
    loader_workers,
)
from wsss.data.masks import write_mask
from wsss.data.transforms import Crop, LongSide, Pyramid
from wsss.data.voc import VOC
from wsss.errors import WsssError
from wsss.run.callbacks import SeedBatches

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def epoch_set(image_set: ImageSet, split: str = "all", seed: int = 0, side: int = 32) -> EpochSet:
    names = image_set.names(split)
    crop = Crop(side, MEAN, STD, LongSide(side * 3 // 4, side * 3 // 2))
    return EpochSet(image_set, names, crop, seed, labels_of(image_set, split, names))


def whole_set(
    image_set: ImageSet, split: str = "all", long_side: int | None = None, **options: object
) -> WholeSet:
    names = image_set.names(split)
    inputs = Pyramid(MEAN, STD, (1.0, 0.5), long_side=long_side)
    labels = labels_of(image_set, split, names)
    return WholeSet(image_set, names, inputs, labels, **options)  # type: ignore[arg-type]


def module(root: Path, batch_size: int = 4, num_workers: int = 0, seed: int = 0) -> EpochData:
    data = VOC(root)
    return EpochData(epoch_set(data, seed=seed), whole_set(data), batch_size, 1, num_workers)


def as_rank(data: EpochData, rank: int, world: int) -> EpochData:
    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank, world_size=world, fit_loop=SimpleNamespace(epoch_progress=progress)
    )
    return data


def epoch_batches(data: EpochData, epochs: int = 1) -> list[dict]:
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
    """Writes down what it is given, and what it draws itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[str], float]] = []

    def training_step(self, batch: dict, index: int) -> torch.Tensor:
        value = float(batch["image"].double().sum()) + float(torch.rand(1))  # as with dropout
        self.seen.append((self.current_epoch, batch["name"], value))
        return self.weight.sum()

    def predict_step(self, batch: dict, index: int) -> None:
        assert [type(batch[k]) for k in ("images", "name")] == [list, str]
        self.seen.append((0, [batch["name"]], float(batch["size"][0])))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Scheduled(Recorder):
    """Asks for the number of steps, as a schedule does; Lightning makes the loaders for that."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches == 6
        return super().configure_optimizers()


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


def test_prediction_sample_keeps_the_contract(voc_root: Path) -> None:
    truth = VOC(voc_root)
    whole = whole_set(truth, long_side=40)
    samples = list(EpochData(whole=whole, num_workers=0).predict_dataloader())
    assert [s["name"] for s in samples] == truth.names("all")
    for sample in samples:
        assert sorted(sample) == ["images", "label", "name", "size"]
        assert [max(i.shape[1:]) for i in sample["images"]] == [40, 20]
        assert sample["images"][0].shape[0] == 3 and sample["images"][0].dtype == torch.float32
        np.testing.assert_array_equal(sample["label"], truth.labels([sample["name"]])[0])
        with Image.open(truth.image_path(sample["name"])) as image:
            assert sample["size"].tolist() == [image.height, image.width]


def test_a_sample_holds_the_picture_itself_where_it_is_wanted(voc_root: Path) -> None:
    data = VOC(voc_root)
    names = data.names("all")
    inputs = Pyramid(MEAN, STD)
    bare = WholeSet(data, names, inputs)[2]
    assert sorted(bare) == ["images", "name", "size"]
    sample = WholeSet(data, names, inputs, picture=True)[2]
    with Image.open(data.image_path(names[2])) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(sample["picture"], expected)
    shown = sample["images"][0] * torch.tensor(STD)[:, None, None]
    shown = (shown + torch.tensor(MEAN)[:, None, None]) * 255
    np.testing.assert_allclose(shown.permute(1, 2, 0), expected, atol=1e-3)


def test_prediction_can_be_restricted_to_what_is_missing(voc_root: Path) -> None:
    whole = whole_set(VOC(voc_root), picture=True)
    names = VOC(voc_root).names("all")
    some = whole.only([names[5], names[1], "not in the split"])
    assert [s["name"] for s in some.loader()] == [names[1], names[5]]
    for sample in some.loader():  # everything else goes with the name
        one = whole[names.index(sample["name"])]
        assert sample.keys() == one.keys()
        assert torch.equal(sample["label"], one["label"])
        assert torch.equal(sample["picture"], one["picture"])
        assert [i.shape for i in sample["images"]] == [i.shape for i in one["images"]]
    assert list(whole.only([]).loader()) == []
    assert [s["name"] for s in whole.select([3, 0]).loader()] == [names[3], names[0]]


def test_unlabeled_split_is_predicted_without_annotations(voc_root: Path) -> None:
    shutil.rmtree(voc_root / "Annotations")
    shutil.copy(
        voc_root / "ImageSets/Segmentation/val.txt", voc_root / "ImageSets/Segmentation/test.txt"
    )
    samples = list(whole_set(VOC(voc_root), "test").loader())
    assert len(samples) == 2 and all(s["label"].sum() == 0 for s in samples)
    with pytest.raises(WsssError, match="no annotation"):
        whole_set(VOC(voc_root))


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

    data = EpochData(epoch_set(TwoClasses()), whole_set(TwoClasses()), 4, num_workers=0)
    for batch in epoch_batches(data):
        assert batch["label"].tolist() == [[int(n) % 2, 1 - int(n) % 2] for n in batch["name"]]
    assert next(iter(data.predict_dataloader()))["label"].shape == (2,)


# ---- masks


def test_training_and_prediction_never_read_a_mask(
    voc_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def samples() -> tuple[list[dict], list[dict]]:
        data = module(voc_root)
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


@pytest.mark.parametrize("module_type", [Recorder, Scheduled])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_training_sees_what_an_uninterrupted_one_sees(
    voc_root: Path, tmp_path: Path, workers: int, module_type: type[Recorder]
) -> None:
    whole = Recorder()
    trainer(tmp_path / "whole", 3, callbacks=[SeedBatches(0)]).fit(
        whole, datamodule=module(voc_root, num_workers=workers)
    )
    assert [epoch for epoch, _, _ in whole.seen] == [0, 0, 1, 1, 2, 2]

    checkpoint = pl.callbacks.ModelCheckpoint(
        tmp_path / "kept", filename="epoch0", every_n_epochs=1, save_on_train_epoch_end=True
    )
    part = Recorder()
    trainer(tmp_path, 1, callbacks=[SeedBatches(0), checkpoint]).fit(
        part, datamodule=module(voc_root)
    )
    assert part.seen == whole.seen[:2]
    rest = module_type()
    trainer(tmp_path / "rest", 3, callbacks=[SeedBatches(0)]).fit(
        rest,
        datamodule=module(voc_root, num_workers=workers),
        ckpt_path=tmp_path / "kept" / "epoch0.ckpt",
        weights_only=True,
    )
    assert rest.seen == whole.seen[2:]


def test_predict_through_lightning_gives_each_image_once(voc_root: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    # Prediction needs nothing to train on.
    data = EpochData(whole=whole_set(VOC(voc_root)), num_workers=2)
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
    first = Counter(next(iter(EpochSampler(5, 1, seed=0, epoch=e)))[1] for e in range(1000))
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


# ---- label maps of an earlier stage, in the place of image labels or beside them


class Blind(ImageSet):
    """Six images of 40 x 56 and a label map for each, whose truth must not be looked at."""

    classes = ("cat", "dog")

    def __init__(self, root: Path) -> None:
        self.root = root
        rng = np.random.default_rng(0)
        for n in range(6):
            ids = rng.integers(0, 3, (5, 7)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            image = np.repeat(ids[:, :, None] * 100, 3, axis=2)
            (root / "images").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / "images" / f"i{n}.png")
            write_mask(self.masks / f"i{n}.png", ids)

    @property
    def masks(self) -> Path:
        return self.root / "masks"

    def names(self, split: str) -> list[str]:
        return [f"i{n}" for n in range(6)]

    def image_path(self, name: str) -> Path:
        return self.root / "images" / f"{name}.png"

    def labels(self, names):  # type: ignore[no-untyped-def]
        raise AssertionError("labels were read")

    def mask(self, name: str) -> None:
        raise AssertionError("the truth was read")


@pytest.fixture
def blind(tmp_path: Path) -> Blind:
    return Blind(tmp_path)


def masked_set(blind: Blind, seed: int = 0, first: int = 0) -> EpochSet:
    crop = Crop(24, (0, 0, 0), (1, 1, 1), LongSide(40, 80))
    return EpochSet(blind, blind.names("all")[first:], crop, seed, targets=blind.masks)


def test_label_maps_come_with_their_images_and_no_truth_is_read(blind: Blind) -> None:
    whole = WholeSet(blind, blind.names("all"), Pyramid(MEAN, STD), targets=blind.masks)
    data = EpochData(masked_set(blind), whole, batch_size=2, num_workers=0)
    batches = list(data.train_dataloader())
    assert [len(batch["image"]) for batch in batches] == [2, 2, 2]
    assert sorted(n for batch in batches for n in batch["name"]) == blind.names("all")
    for batch in batches:
        assert sorted(batch) == ["image", "name", "size", "target", "valid"]
        assert batch["target"].shape == (2, 24, 24) and batch["target"].dtype == torch.int64
        known = batch["target"] != 255
        assert torch.equal(known, batch["valid"] == 1) and len(batch["target"].unique()) > 2
        levels = (batch["image"][:, 0] * 255 - batch["target"] * 100)[known]
        assert (levels.abs() < 20).float().mean() > 0.6  # resizing mixes at borders of blocks
    samples = list(data.predict_dataloader())
    assert [sample["name"] for sample in samples] == blind.names("all")
    for sample in samples:
        assert sample["target"].shape == (40, 56) and "label" not in sample
        picture = np.asarray(Image.open(blind.image_path(sample["name"])))
        np.testing.assert_array_equal(sample["target"] * 100, picture[..., 0])


def test_a_sample_depends_on_seed_epoch_and_index_alone(blind: Blind) -> None:
    one, two, other = masked_set(blind, 3), masked_set(blind, 3), masked_set(blind, 4)
    for epoch in range(3):
        for key in ("image", "target", "valid"):
            assert torch.equal(one[epoch, 4][key], two[epoch, 4][key])
    assert len({one[epoch, 4]["image"].numpy().tobytes() for epoch in range(4)}) == 4
    assert not torch.equal(one[0, 4]["image"], other[0, 4]["image"])


def test_a_label_map_of_another_size_is_named(blind: Blind) -> None:
    write_mask(blind.masks / "i2.png", np.zeros((5, 5), dtype=np.uint8))
    with pytest.raises(WsssError, match=r"i2\.png is 5 x 5, its image 40 x 56; run the stage"):
        masked_set(blind)[0, 2]


# ---- several batches make one step


def test_an_epoch_ends_with_a_whole_step_and_processes_share_it(blind: Blind) -> None:
    train = masked_set(blind)

    def names(rank: int, world: int) -> list[str]:
        data = as_rank(EpochData(train, batch_size=2, accumulate=2, num_workers=0), rank, world)
        assert data.steps_per_epoch == 1
        return [n for batch in data.train_dataloader() for n in batch["name"]]

    alone = names(0, 1)
    assert len(alone) == 4  # of six images: one step of 2 x 2
    assert sorted(names(0, 2) + names(1, 2)) == sorted(alone)
    with pytest.raises(WsssError, match=r"key=2 is the global batch.*3 processes"):
        as_rank(EpochData(train, None, 2, 2, 0, "key"), 0, 3).train_dataloader()
    with pytest.raises(WsssError, match="key=4 x 2 accumulated is more than the 6 images"):
        EpochData(train, batch_size=4, accumulate=2, key="key")


# ---- bad input


def test_batch_larger_than_the_data_set(voc_root: Path) -> None:
    with pytest.raises(WsssError, match="data.batch_size=9 is more than the 8 images to train on"):
        module(voc_root, batch_size=9)
    assert len(epoch_batches(module(voc_root, batch_size=8))) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_is_named_from_within_a_worker(voc_root: Path, workers: int) -> None:
    (voc_root / "JPEGImages/2007_000003.jpg").write_bytes(b"broken")
    with pytest.raises(WsssError, match=r"can't read image .*2007_000003\.jpg"):
        epoch_batches(module(voc_root, num_workers=workers))


def test_an_unreadable_photograph_is_passed_over_only_where_that_is_wanted(voc_root: Path) -> None:
    data = VOC(voc_root)
    names = data.names("all")
    data.image_path(names[2]).write_bytes(b"broken")
    inputs = Pyramid(MEAN, STD)
    with pytest.raises(WsssError, match=names[2]):
        WholeSet(data, names, inputs)[2]
    samples = list(WholeSet(data, names, inputs, lenient=True).only(names[1:4]).loader())
    assert [sample["images"] is None for sample in samples] == [False, True, False]
    assert samples[1]["name"] == names[2]


def test_chosen_workers_are_within_reason() -> None:
    assert 0 <= loader_workers() <= 4


@pytest.mark.realdata
def test_real_photographs(voc2007_mini: Path) -> None:
    photographs = VOC(voc2007_mini)
    train = epoch_set(photographs, "trainaug", side=64)
    whole = whole_set(photographs, "train")
    data = EpochData(train, whole, batch_size=16, num_workers=0)
    loader = data.train_dataloader()
    assert len(loader) == 1087 // 16
    batch = next(iter(loader))
    assert batch["image"].shape == (16, 3, 64, 64) and (batch["label"].sum(dim=1) >= 1).all()
    # Photographs that are normalized as they should be have about mean 0 and deviation 1.
    inside = batch["image"].permute(1, 0, 2, 3)[:, batch["valid"] == 1]
    assert inside.mean().abs() < 0.5 and 0.7 < inside.std() < 1.4
    assert len(data.predict_dataloader()) == 110


@pytest.mark.parametrize("world", [1, 2, 4])
def test_an_epoch_that_was_left_goes_on_with_its_next_batch(world: int) -> None:
    for rank in range(world):
        given = {"length": 19, "global_batch": 4, "seed": 5, "rank": rank, "world": world}
        whole, rest = EpochSampler(**given, epoch=2), EpochSampler(**given, epoch=2, done=8)
        assert list(rest) == list(whole)[8 // world :]
        assert len(rest) == len(whole)  # Lightning counts the batches of before
        for sampler in (whole, rest):
            sampler.set_epoch(3)
        assert list(rest) == list(whole)
