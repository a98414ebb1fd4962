"""Many readings of CPAL at test time, on trained weights, in one pass over the scored photographs.

    python tools/readings.py --to FOLDER/0 experiment=several_voc2007_mini data.root=DIR checkpoint=FILE seed=0

Looks at every photograph once (all scales, image and mirror), keeps what is seen below `--cache`,
and scores each of `readings()` on the masks: confusion matrices and threshold curves image by
image. The weights are those of `method=several`, `cpal_small` or `sipe_small`.
`tools/readings_table.py` compares the readings over seeds.

The readings are written apart from the branch, by other means (one image at a time, algebra
instead of broadcasting); those that are also the program's are tested against it.
"""  # noqa: E501

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from wsss.build.objects import build_image_set, load_network, whole_set  # noqa: E402
from wsss.build.settings import Settings  # noqa: E402
from wsss.build.sources import find_checkpoint  # noqa: E402
from wsss.cli import compose_for_doctor, quote_paths  # noqa: E402
from wsss.data.base import ImageSet  # noqa: E402
from wsss.evaluation.confusion import confusion  # noqa: E402
from wsss.evaluation.curves import ThresholdCurve  # noqa: E402
from wsss.evaluation.per_image import Collector, Sparse, read_confusions, write_confusions  # noqa: E402
from wsss.evaluation.seeds import seed_labels  # noqa: E402
from wsss.maps.functional import add_background, resize_maps  # noqa: E402
from wsss.maps.fuse import enlarge, fuse_scales  # noqa: E402
from wsss.methods.cpal.kmeans import group_means, kmeans  # noqa: E402
from wsss.methods.network import SeedNetwork  # noqa: E402
from wsss.methods.several import Several  # noqa: E402
from wsss.methods.sipe.branch import SIPE  # noqa: E402

THRESHOLDS = np.round(np.arange(0.01, 0.805, 0.01), 6)
STRIDE = 4  # of fused maps, as stage=make_cam has it
TINY = 1e-8


# What is seen of an image.


@dataclass
class Look:
    """One image at one scale in the feature space of a branch; K classes present, L positions.

    Attributes:
        z: features (d, L).
        maps: the CAM's M (K+1, L) in [0, 1], background (1 - max over present classes) first.
        grid: height and width, L in all.
    """

    z: Tensor
    maps: Tensor
    grid: tuple[int, int]

    @cached_property
    def relation(self) -> Tensor:
        """ReLU(cos) of every position with every other one, (L, L)."""
        unit = F.normalize(self.z, dim=0)
        return (unit.T @ unit).relu_()

    @cached_property
    def mass(self) -> Tensor:
        """Sum of each position's relations, (L,)."""
        return self.relation.sum(0)

    @cached_property
    def square(self) -> Tensor:
        """Squared length of each position's feature, (L,)."""
        return self.z.square().sum(0)

    @cached_property
    def seeds(self) -> Tensor:
        """Seeds (K+1, L) of the CAM."""
        return self.locate(self.maps)

    def scores(self, maps: Tensor) -> Tensor:
        """Soft IoU of each position's structure with each map, (K+1, L) (SIPE eq. 4)."""
        inter = maps @ self.relation
        return inter / (self.mass + maps.sum(1, keepdim=True) - inter).clamp(min=1e-5)

    def locate(self, maps: Tensor) -> Tensor:
        """Seeds (K+1, L): each position to the class of the highest score."""
        owner = self.scores(maps).argmax(0)
        return F.one_hot(owner, len(maps)).T.float()

    def anchors(self, weights: Tensor) -> Tensor:
        """Mean feature over each row of weights, (K+1, d); 0 for a row of zeros."""
        return weights @ self.z.T / weights.sum(1, keepdim=True).clamp(min=TINY)


@dataclass
class Bank:
    """What is known of the training images: by class, the background first, in one space.

    Attributes:
        entries: anchors, (n, d) each.
        context: their clusters' means, (k, d) each.
        mean: of the entries, (N+1, d).
    """

    entries: list[Tensor]
    context: list[Tensor]
    mean: Tensor


