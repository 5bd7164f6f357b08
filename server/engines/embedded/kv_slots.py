"""The cache of a running batch in slots that stay where they are, so that a GPU can replay a step as one graph.

A row's token t stands in column t of its slot. All that differs between two steps of one size is in one small tensor:
tokens, positions and places. The rest is the same work on the same memory.
"""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from covervlm.server.engines.embedded.prefix_cache import Layers
from covervlm.server.engines.embedded.step_graphs import StepGraphs
from covervlm.server.engines.embedded.stepping import Step

_COLUMNS = 256
"""Steps read a multiple of so many columns: few sizes, so that most have been captured."""


class SlotLayer(DynamicLayer):
    """One layer's keys and values (B, H, C, D), in which each row's new ones are written at its own place."""

    def __init__(self, keys: Tensor, values: Tensor, places: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys: Tensor = keys
        self.values: Tensor = values
        self._rows = torch.arange(len(places), device=places.device)
        self._places = places

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.keys[self._rows, :, self._places] = key_states[:, :, 0]
        self.values[self._rows, :, self._places] = value_states[:, :, 0]
        return self.keys, self.values

    def get_seq_length(self, *args: object) -> int:
        return 0  # the mask and the positions are given, so that nothing is counted from it


class KVSlots:
    """Rows in slots of one block per layer, (R, H, C, D), which grows as rows and columns need it.

    graphs: what captures steps. spare: bytes that the blocks may have beyond what the rows of the moment need, so that
    they, and the graphs that read them, last when rows come and go.
    """

    def __init__(self, step: Step, graphs: StepGraphs, spare: int) -> None:
        self.lengths: list[int] = []
        self._slots: list[int] = []
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._inputs = torch.empty(0)
        self._step = step
        self._graphs = graphs
        self._spare = spare

    def __len__(self) -> int:
        return len(self.lengths)

    def join(self, prefilled: Sequence[tuple[Tensor, Tensor]], lengths: Sequence[int], repeats: Sequence[int]) -> None:
        """As `KVBatch.join`."""
        sources = [row for row, count in enumerate(repeats) for _ in range(count)]
        if not sources:
            return
        joined = [lengths[row] for row in sources]
        self._make_room(prefilled, len(self) + len(sources), max([*self.lengths, *joined]) + 1)
        free = (slot for slot in range(self._shape[0]) if slot not in self._slots)
        slots, longest = list(islice(free, len(sources))), max(joined)
        rows, origins = (torch.tensor(which, device=self._inputs.device) for which in (slots, sources))
        for blocks, new in zip(self._layers, prefilled, strict=True):
            for block, side in zip(blocks, new, strict=True):
                # With the padding of shorter rows, which is masked until their own tokens take its place.
                block[rows, :, :longest] = side[origins, :, :longest]
        self._slots += slots
        self.lengths += joined

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these; theirs stay where they are."""
        self._slots = [self._slots[row] for row in rows]
        self.lengths = [self.lengths[row] for row in rows]
        if not rows and self._layers and self._bytes(self._layers, *self._shape) > self._spare:
            self._graphs.clear()
            self._layers = []

    def row(self, row: int) -> Layers:
        """A copy of the columns that a row uses."""
        slot, length = self._slots[row], self.lengths[row]
        return [
            (keys[slot : slot + 1, :, :length].clone(), values[slot : slot + 1, :, :length].clone())
            for keys, values in self._layers
        ]

    def decode(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """As `KVBatch.decode`."""
        longest = max(self.lengths) + 1
        self._make_room(self._layers, len(self), longest)
        rows, columns = _doubled(max(self._slots) + 1), _rounded(longest)
        inputs = torch.zeros(3, rows, dtype=torch.long)
        inputs[:, self._slots] = torch.tensor([tokens, positions, self.lengths])
        self._inputs[:, :rows].copy_(inputs)
        logits = self._graphs.run((rows, columns), lambda: self._logits(rows, columns))
        self.lengths = [length + 1 for length in self.lengths]
        return logits[torch.tensor(self._slots, device=logits.device)]

    def _logits(self, rows: int, columns: int) -> Tensor:
        """(rows, V), of slots without a row too, which read what they have just written."""
        tokens, positions, places = self._inputs[:, :rows]
        mask = torch.arange(columns, device=places.device) <= places[:, None]
        layers = [
            SlotLayer(keys[:rows, :, :columns], values[:rows, :, :columns], places) for keys, values in self._layers
        ]
        return self._step(tokens, positions, mask[:, None, None], Cache(layers=[*layers]))

    @property
    def _shape(self) -> tuple[int, int]:
        """Rows and columns of the blocks."""
        if not self._layers:
            return 0, 0
        rows, _, columns, _ = self._layers[0][0].shape
        return rows, columns

    def _make_room(self, like: Sequence[tuple[Tensor, Tensor]], rows: int, columns: int) -> None:
        """Larger blocks, if these are too small, with the running rows in their first slots."""
        has_rows, has_columns = self._shape
        if rows <= has_rows and columns <= has_columns:
            return
        needed = _doubled(rows), _rounded(columns + columns // 4)
        wide = max(needed[0], has_rows), max(needed[1], has_columns)
        shape = wide if self._bytes(like, *wide) - self._bytes(like, *needed) <= self._spare else needed
        filled = max(self.lengths, default=0)
        running = torch.tensor(self._slots, dtype=torch.long, device=like[0][0].device)
        layers = []
        for number, sides in enumerate(like):
            # Zeros: a masked NaN still poisons a sum.
            keys, values = (side.new_zeros(shape[0], side.shape[1], shape[1], side.shape[3]) for side in sides)
            if self._slots:
                for new, old in zip((keys, values), self._layers[number], strict=True):
                    new[: len(running), :, :filled] = old[running, :, :filled]
            layers.append((keys, values))
        self._graphs.clear()
        self._layers = layers
        self._slots = list(range(len(self._slots)))
        self._inputs = torch.zeros(3, shape[0], dtype=torch.long, device=running.device)

    @staticmethod
    def _bytes(like: Sequence[tuple[Tensor, Tensor]], rows: int, columns: int) -> int:
        """What blocks of this shape take."""
        return rows * columns * sum(s.shape[1] * s.shape[3] * s.element_size() for sides in like for s in sides)


def _doubled(rows: int) -> int:
    return 1 << (rows - 1).bit_length()


def _rounded(columns: int) -> int:
    return -(-columns // _COLUMNS) * _COLUMNS
