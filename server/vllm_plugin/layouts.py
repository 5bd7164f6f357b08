"""Where an image's vision tokens lie, from its size alone: both sides of vLLM must know before the tower runs."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from covervlm.server.models.llava import padding_patches


@dataclass(frozen=True, eq=False)
class Part:
    """A part of an image that is pruned on its own: the whole image, or one crop.

    positions: (n,) int64 ascending, places in the unpruned sequence. rows: (n,) int64, rows of the tower's output
    (crops * patches) for the same tokens. grid: (rows, columns). allowed: (n,) bool or None, False for padding.
    """

    positions: Tensor
    rows: Tensor
    grid: tuple[int, int]
    allowed: Tensor | None = None

    def kept(self, count: int) -> int:
        """How many tokens a pruner keeps of this part when it is told to keep `count` (`Pruner.choose`)."""
        size = len(self.positions)
        allowed = size if self.allowed is None else int(self.allowed.sum())
        return size if size <= count else min(count, allowed or size)


@dataclass(frozen=True, eq=False)
class Layout:
    """An image of `total` unpruned tokens, of which those in `parts` can be kept."""

    total: int
    parts: tuple[Part, ...]

    @property
    def grid(self) -> tuple[int, int] | None:
        """(rows, columns) by which kept positions can be drawn, None where tokens form no single grid."""
        return self.parts[0].grid if len(self.parts) == 1 and len(self.parts[0].positions) == self.total else None

    @property
    def prunable(self) -> int:
        return sum(len(part.positions) for part in self.parts)

    def share(self, budget: int) -> int:
        """What each part keeps: a budget is spread evenly, at least one token each."""
        return max(1, budget // len(self.parts))

    def kept(self, budget: int) -> int:
        return sum(part.kept(self.share(budget)) for part in self.parts)


class Layouts(Protocol):
    """Layouts of one architecture, by the shape that a plan carries."""

    def __call__(self, shape: tuple[int, int]) -> Layout: ...


class SquareLayouts:
    """LLaVA-1.5: one square grid. shape: (width, height) where images are padded to a square, else (0, 0)."""

    def __init__(self, config: Any) -> None:
        vision = config.vision_config
        self._image_size, self._patch_size = vision.image_size, vision.patch_size
        self._cached = lru_cache(maxsize=512)(self._layout)

    def __call__(self, shape: tuple[int, int]) -> Layout:
        return self._cached(shape)

    def _layout(self, shape: tuple[int, int]) -> Layout:
        side = self._image_size // self._patch_size
        allowed = None
        if shape[0]:
            allowed = torch.ones(side**2, dtype=torch.bool)
            allowed[padding_patches(*shape, self._image_size, self._patch_size)] = False
        every = torch.arange(side**2)
        return Layout(side**2, (Part(every, every, (side, side), allowed),))


class TiledLayouts:
    """LLaVA-NeXT: the whole image small, then its tiles' merged grid without padding, a newline after each row.

    shape: (width, height) of the image. Newlines belong to no part, so a pruned image has none.
    """

    def __init__(self, config: Any) -> None:
        vision = config.vision_config
        self._pinpoints, self._image_size = config.image_grid_pinpoints, vision.image_size
        self._side = vision.image_size // vision.patch_size
        self._cached = lru_cache(maxsize=512)(self._layout)

    def __call__(self, shape: tuple[int, int]) -> Layout:
        return self._cached(shape)

    def _layout(self, shape: tuple[int, int]) -> Layout:
        side, patches = self._side, self._side**2
        places = self._places(*shape)
        crops = 1 + int(places.max()) // patches if len(places) else 1
        parts = []
        for crop in range(crops):
            positions = ((places >= crop * patches) & (places < (crop + 1) * patches)).nonzero().flatten()
            if not len(positions):
                continue  # a tile of nothing but padding
            left = places[positions] - crop * patches
            columns = int((left // side == left[0] // side).sum())
            parts.append(Part(positions, places[positions], (len(left) // columns, columns)))
        return Layout(len(places), tuple(parts))

    def _places(self, width: int, height: int) -> Tensor:
        """For each token of the sequence, its row in the tower's output; -1 for a newline."""
        side, patches = self._side, self._side**2
        down, across = get_anyres_image_grid_shape((height, width), self._pinpoints, self._image_size)
        numbers = torch.arange(patches, patches * (1 + down * across)).view(down, across, side, side)
        merged = numbers.permute(0, 2, 1, 3).reshape(1, down * side, across * side)
        merged = unpad_image(merged, (height, width))[0]
        rows = torch.cat([merged, torch.full((len(merged), 1), -1)], dim=1)
        return torch.cat([torch.arange(patches), rows.flatten()])


class GridLayouts:
    """Qwen2.5-VL: one grid of any size. shape: (rows, columns) of merged patches."""

    def __call__(self, shape: tuple[int, int]) -> Layout:
        every = torch.arange(shape[0] * shape[1])
        return Layout(len(every), (Part(every, every, shape),))
