"""Pictures of what CPAL does: features, prototypes and components, as the paper's Fig. 3 and 5."""

from __future__ import annotations

import copy
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from wsss.errors import WsssError
from wsss.methods.cpal.bank import PrototypeBank
from wsss.methods.cpal.branch import CPAL as CPALBranch
from wsss.methods.cpal.functional import distribution_shift, positiveness

if TYPE_CHECKING:
    CPAL = Observation = Any

PROTOTYPES_SHOWN = 4
POINTS_PER_PAIR = 40
POINTS_IN_ALL = 800
COLORS = matplotlib.colormaps["tab20"]


def draw(
    method: CPAL,
    samples: Sequence[Mapping[str, Any]],
    folder: Path,
    class_names: Sequence[str] = (),
) -> list[Path]:
    """All figures that a checkpoint and some images give, one PNG each.

    `tsne.png`: features before and after alignment (Fig. 3). `prototypes_<name>.png`: which
    context prototype answers where (Fig. 5a). `components_<name>.png`: PACAM without and with the
    components (Fig. 5b). `bank.png`: fill and cluster sizes per class.

    Args:
        method: The trained method; used on its device.
        samples: Prediction samples: `images` (scale 1.0 first, (3, h, w) each), `label` (N,),
            `name`, and `picture`, uint8 (H, W, 3).
        folder: Where the files go; made when absent.
        class_names: Names of the foreground classes; without them figures have class ids.

    Returns:
        The files. What nothing can be drawn of (no anchors, an empty bank) is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = list(class_names) or [str(n + 1) for n in range(method.num_classes)]
    branch, written = method.branch, []
    labels, seen = [], []
    for sample in samples:
        image = sample["images"][0].to(method.device)
        labels.append(torch.as_tensor(sample["label"], device=method.device).float())
        seen.append(method.observe(torch.stack([image, image.flip(-1)])))

    def keep(figure: Figure | None, name: str) -> None:
        if figure is not None:
            path = folder / name
            figure.savefig(path, dpi=100)
            written.append(path)

    keep(draw_features(branch, seen, labels, names), "tsne.png")
    for sample, label, one in zip(samples, labels, seen, strict=True):
        picture, stem = np.asarray(sample["picture"]), sample["name"]
        keep(draw_prototypes(branch, one, label, picture, names), f"prototypes_{stem}.png")
        keep(draw_components(branch, one, label, picture, names), f"components_{stem}.png")
    keep(draw_bank(branch.bank, names), "bank.png")
    return written


def aligned_points(
    branch: CPALBranch, seen: Sequence[Observation], labels: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of strongly activated positions before and after alignment (eq. 12).

    The images are the mini-batch: ξ_n carries the mean of their anchors to the bank's mean.

    Args:
        branch: The branch with its bank.
        seen: One observation per image.
        labels: Their image labels (N,).

    Returns:
        z(i) (points, d), z(i) + ξ_n (points, d) and class indices (points,), on the CPU. At most
        `POINTS_PER_PAIR` positions of an image and class, drawn by a fixed seed.
    """
    generator = torch.Generator().manual_seed(0)
    dim, banks = branch.shift.shape[1], branch.bank.num_classes
    points, owners = [torch.zeros(0, dim)], [torch.zeros(0, dtype=torch.long)]
    total, count = torch.zeros(banks, dim), torch.zeros(banks)
    for one, label in zip(seen, labels, strict=True):
        anchors, index = branch.anchors(one.z, one.cam, label[None], one.structure)
        total.index_add_(0, index.cpu(), anchors.float().cpu())
        count += torch.bincount(index.cpu(), minlength=banks)
        maps = F.interpolate(
            one.cam, size=one.z.shape[2:], mode="bilinear", align_corners=True
        ).flatten(2)[0]
        for n in label.nonzero().flatten().tolist():
            where = (maps[n] > branch.tau).nonzero().flatten().cpu()
            where = where[torch.randperm(len(where), generator=generator)[:POINTS_PER_PAIR]]
            points.append(one.z[0].flatten(1).T.cpu()[where])
            owners.append(torch.full((len(where),), n))
    before, owner = torch.cat(points), torch.cat(owners)
    few = torch.randperm(len(owner), generator=generator)[:POINTS_IN_ALL]
    before, owner = before[few], owner[few]
    known = (count > 0) & (branch.bank.count.cpu() > 0)
    mean = total / count.clamp(min=1)[:, None]
    shift = distribution_shift(branch.bank.mean().cpu(), mean, known)
    return before, before + shift[owner], owner


