"""Pictures of what CPAL does: features, prototypes and components, as the paper's Fig. 3 and 5."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from wsss.errors import WsssError
from wsss.maps.functional import add_background, resize_maps
from wsss.methods.cpal.bank import PrototypeBank
from wsss.methods.cpal.functional import distribution_shift, positiveness
from wsss.methods.cpal.settings import CPALSettings
from wsss.run.logs import read_metrics
from wsss.show.charts import nested
from wsss.show.colors import class_color
from wsss.show.figure import figure, heat_over
from wsss.show.fonts import class_names

PROTOTYPES_SHOWN = 4
POINTS_PER_PAIR = 40
POINTS_IN_ALL = 800
FEWEST_POINTS = 10


class ObservedPicture(NamedTuple):
    """One image at scale 1 as the branch observes it; N classes, a batch of 1."""

    name: str
    """Name of the image."""
    picture: np.ndarray
    """(H, W, 3) uint8."""
    label: Tensor
    """Image label (N,), 1 for present classes."""
    z: Tensor
    """Projected features (1, d, h, w)."""
    structure: Tensor
    """f (1, C, h', w'), whose correlations anchor=seeds looks at."""
    cam: Tensor
    """Normalized class maps M (1, N, h'', w'') in [0, 1]."""


class Answer(Protocol):
    """What `PrototypeBranch.predict` answers."""

    @property
    def pacam(self) -> Tensor:
        """(1, N+1, h, w) in [0, 1], background first."""
        ...


class PrototypeBranch(Protocol):
    """What figures ask of the branch, `wsss.methods.cpal.branch.CPAL`, which imports them."""

    options: CPALSettings
    num_classes: int
    bank: PrototypeBank
    shift: Tensor

    def anchors(
        self, z: Tensor, structure: Tensor, cam: Tensor, label: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Anchors (P, d) and class indices (P,) of whole images."""
        ...

    def predict(self, z: Tensor, structure: Tensor, cam: Tensor, label: Tensor) -> Answer:
        """PACAM of whole images at test time."""
        ...

    def responses(self, z: Tensor, index: int) -> Tensor:
        """ReLU(cos) of every context prototype of one class, (clusters in use, h, w)."""
        ...


@torch.no_grad()
def draw(
    branch: PrototypeBranch,
    images: Sequence[ObservedPicture],
    folder: Path,
    classes: Sequence[str],
) -> list[Path]:
    """All figures that a checkpoint and some images give, one PNG each.

    `tsne.png`: features before and after alignment (Fig. 3). `prototypes_<name>.png`: which
    context prototype answers where (Fig. 5a). `components_<name>.png`: PACAM without and with the
    components (Fig. 5b). `bank.png`: fill and cluster sizes per class.

    Args:
        branch: the trained branch with its bank.
        images: what it observes.
        folder: where the files go; made when absent.
        classes: foreground class names.

    Returns:
        The files. What nothing can be drawn of (no anchors, an empty bank) is left out.
    """
    names = class_names(classes)
    made = [draw_features(branch, images, names, folder / "tsne.png")]
    for one in images:
        made.append(draw_prototypes(branch, one, names, folder / f"prototypes_{one.name}.png"))
        made.append(draw_components(branch, one, names, folder / f"components_{one.name}.png"))
    made.append(draw_bank(branch.bank, names, folder / "bank.png"))
    return [path for path in made if path is not None]