def cluster(anchors: Tensor, classes: Tensor, count: int, size: int, k: int, seed: int) -> Bank:
    """Bank of the last `size` anchors (P, d) of each of `count` classes."""
    entries = [anchors[classes == c][-size:] for c in range(count)]
    # The branch numbers the background last, and a class's draws go by its number.
    order = [*range(1, count), 0]
    lengths = torch.tensor([len(entries[c]) for c in order])
    points = torch.zeros(count, int(lengths.max()), anchors.shape[1])
    for row, c in enumerate(order):
        points[row, : len(entries[c])] = entries[c]
    assignment, _, sizes = kmeans(points, lengths, k, seed)
    means = group_means(points, assignment, k)
    place = {c: row for row, c in enumerate(order)}
    context = [means[place[c], : int((sizes[place[c]] > 0).sum())] for c in range(count)]
    mean = torch.stack([e.mean(0) if len(e) else e.new_zeros(e.shape[1]) for e in entries])
    return Bank(entries, context, mean)


class Observer:
    """Runs a network over photographs; keeps what is seen in files."""

    def __init__(self, s: Settings, cache: Path) -> None:
        self.s = s
        self.images = build_image_set(s)
        checkpoint, weights = find_checkpoint(s, "readings", self.images.classes)
        self.folder = cache / weights[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.network = load_network(s, checkpoint, self.images.classes)
        self.host = self.network.host
        self.branches = branches_of(self.network)
        self.host.folded()

    def samples(self) -> Iterator[dict[str, Any]]:
        """What is seen of each scored image: `name`, `classes`, `size`, `looks` by scale."""
        for sample in self._images(self.s.data.eval_split, self.s.data.scales):
            path = self.folder / f"{sample['name']}.pt"
            if not path.is_file():
                torch.save(self._see(sample, list(self.branches), mirror=True), path)
            seen = torch.load(path, weights_only=True)
            yield {"name": sample["name"], "size": tuple(sample["size"].tolist()), **seen}

    @torch.no_grad()
    def bank(self, space: str) -> Bank:
        """The bank of the training images under the weights, as `test.refresh_bank` makes it."""
        path = self.folder / f"bank of {space}.pt"
        if not path.is_file():
            found, classes = [], []
            for sample in self._images(self.s.data.train_split, (1.0,)):
                seen = self._see(sample, [space], mirror=False)
                (look,) = looks_of(seen, space)
                there = look.seeds.sum(1) > 0
                found.append(look.anchors(look.seeds)[there])
                classes.append(torch.tensor([0, *seen["classes"]])[there])
            torch.save((torch.cat(found), torch.cat(classes)), path)
        bank, count = self.branches[space].bank, self.images.num_classes + 1
        k = bank.context.shape[1]
        return cluster(*torch.load(path), count, bank.size, k, self.s.seed)

    def _images(self, split: str, scales: tuple[float, ...]) -> DataLoader:
        return whole_set(self.s, self.images, self.host, split, scales).loader()

    @torch.no_grad()
    def _see(self, sample: Mapping[str, Any], spaces: list[str], mirror: bool) -> dict[str, Any]:
        label = sample["label"]
        looks: list[dict[str, Any]] = []
        own: dict[str, list[Tensor]] = {}
        for image in sample["images"]:
            if mirror:
                seen, cam = self.network.see_pair(image, label)
            else:
                seen = self.network(image[None], label[None])
                cam = self.host.general(seen)
            z = {name: features_of(self.branches[name], seen) for name in spaces}
            grid = next(iter(z.values())).shape[-2:]
            maps = resize_maps(add_background(cam * label[:, None, None]), grid, True)[0]
            kept = torch.cat([torch.ones(1), label]) > 0
            looks.append(
                {
                    "z": {name: one[0].flatten(1).clone() for name, one in z.items()},
                    "maps": maps[kept].flatten(1).clone(),
                    "grid": list(grid),
                }
            )
            if mirror:  # the program's own, as far as they need no bank
                own.setdefault("cam", []).append(self.host.maps(seen, label)["cam"].clone())
                for name, branch in self.branches.items():
                    if isinstance(branch, SIPE):
                        maps = branch.maps(seen, cam, label)["is_cam"]
                        own.setdefault(name, []).append(maps.clone())
        return {"classes": (label.nonzero().flatten() + 1).tolist(), "looks": looks, "own": own}


def branches_of(network: SeedNetwork) -> dict[str, Any]:
    """The branches of a network by name."""
    branch = network.branch
    if isinstance(branch, Several):
        return dict(branch.branches.items())
    return {"sipe" if isinstance(branch, SIPE) else "cpal": branch}


def features_of(branch: Any, seen: Any) -> Tensor:
    """Features (1, d, h, w) of an image, or the mean of those of image and mirror image."""
    z = branch._spaces(seen)["g"] if isinstance(branch, SIPE) else branch.project(seen.features)
    return z if len(z) == 1 else (z[:1] + z[1:].flip(-1)) / 2


def looks_of(seen: Mapping[str, Any], space: str) -> list[Look]:
    """The image's looks, one for each scale, in the space of a branch."""
    return [Look(one["z"][space], one["maps"], tuple(one["grid"])) for one in seen["looks"]]


# Readings.


@dataclass(frozen=True)
class Reading:
    """How maps are made of an image's looks.

    Attributes:
        space: name of the branch whose features they are.
        prototypes: `none`, `mean` of the class's bank, its `context` clusters or all `entries`.
        own: whether the image's own anchor stands among the prototypes.
        neighbors: how many of the nearest prototypes; None: all.
        temperature: divisor of the dot product in the softmax; 0: equal weights; None: √d.
        normalized: whether that product is of unit vectors.
        shift: whether features are moved by bank mean - anchor.
        form: `cosines` Σ w cos; `vector` cos to p + Σ w p_j; `residual` the same with unit
            vectors; `max`, `relu` over prototypes one by one; `softmax` their log-mean-exp.
        soft: whether anchors weigh positions by M.
        background: `own` anchor, `complement` 1 - max, or like a class with its own bank: `bank`
            by `form`, `nearest` by the largest cosine.
        compete: factor on the best other present class's response, subtracted.
        rounds: how seeds are located again, each time from M mixed with the last answer.
        fused: whether the last answer is that of all scales together.
        kept_background: whether its background is mixed too, or 1 - max of the mixed classes.
    """

    space: str = "cpal"
    prototypes: str = "context"
    own: bool = True
    neighbors: int | None = 20
    temperature: float | None = None
    normalized: bool = False
    shift: bool = True
    form: str = "cosines"
    soft: bool = False
    background: str = "own"
    compete: float = 0.0
    rounds: tuple[float | str, ...] = ()
    fused: bool = False
    kept_background: bool = True


def unit(values: Tensor) -> Tensor:
    """Vectors of length 1."""
    return F.normalize(values, dim=-1)


def scaled(maps: Tensor) -> Tensor:
    """Rows divided by their maxima."""
    return maps / (maps.amax(1, keepdim=True) + 1e-5)


def cosines(look: Look, queries: Tensor, shift: Tensor | None) -> Tensor:
    """⟨q, (z + ξ)/‖z + ξ‖⟩ of queries (k, d), (k, L)."""
    product, square = queries @ look.z, look.square
    if shift is not None:
        product = product + (queries @ shift)[:, None]
        square = square + 2 * (shift @ look.z) + shift.square().sum()
    return product / square.clamp(min=TINY**2).sqrt()


def weights_of(r: Reading, anchor: Tensor, prototypes: Tensor) -> Tensor:
    """Weights (k,) of prototypes (k, d), 0 where they are none of the nearest."""
    near = unit(prototypes) @ unit(anchor)
    chosen = torch.ones_like(near)
    if r.neighbors is not None and r.neighbors < len(near):
        chosen = torch.zeros_like(near).scatter(0, near.topk(r.neighbors).indices, 1)
    if r.temperature == 0:
        return chosen / chosen.sum()
    divisor = len(anchor) ** 0.5 if r.temperature is None else r.temperature
    score = near if r.normalized else prototypes @ anchor
    return torch.softmax((score / divisor).masked_fill(chosen == 0, -torch.inf), 0)


def respond(r: Reading, look: Look, anchor: Tensor, bank: Bank | None, c: int) -> Tensor:
    """Response (L,) of a class, signed."""
    if bank is None or r.prototypes == "none" or not len(bank.entries[c]):
        return cosines(look, unit(anchor)[None], None)[0]
    shift = bank.mean[c] - anchor if r.shift else None
    prototypes = {
        "mean": bank.mean[c][None],
        "context": bank.context[c],
        "entries": bank.entries[c],
    }[r.prototypes]
    if r.own and r.form not in ("vector", "residual"):
        prototypes = torch.cat([prototypes, anchor[None]])
    w = weights_of(r, anchor, prototypes)
    if r.form == "cosines":
        return cosines(look, (w @ unit(prototypes))[None], shift)[0]
    if r.form == "vector":
        return cosines(look, unit(anchor + w @ prototypes)[None], shift)[0]
    if r.form == "residual":
        return cosines(look, unit(unit(anchor) + w @ unit(prototypes))[None], shift)[0]
    each = cosines(look, unit(prototypes[w > 0]), shift)
    w = w[w > 0]
    if r.form == "max":
        return ((w / w.max())[:, None] * each.relu()).amax(0)
    if r.form == "relu":
        return w @ each.relu()
    return torch.logsumexp(each / 0.05 + w.log()[:, None], 0) * 0.05


def answer(r: Reading, look: Look, seeds: Tensor, bank: Bank | None, rows: Sequence[int]) -> Tensor:
    """Maps (K+1, L) in [0, 1] of an image whose classes, 0 first, are `rows`."""
    p = look.anchors(seeds * look.maps if r.soft else seeds)
    there = (seeds.sum(1) > 0).tolist()
    signed = [respond(r, look, p[k], bank, c) for k, c in enumerate(rows) if k]
    foreground = torch.stack(signed) if signed else look.z.new_zeros(0, look.z.shape[1])
    if r.compete and len(foreground) > 1:
        others = torch.stack(
            [
                torch.cat([foreground[:k], foreground[k + 1 :]]).amax(0)
                for k in range(len(foreground))
            ]
        )
        foreground = foreground - r.compete * others.relu()
    foreground = scaled(foreground.relu())
    for k in range(len(foreground)):
        if not there[k + 1]:
            foreground[k] = look.maps[k + 1]
    complement = 1 - (foreground.amax(0, keepdim=True) if len(foreground) else 0 * look.maps[:1])
    if r.background == "complement" or not there[0]:
        return torch.cat([complement, foreground])
    own = replace(r, prototypes="none")
    if r.background == "bank":
        own = r
    elif r.background == "nearest":
        own = replace(
            r, prototypes="context", form="max", neighbors=None, temperature=0, shift=False
        )
    background = respond(own, look, p[0], bank, 0)[None].relu()
    return torch.cat([scaled(background), foreground])


def mixed(how: float | str, r: Reading, maps: Tensor, found: Tensor) -> Tensor:
    """M and an answer in one: weight of the answer, or `geometric` mean."""
    found = scaled(found)
    both = (maps * found).sqrt() if how == "geometric" else (1 - how) * maps + how * found  # type: ignore[operator]
    if r.kept_background or len(both) == 1:
        return both
    both = scaled(both)
    return torch.cat([1 - both[1:].amax(0, keepdim=True), both[1:]])


def maps_of(
    r: Reading, looks: Sequence[Look], bank: Bank | None, rows: Sequence[int]
) -> list[Tensor]:
    """Maps (K+1, h, w) at each scale."""
    found = [answer(r, look, look.seeds, bank, rows) for look in looks]
    for how in r.rounds:
        last = found
        if r.fused:
            together = fuse_scales(shaped(found, looks), looks[0].grid)[None]
            last = [resize_maps(together, look.grid, False)[0].flatten(1) for look in looks]
        found = [
            answer(r, look, look.locate(mixed(how, r, look.maps, one)), bank, rows)
            for look, one in zip(looks, last, strict=True)
        ]
    return shaped(found, looks)


def shaped(found: Sequence[Tensor], looks: Sequence[Look]) -> list[Tensor]:
    """Maps (K+1, L) at each scale as (K+1, h, w)."""
    return [one.unflatten(1, look.grid) for one, look in zip(found, looks, strict=True)]


def readings() -> dict[str, Reading]:
    """The readings, by what they are called."""
    own = Reading(prototypes="none", shift=False)
    mean, near = Reading(prototypes="mean"), Reading()
    made = {}
    for name, one in {
        "SIPE own": replace(own, space="sipe"),
        "own": own,
        "mean": mean,
        "K 20": near,
        "all": replace(near, neighbors=None),
        "entries, K 20": replace(near, prototypes="entries"),
    }.items():
        made[name] = one
        made[f"{name}, 2 rounds"] = replace(one, rounds=(0.5,))
        made[f"{name}, 2 rounds geometric"] = replace(one, rounds=("geometric",))
        made[f"{name}, 2 rounds all scales"] = replace(one, rounds=(0.5,), fused=True)
    # The background of the mixed maps is 1 - max of the mixed classes, instead of mixed itself.
    for name in ("SIPE own", "own", "K 20", "entries, K 20"):
        two = replace(made[name], rounds=(0.5,), kept_background=False)
        made |= {
            f"{name}, 2 rounds of 1 - max": two,
            f"{name}, 3 rounds of 1 - max": replace(two, rounds=(0.5, 0.5)),
            f"{name}, 2 rounds of 1 - max, all scales": replace(two, fused=True),
            f"{name}, 3 rounds of 1 - max, all scales": replace(two, rounds=(0.5, 0.5), fused=True),
        }
        if name != "own":
            made[f"{name}, 2 rounds of 1 - max, background 1 - max"] = replace(
                two, background="complement"
            )
    made["SIPE own, background 1 - max"] = replace(made["SIPE own"], background="complement")
    for name, one in {"mean": mean, "K 20": near}.items():
        two = replace(one, rounds=(0.5,))
        made |= {
            f"{name}, 2 rounds .25": replace(one, rounds=(0.25,)),
            f"{name}, 2 rounds .75": replace(one, rounds=(0.75,)),
            f"{name}, 2 rounds from PACAM": replace(one, rounds=(1.0,)),
            f"{name}, 3 rounds": replace(one, rounds=(0.5, 0.5)),
            f"{name}, 3 rounds all scales": replace(one, rounds=(0.5, 0.5), fused=True),
            f"{name}, no shift": replace(one, shift=False),
            f"{name}, 2 rounds, no shift": replace(two, shift=False),
            f"{name}, without own": replace(one, own=False),
            f"{name}, residual, no shift": replace(one, form="residual", shift=False),
            f"{name}, 2 rounds, residual, no shift": replace(two, form="residual", shift=False),
            f"{name}, 2 rounds, compete .5": replace(two, compete=0.5),
        }
    return made | {
        "K 5": replace(near, neighbors=5),
        "K 10": replace(near, neighbors=10),
        "K 5, no shift": replace(near, neighbors=5, shift=False),
        "raw dot": replace(near, temperature=1.0),
        "raw dot, vector, no shift": replace(near, temperature=1.0, form="vector", shift=False),
        "cosine / .05": replace(near, temperature=0.05, normalized=True),
        "equal weights": replace(near, temperature=0),
        "max": replace(near, form="max", temperature=0),
        "max, no shift": replace(near, form="max", temperature=0, shift=False),
        "softmax": replace(near, form="softmax", temperature=0),
        "soft anchors": replace(near, soft=True),
        "compete .5": replace(near, compete=0.5),
        "compete 1": replace(near, compete=1.0),
        "background bank": replace(near, background="bank"),
        "background nearest": replace(near, background="nearest"),
        "background 1 - max": replace(near, background="complement"),
    }


# Scores.


class Scorer:
    """Confusion matrices and threshold curves of many readings, image by image."""

    def __init__(self, images: ImageSet) -> None:
        self.images, self.labels = images, images.num_classes + 1
        self.curve = ThresholdCurve(self.labels, THRESHOLDS)
        self.rows: dict[str, tuple[Collector, Collector]] = {}

    def add(
        self, row: str, name: str, truth: np.ndarray, maps: np.ndarray, classes: np.ndarray
    ) -> None:
        """Score fused maps (K[+1], h, w) of an image."""
        own = len(maps) > len(classes)
        large = enlarge(maps, truth.shape)
        label, best, value = seed_labels(large, classes, None if own else 0.15)
        cells = confusion(truth, label, self.labels).ravel()
        there = np.flatnonzero(cells)
        matrix = Sparse(there.astype(np.int32), cells[there].astype(np.int32))
        if row not in self.rows:
            self.rows[row] = Collector(self.images.classes), Collector(self.images.classes)
        self.rows[row][0].add(name, matrix)
        self.rows[row][1].add(name, self.curve.count(truth, best, value))

    def write(self, folder: Path) -> None:
        """Write `confusions.npz` and `curves.npz`; other rows that are there already stay."""
        folder.mkdir(parents=True, exist_ok=True)
        matrices, curves = folder / "confusions.npz", folder / "curves.npz"
        rows = {row: one.confusions() for row, (one, _) in self.rows.items()}
        parts = {row: one.confusions().triplets for row, (_, one) in self.rows.items()}
        if matrices.is_file():
            rows = read_confusions(matrices) | rows
            with np.load(curves, allow_pickle=False) as stored:
                parts = {row: stored[row] for row in stored.files} | parts
        write_confusions(matrices, rows)
        np.savez_compressed(curves, **parts)


@torch.no_grad()
def measure(s: Settings, to: Path, cache: Path, chosen: Callable[[str], bool]) -> None:
    """Score the program's own maps and all readings with one checkpoint."""
    observer = Observer(s, cache)
    begun = time.monotonic()
    there = observer.branches
    wanted = {name: r for name, r in readings().items() if r.space in there and chosen(name)}
    banks = {r.space: observer.bank(r.space) for r in wanted.values() if r.prototypes != "none"}
    print(f"banks: {time.monotonic() - begun:.0f} s", flush=True)
    scorer = Scorer(observer.images)
    for seen in observer.samples():
        truth = observer.images.mask(seen["name"])
        assert truth is not None
        grid = tuple((side - 1) // STRIDE + 1 for side in seen["size"])
        classes = np.array(seen["classes"])

        def score(row: str, maps: Sequence[Tensor]) -> None:
            fused = fuse_scales(maps, grid).numpy()  # noqa: B023
            scorer.add(row, seen["name"], truth, fused, classes)  # noqa: B023

        for row, maps in seen["own"].items():
            score(row, maps)
        looks = {space: looks_of(seen, space) for space in observer.branches}
        for name, r in wanted.items():
            rows = [0, *seen["classes"]]
            score(name, maps_of(r, looks[r.space], banks.get(r.space), rows))
    scorer.write(to)
    print(f"{len(scorer.rows)} readings in {time.monotonic() - begun:.0f} s: {to}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, required=True, help="folder of the results")
    parser.add_argument("--cache", type=Path, default=Path("outputs/cache/readings"))
    parser.add_argument("--rows", default="*", help="patterns of names, with ; between")
    parser.add_argument("overrides", nargs="+", help="settings, as for run.py")
    args = parser.parse_args()
    patterns = args.rows.split(";")
    measure(
        compose_for_doctor([quote_paths(one) for one in args.overrides]),
        args.to,
        args.cache,
        lambda name: any(fnmatch.fnmatchcase(name, one) for one in patterns),
    )


if __name__ == "__main__":
    main()