def draw_features(
    branch: CPALBranch,
    seen: Sequence[Observation],
    labels: Sequence[Tensor],
    class_names: Sequence[str],
) -> Figure | None:
    """t-SNE of features before and after alignment (Fig. 3); None with fewer than ten points."""
    before, after, owner = aligned_points(branch, seen, labels)
    if len(owner) < 10:
        return None
    figure = _figure(10, 4.6)
    for axis, title, points in zip(
        figure.subplots(1, 2), ("before alignment", "after alignment"), (before, after), strict=True
    ):
        # Directions, since prototypes meet features by cosine.
        # One thread: t-SNE's many short parallel loops take fifty times longer on a busy machine.
        with threadpool_limits(1):
            flat = TSNE(
                perplexity=min(30.0, (len(owner) - 1) / 3), init="random", random_state=0
            ).fit_transform(F.normalize(points, dim=1).numpy())
        for n in owner.unique().tolist():
            own = flat[(owner == n).numpy()]
            axis.scatter(own[:, 0], own[:, 1], s=6, color=COLORS(n % 20), label=class_names[n])
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_yticks([])
    handles, entries = axis.get_legend_handles_labels()
    figure.legend(handles, entries, loc="outside right center", fontsize=7, markerscale=2)
    return figure


def draw_prototypes(
    branch: CPALBranch,
    seen: Observation,
    label: Tensor,
    picture: np.ndarray,
    class_names: Sequence[str],
) -> Figure | None:
    """Where each of the most positive context prototypes answers (Fig. 5a), a row per class.

    None where no present class has an anchor and context prototypes.
    """
    anchors, index = branch.anchors(seen.z, seen.cam, label[None], seen.structure)
    rows = [
        (anchor, n)
        for anchor, n in zip(anchors, index.tolist(), strict=True)
        if n < branch.num_classes and int(branch.bank.cluster_count[n])
    ]
    if not rows:
        return None
    answer = branch.predict(seen.z, seen.cam, label[None], seen.structure).pacam[0]
    columns = 2 + PROTOTYPES_SHOWN
    figure = _figure(2.2 * columns, 2.1 * len(rows) + 0.3)
    for line, (anchor, n) in zip(
        figure.subplots(len(rows), columns, squeeze=False), rows, strict=True
    ):
        used = branch.bank.available()[n]
        weights = positiveness(
            anchor[None], branch.bank.context[n, used][None], used[used][None],
            branch.similarity, 1.0, branch.temperature,
        )[0]  # fmt: skip
        responses = branch.responses(seen.z[0], n)
        _overlay(line[0], picture, None, class_names[n])
        _overlay(line[1], picture, answer[n + 1], "PACAM")
        best = weights.argsort(descending=True)[:PROTOTYPES_SHOWN].tolist()
        for axis, j in zip(line[2:], best, strict=False):
            size = int(branch.bank.cluster_sizes[n, j])
            _overlay(axis, picture, responses[j], f"w {float(weights[j]):.2f}, {size} members")
        for axis in line[2 + len(best) :]:
            axis.set_axis_off()
    return figure


def component_maps(
    branch: CPALBranch, seen: Observation, label: Tensor
) -> list[tuple[str, Tensor]]:
    """Maps (N+1, h, w) of one checkpoint with the components added one by one (Table 1, Fig. 5b).

    L_self acts in training only: its effect is the difference between two checkpoints' figures.
    """
    steps: list[tuple[str, dict[str, Any]]] = [
        ("context prototypes", {"neighbours": None, "positiveness": False, "align": "off"}),
        ("+ prototype-aware", {"align": "off"}),
        ("+ alignment", {"align": "batch"}),
    ]
    cam = seen.cam[0] * label[:, None, None]
    maps = [("CAM", torch.cat([1 - cam.amax(0, keepdim=True), cam]))]
    for title, options in steps:
        variant = copy.copy(branch)  # shares weights and bank; only the options differ
        variant.test_alignment = options["align"]
        variant.neighbours = options.get("neighbours", branch.neighbours)
        variant.positiveness = options.get("positiveness", branch.positiveness)
        answer = variant.predict(seen.z, seen.cam, label[None], seen.structure)
        maps.append((title, answer.pacam[0]))
    return maps


