"""Pretrain the demo's backbone as ImageNet weights are made: a classifier of other objects.

    python tools/demo_backbone.py [--out FILE]

writes `wsss/backbones/scenes.safetensors` (float16), the weights behind `backbone.weights=scenes`.
It learns to tell 48 kinds of thing apart by their image labels, on scenes that it draws itself.
They have the demo's backgrounds, stones and plain colors, but none of its six classes. A kind is
one of twelve bodies with one of twelve marks on it. Every body and every mark belongs to four
kinds, so that neither tells the kind alone, and crops and erased patches hide either: the network
has to look at whole objects, as one that knows a thousand classes has.

Two runs on one machine with the same versions and number of threads give the same file.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from wsss.backbones.base import SHIPPED
from wsss.backbones.small import SmallResNet
from wsss.data.scene_drawing import Canvas, Pen, draw_background, draw_stones
from wsss.data.scenes import placement

SEED = 2024
BODIES, MARKS, MARKS_OF_A_BODY = 12, 12, 4
KINDS = BODIES * MARKS_OF_A_BODY
BACKGROUNDS = ("sky", "water", "road", "room", "meadow")
SIZE, CROP = 128, 96  # pixels: of a scene, of what the network is shown
SCENES, HELD_OUT = 6000, 480
EPOCHS, BATCH, RATE, DECAY = 16, 64, 4e-3, 0.05


def form(name: str) -> np.ndarray:
    """Outline of a simple form within [-1, 1], (k, 2)."""
    if name in ("oval", "half", "hexagon", "star", "petals"):
        count = {"hexagon": 6, "star": 10, "petals": 60}.get(name, 30)
        angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
        radius = np.ones(count)
        if name == "star":
            radius[1::2] = 0.45
        if name == "petals":
            radius = 0.75 + 0.25 * np.cos(5 * angle)
        points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return np.minimum(points, (1, 0.2)) if name == "half" else points
    return np.array(
        {
            "box": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
            "triangle": [(-1, 1), (0, -1), (1, 1)],
            "wedge": [(-1, 0.2), (1, -1), (1, 1), (-1, 0.6)],
            "cup": [(-1, -1), (1, -1), (0.6, 1), (-0.6, 1)],
            "corner": [(-1, -1), (-0.3, -1), (-0.3, 0.3), (1, 0.3), (1, 1), (-1, 1)],
            "cross": [
                *[(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)],
                *[(0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
            ],
        }[name],
        dtype=np.float64,
    )


FORMS = (
    *("oval", "half", "hexagon", "star", "petals"),
    *("box", "triangle", "wedge", "cup", "corner", "cross"),
)


def placed(name: str, center: np.ndarray, radius: np.ndarray, turn: float) -> np.ndarray:
    """A form of some half width and height, turned by `turn` radians."""
    cos, sin = np.cos(turn), np.sin(turn)
    return center + (form(name) * radius) @ np.array([[cos, sin], [-sin, cos]])


def draw_body(pen: Pen, body: int) -> np.ndarray:
    """Paint a body, three to five plain parts, in the pen's two colors; gives a place for marks."""
    rng = np.random.default_rng([SEED, 1, body])
    spread = rng.permuted([rng.uniform(0.5, 0.85), rng.uniform(0.25, 0.5)])
    names = rng.choice(FORMS, 5, replace=False)
    pen.shape(placed(names[0], np.zeros(2), spread, rng.uniform(-0.3, 0.3)), pen.body)
    for number, name in enumerate(names[1 : rng.integers(3, 6)]):
        angle = rng.uniform(0, 2 * np.pi)
        center = 0.8 * spread * (np.cos(angle), np.sin(angle))
        radius = rng.uniform(0.14, 0.42, 2)
        color = pen.trim if number % 2 == 0 else pen.body
        pen.shape(placed(name, center, radius, rng.uniform(-0.6, 0.6)), color)
    return rng.uniform(-0.6, 0.6, 2) * spread


def draw_mark(pen: Pen, mark: int, center: np.ndarray) -> None:
    """Paint a mark: one to three equal spots in two strong colors."""
    rng = np.random.default_rng([SEED, 2, mark])
    outer, inner = rng.choice(FORMS, 2, replace=False)
    first, second = strong_color(rng), strong_color(rng)
    radius, turn = rng.uniform(0.18, 0.34, 2), rng.uniform(-1, 1)
    count = int(rng.integers(1, 4))
    step = rng.uniform(0.35, 0.6) * np.array([np.cos(turn), np.sin(turn)])
    for number in range(count):
        at = center + (number - (count - 1) / 2) * step
        size = radius / np.sqrt(count)
        pen.shape(placed(outer, at, size, turn), pen.vary(first))
        pen.shape(placed(inner, at, 0.5 * size, turn), pen.vary(second))