def aligned_points(
    branch: PrototypeBranch, images: Sequence[ObservedPicture]
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of strongly activated positions before and after alignment (eq. 12).

    The images are the mini-batch: ξ_n carries the mean of their anchors to the bank's mean.

    Args:
        branch: the branch with its bank.
        images: what it observes.

    Returns:
        z(i) (points, d), z(i) + ξ_n (points, d) and class indices (points,), on the CPU. At most
        `POINTS_PER_PAIR` positions of an image and class, drawn by a fixed seed.
    """
    generator = torch.Generator().manual_seed(0)
    banks, dim = branch.shift.shape
    points, owners = [torch.zeros(0, dim)], [torch.zeros(0, dtype=torch.long)]
    total, count = torch.zeros(banks, dim), torch.zeros(banks)
    for one in images:
        anchors, index = branch.anchors(one.z, one.structure, one.cam, one.label[None])
        total.index_add_(0, index.cpu(), anchors.float().cpu())
        count += torch.bincount(index.cpu(), minlength=banks)
        grid = (one.z.shape[2], one.z.shape[3])
        maps = resize_maps(one.cam.float(), grid, align_corners=True).flatten(2)[0]
        for n in one.label.nonzero().flatten().tolist():
            where = (maps[n] > branch.options.tau).nonzero().flatten().cpu()
            where = where[torch.randperm(len(where), generator=generator)[:POINTS_PER_PAIR]]
            points.append(one.z[0].float().flatten(1).T.cpu()[where])
            owners.append(torch.full((len(where),), n))
    before, owner = torch.cat(points), torch.cat(owners)
    few = torch.randperm(len(owner), generator=generator)[:POINTS_IN_ALL]
    before, owner = before[few], owner[few]
    known = (count > 0) & (branch.bank.count.cpu() > 0)
    mean = total / count.clamp(min=1)[:, None]
    shift = distribution_shift(branch.bank.mean().cpu(), mean, known)
    return before, before + shift[owner], owner


def draw_features(
    branch: PrototypeBranch, images: Sequence[ObservedPicture], names: Sequence[str], path: Path
) -> Path | None:
    """t-SNE of features before and after alignment (Fig. 3); None with fewer than ten points."""
    before, after, owner = aligned_points(branch, images)
    if len(owner) < FEWEST_POINTS:
        return None
    with figure(path, 10, 4.6) as made:
        panels = made.subplots(1, 2)
        titles = ("before alignment", "after alignment")
        for axis, title, points in zip(panels, titles, (before, after), strict=True):
            # Directions, since prototypes meet features by cosine.
            # One thread: t-SNE's many short loops take fifty times longer on a busy machine.
            with threadpool_limits(1):
                flat = TSNE(
                    perplexity=min(30.0, (len(owner) - 1) / 3), init="random", random_state=0
                ).fit_transform(F.normalize(points, dim=1).numpy())
            for n in owner.unique().tolist():
                own = flat[(owner == n).numpy()]
                color = np.array(class_color(n + 1)) / 255
                axis.scatter(own[:, 0], own[:, 1], s=6, color=color, label=names[n])
            axis.set(title=title, xticks=[], yticks=[])
        handles, entries = panels[-1].get_legend_handles_labels()
        made.legend(handles, entries, loc="outside right center", fontsize=7, markerscale=2)
    return path


def draw_prototypes(
    branch: PrototypeBranch, one: ObservedPicture, names: Sequence[str], path: Path
) -> Path | None:
    """Where each of the most positive context prototypes answers (Fig. 5a), a row per class.

    None where no present class has an anchor and context prototypes.
    """
    anchors, index = branch.anchors(one.z, one.structure, one.cam, one.label[None])
    rows = [
        (anchor, n)
        for anchor, n in zip(anchors, index.tolist(), strict=True)
        if n < branch.num_classes and int(branch.bank.cluster_count[n])
    ]
    if not rows:
        return None
    options, bank = branch.options, branch.bank
    pacam = branch.predict(one.z, one.structure, one.cam, one.label[None]).pacam[0]
    columns = 2 + PROTOTYPES_SHOWN
    with figure(path, 2.2 * columns, 2.1 * len(rows) + 0.3) as made:
        axes = made.subplots(len(rows), columns, squeeze=False)
        for line, (anchor, n) in zip(axes, rows, strict=True):
            used = bank.available()[n]
            prototypes, selected = bank.context[n, used][None], used[used][None]
            weights = positiveness(
                anchor[None], prototypes, selected, options.similarity, options.temperature
            )[0]
            responses = branch.responses(one.z[0], n)
            _show(line[0], one.picture, None, names[n])
            _show(line[1], one.picture, pacam[n + 1], "PACAM")
            best = weights.argsort(descending=True)[:PROTOTYPES_SHOWN].tolist()
            for axis, j in zip(line[2:], best, strict=False):
                size = int(bank.cluster_sizes[n, j])
                title = f"w {float(weights[j]):.2f}, {size} members"
                _show(axis, one.picture, responses[j], title)
            for axis in line[2 + len(best) :]:
                axis.set_axis_off()
    return path


def component_maps(branch: PrototypeBranch, one: ObservedPicture) -> list[tuple[str, Tensor]]:
    """Maps (N+1, h, w) of one checkpoint with the components added one by one (Table 1, Fig. 5b).

    L_self acts in training only: its effect is the difference between two checkpoints' figures.
    """
    own = branch.options
    unaligned, aligned = (replace(own.test, alignment=kind) for kind in ("off", "batch"))
    steps = [
        ("context prototypes", replace(own, neighbors="all", positiveness=False, test=unaligned)),
        ("+ prototype-aware", replace(own, test=unaligned)),
        ("+ alignment", replace(own, test=aligned)),
    ]
    cam = one.cam * one.label[None, :, None, None]
    maps = [("CAM", add_background(cam)[0])]
    for title, options in steps:
        variant = copy.copy(branch)  # shares weights and bank; only the options differ
        variant.options = options
        answer = variant.predict(one.z, one.structure, one.cam, one.label[None])
        maps.append((title, answer.pacam[0]))
    return maps


def draw_components(
    branch: PrototypeBranch, one: ObservedPicture, names: Sequence[str], path: Path
) -> Path | None:
    """CAM and PACAM with the components added one by one (Fig. 5b); None without a label."""
    present = one.label.nonzero().flatten().tolist()
    if not present:
        return None
    maps = component_maps(branch, one)
    rows = [*((names[n], n + 1) for n in present), ("background", 0)]
    with figure(path, 2.2 * (len(maps) + 1), 2.1 * len(rows) + 0.3) as made:
        axes = made.subplots(len(rows), len(maps) + 1, squeeze=False)
        for line, (name, channel) in zip(axes, rows, strict=True):
            _show(line[0], one.picture, None, name)
            for axis, (title, values) in zip(line[1:], maps, strict=True):
                _show(axis, one.picture, values[channel], title)
    return path


def draw_bank(bank: PrototypeBank, names: Sequence[str], path: Path) -> Path | None:
    """Entries and cluster sizes of every class, now; None for an empty bank."""
    if int(bank.count.sum()) == 0:
        return None
    # A bank of background anchors, where there is one, comes last.
    shown = [*names, "background"][: bank.num_classes]
    places = np.arange(len(shown))
    with figure(path, max(6.0, 0.28 * len(shown)), 5.5) as made:
        fill, sizes = made.subplots(2, 1, sharex=True)
        fill.bar(places, bank.count.cpu().numpy(), color="C0")
        fill.axhline(bank.size, color="gray", linewidth=0.8)
        fill.set_ylabel("entries")
        for n in range(len(shown)):
            used = bank.cluster_sizes[n][bank.cluster_sizes[n] > 0].cpu().numpy()
            sizes.scatter(np.full(len(used), n), used, s=8, color="C1", alpha=0.6)
        sizes.set_ylabel("members of a cluster")
        sizes.set_xticks(places, shown, rotation=90, fontsize=7)
    return path


def draw_bank_history(metrics: Path, file: Path, branch: str = "") -> Path:
    """Fill of the bank and cluster sizes over the epochs, from the CSV logger's file.

    Args:
        metrics: `metrics.csv` of a training run.
        file: PNG to write.
        branch: name of the branch among several.

    Returns:
        `file`.

    Raises:
        WsssError: the file is missing or holds no `bank/` columns.
    """
    if not metrics.is_file():
        raise WsssError(f"{metrics}: no such file; train with the csv logger first")
    bank = f"{branch}/bank".lstrip("/")
    rows = [row for row in read_metrics(metrics) if row.get(f"{bank}/fill_mean")]
    if not rows:
        raise WsssError(f"{metrics}: no {bank}/fill_mean column; it is not the log of a CPAL run")
    epochs = [int(row["epoch"]) + 1 for row in rows]
    panels = {
        "entries per class": ("fill_mean", "fill_min"),
        "members of a cluster": ("cluster_size_mean", "cluster_size_max"),
    }
    with figure(file, 9, 3.4) as made:
        for axis, (title, columns) in zip(made.subplots(1, 2), panels.items(), strict=True):
            nested(
                axis,
                {
                    name: (epochs, [float(row[f"{bank}/{name}"]) for row in rows])
                    for name in columns
                },
            )
            axis.set(title=title, xlabel="epoch")
            axis.set_ylim(bottom=0)
            axis.legend()
    return file


def _show(axis: Axes, picture: np.ndarray, values: Tensor | None, title: str) -> None:
    """The photograph, under a map (h, w) in [0, 1] where there is one."""
    heat_over(axis, picture, None if values is None else values.float().cpu().numpy())
    axis.set_title(title, fontsize=8)