def draw_components(
    branch: CPALBranch,
    seen: Observation,
    label: Tensor,
    picture: np.ndarray,
    class_names: Sequence[str],
) -> Figure | None:
    """CAM and PACAM with the components added one by one (Fig. 5b); None without a label."""
    present = label.nonzero().flatten().tolist()
    if not present:
        return None
    maps = component_maps(branch, seen, label)
    rows = [*((class_names[n], n + 1) for n in present), ("background", 0)]
    figure = _figure(2.2 * (len(maps) + 1), 2.1 * len(rows) + 0.3)
    for line, (name, channel) in zip(
        figure.subplots(len(rows), len(maps) + 1, squeeze=False), rows, strict=True
    ):
        _overlay(line[0], picture, None, name)
        for axis, (title, values) in zip(line[1:], maps, strict=True):
            _overlay(axis, picture, values[channel], title)
    return figure


def draw_bank(bank: PrototypeBank, class_names: Sequence[str]) -> Figure | None:
    """Entries and cluster sizes of every class, now; None for an empty bank."""
    if int(bank.count.sum()) == 0:
        return None
    # A bank of background anchors, where there is one, comes last.
    names = [*class_names, "background"][: bank.num_classes]
    figure = _figure(max(6.0, 0.28 * len(names)), 5.5)
    fill, sizes = figure.subplots(2, 1, sharex=True)
    positions = np.arange(len(names))
    fill.bar(positions, bank.count.cpu().numpy(), color="tab:blue")
    fill.axhline(bank.size, color="gray", linewidth=0.8)
    fill.set_ylabel("entries")
    for n in range(len(names)):
        used = bank.cluster_sizes[n][bank.cluster_sizes[n] > 0].cpu().numpy()
        sizes.scatter(np.full(len(used), n), used, s=8, color="tab:orange", alpha=0.6)
    sizes.set_ylabel("members of a cluster")
    sizes.set_xticks(positions, names, rotation=90, fontsize=7)
    return figure


def draw_bank_history(metrics: Path, file: Path) -> Path:
    """Fill of the bank and cluster sizes over the epochs, from the CSV logger's file.

    Args:
        metrics: `metrics.csv` of a training run.
        file: PNG to write.

    Returns:
        `file`.

    Raises:
        WsssError: the file is missing or holds no `bank/` columns.
    """
    if not metrics.is_file():
        raise WsssError(f"{metrics}: no such file; train with the csv logger first")
    with metrics.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("bank/fill_mean")]
    if not rows:
        raise WsssError(f"{metrics}: no bank/fill_mean column; it is not the log of a CPAL run")
    epochs = [int(row["epoch"]) + 1 for row in rows]
    figure = _figure(9, 3.4)
    panels = {"entries per class": ("fill_mean", "fill_min"),
              "members of a cluster": ("cluster_size_mean", "cluster_size_max")}  # fmt: skip
    for axis, (title, columns) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for column in columns:
            axis.plot(epochs, [float(row[f"bank/{column}"]) for row in rows], "o-", label=column)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.set_ylim(bottom=0)
        axis.legend()
    figure.savefig(file, dpi=100)
    return file


def _figure(width: float, height: float) -> Figure:
    """A figure without pyplot's global state; size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _overlay(axis: Axes, picture: np.ndarray, values: Tensor | None, title: str) -> None:
    """The photograph, under a map (h, w) in [0, 1] where there is one."""
    axis.imshow(picture)
    if values is not None:
        size = (picture.shape[0], picture.shape[1])
        large = F.interpolate(values[None, None].float(), size=size, mode="bilinear")
        axis.imshow(large[0, 0].cpu().numpy(), cmap="jet", alpha=0.55, vmin=0, vmax=1)
    axis.set_title(title, fontsize=8)
    axis.set_axis_off()