def strong_color(rng: np.random.Generator) -> np.ndarray:
    """A saturated, dark or light color."""
    return rng.permuted([rng.uniform(0, 80), rng.uniform(0, 255), rng.uniform(170, 255)])


def draw(kind: int, rng: np.random.Generator) -> np.ndarray:
    """A scene with one thing of a kind, (SIZE, SIZE, 3) uint8."""
    canvas = Canvas(draw_background(str(rng.choice(BACKGROUNDS)), SIZE, rng), rng)
    draw_stones(canvas, rng)
    half = SIZE * rng.uniform(0.2, 0.42)
    x, y = rng.uniform(0.9 * half, SIZE - 0.9 * half, 2)
    pen = Pen(canvas, 1, placement(x, y, half, rng), rng)
    body, which = divmod(kind, MARKS_OF_A_BODY)
    center = draw_body(pen, body)
    draw_mark(pen, (body + which * MARKS // MARKS_OF_A_BODY) % MARKS, center)
    haze = canvas.image * rng.uniform(0.85, 1.1) + rng.uniform(-8, 8)
    return np.clip(haze + rng.normal(0, 3, haze.shape), 0, 255).astype(np.uint8)


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scenes (count, 3, SIZE, SIZE) uint8, and their kinds (count,); each depends on its number."""
    kinds = torch.arange(count) % KINDS
    drawn = [
        draw(int(kind), np.random.default_rng([SEED, seed, number]))
        for number, kind in enumerate(kinds)
    ]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous(), kinds


def normalized(images: Tensor, backbone: SmallResNet) -> Tensor:
    """Images (B, 3, H, W) uint8 as the network wants them."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (backbone.mean, backbone.std))
    return (images / 255 - mean) / std


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of a third to all of each image, mirrored or not, with two patches erased."""
    count = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    share = uniform(0.35, 1.0).sqrt()[:, None] * uniform(0.87, 1.15, 1) ** torch.tensor([1, -1])
    share = share.clamp(max=1)
    offset = (1 - share) * uniform(-1, 1, 2)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = share[:, 0] * mirror, share[:, 1]
    theta[:, :, 2] = offset
    grid = F.affine_grid(theta, [count, 3, CROP, CROP], align_corners=False)
    crops = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    place = torch.arange(CROP)
    for _ in range(2):
        side, top, left = (uniform(*r)[:, None] for r in ((0, CROP / 3), (0, CROP), (0, CROP)))
        rows = (place >= top) & (place < top + side)
        columns = (place >= left) & (place < left + side)
        crops = crops.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)
    return crops


def main() -> None:
    """Draw, train, test, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=SHIPPED["scenes"], help="file to write")
    out = parser.parse_args().out
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    start = time.monotonic()
    images, kinds = scenes(SCENES, 3)
    tests, answers = scenes(HELD_OUT, 4)
    print(f"{SCENES + HELD_OUT} scenes in {time.monotonic() - start:.0f} s", flush=True)

    backbone = SmallResNet(weights=None, frozen_stages=0, norm="batch")
    head = nn.Linear(backbone.channels[-1], KINDS)
    network = nn.ModuleList([backbone, head]).to(memory_format=torch.channels_last).train()
    steps = EPOCHS * (SCENES // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    generator = torch.Generator().manual_seed(SEED)

    def answer(batch: Tensor) -> Tensor:
        features = backbone(batch.contiguous(memory_format=torch.channels_last))
        return head(features[-1].mean((2, 3)))

    for epoch in range(EPOCHS):
        order = torch.randperm(SCENES, generator=generator)
        total = 0.0
        for chosen in order[: SCENES // BATCH * BATCH].split(BATCH):
            batch = augmented(normalized(images[chosen], backbone), generator)
            loss = F.cross_entropy(answer(batch), kinds[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        network.eval()
        with torch.no_grad():
            batches = normalized(tests, backbone).split(BATCH)
            found = torch.cat([answer(batch).argmax(1) for batch in batches])
        network.train()
        right = (found == answers).float().mean().item()
        print(
            f"epoch {epoch + 1}/{EPOCHS}: loss {total / (SCENES // BATCH):.3f}, {right:.1%} of "
            f"{HELD_OUT} others right, {time.monotonic() - start:.0f} s",
            flush=True,
        )
    state = {
        name: value.half().contiguous()
        for name, value in backbone.network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(state, out)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
