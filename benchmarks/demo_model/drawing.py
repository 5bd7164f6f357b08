"""Pixels of a scene: textured backgrounds, and shapes with anti-aliased edges.

Everything random is drawn when a `Background` is made, so a scene's layout can be known without painting it.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

SIZE = 336
"""Side of an image in pixels."""
PATCH = 14
"""Side of one patch of the vision tower in pixels."""
GRID = SIZE // PATCH
"""Patches along one side."""

COLORS = {
    "red": (214, 36, 36),
    "green": (38, 160, 56),
    "blue": (40, 76, 220),
    "yellow": (240, 218, 40),
    "purple": (142, 44, 178),
    "orange": (246, 134, 22),
    "white": (246, 246, 246),
    "black": (18, 18, 18),
}

_ARM = 0.32  # half the width of a cross's arms
_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0, -0.95), (0.95, 0.8), (-0.95, 0.8)],
    "diamond": [(0, -1), (0.68, 0), (0, 1), (-0.68, 0)],
    "cross": [
        *[(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)],
        *[(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
    ],
}


@cache
def outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a polygonal shape in the square [-1, 1]², y pointing down."""
    if shape == "star":
        radii = [1.0 if i % 2 == 0 else 0.42 for i in range(10)]
        return [(r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate(radii)]
    if shape == "heart":
        points = []
        for i in range(40):
            t = 2 * math.pi * i / 40
            x = 16 * math.sin(t) ** 3
            y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            points.append((x / 17, -(y + 2.5) / 15.5))
        return points
    return _POLYGONS[shape]


@dataclass(frozen=True, eq=False)
class Mask:
    """How much of each pixel a shape covers: (height, width) float32 in [0, 1], its corner at (left, top)."""

    cover: np.ndarray
    left: int
    top: int

    @property
    def window(self) -> tuple[slice, slice]:
        """The part of an image that the mask lies on."""
        height, width = self.cover.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def full(self) -> np.ndarray:
        """The mask on the whole image, (SIZE, SIZE) float32."""
        image = np.zeros((SIZE, SIZE), np.float32)
        image[self.window] = self.cover
        return image


def draw_mask(shape: str, cx: float, cy: float, size: float, angle: float) -> Mask:
    """Rasterise a shape centred at (cx, cy), `size` pixels across and turned by `angle` degrees."""
    oversampling = 3
    half = int(size * 0.72) + 2
    left, top = int(cx) - half, int(cy) - half
    canvas = Image.new("L", (2 * half * oversampling, 2 * half * oversampling), 0)
    draw = ImageDraw.Draw(canvas)
    x0, y0, radius = (cx - left) * oversampling, (cy - top) * oversampling, size / 2 * oversampling
    if shape in ("circle", "ring"):
        r = radius * 0.95
        draw.ellipse([x0 - r, y0 - r, x0 + r, y0 + r], fill=255)
        if shape == "ring":
            r *= 0.55
            draw.ellipse([x0 - r, y0 - r, x0 + r, y0 + r], fill=0)
    else:
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        corners = [(x0 + radius * (x * cos - y * sin), y0 + radius * (x * sin + y * cos)) for x, y in outline(shape)]
        draw.polygon(corners, fill=255)
    cover = np.asarray(canvas.reduce(oversampling), dtype=np.float32) / 255
    outside_top, outside_left = max(0, -top), max(0, -left)
    left, top = max(left, 0), max(top, 0)
    cover = cover[outside_top : outside_top + SIZE - top, outside_left : outside_left + SIZE - left]
    return Mask(cover, left, top)


@cache
def _noise_bank() -> np.ndarray:
    """(512, 512, 3) noise from which every background cuts its own part; drawing fresh noise would be slow."""
    return np.random.default_rng(1234).standard_normal((512, 512, 3)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Background:
    """A low-saturation gradient with blotches, sometimes stripes, and pixel noise, as numbers not yet painted."""

    base: np.ndarray
    gradient: tuple[float, float]
    stripes: tuple[float, float, float] | None
    blotches: np.ndarray
    blotch_strength: float
    noise_corner: tuple[int, int]
    noise_strength: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Background":
        """Draw everything random; the order of the draws is part of what a seed means."""
        base = rng.uniform(95, 165) + rng.uniform(-14, 14, 3)
        gradient = (rng.uniform(0, 2 * math.pi), rng.uniform(0, 60))
        stripes = None
        if rng.random() < 0.4:
            stripes = (rng.uniform(0, math.pi), rng.uniform(4, 22), rng.uniform(3, 12))
        cells = int(rng.integers(4, 14))
        blotches = rng.standard_normal((cells, cells)).astype(np.float32)
        blotch_strength = rng.uniform(2, 14)
        top, left = (int(v) for v in rng.integers(0, 512 - SIZE, 2))
        return cls(base, gradient, stripes, blotches, blotch_strength, (top, left), rng.uniform(2, 11))

    def paint(self) -> np.ndarray:
        """(SIZE, SIZE, 3) float32 in grey levels, not yet clipped to 0..255."""
        x = np.arange(SIZE, dtype=np.float32)[None] / SIZE - 0.5
        y = x.T
        angle, strength = self.gradient
        shade = (math.cos(angle) * x + math.sin(angle) * y) * np.float32(strength)
        if self.stripes is not None:
            angle, frequency, strength = self.stripes
            wave = np.sin((math.cos(angle) * x + math.sin(angle) * y) * np.float32(2 * math.pi * frequency))
            shade = shade + wave * np.float32(strength)
        blotches = Image.fromarray(self.blotches).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        shade = shade + np.asarray(blotches) * np.float32(self.blotch_strength)
        top, left = self.noise_corner
        noise = _noise_bank()[top : top + SIZE, left : left + SIZE] * np.float32(self.noise_strength)
        return self.base.astype(np.float32) + shade[..., None] + noise


@dataclass(frozen=True)
class Texture:
    """A pattern on an object's surface: `kind` is stripes, dots or checks; `period` in pixels, `angle` in degrees."""

    kind: str
    period: float
    angle: float
    strength: float

    def paint(self, mask: Mask) -> np.ndarray:
        """(height, width, 1) float32 grey levels to add to the object's colour."""
        height, width = mask.cover.shape
        x = np.arange(width, dtype=np.float32)[None]
        y = np.arange(height, dtype=np.float32)[:, None]
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        u = np.sin((cos * x + sin * y) * np.float32(2 * math.pi / self.period))
        v = np.sin((cos * y - sin * x) * np.float32(2 * math.pi / self.period))
        pattern = {"stripes": u > 0, "dots": u + v > 0.8, "checks": u * v > 0}[self.kind]
        return np.where(pattern, np.float32(self.strength), np.float32(-self.strength))[..., None]


def paint_object(image: np.ndarray, mask: Mask, color: str, tint: np.ndarray, texture: Texture | None = None) -> None:
    """Lay an object over `image` in place, letting a third of what is beneath shine through its colour."""
    cover, beneath = mask.cover[..., None], image[mask.window]
    surface = np.array(COLORS[color], np.float32) + tint
    if texture is not None:
        surface = surface + texture.paint(mask)
    image[mask.window] = beneath * (1 - cover) + (surface + (beneath - beneath.mean((0, 1))) * 0.35) * cover
