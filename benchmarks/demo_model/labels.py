"""What each of the 576 patches of a scene shows: the dense labels the vision tower learns from."""

from dataclasses import dataclass

import numpy as np

from demo_model.drawing import GRID, PATCH, SIZE
from demo_model.scenes import COLOR_NAMES, SHAPES, Scene

MIN_SHARE = 0.12
"""A patch belongs to an object that fills at least this share of it."""


@dataclass(frozen=True, eq=False)
class PatchLabels:
    """Arrays over patches in raster order, (..., 576).

    shape, color: int64 class, 0 for background. owner: int64 index of the object, -1 for none.
    center: float32 (..., 2) centre of that object relative to the image's, in image sides.
    core: float32, 1 where the patch holds an object's centre.
    """

    shape: np.ndarray
    color: np.ndarray
    owner: np.ndarray
    center: np.ndarray
    core: np.ndarray

    def take(self, patches: np.ndarray) -> "PatchLabels":
        """The labels of some patches of one image."""
        return PatchLabels(
            self.shape[patches], self.color[patches], self.owner[patches], self.center[patches], self.core[patches]
        )

    def mirrored(self) -> "PatchLabels":
        """The labels of one image flipped left to right."""
        order = np.arange(GRID * GRID).reshape(GRID, GRID)[:, ::-1].reshape(-1)
        flipped = self.take(order)
        return PatchLabels(
            flipped.shape, flipped.color, flipped.owner, flipped.center * np.array([-1, 1], np.float32), flipped.core
        )


def patch_labels(scene: Scene) -> PatchLabels:
    """The labels of a standard scene."""
    n = GRID * GRID
    shape, color, owner = np.zeros(n, np.int64), np.zeros(n, np.int64), np.full(n, -1, np.int64)
    center, core = np.zeros((n, 2), np.float32), np.zeros(n, np.float32)
    best = np.full(n, MIN_SHARE, np.float32)
    for i, thing in enumerate(scene.objects):
        share = scene.visible[i].reshape(-1)
        on = share > best
        best[on] = share[on]
        shape[on] = SHAPES.index(thing.shape) + 1
        color[on] = COLOR_NAMES.index(thing.color) + 1
        owner[on] = i
        center[on] = (thing.cx / SIZE - 0.5, thing.cy / SIZE - 0.5)
        core[int(thing.cy // PATCH) * GRID + int(thing.cx // PATCH)] = 1.0
    return PatchLabels(shape, color, owner, center, core)
