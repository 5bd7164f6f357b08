"""Hard scenes: eight to twelve small, textured shapes that may hide parts of each other.

The demo model never saw such scenes in training. They exist to tell pruning methods apart where the standard scenes
are too easy: more objects than a few tokens can cover, and regions that are not uniform.
"""

import math

import numpy as np

from demo_model.drawing import SIZE, Background, Texture
from demo_model.scenes import COLOR_NAMES, SHAPES, Scene, SceneObject, draw_tint

MIN_VISIBLE = 0.75
"""Every object shows at least this share of its own area, so that its shape can still be told."""


def _draw_texture(rng: np.random.Generator) -> Texture | None:
    if rng.random() < 0.4:
        return None
    kind = str(rng.choice(["stripes", "dots", "checks"]))
    return Texture(kind, rng.uniform(6, 14), rng.uniform(0, 180), rng.uniform(10, 26))


def make_hard_scene(seed: int) -> Scene:
    """The hard scene of this seed; every (shape, colour) pair occurs at most once in it."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(8, 13))
    background = Background.draw(rng)
    objects: list[SceneObject] = []
    visible: list[np.ndarray] = []
    while len(objects) < n:
        size = math.exp(rng.uniform(math.log(30), math.log(58)))
        margin = size / 2 + 2
        cx, cy = (float(v) for v in rng.uniform(margin, SIZE - margin, 2))
        shape, color = str(rng.choice(SHAPES)), str(rng.choice(COLOR_NAMES))
        thing = SceneObject(shape, color, cx, cy, size, float(rng.uniform(-12, 12)), draw_tint(rng), _draw_texture(rng))
        if any((shape, color) == (other.shape, other.color) for other in objects):
            continue
        # With two centres this close, one could only guess where the lower object is, even if most of it shows.
        if any(math.hypot(cx - o.cx, cy - o.cy) < 0.35 * (size + o.size) for o in objects):
            continue
        mask = thing.mask.full()
        left_over = [seen * (1 - mask) for seen in visible]
        if any(v.sum() < MIN_VISIBLE * o.mask.cover.sum() for v, o in zip(left_over, objects, strict=True)):
            continue
        visible = [*left_over, mask]
        objects.append(thing)
    return Scene(tuple(objects), background)
