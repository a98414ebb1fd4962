"""The support bank against a list of deques."""

from __future__ import annotations

from collections import deque

import pytest
import torch
import torch.nn.functional as F

from wsss.errors import WsssError
from wsss.methods.cpal.bank import PrototypeBank
from wsss.methods.cpal.settings import BankSettings
from wsss.settings import resolve


def test_pushes_equal_a_deque_per_class():
    torch.manual_seed(0)
    bank = PrototypeBank(num_classes=4, dim=2, options=BankSettings(size=5, clusters=2))
    expected: list[deque] = [deque(maxlen=5) for _ in range(4)]
    # Numbers of anchors below, at and far above the size of a class, and none at all.
    for number in [3, 0, 7, 1, 40, 2]:
        anchors = torch.randn(number, 2)
        # Class 3 never appears.
        classes = torch.randint(0, 3, (number,))
        bank.push(anchors, classes)
        for anchor, index in zip(anchors, classes.tolist(), strict=True):
            expected[index].append(anchor)
        for index in range(4):
            want = torch.stack(list(expected[index])) if expected[index] else torch.empty(0, 2)
            assert torch.equal(bank.ordered(index), want)
            if expected[index]:
                torch.testing.assert_close(bank.mean()[index], want.mean(0))
    assert bank.count.tolist() == [5, 5, 5, 0]
    assert (bank.mean()[3] == 0).all()


def test_one_push_equals_many():
    torch.manual_seed(1)
    anchors, classes = torch.randn(50, 3), torch.randint(0, 3, (50,))
    whole, parts = (
        PrototypeBank(3, dim=3, options=BankSettings(size=6, clusters=2)) for _ in range(2)
    )
    whole.push(anchors, classes)
    for start in range(0, 50, 7):
        parts.push(anchors[start : start + 7], classes[start : start + 7])
    for index in range(3):
        assert torch.equal(whole.ordered(index), parts.ordered(index))


def test_entries_are_detached():
    bank = PrototypeBank(1, dim=2, options=BankSettings(size=3, clusters=1))
    bank.push(torch.ones(1, 2, requires_grad=True) * 2, torch.tensor([0]))
    assert not bank.entries.requires_grad


def test_context_prototypes_are_raw_means_of_direction_clusters():
    torch.manual_seed(2)
    # Three directions; within each, lengths differ widely.
    directions = F.normalize(torch.randn(3, 8), dim=1)
    which = torch.arange(30) % 3
    anchors = directions[which] * (0.5 + 20 * torch.rand(30, 1))
    bank = PrototypeBank(2, dim=8, options=BankSettings(size=100, clusters=3))
    bank.push(anchors, torch.zeros(30, dtype=torch.long))
    bank.recluster(seed=0)
    assert bank.cluster_count.tolist() == [3, 0]
    assert bank.available().tolist() == [[True] * 3, [False] * 3]
    assert bank.cluster_sizes.tolist() == [[10, 10, 10], [0, 0, 0]]
    expected = torch.stack([anchors[which == n].mean(0) for n in range(3)])
    distance = torch.cdist(expected, bank.context[0])
    assert distance.min(1).values.max() < 1e-4
    assert sorted(distance.argmin(1).tolist()) == [0, 1, 2]


def test_reclustering_forgets_clusters_that_the_bank_no_longer_fills():
    bank = PrototypeBank(1, dim=2, options=BankSettings(size=10, clusters=4))
    bank.push(torch.randn(8, 2), torch.zeros(8, dtype=torch.long))
    bank.recluster(0)
    assert bank.cluster_count.item() == 4
    bank.clear()
    bank.push(torch.randn(2, 2), torch.zeros(2, dtype=torch.long))
    bank.recluster(0)
    assert bank.cluster_count.item() == 2
    assert (bank.context[0, 2:] == 0).all() and (bank.cluster_sizes[0, 2:] == 0).all()


def test_automatic_number_of_clusters_follows_the_fill():
    bank = PrototypeBank(
        4,
        dim=2,
        options=BankSettings(size=100, clusters="auto", max_clusters=4, entries_per_cluster=10),
    )
    fill = [0, 3, 29, 100]
    for index, number in enumerate(fill):
        bank.push(torch.randn(number, 2), torch.full((number,), index))
    bank.recluster(0)
    assert bank.cluster_count.tolist() == [0, 1, 3, 4]


def test_state_dict_holds_everything():
    torch.manual_seed(3)
    bank = PrototypeBank(3, dim=4, options=BankSettings(size=6, clusters=2))
    bank.push(torch.randn(40, 4), torch.randint(0, 3, (40,)))
    bank.recluster(7)
    other = PrototypeBank(3, dim=4, options=BankSettings(size=6, clusters=2))
    other.load_state_dict(bank.state_dict())
    anchors, classes = torch.randn(5, 4), torch.randint(0, 3, (5,))
    for one in (bank, other):
        one.push(anchors, classes)
        one.recluster(8)
    for name, value in bank.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_statistics_of_a_known_bank():
    bank = PrototypeBank(2, dim=2, options=BankSettings(size=10, clusters=2))
    assert bank.statistics() == {
        "fill_mean": 0, "fill_min": 0, "cluster_size_mean": 0, "cluster_size_max": 0
    }  # fmt: skip
    anchors = torch.tensor([[1.0, 0], [2, 0], [3, 0], [0, 1]])
    bank.push(anchors, torch.zeros(4, dtype=torch.long))
    bank.recluster(0)
    assert bank.statistics() == {
        "fill_mean": 2, "fill_min": 0, "cluster_size_mean": 2, "cluster_size_max": 3
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"clusters": "many"}, "clusters=many"),
        ({"clusters": 0}, "clusters=0"),
        ({"size": 0}, "size=0"),
        ({"clusters": "auto", "max_clusters": 0}, "max_clusters=0"),
        ({"entries_per_cluster": 0}, "entries_per_cluster=0"),
    ],
)
def test_wrong_numbers_are_named(options, named):
    with pytest.raises(WsssError, match=named):
        resolve(BankSettings, options, "method.bank")


def test_an_anchor_that_is_no_number_is_refused():
    bank = PrototypeBank(2, dim=2, options=BankSettings(size=10, clusters=2))
    anchors = torch.tensor([[1.0, 0], [float("nan"), 0]])
    with pytest.raises(WsssError, match="diverged"):
        bank.push(anchors, torch.zeros(2, dtype=torch.long))
    assert int(bank.count.sum()) == 0
