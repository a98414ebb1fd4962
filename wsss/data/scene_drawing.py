"""How generated scenes are painted: a canvas, the objects of six classes, five backgrounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

# Plain parts of any class and stones: nothing can be told from these.
PLAIN = np.array(
    [[196, 96, 74], [88, 122, 172], [150, 150, 146], [214, 186, 120], [122, 92, 70], [98, 148, 110],
     [168, 116, 160], [226, 220, 208]],
    dtype=np.float32,
)  # fmt: skip

Color = np.ndarray | Sequence[float]

Points = np.ndarray  # (k, 2) float: x to the right, y down, the object within [-1, 1]
Rng = np.random.Generator


def noise(rng: Rng, height: int, width: int, cells: tuple[int, int]) -> np.ndarray:
    """Smooth noise, (height, width) float32 about in [-1, 1], with `cells` (rows, columns)."""
    coarse = rng.uniform(-1, 1, cells).astype(np.float32)
    return np.asarray(
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32
    )


class Canvas:
    """A picture being painted, with the object that each pixel shows.

    Attributes:
        image: (S, S, 3) float32 RGB in [0, 255].
        owner: (S, S) int16, number of the object seen at a pixel, 0 = background.
    """

    def __init__(self, image: np.ndarray, rng: Rng) -> None:
        self.image = image
        self.owner = np.zeros(image.shape[:2], dtype=np.int16)
        self.rng = rng
        self._cover = np.zeros(image.shape[:2], dtype=np.float32)  # by the last object's parts
        self._last = 0

    def paint(
        self, polygon: Points, color: np.ndarray, owner: int = 0, grain: float = 0.045
    ) -> None:
        """Fill a polygon, given in pixels, shaded from above and a little grainy.

        The parts of one object (`owner` above 0) are painted one after the other.
        """
        size = self.image.shape[0]
        low = np.clip(np.floor(polygon.min(axis=0)).astype(int) - 1, 0, size)
        high = np.clip(np.ceil(polygon.max(axis=0)).astype(int) + 2, 0, size)
        width, height = (high - low).tolist()
        if width <= 0 or height <= 0:
            return
        fine = Image.new("L", (3 * width, 3 * height))
        ImageDraw.Draw(fine).polygon([tuple(p) for p in ((polygon - low) * 3).tolist()], fill=255)
        cover = np.asarray(fine.reduce(3), dtype=np.float32)[:, :, None] / 255
        light = 1.08 - 0.2 * np.linspace(0, 1, height, dtype=np.float32)[:, None]
        light = light + grain * self.rng.standard_normal((height, width), dtype=np.float32)
        window = (slice(low[1], high[1]), slice(low[0], high[0]))
        self.image[window] += cover * (light[:, :, None] * color - self.image[window])
        if owner:
            if owner != self._last:
                self._cover[:], self._last = 0, owner
            # Two parts that meet in a pixel cover it together: no gaps along the seams.
            self._cover[window] += (1 - self._cover[window]) * cover[:, :, 0]
            self.owner[window][self._cover[window] >= 0.5] = owner


class Pen:
    """Paints the parts of one object, given in the object's own coordinates."""

    def __init__(
        self, canvas: Canvas, owner: int, place: Callable[[Points], Points], rng: Rng
    ) -> None:
        self.canvas, self.owner, self.place, self.rng = canvas, owner, place, rng
        self.body, self.trim = PLAIN[rng.choice(len(PLAIN), 2, replace=False)]

    def shape(self, points: Sequence[Sequence[float]] | Points, color: Color) -> None:
        """Fill a polygon."""
        self.canvas.paint(
            self.place(np.array(points, dtype=np.float64)),
            np.asarray(color, dtype=np.float32),
            self.owner,
        )

    def oval(
        self, x: float, y: float, rx: float, ry: float, color: Color, turn: float = 0.0
    ) -> None:
        """Fill an ellipse, turned by `turn` radians."""
        angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        u, v = rx * np.cos(angle), ry * np.sin(angle)
        cos, sin = np.cos(turn), np.sin(turn)
        self.shape(np.stack([x + cos * u - sin * v, y + sin * u + cos * v], axis=1), color)

    def box(self, x0: float, y0: float, x1: float, y1: float, color: Color) -> None:
        """Fill an upright rectangle."""
        self.shape([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color)

    def band(self, outline: Points, low: float, high: float, color: Color) -> None:
        """Fill a band across a triangle (top, left, right) or a quadrangle (round about).

        `low` and `high` say where on the way down its two sides the band begins and ends.
        """
        if len(outline) == 3:
            outline = outline[[0, 0, 2, 1]]
        (top_left, top_right, right, left) = outline
        at_left = [top_left + share * (left - top_left) for share in (low, high)]
        at_right = [top_right + share * (right - top_right) for share in (low, high)]
        self.shape(np.array([at_left[0], at_right[0], at_right[1], at_left[1]]), color)

    def vary(self, color: Sequence[float], spread: float = 14.0) -> np.ndarray:
        """A color a little off the given one."""
        return np.clip(np.array(color) + self.rng.uniform(-spread, spread, 3), 0, 255)


# ---- objects: the telling part is painted last, so that nothing hides it


def draw_bird(pen: Pen, variant: int) -> None:
    """Songbird, wader or duck; the telling part is the head with beak and eye."""
    if variant == 0:
        pen.shape([(-0.5, 0.0), (-1.0, -0.15), (-0.95, 0.2), (-0.4, 0.3)], pen.trim)
        pen.oval(-0.05, 0.15, 0.6, 0.42, pen.body, 0.25)
        pen.oval(-0.15, 0.1, 0.38, 0.2, pen.trim, 0.4)
        head = (0.48, -0.3, 0.27)
    elif variant == 1:
        for x in (-0.1, 0.12):
            pen.box(x - 0.035, 0.3, x + 0.035, 1.0, (90, 70, 60))
        pen.oval(-0.1, 0.15, 0.55, 0.3, pen.body, -0.15)
        pen.shape([(0.2, 0.2), (0.3, -0.65), (0.45, -0.65), (0.45, 0.15)], pen.body)
        pen.oval(-0.25, 0.12, 0.38, 0.16, pen.trim, -0.2)
        head = (0.4, -0.72, 0.2)
    else:
        pen.shape([(-1.0, -0.1), (-0.6, 0.05), (0.75, 0.1), (0.5, 0.6), (-0.6, 0.6)], pen.body)
        pen.oval(-0.15, 0.25, 0.5, 0.22, pen.trim)
        pen.oval(0.5, -0.02, 0.2, 0.35, pen.body)
        head = (0.55, -0.38, 0.27)
    x, y, r = head
    beak = pen.vary((246, 150, 24))
    pen.shape(
        [(x + 0.5 * r, y - 0.55 * r), (x + 2.3 * r, y + 0.1 * r), (x + 0.4 * r, y + 0.7 * r)], beak
    )
    pen.oval(x, y, r, r, pen.vary((186, 40, 52)))
    pen.oval(x + 0.25 * r, y - 0.2 * r, 0.4 * r, 0.4 * r, (250, 250, 245))
    pen.oval(x + 0.3 * r, y - 0.2 * r, 0.2 * r, 0.2 * r, (15, 15, 20))


def draw_boat(pen: Pen, variant: int) -> None:
    """Sloop, junk or tug; the telling part is the striped sail (the tug carries a small one)."""
    pen.shape([(-1.0, 0.4), (1.0, 0.35), (0.7, 0.9), (-0.75, 0.9)], pen.body)
    pen.shape([(-1.0, 0.4), (1.0, 0.35), (0.95, 0.5), (-0.95, 0.54)], pen.trim)
    if variant == 0:
        mast, sails = (
            0.05,
            [[(0.1, -1.0), (0.1, 0.25), (0.85, 0.25)], [(0, -0.8), (0, 0.25), (-0.6, 0.25)]],
        )
    elif variant == 1:
        mast, sails = -0.1, [[(-0.7, -0.7), (0.6, -0.95), (0.75, 0.2), (-0.55, 0.2)]]
    else:
        pen.box(-0.55, -0.15, 0.25, 0.4, pen.trim)
        pen.box(-0.4, -0.02, 0.1, 0.14, (60, 80, 100))
        pen.box(-0.35, -0.6, -0.1, -0.15, pen.body)
        mast, sails = 0.55, [[(0.5, -0.85), (0.5, -0.1), (-0.02, -0.4)]]
    pen.box(mast - 0.04, -1.0, mast + 0.04, 0.4, (92, 66, 44))
    light, red = pen.vary((246, 240, 226), 8), pen.vary((214, 44, 56))
    for sail in sails:
        pen.shape(sail, light)
        for low in (0.14, 0.46, 0.78):
            pen.band(np.array(sail), low, low + 0.16, red)


def draw_car(pen: Pen, variant: int) -> None:
    """Saloon, van or pick-up; the telling part is the wheels."""
    glass = pen.vary((150, 190, 214))
    if variant == 0:
        pen.shape([(-0.6, 0.05), (-0.35, -0.4), (0.3, -0.4), (0.6, 0.05)], pen.body)
        pen.shape([(-0.45, 0.02), (-0.28, -0.3), (-0.03, -0.3), (-0.03, 0.02)], glass)
        pen.shape([(0.05, 0.02), (0.05, -0.3), (0.25, -0.3), (0.43, 0.02)], glass)
        pen.box(-1.0, 0.02, 1.0, 0.5, pen.body)
    elif variant == 1:
        pen.shape([(-1.0, -0.7), (0.65, -0.7), (1.0, 0.0), (1.0, 0.5), (-1.0, 0.5)], pen.body)
        pen.box(-1.0, -0.1, 0.4, 0.1, pen.trim)
        pen.shape([(0.45, -0.6), (0.62, -0.6), (0.88, -0.02), (0.45, -0.02)], glass)
    else:
        pen.box(0.05, -0.55, 0.6, 0.1, pen.body)
        pen.box(0.15, -0.45, 0.5, -0.1, glass)
        pen.box(-1.0, 0.05, 1.0, 0.5, pen.body)
        pen.box(-0.95, -0.2, 0.0, 0.1, pen.trim)
    pen.box(-1.0, 0.38, 1.0, 0.5, pen.trim)
    for x in (-0.55, 0.55):
        pen.oval(x, 0.5, 0.3, 0.3, (28, 28, 32))
        pen.oval(x, 0.5, 0.17, 0.17, pen.vary((214, 216, 222), 8))
        pen.oval(x, 0.5, 0.07, 0.07, (40, 40, 46))


def draw_cat(pen: Pen, variant: int) -> None:
    """Sitting, lying or walking; the telling part is the head with ears, eyes and nose."""
    if variant == 0:
        pen.shape(
            [(0.3, 0.9), (0.95, 0.7), (0.85, 0.1), (0.7, 0.1), (0.75, 0.6), (0.3, 0.65)], pen.trim
        )
        pen.oval(0.0, 0.4, 0.5, 0.58, pen.body)
        for x in (-0.2, 0.2):
            pen.oval(x, 0.85, 0.16, 0.13, pen.trim)
        head = (0.0, -0.4, 0.4)
    elif variant == 1:
        pen.oval(0.25, 0.35, 0.72, 0.36, pen.body)
        pen.shape([(0.7, 0.6), (1.0, 0.3), (0.95, -0.15), (0.82, -0.15), (0.8, 0.4)], pen.trim)
        pen.oval(-0.2, 0.65, 0.4, 0.1, pen.trim)
        head = (-0.55, 0.05, 0.38)
    else:
        for x in (-0.4, -0.15, 0.4, 0.6):
            pen.box(x - 0.08, 0.3, x + 0.08, 0.95, pen.trim)
        pen.oval(0.1, 0.2, 0.68, 0.3, pen.body)
        pen.shape([(0.65, 0.15), (0.95, -0.85), (0.8, -0.9), (0.55, 0.0)], pen.body)
        head = (-0.6, -0.2, 0.34)
    x, y, r = head
    fur, dark = pen.vary((232, 152, 62)), (44, 30, 30)
    for side in (-1, 1):
        ear = [(side * 0.95, -0.1), (side * 0.85, -1.45), (side * 0.1, -0.75)]
        pen.shape([(x + r * u, y + r * v) for u, v in ear], fur)
    pen.oval(x, y, r, 0.88 * r, fur)
    for side in (-1, 1):
        pen.oval(x + side * 0.4 * r, y - 0.12 * r, 0.2 * r, 0.26 * r, (176, 226, 92))
        pen.oval(x + side * 0.4 * r, y - 0.12 * r, 0.08 * r, 0.24 * r, dark)
    pen.shape(
        [(x - 0.16 * r, y + 0.3 * r), (x + 0.16 * r, y + 0.3 * r), (x, y + 0.52 * r)],
        (216, 96, 120),
    )


def draw_house(pen: Pen, variant: int) -> None:
    """Cottage, tower or barn; the telling part is the roof of dark tiles in rows."""
    glass = pen.vary((250, 226, 130))
    if variant == 0:
        walls, roof = (-0.75, -0.1, 0.75, 0.95), [(-1.0, -0.1), (0.0, -0.95), (1.0, -0.1)]
        windows, door = [(-0.5, 0.15), (0.5, 0.15)], (0.0, 0.35)
    elif variant == 1:
        walls, roof = (-0.38, -0.3, 0.38, 1.0), [(-0.55, -0.3), (0.0, -1.0), (0.55, -0.3)]
        windows, door = [(0.0, -0.1), (0.0, 0.25)], (0.0, 0.65)
    else:
        walls = (-0.95, 0.1, 0.95, 0.85)
        roof = [(-1.0, 0.1), (-0.75, -0.5), (0.75, -0.5), (1.0, 0.1)]
        windows, door = [(-0.65, 0.35), (0.65, 0.35)], (0.0, 0.35)
    pen.box(*walls, pen.body)
    for x, y in windows:
        pen.box(x - 0.14, y - 0.1, x + 0.14, y + 0.16, pen.trim)
        pen.box(x - 0.1, y - 0.06, x + 0.1, y + 0.12, glass)
    pen.box(door[0] - 0.15, door[1], door[0] + 0.15, walls[3], pen.trim)
    tile, gap = pen.vary((132, 34, 40)), pen.vary((78, 16, 30))
    pen.shape(roof, tile)
    left, *peak, right = np.array(roof)
    for low in np.arange(0.15, 1.0, 0.25):
        pen.band(np.array([peak[0], peak[-1], right, left]), low, low + 0.1, gap)


def draw_plant(pen: Pen, variant: int) -> None:
    """One big flower, three tulips or a bush in a pot; the telling part is the blossom."""
    stem, leaf = (70, 118, 62), pen.vary((84, 140, 74))
    petal, heart = pen.vary((232, 70, 166)), pen.vary((252, 216, 60), 8)
    if variant == 2:
        pen.oval(0, -0.1, 0.72, 0.5, leaf)
        blossoms = [(-0.38, -0.25, 0.2), (0.1, -0.42, 0.2), (0.42, -0.05, 0.2), (-0.1, 0.08, 0.18)]
    else:
        places = (
            [(0.0, -0.6, 0.4)]
            if variant == 0
            else [(-0.5, -0.45, 0.24), (0.02, -0.72, 0.26), (0.5, -0.4, 0.24)]
        )
        for x, y, _ in places:
            pen.shape([(-0.05, 0.5), (x - 0.05, y), (x + 0.05, y), (0.05, 0.5)], stem)
        for side in (-1, 1):
            pen.oval(side * 0.3, 0.15, 0.32, 0.12, leaf, -side * 0.6)
        blossoms = places
    pen.shape([(-0.5, 0.35), (0.5, 0.35), (0.36, 1.0), (-0.36, 1.0)], pen.body)
    pen.box(-0.56, 0.3, 0.56, 0.46, pen.trim)
    for x, y, r in blossoms:
        for angle in np.linspace(0, 2 * np.pi, 6, endpoint=False):
            pen.oval(
                x + 0.62 * r * np.cos(angle),
                y + 0.62 * r * np.sin(angle),
                0.42 * r,
                0.42 * r,
                petal,
            )
        pen.oval(x, y, 0.38 * r, 0.38 * r, heart)


DRAW: dict[str, Callable[[Pen, int], None]] = {
    "bird": draw_bird,
    "boat": draw_boat,
    "car": draw_car,
    "cat": draw_cat,
    "house": draw_house,
    "plant": draw_plant,
}


# ---- backgrounds


def draw_background(kind: str, size: int, rng: Rng) -> np.ndarray:
    """A textured background, (size, size, 3) float32 RGB."""
    down = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    cells = max(2, size // 24)
    horizon = int(size * rng.uniform(0.3, 0.5))
    sky = np.array([150, 190, 226]) + 60 * down[:, :, None] * np.array([0.9, 0.5, 0.2])
    clouds = sum(noise(rng, size, size, (2 * n, n)) * 2 / n for n in (2, 4, 8, 16))
    image = np.broadcast_to(sky, (size, size, 3)) + 55 * np.clip(clouds, 0, 1)[:, :, None]
    ground = np.zeros((size, size), dtype=np.float32)
    grain = noise(rng, size, size, (size // 3, size // 3))
    if kind == "water":
        base = np.array([52, 104, 140])
        ground = 22 * noise(rng, size, size, (size // 4, cells)) + 8 * grain
    elif kind == "road":
        base = np.array([118, 116, 116])
        ground = 16 * grain + 10 * noise(rng, size, size, (cells, cells))
    elif kind == "meadow":
        base = np.array([96, 142, 66])
        ground = 20 * noise(rng, size, size, (cells * 2, size // 2)) + 12 * noise(
            rng, size, size, (cells, cells)
        )
    elif kind == "room":
        base = np.array([150, 110, 76])
        stripe = np.sin(np.arange(size) * 2 * np.pi / rng.uniform(9, 16))[None, :]
        paper = rng.uniform(150, 215, 3)
        image = paper + (14 * stripe + 5 * grain)[:, :, None] * np.ones(3)
        horizon = int(size * rng.uniform(0.6, 0.75))
        boards = 10 * np.sign(np.sin(np.arange(size) * 2 * np.pi / 22))[None, :]
        ground = boards + 14 * noise(rng, size, size, (size // 8, cells))
    else:
        return np.ascontiguousarray(image, dtype=np.float32)
    image = np.array(image, dtype=np.float32)
    image[horizon:] = (base + rng.uniform(-12, 12, 3) + ground[:, :, None])[horizon:]
    if kind == "road":
        y, thick = int(size * rng.uniform(0.7, 0.9)), max(2, size // 40)
        dash = (np.arange(size) // max(4, size // 8)) % 2 == 0
        image[y : y + thick, dash] += 90
    return image


def draw_stones(canvas: Canvas, rng: Rng) -> None:
    """Blobs in the colors of the objects' plain parts: clutter that belongs to no class."""
    size = canvas.image.shape[0]
    for _ in range(rng.integers(1, 5)):
        center = rng.uniform((0, 0.45 * size), (size, size))
        angle = np.linspace(0, 2 * np.pi, 11, endpoint=False)
        radius = rng.uniform(0.03, 0.1) * size * rng.uniform(0.75, 1.2, 11)
        blob = np.stack([radius * np.cos(angle) * 1.3, radius * np.sin(angle)], axis=1)
        canvas.paint(center + blob, PLAIN[rng.integers(len(PLAIN))])
