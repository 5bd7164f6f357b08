"""Keys and values of the running batch: rows join and leave between decoding steps.

Rows are aligned at their right end: a row of length L occupies the last L columns, and the columns to its left are
masked. Positions are explicit, so where a row stands in the buffer changes nothing in its numbers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_SPARE_COLUMNS = 64


class GrowingLayer(DynamicLayer):
    """One layer's keys and values in a buffer with spare columns, so that a step writes one column and copies none."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.width = keys.shape[-2]
        self.keys: Tensor = _with_spare(keys)
        self.values: Tensor = _with_spare(values)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        end = self.width + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            self.keys, self.values = _with_spare(self.keys), _with_spare(self.values)
        self.keys[..., self.width : end, :] = key_states
        self.values[..., self.width : end, :] = value_states
        self.width = end
        return self.keys[..., :end, :], self.values[..., :end, :]

    def get_seq_length(self, *args: object) -> int:
        return self.width

    def live(self) -> tuple[Tensor, Tensor]:
        """Views (B, H, width, D) of what is filled in."""
        return self.keys[..., : self.width, :], self.values[..., : self.width, :]


class KVBatch:
    """The cache of all running rows and how many of its columns each row uses."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._layers: list[GrowingLayer] = []

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def width(self) -> int:
        """Columns filled in, which is the length of the longest row."""
        return self._layers[0].width if self._layers else 0

    @property
    def cache(self) -> Cache:
        """The rows as transformers' models take them: a forward pass adds its columns to this batch."""
        return Cache(layers=[*self._layers])

    def join(self, prefilled: Sequence[tuple[Tensor, Tensor]], lengths: Sequence[int], repeats: Sequence[int]) -> None:
        """Add the rows of a right-padded prefill, row i `repeats[i]` times, each with its first lengths[i] columns.

        prefilled: keys and values (B, H, T, D) of every layer.
        """
        sources = [row for row, count in enumerate(repeats) for _ in range(count)]
        if not sources:
            return
        joined = [lengths[row] for row in sources]
        width = max([self.width, *joined])
        running: list[tuple[Tensor | None, Tensor | None]] = [layer.live() for layer in self._layers]
        running = running or [(None, None)] * len(prefilled)
        self._layers = [
            GrowingLayer(*(_aligned(old, new, sources, joined, width) for old, new in zip(*sides, strict=True)))
            for sides in zip(running, prefilled, strict=True)
        ]
        self.lengths += joined

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, and the columns that no remaining row uses."""
        self.lengths = [self.lengths[row] for row in rows]
        unused = self.width - max(self.lengths, default=0)
        self._layers = [
            GrowingLayer(*(side[rows, :, unused:] for side in layer.live())) for layer in self._layers if rows
        ]

    def step_mask(self) -> Tensor:
        """Attention mask (B, width + 1) for the next step, its own column included; counts that column as used."""
        self.lengths = [length + 1 for length in self.lengths]
        device = self._layers[0].live()[0].device
        lengths = torch.tensor(self.lengths, device=device)
        columns = torch.arange(self.width, -1, -1, device=device)
        return (columns[None] < lengths[:, None]).long()


def _with_spare(tensor: Tensor) -> Tensor:
    batch, heads, width, size = tensor.shape
    # Half as much again keeps the copying per token constant; zeros, since a masked NaN would still poison a sum.
    spare = max(_SPARE_COLUMNS, width // 2)
    buffer = tensor.new_zeros(batch, heads, width + spare, size)
    buffer[..., :width, :] = tensor
    return buffer


def _aligned(old: Tensor | None, new: Tensor, sources: Sequence[int], lengths: Sequence[int], width: int) -> Tensor:
    rows = 0 if old is None else old.shape[0]
    out = new.new_zeros(rows + len(sources), new.shape[1], width, new.shape[3])
    if old is not None:
        out[:rows, :, width - old.shape[2] :] = old
    for row, (source, length) in enumerate(zip(sources, lengths, strict=True)):
        out[rows + row, :, width - length :] = new[source, :, :length]
    return out
