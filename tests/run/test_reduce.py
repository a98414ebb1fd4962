"""What two processes sum up, beside one process that has the whole batch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from wsss.run.reduce import GlobalBatchNorm, gather_rows, global_ratio, global_sum


def _work(work: Callable[[int], Any], rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    torch.save(work(rank), folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture
def by_two(tmp_path: Path) -> Callable[[Callable[[int], Any]], list[Any]]:
    """`by_two(work)`: what `work(rank)` answers in each of two processes of a group."""

    def run(work: Callable[[int], Any]) -> list[Any]:
        fork = multiprocessing.get_context("fork")
        processes = [fork.Process(target=_work, args=(work, rank, tmp_path)) for rank in (0, 1)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        return [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]

    return run


def test_the_mean_of_the_processes_ratios_is_that_of_the_whole(by_two) -> None:
    weights = torch.tensor([[1.0, 2.0, 5.0], [7.0, 3.0, 0.0]])
    counts = torch.tensor([[4, 1, 0], [2, 0, 0]])

    def work(rank: int) -> tuple[Tensor, Tensor]:
        x = torch.ones(3, requires_grad=True)
        ratio = global_ratio(x * weights[rank], counts[rank])
        ratio.sum().backward()
        return ratio.detach(), x.grad

    (ratio, grad), (other_ratio, other_grad) = by_two(work)
    # (1 + 7) / (4 + 2), (2 + 3) / 1; where nothing is counted the sum is 0 in use.
    expected = torch.tensor([8 / 6, 5.0, 5.0])
    torch.testing.assert_close((ratio + other_ratio) / 2, expected)
    torch.testing.assert_close((grad + other_grad) / 2, expected)


def test_alone_ratios_and_rows_are_plain() -> None:
    ratio = global_ratio(torch.tensor([6.0, 0.0]), torch.tensor([3, 0]))
    assert ratio.tolist() == [2, 0]
    values, numbers = gather_rows(torch.eye(3), torch.tensor([7, 8, 9]), torch.tensor([2, 0, 0]))
    assert numbers.tolist() == [8, 9, 7]
    assert torch.equal(values, torch.eye(3)[[1, 2, 0]])


@pytest.mark.parametrize("sizes", [(3, 5), (0, 4), (4, 0), (0, 0)])
def test_rows_come_in_the_order_of_their_keys(by_two, sizes: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    values = torch.randn(sum(sizes), 6, generator=generator)
    images = [2 * torch.randint(4, (n,), generator=generator) + r for r, n in enumerate(sizes)]
    order = torch.cat(images).sort().values  # even images are the first process's
    classes = torch.arange(sum(sizes)) + 2**20

    def work(rank: int) -> tuple[Tensor, ...]:
        mine = order % 2 == rank
        return gather_rows(values[mine], classes[mine], order[mine])

    for found, numbers in by_two(work):
        assert torch.equal(found, values) and torch.equal(numbers, classes)


class Layers(nn.Module):
    """Two normalizations, one of timm's with its activation, one frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3, momentum=0.3)
        self.conv = nn.Conv2d(3, 4, 3)
        self.second = BatchNormAct2d(4, momentum=None)
        self.frozen = nn.BatchNorm2d(4).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(self.second(self.conv(self.first(x))))


def test_batch_normalization_has_the_statistics_and_gradients_of_the_whole_batch(by_two) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 4, 3, 7, 5, dtype=torch.float64)
    images[1] = 3 * images[1] + 2  # very different shares
    weights = torch.randn(2, 4, 4, 5, 3, dtype=torch.float64)
    layers = Layers().double()
    with torch.no_grad():
        for p in layers.parameters():
            p.copy_(torch.randn(p.shape))
    start = {key: value.clone() for key, value in layers.state_dict().items()}

    def learn(x: Tensor, w: Tensor) -> dict[str, Tensor]:
        layers.zero_grad()
        layers.load_state_dict(start)
        for _ in range(2):
            x = x.detach().clone().requires_grad_()
            answer = layers(x)
            (answer * w).sum().backward()
        own = {f"d {name}": p.grad for name, p in layers.named_parameters()}
        return {**layers.state_dict(), **own, "answer": answer.detach(), "d x": x.grad}

    def work(rank: int) -> dict[str, Tensor]:
        sync = GlobalBatchNorm()
        sync.apply(layers)
        found = learn(images[rank], weights[rank])
        sync.revert(layers)
        assert not any("forward" in vars(module) for module in layers.modules())
        return {k: v.clone() for k, v in found.items()}

    whole = learn(images.flatten(0, 1), weights.flatten(0, 1))
    parts = by_two(work)
    for key, value in whole.items():
        own = [part[key] for part in parts]
        if key in ("answer", "d x"):
            joint = torch.cat(own)
        elif key.startswith("d "):
            joint = own[0] + own[1]
        else:
            joint = own[0]
            assert torch.equal(own[0], own[1]), key
        torch.testing.assert_close(joint, value, rtol=1e-11, atol=1e-11, msg=key)


def test_the_sum_is_differentiable(by_two) -> None:
    def work(rank: int) -> tuple[Tensor, Tensor]:
        x = torch.tensor([1.0 + rank], requires_grad=True)
        total = global_sum(x)
        (total * (3 + rank)).backward()
        return total.detach(), x.grad

    for total, grad in by_two(work):
        assert total.item() == 3 and grad.item() == 3 + 4
