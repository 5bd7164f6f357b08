"""An even grid of tokens: what resizing the image would keep."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from covervlm.pruners.base import Objective, PruneInput, Pruner


@dataclass(frozen=True)
class Uniform(Pruner):
    """Tokens spread evenly over the allowed rectangle of the grid, or over the raster order where there is none."""

    nested: ClassVar[bool] = False

    def pick(self, inputs: Sequence[PruneInput], counts: Sequence[int], objective: Objective) -> list[Tensor]:
        return [_even(image, count) for image, count in zip(inputs, counts, strict=True)]


def _even(image: PruneInput, count: int) -> Tensor:
    n, device = len(image.tokens), image.tokens.device
    allowed = torch.ones(n, dtype=torch.bool) if image.allowed is None else image.allowed.cpu()
    candidates = allowed.nonzero().flatten()
    if image.grid is not None:
        mask = allowed.view(image.grid)
        rows, columns = int(mask.any(dim=1).sum()), int(mask.any(dim=0).sum())
        if rows * columns == len(candidates):  # the allowed tokens form a rectangle, as padding leaves them
            return candidates[_lattice(rows, columns, count)].to(device)
    return candidates[_centres(len(candidates), count)].to(device)


def _lattice(rows: int, columns: int, count: int) -> list[int]:
    """`count` cells of a grid, in raster order: evenly spaced rows whose shares of the count differ by one at most."""
    used = round(math.sqrt(count * rows / columns))
    used = min(max(used, math.ceil(count / columns), 1), rows, count)
    shares = [(i + 1) * count // used - i * count // used for i in range(used)]
    return [
        row * columns + column
        for row, share in zip(_centres(rows, used), shares, strict=True)
        for column in _centres(columns, share)
    ]


def _centres(length: int, count: int) -> list[int]:
    """The middles of `count` equal stretches of range(length)."""
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]
