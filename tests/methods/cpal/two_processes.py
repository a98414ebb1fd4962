"""One of the processes of test_callback.py: `two_processes.py RANK WORLD FOLDER`.

Trains a branch for three epochs of three steps on random features. Every step has four images,
of which each process takes each `world`-th, as the sampler deals them out; image 3 of step 1 and
all of the second process in step 2 carry no label, so that numbers of anchors differ and are zero.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from wsss.methods.cpal.branch import CPAL
from wsss.methods.cpal.callback import PrototypeCallback
from wsss.methods.cpal.settings import BankSettings, CPALSettings

N, CHANNELS, IMAGES = 3, 6, 4


def step_data(epoch: int, step: int) -> tuple[torch.Tensor, ...]:
    """Features, class maps and labels of the global mini-batch."""
    generator = torch.Generator().manual_seed(100 * epoch + step)
    feature = torch.randn(IMAGES, CHANNELS, 4, 4, generator=generator)
    cam = torch.rand(IMAGES, N, 4, 4, generator=generator)
    label = (torch.rand(IMAGES, N, generator=generator) > 0.4).float()
    if step == 1:
        label[3] = 0
    if step == 2:
        label[1::2] = 0
    return feature, cam, label


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
        )
    torch.manual_seed(0)
    bank = BankSettings(size=7, clusters=3)
    branch = CPAL(CPALSettings(projection_dim=5, neighbors=2, bank=bank), (CHANNELS,), N)
    callback = PrototypeCallback(branch, seed=4, warmup_epochs=1)
    module = SimpleNamespace()
    mine = slice(rank, None, world)
    losses, gradients = [], []
    for epoch in range(3):
        trainer = SimpleNamespace(current_epoch=epoch)
        callback.on_train_epoch_start(trainer, module)
        for step in range(3):
            feature, cam, label = (tensor[mine] for tensor in step_data(epoch, step))
            answer = branch([feature], cam, label, torch.ones(len(label), 64, 64))
            branch.zero_grad()
            # The classification loss of a host keeps every process in the graph; here a zero does.
            (answer.loss + 0 * branch.projection[0].weight.sum()).backward()
            losses.append(answer.loss.detach())
            gradients.append(branch.projection[0].weight.grad.clone())
            callback.on_train_batch_end(trainer, module, None, None, step)
    result = {"losses": torch.stack(losses), "gradients": torch.stack(gradients)}
    torch.save({**branch.state_dict(), **result}, folder / f"rank{rank}_of{world}.pt")
    if world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
