"""The cache of a running batch whose rows are aligned at their right end, for any device and any model.

A row of length L occupies the last L columns, and the columns to its left are masked. Positions are explicit, so where
a row stands changes nothing in its numbers. On a CPU rows join and leave without moving the others: they stand in
buffers with room for more rows, and for more columns on both sides.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from covervlm.server.engines.embedded.lazy_zeros import lazy_zeros
from covervlm.server.engines.embedded.prefix_cache import Layers
from covervlm.server.engines.embedded.stepping import Step

_SPARE_COLUMNS = 64
_SPARE_ROWS = 16
_LEFT = 4
"""Where so many times the rows that run have been written to, they move to new buffers, to give memory back."""


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, views of buffers in which a step writes one column and copies none."""

    def __init__(self, keys: Tensor, values: Tensor, width: int) -> None:
        """keys, values: (B, H, width and more, D), of which the first `width` columns are filled in."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self.width = width
        self.keys: Tensor = keys
        self.values: Tensor = values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        end = self.width + key_states.shape[-2]
        self.keys[..., self.width : end, :] = key_states
        self.values[..., self.width : end, :] = value_states
        self.width = end
        return self.keys[..., :end, :], self.values[..., :end, :]

    def get_seq_length(self, *args: object) -> int:
        return self.width


class KVBatch:
    """The cache of all running rows, and how many of its columns each row uses.

    Rows fill the first places of the buffers, in any order, and the columns before `_end`.
    """

    def __init__(self, step: Step) -> None:
        self.lengths: list[int] = []
        self._places: list[int] = []
        self._begins: list[int] = []
        """Of each place in the buffers, the first column that was ever written to; beyond the list none was."""
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._end = 0
        self._step = step

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def width(self) -> int:
        """Columns that a step reads, which is the length of the longest row."""
        return max(self.lengths, default=0)

    def join(self, prefilled: Sequence[tuple[Tensor, Tensor]], lengths: Sequence[int], repeats: Sequence[int]) -> None:
        """As `Rows.join`."""
        sources = [row for row, count in enumerate(repeats) for _ in range(count)]
        if not sources:
            return
        self._make_room(prefilled, len(self) + len(sources), max(self.width, *(lengths[row] for row in sources)))
        for source in sources:
            place, length = len(self), lengths[source]
            self._write(
                place, [(keys[source, :, :length], values[source, :, :length]) for keys, values in prefilled], length
            )
            self._places.append(place)
            self.lengths.append(length)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, and the columns that no remaining row uses."""
        self.lengths = [self.lengths[row] for row in rows]
        self._places = [self._places[row] for row in rows]
        if not rows:
            self._buffers, self._begins = [], []
            return
        free = iter(sorted(set(range(len(rows))) - set(self._places)))
        for row, place in enumerate(self._places):
            if place >= len(rows):
                self._places[row] = next(free)
                self._write(self._places[row], self._columns(place, self.lengths[row]), self.lengths[row])
        if len(self._begins) >= _LEFT * len(rows):
            self._lay_out(self._buffers, len(rows), self.width)

    def row(self, row: int) -> Layers:
        """A copy of the columns that a row uses."""
        own = self._columns(self._places[row], self.lengths[row])
        return [(keys[None].clone(), values[None].clone()) for keys, values in own]

    def decode(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """As `Rows.decode`."""
        self._make_room(self._buffers, len(self), self.width)
        places = torch.tensor(self._places)
        inputs = torch.empty(3, len(self), dtype=torch.long)
        inputs[:, places] = torch.tensor([tokens, positions, self.lengths])
        at, at_positions, lengths = inputs.to(self._buffers[0][0].device)
        # The step's own column is the last.
        columns = torch.arange(self.width, -1, -1, device=at.device)
        mask = (columns <= lengths[:, None]).long()
        begin = self._end - self.width
        layers = [
            GrowingLayer(keys[: len(self), :, begin:], values[: len(self), :, begin:], self.width)
            for keys, values in self._buffers
        ]
        logits = self._step(at, at_positions, mask, Cache(layers=[*layers]))
        self._end += 1
        self.lengths = [length + 1 for length in self.lengths]
        in_order = self._places == list(range(len(self)))
        return logits if in_order else logits[places.to(logits.device)]

    def _columns(self, place: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Views (H, length, D) of what the row of this length at this place uses."""
        used = slice(self._end - length, self._end)
        return [(keys[place, :, used], values[place, :, used]) for keys, values in self._buffers]

    def _write(self, place: int, layers: Sequence[tuple[Tensor, Tensor]], length: int) -> None:
        """Put a row of this length at a place; (H, length, D) of each layer."""
        begin = self._end - length
        known = place < len(self._begins)
        stale = self._begins[place] if known else begin
        for buffers, sides in zip(self._buffers, layers, strict=True):
            for buffer, side in zip(buffers, sides, strict=True):
                # What another row left to the left is masked, but a masked NaN still poisons a sum.
                buffer[place, :, stale:begin] = 0
                buffer[place, :, begin : self._end] = side
        if known:
            self._begins[place] = min(stale, begin)
        else:
            self._begins.append(begin)

    def _make_room(self, like: Sequence[tuple[Tensor, Tensor]], rows: int, width: int) -> None:
        """Larger buffers, unless these have room for so many rows, `width` columns and the one of the next step."""
        if self._buffers:
            has_rows, _, has_columns, _ = self._buffers[0][0].shape
            if rows <= has_rows and width <= self._end < has_columns:
                return
        self._lay_out(like, rows, width)

    def _lay_out(self, like: Sequence[tuple[Tensor, Tensor]], rows: int, width: int) -> None:
        """New buffers, with room for more rows and columns, and in them the running rows."""
        running = [self._columns(place, length) for place, length in zip(self._places, self.lengths, strict=True)]
        left, right = max(_SPARE_COLUMNS, width // 8), max(_SPARE_COLUMNS, width // 4)
        # Whole rows cost a CPU no memory until they are used; columns do where the system's pages are huge.
        needed, rows = rows, max(_SPARE_ROWS, 1 << (rows - 1).bit_length())
        if like[0][0].device.type != "cpu":
            rows, left = needed, 0
        self._buffers = [
            tuple(_zeros(side, rows, left + width + right) for side in sides)  # type: ignore[misc]
            for sides in like
        ]
        self._end = left + width
        self._begins = []
        for place, row in sorted(zip(self._places, range(len(self)), strict=True)):
            self._write(place, running[row], self.lengths[row])


def _zeros(like: Tensor, rows: int, columns: int) -> Tensor:
    """(rows, H, columns, D)."""
    shape = rows, like.shape[1], columns, like.shape[3]
    return like.new_zeros(shape) if like.device.type != "cpu" else lazy_zeros(shape, like.dtype)
