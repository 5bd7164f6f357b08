"""Standard scenes: two to five flat coloured shapes, apart from each other, on a textured background.

scene = make_scene(7)        # the same pixels on every machine
scene.image, scene.objects
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from demo_model.drawing import COLORS, GRID, PATCH, SIZE, Background, Mask, Texture, draw_mask, paint_object

SHAPES = ["circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond"]
COLOR_NAMES = list(COLORS)


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One shape: its centre and the side of its bounding square in pixels, its turn in degrees."""

    shape: str
    color: str
    cx: float
    cy: float
    size: float
    angle: float
    tint: np.ndarray
    texture: Texture | None = None

    @cached_property
    def mask(self) -> Mask:
        return draw_mask(self.shape, self.cx, self.cy, self.size, self.angle)

    @property
    def place(self) -> str | None:
        """The part of the image the centre lies in; None where it is too close to a border between two parts."""
        x, y = self.cx / SIZE - 0.5, self.cy / SIZE - 0.5
        if max(abs(x), abs(y)) < 0.11:
            return "center"
        if min(abs(x), abs(y)) < 0.10:
            return None
        return ("top " if y < 0 else "bottom ") + ("left" if x < 0 else "right")


@dataclass(frozen=True, eq=False)
class Scene:
    """Objects in the order in which they are painted, and what they stand on; pixels are painted when asked for."""

    objects: tuple[SceneObject, ...]
    background: Background

    @cached_property
    def image(self) -> Image.Image:
        pixels = self.background.paint()
        for thing in self.objects:
            paint_object(pixels, thing.mask, thing.color, thing.tint, thing.texture)
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    @cached_property
    def visible(self) -> np.ndarray:
        """(objects, GRID, GRID) float32: the share of each patch in which one sees the object."""
        shares = []
        free = np.ones((SIZE, SIZE), np.float32)
        for thing in reversed(self.objects):
            mask = thing.mask.full()
            shares.append((mask * free).reshape(GRID, PATCH, GRID, PATCH).mean((1, 3)))
            free *= 1 - mask
        return np.stack(shares[::-1])


def draw_tint(rng: np.random.Generator) -> np.ndarray:
    """A small deviation from the pure colour, so that no two reds are the same."""
    return rng.uniform(-12, 12, 3).astype(np.float32)


def make_scene(seed: int, n_objects: int | None = None) -> Scene:
    """The scene of this seed; every (shape, colour) pair occurs at most once in it."""
    rng = np.random.default_rng(seed)
    n = n_objects or int(rng.integers(2, 6))
    background = Background.draw(rng)
    placed: list[tuple[str, str, float, float, float, float]] = []
    pairs = set()
    shapes = rng.permutation(SHAPES)[: int(rng.integers(max(2, n - 1), 9))]
    colors = rng.permutation(COLOR_NAMES)[: int(rng.integers(max(2, n - 1), 9))]
    for _ in range(200):
        if len(placed) == n:
            break
        size = math.exp(rng.uniform(math.log(28), math.log(108)))
        if n >= 4:
            size = min(size, 90.0)
        margin = size / 2 + 2
        if rng.random() < 0.15:  # so that "center" is an answer often enough
            cx, cy = (float(v) for v in rng.uniform(SIZE * 0.42, SIZE * 0.58, 2))
        else:
            cx, cy = (float(v) for v in rng.uniform(margin, SIZE - margin, 2))
        if any((cx - x) ** 2 + (cy - y) ** 2 < ((size + s) * 0.62 + 6) ** 2 for _, _, x, y, s, _ in placed):
            continue
        shape, color = str(rng.choice(shapes)), str(rng.choice(colors))
        if (shape, color) in pairs:
            continue
        pairs.add((shape, color))
        placed.append((shape, color, cx, cy, float(size), float(rng.uniform(-12, 12))))
    return Scene(tuple(SceneObject(*item, tint=draw_tint(rng)) for item in placed), background)
