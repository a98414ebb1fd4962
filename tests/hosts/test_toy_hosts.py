"""Hosts of one's own, added as an outsider adds them: a class, a file of settings, a search path.

`Tokens` sees one feature map, made of tokens; `Colors` learns nothing: its maps are a closed form
of the pixels.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from wsss.data.masks import write_mask
from wsss.files import read_json
from wsss.hosts.base import Host, HostSettings, Seen, add_mirror, groups, relu_pair
from wsss.hosts.optimizer import OptimizerSettings
from wsss.maps.files import read_class_maps
from wsss.maps.functional import classification_loss
from wsss.methods.cpal.branch import CPAL
from wsss.methods.cpal.settings import CPALSettings
from wsss.methods.network import SeedNetwork
from wsss.settings import settings

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("red", "green", "blue")
SIDE, PATCH = 48, 8
RECIPE = """# @package _global_
defaults:
  - override /data: folder
  - override /trainer: cpu
data: {name: colors, crop_size: 48, long_side: [48, 48], batch_size: 4, scales: [1.0]}
trainer: {precision: 32-true}
training: {max_epochs: 3}
optimizer: {lr: 0.01, head_lr: 0.01}
make_cam: {stride: 8, pictures: 0, dtype: float16}
eval_cam: {workers: 1, pictures: 0, background: 0.3}
"""


@settings
class TokenSettings:
    """Its width."""

    width: int = 12


class Tokens(Host):
    """A line of patch tokens, mixed once, reshaped to a grid; one feature map."""

    Settings: ClassVar[type] = TokenSettings
    on_backbone: ClassVar[bool] = False
    kinds: ClassVar[dict[str, bool]] = {"patch": False}
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)

    def __init__(self, options: Any, classes: Sequence[str]) -> None:
        super().__init__(options, classes)
        self.channels = (options.width,)
        self.embed = nn.Linear(3 * PATCH * PATCH, options.width)
        self.mix = nn.Linear(options.width, options.width)
        self.head = nn.Linear(options.width, len(self.classes))

    def forward(self, images: Tensor, label: Tensor) -> Seen:
        grid = (images.shape[2] // PATCH, images.shape[3] // PATCH)
        tokens = self.embed(F.unfold(images, PATCH, stride=PATCH).transpose(1, 2))  # (B, T, C)
        tokens = tokens + self.mix(tokens.relu())
        feature, maps = (x.transpose(1, 2).unflatten(2, grid) for x in (tokens, self.head(tokens)))
        return Seen((feature,), maps)

    def losses(self, seen: Seen, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"cls": classification_loss(seen.activation, batch["label"])}

    def maps(self, seen: Seen, label: Tensor) -> dict[str, Tensor]:
        return {"patch": relu_pair(seen)[label.bool()]}

    def parameter_groups(self, lr: float, head_lr: float) -> list[dict[str, Any]]:
        body = [*self.embed.parameters(), *self.mix.parameters()]
        return groups(("body", body, lr), ("head", self.head.parameters(), head_lr))


class Colors(Host):
    """The map of a class is how much of its color a cell of 8 x 8 pixels has; nothing learns."""

    on_backbone: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    kinds: ClassVar[dict[str, bool]] = {"color": False, "with_rest": True}
    channels = (3,)
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self, options: Any, classes: Sequence[str]) -> None:
        super().__init__(options, classes)
        self.scale = nn.Parameter(torch.ones(3))  # weights that must stay as they are

    def forward(self, images: Tensor, label: Tensor) -> Seen:
        cells = F.avg_pool2d(images, PATCH) * self.scale[:, None, None]
        return Seen((cells,), 3 * cells - cells.sum(1, keepdim=True))

    def maps(self, seen: Seen, label: Tensor) -> dict[str, Tensor]:
        own = add_mirror(seen.activation.relu())[0][label.bool()]
        rest = (add_mirror(seen.features[-1])[0].sum(0, keepdim=True)) / 6
        return {"color": own, "with_rest": torch.cat([rest, own])}


def write_data(root: Path) -> None:
    """Eight photographs of gray noise with rectangles in the colors of their classes."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    rows = []
    for i in range(8):
        pixels = rng.integers(90, 110, (SIDE, SIDE, 3), dtype=np.uint8)
        mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
        present = sorted({i % 3, (i // 3) % 3})
        for place, n in enumerate(present):
            where = (slice(8 * place, 8 * place + 24), slice(24 * place, 24 * place + 16))
            pixels[where] = 30
            pixels[where][..., n] = 220
            mask[where] = n + 1
        Image.fromarray(pixels).save(root / "images" / f"p{i}.png")
        write_mask(root / "masks" / f"p{i}.png", mask)
        rows.append(f"p{i}," + ";".join(CLASSES[n] for n in present))
    (root / "classes.txt").write_text("\n".join(CLASSES))
    (root / "labels.csv").write_text("name,classes\n" + "\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """`runs("tokens", "cpal")`: the folder of a finished run of the program, made once."""
    home = tmp_path_factory.mktemp("toy_hosts")
    write_data(home / "data")
    (home / "conf" / "host").mkdir(parents=True)
    for name in ("Tokens", "Colors"):
        (home / "conf" / "host" / f"{name.lower()}.yaml").write_text(
            f"# A host of one's own.\n_target_: test_toy_hosts.{name}\n"
        )
    (home / "conf" / "experiment").mkdir()
    (home / "conf" / "experiment" / "toys.yaml").write_text(RECIPE)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{Path(__file__).parent}:{ROOT}"}
    made: dict[str, Path] = {}

    def run(host: str, method: str) -> Path:
        # One start of the program for both methods.
        if host not in made:
            command = [
                *(sys.executable, str(ROOT / "run.py"), "-m", f"host={host}", "method=cam,cpal"),
                *(f"hydra.searchpath=[file://{home / 'conf'}]", f"paths.outputs={home / host}"),
                *("experiment=toys", f"data.root={home / 'data'}", "run_name=run", "stage=all"),
            ]
            done = subprocess.run(command, cwd=home, env=env, capture_output=True, timeout=300)
            assert done.returncode == 0, (done.stdout + done.stderr).decode()
            made[host] = home / host / "run"
        (found,) = [path for path in made[host].iterdir() if f"method={method}" in path.name]
        return found

    return run


def images_of(runs: Callable[[str, str], Path]) -> dict[str, np.ndarray]:
    folder = runs("colors", "cam").parents[2] / "data" / "images"
    return {path.stem: np.asarray(Image.open(path)) for path in sorted(folder.iterdir())}


def closed_form(pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Normalized color maps (K, 6, 6), by loops."""
    maps = np.zeros((len(classes), SIDE // PATCH, SIDE // PATCH))
    for k, n in enumerate(classes - 1):
        for y in range(SIDE // PATCH):
            for x in range(SIDE // PATCH):
                cell = pixels[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].reshape(-1, 3).mean(0) / 255
                maps[k, y, x] = max(0.0, 3 * cell[n] - cell.sum())
    return maps / (maps.max(axis=(1, 2), keepdims=True) + 1e-5)


def test_a_host_that_learns_nothing_has_no_checkpoint_and_its_own_maps(runs) -> None:
    run = runs("colors", "cam")
    assert read_json(run / "train" / "manifest.json")["trained"] is False
    assert not list(run.rglob("*.ckpt")) and not (run / "train" / "metrics.csv").exists()
    for name, pixels in images_of(runs).items():
        stored = read_class_maps(run / "make_cam" / "maps" / f"{name}.npz")
        assert list(stored.maps) == ["color", "with_rest"]
        wanted = closed_form(pixels, stored.classes)
        np.testing.assert_allclose(stored.maps["color"], wanted, atol=2e-3)


def test_a_method_on_it_trains_its_branch_alone(runs) -> None:
    run = runs("colors", "cpal")
    state = torch.load(run / "train" / "last.ckpt", weights_only=True)
    assert torch.equal(state["state_dict"]["host.scale"], torch.ones(3))
    (optimizer,) = state["optimizer_states"]
    assert [group["name"] for group in optimizer["param_groups"]] == ["branch"]
    with (run / "train" / "metrics.csv").open(newline="") as file:
        losses = [row["train/loss_self"] for row in csv.DictReader(file)]
    assert max(float(loss) for loss in losses if loss) > 0
    for path in (run / "make_cam" / "maps").iterdir():
        ours = read_class_maps(path)
        host = read_class_maps(runs("colors", "cam") / "make_cam" / "maps" / path.name)
        for kind in ("color", "with_rest"):
            assert np.array_equal(ours.maps[kind], host.maps[kind])


@pytest.mark.parametrize(
    ("host", "kinds"),
    [("tokens", {"patch": False}), ("colors", {"color": False, "with_rest": True})],
)
@pytest.mark.parametrize("method", ["cam", "cpal"])
def test_files_hold_the_declared_kinds(
    runs, host: str, method: str, kinds: dict[str, bool]
) -> None:
    run = runs(host, method)
    kinds = {**kinds, **({"pacam": True} if method == "cpal" else {})}
    assert read_json(run / "make_cam" / "manifest.json")["kinds"] == kinds
    paths = list((run / "make_cam" / "maps").iterdir())
    assert len(paths) == 8
    for path in paths:
        stored = read_class_maps(path)
        assert {kind: stored.has_background(kind) for kind in stored.maps} == kinds
        for values in stored.maps.values():
            assert values.shape[1:] == (6, 6) and values.min() >= 0 and values.max() <= 1


def enlarged(maps: np.ndarray) -> np.ndarray:
    """(K, 48, 48) of (K, 6, 6) by bilinear interpolation between centers, by loops."""
    out = np.zeros((len(maps), SIDE, SIDE))
    for y in range(SIDE):
        for x in range(SIDE):
            v, u = (min(max((p + 0.5) / PATCH - 0.5, 0), 5) for p in (y, x))
            v0, u0 = int(v), int(u)
            v1, u1, a, b = min(v0 + 1, 5), min(u0 + 1, 5), v - v0, u - u0
            top = (1 - b) * maps[:, v0, u0] + b * maps[:, v0, u1]
            out[:, y, x] = (1 - a) * top + a * ((1 - b) * maps[:, v1, u0] + b * maps[:, v1, u1])
    return out


@pytest.mark.parametrize("host", ["tokens", "colors"])
@pytest.mark.parametrize("method", ["cam", "cpal"])
def test_the_score_is_that_of_a_slow_computation_from_the_files(
    runs, host: str, method: str
) -> None:
    run = runs(host, method)
    metrics = read_json(run / "eval_cam" / "metrics.json")
    data = run.parents[2] / "data"
    for kind in read_json(run / "make_cam" / "manifest.json")["kinds"]:
        inter, union = np.zeros(4), np.zeros(4)
        for path in (run / "make_cam" / "maps").iterdir():
            stored = read_class_maps(path, kind)
            maps = enlarged(stored.maps[kind])
            if not stored.has_background(kind):
                maps = np.concatenate([np.full((1, SIDE, SIDE), 0.3), maps])
            label = np.array([0, *stored.classes])[maps.argmax(0)]
            truth = np.asarray(Image.open(data / "masks" / f"{path.stem}.png"))
            for n in range(4):
                inter[n] += ((label == n) & (truth == n)).sum()
                union[n] += ((label == n) | (truth == n)).sum()
        miou = 100 * (inter[union > 0] / union[union > 0]).mean()
        assert metrics[kind]["miou"] == pytest.approx(miou, abs=0.05), kind


@pytest.mark.parametrize("with_method", [False, True])
def test_optimizer_groups_cover_every_parameter_once(with_method: bool) -> None:
    class Steps:
        estimated_stepping_batches, max_epochs = 10, 1

    host = Tokens(TokenSettings(), CLASSES)
    branch = CPAL(CPALSettings(projection_dim=8), host.channels, 3) if with_method else None
    network = SeedNetwork(host, branch, OptimizerSettings(lr=0.1, head_lr=1.0))
    network._trainer = Steps()  # type: ignore[assignment]
    optimizer = network.configure_optimizers()["optimizer"]
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters())
    rates = {group["name"]: group["initial_lr"] for group in optimizer.param_groups}
    assert rates == {"body": 0.1, "head": 1.0, **({"branch": 1.0} if with_method else {})}


def test_a_training_free_host_needs_a_method_to_learn() -> None:
    network = SeedNetwork(Colors(HostSettings(), CLASSES), None, OptimizerSettings(lr=1, head_lr=1))
    assert not network.learns
