"""The readings of tools/readings.py, written apart from the branch, and the branch."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsss.evaluation.curves import ThresholdCurve
from wsss.evaluation.per_image import Collector, Confusions
from wsss.methods.cpal.bank import PrototypeBank
from wsss.methods.cpal.branch import CPAL
from wsss.methods.cpal.settings import BankSettings
from wsss.methods.network import SeedNetwork

TOOLS = Path(__file__).parents[3] / "tools"
WIDTHS = (3, 4, 5, 6)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load("readings")


def cpal(make_network: Callable[..., SeedNetwork], **options: Any) -> SeedNetwork:
    """The reading for little data, with a bank of entries."""
    own = {
        "bank": {"size": 12, "clusters": 5},
        "side_channels": WIDTHS,
        "neighbors": 3,
        "features": "hierarchical",
        "anchor": "seeds",
        "background": "prototype",
        "own_prototype": True,
        "temperature": 0.3,
        **options,
        "test": {"structure": "z", "background_classes": "present", **options.get("test", {})},
    }
    network = make_network(CPAL, **own).eval()
    bank, generator = network.branch.bank, torch.Generator().manual_seed(3)
    index = torch.arange(bank.num_classes).repeat(12)
    bank.push(torch.randn(len(index), sum(WIDTHS), generator=generator) + 0.5, index)
    bank.recluster(0)
    return network


@pytest.mark.parametrize(
    ("options", "reading"),
    [
        ({}, {}),
        ({"neighbors": "all"}, {"neighbors": None}),
        ({"own_prototype": False}, {"own": False}),
        ({"prototypes": "anchor", "test": {"alignment": "off"}}, {"prototypes": "none"}),
        ({"prototypes": "mean"}, {"prototypes": "mean"}),
        ({"test": {"alignment": "off"}}, {"shift": False}),
        ({"positiveness": False}, {"temperature": 0}),
        ({"similarity": "cosine"}, {"normalized": True}),
        ({"background": "complement"}, {"background": "complement"}),
        ({"background": "bank"}, {"background": "bank"}),
        ({"test": {"rounds": 2}}, {"rounds": (0.5,), "kept_background": False}),
        (
            {"prototypes": "mean", "test": {"rounds": 3}},
            {"prototypes": "mean", "rounds": (0.5, 0.5), "kept_background": False},
        ),
    ],
)
def test_a_reading_that_is_also_the_branch_s_gives_its_maps(
    tool: ModuleType,
    make_network: Callable[..., SeedNetwork],
    options: dict[str, Any],
    reading: dict[str, Any],
) -> None:
    network = cpal(make_network, **options)
    for seed in range(3):
        image = torch.randn(3, 80, 112, generator=torch.Generator().manual_seed(seed))
        label = torch.tensor([1.0, 0, 1])
        with torch.no_grad():
            seen, cam = network.see_pair(image, label)
            z = tool.features_of(network.branch, seen)
        present = cam[0, [0, 2]]
        maps = torch.cat([1 - present.amax(0, keepdim=True), present]).flatten(1)
        look = tool.Look(z[0].flatten(1), maps, (5, 7))
        bank = network.branch.bank
        entries = [bank.ordered(n) for n in (-1, 0, 1, 2)]
        context = [bank.context[n, : int(bank.cluster_count[n])] for n in (-1, 0, 1, 2)]
        known = tool.Bank(entries, context, torch.stack([one.mean(0) for one in entries]))
        found = tool.Reading(**{"neighbors": 3, "temperature": 0.3, **reading})
        (ours,) = tool.maps_of(found, [look], known, [0, 1, 3])
        expected = network.branch.maps(seen, cam, label)["pacam"]
        torch.testing.assert_close(ours, expected, atol=2e-4, rtol=0)


def test_clusters_of_the_tool_s_bank_are_those_of_the_branch(tool: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    anchors, classes = torch.randn(90, 6, generator=generator), torch.arange(90) % 4
    ours = tool.cluster(anchors, classes, count=4, size=30, k=5, seed=7)
    bank = PrototypeBank(3, 6, BankSettings(size=30, clusters=5))
    bank.push(anchors[classes > 0], classes[classes > 0] - 1)
    bank.recluster(7)
    for n in range(3):
        torch.testing.assert_close(ours.context[n + 1], bank.context[n])
        torch.testing.assert_close(ours.mean[n + 1], bank.mean()[n])
        torch.testing.assert_close(ours.entries[n + 1], bank.ordered(n))


def test_a_round_locates_seeds_again_from_the_mean_of_cam_and_answer(tool: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    z, cam = torch.randn(6, 20, generator=generator), torch.rand(2, 20, generator=generator)
    maps = torch.cat([1 - cam.amax(0, keepdim=True), cam])
    own = {"prototypes": "none", "shift": False}
    (found,) = tool.maps_of(
        tool.Reading(**own, rounds=(0.25,)), [tool.Look(z, maps, (4, 5))], None, [0, 1, 2]
    )

    def answer(maps: torch.Tensor) -> torch.Tensor:
        relation = F.relu(F.cosine_similarity(z[:, :, None], z[:, None], dim=0))
        inter = torch.stack([(relation * row).sum(1) for row in maps])
        iou = inter / (relation.sum(1) + maps.sum(1, keepdim=True) - inter)
        rows = []
        for n in range(3):
            mine = z[:, iou.argmax(0) == n].mean(1)
            row = F.relu(F.cosine_similarity(z, mine[:, None], dim=0))
            rows.append(row / row.max())
        return torch.stack(rows)

    expected = answer(0.75 * maps + 0.25 * answer(maps))
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-3, rtol=0)


def test_halves_thresholds_and_parts(tool: ModuleType) -> None:
    table = load("readings_table")
    rng = np.random.default_rng(0)
    curve, kept = ThresholdCurve(3, tool.THRESHOLDS), Collector(("a", "b"))
    truths, values = rng.integers(0, 3, (4, 8, 9)), rng.random((4, 8, 9))
    bests = rng.integers(1, 3, (4, 8, 9))
    for k in range(4):
        kept.add(f"n{k}", curve.count(truths[k], bests[k], values[k]))
    whole = kept.confusions()
    half = table.part(whole, lambda k: k in (1, 3))
    assert half.names == ("n1", "n3")
    for index in (0, 40, 79):
        found = table.at_threshold(half, index)
        assert isinstance(found, Confusions)
        predicted = np.where(values[[1, 3]] > tool.THRESHOLDS[index], bests[[1, 3]], 0)
        expected = np.zeros((3, 3), dtype=int)
        np.add.at(expected, (truths[[1, 3]].ravel(), predicted.ravel()), 1)
        assert (found.total() == expected).all()
    by_hand = [table.miou(table.at_threshold(half, k)) for k in range(80)]
    assert table.best_threshold(half) == by_hand.index(max(by_hand))
    names = [f"2007_{k:06}" for k in range(1000)]
    assert 400 < sum(map(table.chooses, names)) < 600
