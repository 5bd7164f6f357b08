"""The cache of a running batch whose rows are aligned at their right end, for any device and any model.

A row of length L occupies the last L columns, and the columns to its left are masked. Positions are explicit, so where
a row stands changes nothing in its numbers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from covervlm.server.engines.embedded.prefix_cache import Layers
from covervlm.server.engines.embedded.stepping import Step

_SPARE_COLUMNS = 64


class GrowingLayer(DynamicLayer):
    """One layer's keys and values in a buffer with spare columns, so that a step writes one column and copies none."""

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
        if end > self.keys.shape[-2]:
            self.keys, self.values = _longer(self.keys, self.width), _longer(self.values, self.width)
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

    def __init__(self, step: Step) -> None:
        self.lengths: list[int] = []
        self._layers: list[GrowingLayer] = []
        self._step = step

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
        """As `Rows.join`."""
        sources = [row for row, count in enumerate(repeats) for _ in range(count)]
        if not sources:
            return
        joined = [lengths[row] for row in sources]
        width = max([self.width, *joined])
        running: list[tuple[Tensor | None, Tensor | None]] = [layer.live() for layer in self._layers]
        running = running or [(None, None)] * len(prefilled)
        self._layers = [
            GrowingLayer(
                _aligned(old_keys, keys, sources, joined, width),
                _aligned(old_values, values, sources, joined, width),
                width,
            )
            for (old_keys, old_values), (keys, values) in zip(running, prefilled, strict=True)
        ]
        self.lengths += joined

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, and the columns that no remaining row uses."""
        self.lengths = [self.lengths[row] for row in rows]
        width = max(self.lengths, default=0)
        unused = self.width - width
        live = [layer.live() for layer in self._layers] if rows else []
        self._layers = [
            GrowingLayer(_chosen(keys[:, :, unused:], rows), _chosen(values[:, :, unused:], rows), width)
            for keys, values in live
        ]

    def row(self, row: int) -> Layers:
        """A copy of the columns that a row uses."""
        start = self.width - self.lengths[row]
        live = [layer.live() for layer in self._layers]
        return [
            (keys[row : row + 1, :, start:].clone(), values[row : row + 1, :, start:].clone()) for keys, values in live
        ]

    def decode(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """As `Rows.decode`."""
        device = self._layers[0].keys.device
        rows = torch.tensor(tokens, device=device), torch.tensor(positions, device=device)
        return self._step(*rows, self._step_mask(), self.cache)

    def _step_mask(self) -> Tensor:
        """Attention mask (B, width + 1) for the next step, its own column included; counts that column as used."""
        self.lengths = [length + 1 for length in self.lengths]
        device = self._layers[0].live()[0].device
        lengths = torch.tensor(self.lengths, device=device)
        columns = torch.arange(self.width, -1, -1, device=device)
        return (columns[None] < lengths[:, None]).long()


def _spacious(like: Tensor, rows: int, width: int) -> Tensor:
    """Zeros for rows of `width` columns and spare ones beyond: no garbage, since a masked NaN still poisons a sum."""
    # Half as much again keeps the copying per token constant.
    return like.new_zeros(rows, like.shape[1], width + max(_SPARE_COLUMNS, width // 2), like.shape[3])


def _longer(full: Tensor, width: int) -> Tensor:
    out = _spacious(full, full.shape[0], width)
    out[..., :width, :] = full[..., :width, :]
    return out


def _chosen(side: Tensor, rows: Sequence[int]) -> Tensor:
    out = _spacious(side, len(rows), side.shape[2])
    for place, row in enumerate(rows):
        out[place, :, : side.shape[2]] = side[row]
    return out


def _aligned(old: Tensor | None, new: Tensor, sources: Sequence[int], lengths: Sequence[int], width: int) -> Tensor:
    rows = 0 if old is None else old.shape[0]
    out = _spacious(new, rows + len(sources), width)
    if old is not None:
        out[:rows, :, width - old.shape[2] : width] = old
    for row, (source, length) in enumerate(zip(sources, lengths, strict=True)):
        out[rows + row, :, width - length : width] = new[source, :, :length]
    return out
