"""Paints the pictures that the page offers to label and to group: one shape each, small files.

python -m demo_model.gallery server/demo/gallery        # with benchmarks/ on PYTHONPATH
"""

import sys
from collections import Counter
from pathlib import Path

from demo_model.scenes import make_scene
from demo_model.splits import FIRST_SEED

FIRST = FIRST_SEED["examples"] + 1_000
SHAPES, COLORS = ("circle", "square", "star", "triangle"), ("blue", "green", "red", "yellow")
COUNT, MOST_ALIKE = 24, 2


def write(folder: Path) -> None:
    """The first scenes of the range with one of these shapes and colours, whatever a model makes of them."""
    folder.mkdir(parents=True, exist_ok=True)
    taken: Counter[tuple[str, str]] = Counter()
    seed = FIRST
    while taken.total() < COUNT:
        scene = make_scene(seed, 1)
        (thing,) = scene.objects
        kind = thing.color, thing.shape
        if thing.shape in SHAPES and thing.color in COLORS and taken[kind] < MOST_ALIKE:
            taken[kind] += 1
            scene.image.save(folder / f"{thing.color}-{thing.shape}-{seed}.webp", quality=75, method=6)
        seed += 1


if __name__ == "__main__":
    write(Path(sys.argv[1]))
