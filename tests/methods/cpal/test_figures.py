"""CPAL's figures: what is drawn, and the numbers behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image

from wsss.errors import WsssError
from wsss.maps.functional import normalize_cam
from wsss.methods.cpal import figures
from wsss.methods.cpal.branch import CPAL
from wsss.methods.cpal.figures import (
    ObservedPicture,
    aligned_points,
    component_maps,
    draw,
    draw_bank_history,
)
from wsss.methods.cpal.settings import CPALSettings
from wsss.settings import resolve

CLASSES = ("cat", "dog", "cow")
N, DIM, GRID = 3, 8, (6, 8)


def make_branch(filled: bool = True, **options) -> CPAL:
    torch.manual_seed(0)
    bank = {"size": 12, "clusters": 3}
    options = {"projection_dim": DIM, "neighbors": 2, "bank": bank, **options}
    branch = CPAL(resolve(CPALSettings, options, "method"), (4, 7), N).eval()
    if filled:
        index = torch.arange(N).repeat(10)
        branch.bank.push(torch.randn(len(index), DIM) + index[:, None], index)
        branch.bank.recluster(0)
    return branch


def observed(name: str, label: list[float], seed: int = 0) -> ObservedPicture:
    generator = torch.Generator().manual_seed(seed)
    picture = np.random.default_rng(seed).integers(0, 255, (50, 60, 3)).astype(np.uint8)
    return ObservedPicture(
        name,
        picture,
        torch.tensor(label),
        torch.randn(1, DIM, *GRID, generator=generator),
        torch.randn(1, 7, *GRID, generator=generator),
        normalize_cam(torch.randn(1, N, *GRID, generator=generator)),
    )


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Figure]:
    """The figures that were made, by the names of their files."""
    made: dict[str, Figure] = {}
    original = figures.figure

    @contextmanager
    def keep(path: Path, width: float, height: float) -> Iterator[Figure]:
        with original(path, width, height) as one:
            made[path.name] = one
            yield one

    monkeypatch.setattr(figures, "figure", keep)
    return made


def test_every_image_has_its_figures(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    branch = make_branch()
    images = [observed("one", [1.0, 0, 1]), observed("two", [0, 1.0, 0], 1)]
    files = draw(branch, images, tmp_path / "new", CLASSES)
    names = ["tsne", "prototypes_one", "components_one", "prototypes_two", "components_two", "bank"]
    assert [file.name for file in files] == [f"{name}.png" for name in names]
    for file in files:
        with Image.open(file) as picture:
            assert min(picture.size) > 200

    # Fig. 3: a point for each strongly activated position of each present class.
    before = drawn["tsne.png"].axes[0].collections
    counts = [
        int((one.cam[0, n] > 0.1).sum().clamp(max=40)) for one in images for n in range(N)
        if one.label[n]
    ]  # fmt: skip
    assert sum(len(points.get_offsets()) for points in before) == sum(counts)
    assert {points.get_label() for points in before} == set(CLASSES)

    # Fig. 5a: where the prototypes of the most positive members answer.
    line = np.array(drawn["prototypes_two.png"].axes)
    assert line[0].get_title() == "dog" and line[1].get_title() == "PACAM"
    context = F.normalize(branch.bank.context[1], dim=1)
    cosine = context @ F.normalize(images[1].z[0], dim=0).flatten(1)
    expected = {one.tobytes() for one in cosine.clamp(min=0).view(-1, *GRID).numpy().round(3)}
    shown = [np.asarray(axis.images[1].get_array()).round(3) for axis in line[2:5]]
    assert {one.tobytes() for one in shown} == expected
    weights = [float(axis.get_title()[2:6]) for axis in line[2:5]]
    assert weights == sorted(weights, reverse=True) and sum(weights) == pytest.approx(1, abs=0.02)

    # Fig. 5b: a row for each present class, and the background.
    rows = np.array(drawn["components_one.png"].axes).reshape(3, 5)
    assert [row[0].get_title() for row in rows] == ["cat", "cow", "background"]
    for row, n in zip(rows, (0, 2), strict=False):
        assert (np.asarray(row[1].images[1].get_array()) == images[0].cam[0, n].numpy()).all()

    fill, _ = drawn["bank.png"].axes
    assert [bar.get_height() for bar in fill.patches] == [10, 10, 10]


def test_figures_of_an_empty_bank_are_left_out(tmp_path: Path) -> None:
    files = draw(make_branch(filled=False), [observed("one", [1.0, 0, 0])], tmp_path, CLASSES)
    assert {file.name for file in files} == {"tsne.png", "components_one.png"}
    assert draw(make_branch(filled=False), [observed("none", [0.0, 0, 0])], tmp_path, CLASSES) == []


def test_aligned_points_are_moved_by_the_shift_of_their_class() -> None:
    branch, images = make_branch(), [observed(str(n), [1.0, 0, 1], n) for n in range(2)]
    before, after, owner = aligned_points(branch, images)
    assert set(owner.tolist()) == {0, 2}
    for n in (0, 2):
        anchors = [one.z[0][:, one.cam[0, n] > branch.options.tau].mean(1) for one in images]
        entries = branch.bank.entries[n, : int(branch.bank.count[n])]
        shift = entries.mean(0) - torch.stack(anchors).mean(0)
        moved = (after - before)[owner == n]
        torch.testing.assert_close(moved, shift.expand_as(moved), atol=1e-4, rtol=1e-4)


def test_components_are_added_one_by_one_and_the_branch_stays_as_it_was() -> None:
    branch, one = make_branch(), observed("one", [1.0, 0, 1])
    options = branch.options
    maps = dict(component_maps(branch, one))
    assert branch.options is options
    given = (one.z, one.structure, one.cam, one.label[None])
    with torch.no_grad():
        for title, changed in (
            (
                "context prototypes",
                {"neighbors": "all", "positiveness": False, "test": {"alignment": "off"}},
            ),
            ("+ prototype-aware", {"test": {"alignment": "off"}}),
            ("+ alignment", {"test": {"alignment": "batch"}}),
        ):
            other = make_branch(**changed)
            other.load_state_dict(branch.state_dict())
            torch.testing.assert_close(maps.pop(title), other.predict(*given).pacam[0])
    (cam,) = maps.values()
    expected = one.cam[0] * one.label[:, None, None]
    torch.testing.assert_close(cam[1:], expected)
    torch.testing.assert_close(cam[0], 1 - expected.amax(0))


def test_bank_history_is_read_from_the_csv_log(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    metrics = tmp_path / "metrics.csv"
    metrics.write_text(
        "epoch,bank/fill_mean,bank/fill_min,bank/cluster_size_mean,bank/cluster_size_max,step\n"
        "0,3.5,1,0,0,3\n0,,,,,4\n1,6.5,2,2.5,4,7\n"
    )
    file = draw_bank_history(metrics, tmp_path / "history.png")
    lines = {line.get_label(): line for axis in drawn[file.name].axes for line in axis.lines}
    assert lines["fill_min"].get_xydata().tolist() == [[1, 1], [2, 2]]
    assert lines["cluster_size_mean"].get_xydata().tolist() == [[1, 0], [2, 2.5]]
    metrics.write_text("epoch,step\n0,1\n")
    with pytest.raises(WsssError, match="not the log of a CPAL run"):
        draw_bank_history(metrics, file)
    with pytest.raises(WsssError, match=r"absent\.csv"):
        draw_bank_history(tmp_path / "absent.csv", file)
