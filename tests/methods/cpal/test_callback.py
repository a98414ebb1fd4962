"""The callback in one process, in two, and when a training is interrupted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from wsss.data.datamodule import EpochSampler
from wsss.maps.functional import classification_loss, normalize_cam
from wsss.methods.cpal import callback as callback_module
from wsss.methods.cpal.bank import PrototypeBank
from wsss.methods.cpal.branch import CPAL
from wsss.methods.cpal.callback import PrototypeCallback
from wsss.methods.cpal.settings import BankSettings, CPALSettings

SCRIPT = Path(__file__).with_name("two_processes.py")
N = 3


def run_processes(world: int, folder: Path) -> list[dict[str, torch.Tensor]]:
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(world), str(folder)],
            cwd=SCRIPT.parents[3],
            env={"PYTHONPATH": str(SCRIPT.parents[3]), "PATH": "", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return [torch.load(folder / f"rank{rank}_of{world}.pt") for rank in range(world)]


def test_two_processes_hold_the_bank_and_clusters_of_one(tmp_path):
    (one,) = run_processes(1, tmp_path)
    first, second = run_processes(2, tmp_path)
    assert one["bank.count"].min() > 0 and one["bank.cluster_count"].min() > 0
    for name, value in one.items():
        if name.startswith("bank.") or name.startswith("shift"):
            torch.testing.assert_close(first[name], value, msg=name)
            assert torch.equal(first[name], second[name]), name
    # The shift ξ spans the global mini-batch, so losses and gradients are those of one process.
    assert one["losses"][:3].max() == 0 and one["losses"][3:].min() > 0
    for name in ("losses", "gradients"):
        torch.testing.assert_close((first[name] + second[name]) / 2, one[name])


class ToyImages(Dataset):
    """Images with a bright square whose color is the class."""

    def __getitem__(self, key):
        epoch, index = key
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        image = 0.1 * torch.randn(3, 32, 32, generator=generator)
        label = torch.zeros(N)
        for n in {index % N, index // 2 % N}:
            label[n] = 1
            image[n, 4 * n : 4 * n + 12, 8:24] += 1.5
        return {"image": image, "label": label, "valid": torch.ones(32, 32)}


class ToyData(pl.LightningDataModule):
    def train_dataloader(self):
        sampler = EpochSampler(24, 6, seed=5, epoch=self.trainer.current_epoch)
        return DataLoader(ToyImages(), batch_size=6, sampler=sampler)


class ToyHost(pl.LightningModule):
    """A host of the branch that is none of the project's methods."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.ReLU())
        self.classify = nn.Conv2d(8, N, 1, bias=False)
        bank = BankSettings(size=9, clusters=3)
        self.branch = CPAL(CPALSettings(projection_dim=6, neighbors=2, bank=bank), (8,), N)
        self.losses = []

    def configure_callbacks(self):
        return [PrototypeCallback(self.branch, seed=2, warmup_epochs=1)]

    def training_step(self, batch, batch_idx):
        feature = self.body(batch["image"])
        activation = self.classify(feature)
        answer = self.branch([feature], normalize_cam(activation), batch["label"], batch["valid"])
        self.losses.append(float(answer.loss.detach()))
        return classification_loss(activation, batch["label"]) + answer.loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def train(folder: Path, epochs: int, resume: Path | None = None, **options) -> ToyHost:
    torch.manual_seed(0)
    host = ToyHost()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=options.pop("logger", False),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **{"enable_checkpointing": False, **options},
    )
    trainer.fit(host, datamodule=ToyData(), ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(folder / f"after{epochs}.ckpt")
    return host


def test_resumed_training_equals_an_uninterrupted_one(tmp_path):
    whole = train(tmp_path, epochs=4)
    train(tmp_path, epochs=2)
    resumed = train(tmp_path, epochs=4, resume=tmp_path / "after2.ckpt")
    assert whole.losses[:4] == [0.0] * 4 and min(whole.losses[4:]) > 0
    assert resumed.losses == whole.losses[8:]
    expected = whole.state_dict()
    assert expected["branch.bank.cluster_count"].min() > 0
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, expected[name]), name
    for n in range(N):
        assert torch.equal(resumed.branch.bank.ordered(n), whole.branch.bank.ordered(n))


def test_training_resumed_within_an_epoch_keeps_the_epochs_clusters(tmp_path):
    checkpoint = pl.callbacks.ModelCheckpoint(
        dirpath=tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1
    )
    whole = train(tmp_path, epochs=3, callbacks=[checkpoint], enable_checkpointing=True)
    state = torch.load(tmp_path / "step=6.ckpt", weights_only=True)
    host = ToyHost()
    host.load_state_dict(state["state_dict"])
    before = host.branch.bank.context.clone()
    callback = PrototypeCallback(host.branch, seed=2, warmup_epochs=1)
    callback.on_train_epoch_start(SimpleNamespace(current_epoch=1), host)
    assert torch.equal(host.branch.bank.context, before)
    assert int(host.branch.bank.clustered_epoch) == 1
    assert not torch.equal(whole.branch.bank.context, before)


def test_fill_and_cluster_sizes_are_logged(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    host = train(tmp_path, epochs=2, logger=logger)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    columns = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    assert float(columns["bank/fill_mean"]) == host.branch.bank.count.float().mean()
    sizes = host.branch.bank.cluster_sizes
    assert float(columns["bank/cluster_size_max"]) == float(sizes.max())


def branch_with_bank() -> SimpleNamespace:
    bank = PrototypeBank(2, dim=3, options=BankSettings(size=10, clusters=2))
    bank.push(torch.randn(12, 3), torch.arange(12) % 2)
    return SimpleNamespace(bank=bank, name="")


@pytest.mark.parametrize(
    ("options", "clustered"),
    [
        ({}, [-1, 1, 2, 3]),
        ({"warmup_epochs": 0}, [0, 1, 2, 3]),
        ({"warmup_epochs": 2}, [-1, -1, 2, 3]),
        ({"recluster": "once"}, [-1, 1, 1, 1]),
        # Nothing is clustered, but the warm-up ends.
        ({"recluster": "never"}, [-1, 1, 1, 1]),
    ],
)
def test_epochs_that_cluster(options, clustered):
    branch = branch_with_bank()
    callback = PrototypeCallback(branch, **options)
    seen = []
    for epoch in range(4):
        callback.on_train_epoch_start(SimpleNamespace(current_epoch=epoch), SimpleNamespace())
        seen.append(int(branch.bank.clustered_epoch))
    assert seen == clustered


def test_refill_comes_before_clustering(monkeypatch):
    own, module = branch_with_bank(), SimpleNamespace()
    fresh = torch.tensor([[5.0, 0, 0], [0, 5.0, 0]])

    def refill(network, branch, images):
        assert (network, branch, images) == (module, own, "images")
        branch.bank.clear()
        branch.bank.push(fresh, torch.tensor([0, 1]))

    monkeypatch.setattr(callback_module, "refill", refill)
    trainer = SimpleNamespace(current_epoch=1, datamodule=SimpleNamespace(whole="images"))
    PrototypeCallback(own, refill="epoch").on_train_epoch_start(trainer, module)
    assert torch.equal(own.bank.context[:, 0], fresh)
