"""Keys and values in blocks of some tokens each, wherever there is room: rows join, grow and leave without copies."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from covervlm.server.engines.embedded.lazy_zeros import lazy_zeros
from covervlm.server.engines.embedded.prefix_cache import Layers

_SHRINK = 4
"""Where there are so many times the blocks that are used, they move, to give memory back."""
_FEW = 64
"""Blocks that are not worth moving."""


@dataclass(eq=False)
class BlockRow:
    """A row's tokens, and the blocks that they fill one after the other."""

    length: int = 0
    blocks: list[int] = field(default_factory=list)


class KVBlocks:
    """Blocks of all layers alike: a row's block has the same number in each of them.

    sides: keys and values of the layers in turn, each (blocks, H, block's tokens, D). They change when blocks are
    added or given back.
    """

    def __init__(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """shapes: (H, tokens, D) of a block of each of `sides`."""
        self._shapes = shapes
        self._tokens = shapes[0][1]
        self._rows: list[BlockRow] = []
        self._free: list[int] = []
        self._capacity = 0
        self.sides: list[Tensor] = []
        self._move(1)

    @property
    def nbytes(self) -> int:
        return sum(side.nbytes for side in self.sides)

    def open(self, layers: Layers = (), length: int = 0) -> BlockRow:
        """A new row, which begins with the first `length` tokens of these keys and values (1, H, T, D)."""
        row = BlockRow()
        self._rows.append(row)
        self.extend(row, length)
        sides = [side[0] for layer in layers for side in layer]
        for mine, theirs in zip(self.sides, sides, strict=False):
            for number, block in enumerate(row.blocks):
                start = number * self._tokens
                piece = theirs[:, start : min(start + self._tokens, length)]
                mine[block, :, : piece.shape[1]] = piece
        return row

    def copy(self, row: BlockRow) -> BlockRow:
        """Another row with the same tokens."""
        other = self.open(length=row.length)
        for side in self.sides:
            side[other.blocks] = side[row.blocks]
        return other

    def extend(self, row: BlockRow, tokens: int) -> None:
        """Make room for so many more tokens of a row, which count as its own from now on."""
        row.length += tokens
        missing = -(-row.length // self._tokens) - len(row.blocks)
        if missing > len(self._free):
            used = self._capacity - len(self._free)
            self._move(max(used + missing, 2 * self._capacity))
        row.blocks += [self._free.pop() for _ in range(missing)]

    def close(self, rows: Sequence[BlockRow]) -> None:
        """Give the blocks of rows back."""
        gone = {id(row) for row in rows}
        self._rows = [row for row in self._rows if id(row) not in gone]
        self._free += [block for row in rows for block in row.blocks]
        used = self._capacity - len(self._free)
        if not used and self._capacity > 1:
            self._move(1)
        elif self._capacity > max(_FEW, _SHRINK * used):
            self._move(2 * used)

    def layers(self, row: BlockRow) -> Layers:
        """A copy (1, H, T, D) of a row's keys and values."""
        sides = [side[row.blocks].transpose(0, 1).flatten(1, 2)[None, :, : row.length].clone() for side in self.sides]
        return list(zip(sides[::2], sides[1::2], strict=True))

    def _move(self, capacity: int) -> None:
        """To new memory for so many blocks."""
        used = [block for row in self._rows for block in row.blocks]
        sides = [lazy_zeros((capacity, *shape), torch.float32) for shape in self._shapes]
        for new, old in zip(sides, self.sides, strict=False):
            if used:
                new[: len(used)] = old[used]
        self.sides = sides
        places = iter(range(len(used)))
        for row in self._rows:
            row.blocks = [next(places) for _ in row.blocks]
        self._capacity = capacity
        self._free = list(range(capacity - 1, len(used) - 1, -1))
