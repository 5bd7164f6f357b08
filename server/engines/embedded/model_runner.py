"""The language model's forward passes: prefill of new prompts, and one decoding step of the running batch.

Keys and values of the batch are aligned at their right end: a row of length L occupies the last L columns, and the
columns to its left are masked. Positions are explicit, so where a row stands changes nothing in its numbers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from covervlm.server.engines.detokenizer import PromptScores
from covervlm.server.engines.embedded.prefix_cache import Layers, Prefix
from covervlm.server.models.base import Adapter

_SPARE_COLUMNS = 64
_LOGITS = 2**24
"""Logits of prompt tokens that are held at a time."""


class ModelRunner:
    """Runs the model on tensors; which rows run, and what becomes of their logits, is decided elsewhere."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._batch = KVBatch()

    def prefill(
        self, prompts: Sequence[tuple[Tensor, Tensor]], repeats: Sequence[int], prefix: Prefix | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Read prompts together and add prompt i to the batch repeats[i] times.

        prompts: embeddings (T, d) and positions (axes, T) of each. They are padded on the right, where a causal model
        never looks. prefix: what the only prompt goes on behind, which was read before. Returns the logits after each,
        (len(prompts), V) float32, and the hidden states (T, d) of each, which `scores` reads.
        """
        lengths = [len(embeddings) for embeddings, _ in prompts]
        longest = max(lengths)
        embeddings = torch.stack([pad(one, (0, 0, 0, longest - len(one))) for one, _ in prompts])
        positions = torch.stack([_padded_positions(one, longest) for _, one in prompts], dim=1)
        cache = DynamicCache()
        known = 0 if prefix is None else prefix.length
        for number, (keys, values) in enumerate(prefix.layers if prefix else ()):
            cache.update(keys[..., :known, :], values[..., :known, :], number)
        hidden = self._adapter.language_model(
            inputs_embeds=embeddings,
            position_ids=self._squeezed(positions),
            # All ones: padding is harmless, and an absent mask would make transformers look for packed sequences.
            attention_mask=torch.ones(len(prompts), known + longest, dtype=torch.long, device=embeddings.device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        rows = torch.arange(len(prompts), device=hidden.device)
        logits = self._logits(hidden[rows, torch.tensor(lengths, device=hidden.device) - 1])
        self._batch.join(
            [_keys_values(layer) for layer in cache.layers], [known + length for length in lengths], repeats
        )
        return logits, [row[:length] for row, length in zip(hidden, lengths, strict=True)]

    def scores(self, hidden: Tensor, ids: Sequence[int], top: int) -> PromptScores:
        """How likely the model finds a prompt's tokens, given hidden states (T, d) and its T ids.

        The logits of a long prompt would take gigabytes, so they are made for some tokens at a time.
        """
        targets = torch.tensor(ids[1:], device=hidden.device)[:, None]
        step = max(1, _LOGITS // self._adapter.vocabulary_size)
        scores: tuple[list[Any], ...] = ([], [], [], [])
        for start in range(0, len(targets), step):
            tokens = targets[start : start + step]
            logprobs = self._logits(hidden[start : start + len(tokens)]).log_softmax(-1)
            own = logprobs.gather(1, tokens)
            best = logprobs.topk(min(top, logprobs.shape[1]))
            pieces = own[:, 0], (logprobs >= own).sum(1), best.indices, best.values
            for column, piece in zip(scores, pieces, strict=True):
                column += piece.tolist()
        return PromptScores(*scores)

    def decode(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Feed every row of the batch its last token at its position; logits (rows, V) float32."""
        device = self._adapter.embeddings.weight.device
        column = torch.tensor(positions, device=device)[:, None]
        hidden = self._adapter.language_model(
            inputs_embeds=self._adapter.embeddings(torch.tensor(tokens, device=device)[:, None]),
            position_ids=self._squeezed(column.expand(self._adapter.position_axes, -1, -1)),
            attention_mask=self._batch.step_mask(),
            past_key_values=self._batch.cache,
            use_cache=True,
        ).last_hidden_state
        return self._logits(hidden[:, -1])

    def probe(self) -> None:
        """One token through the model, beside the batch. Raises where the model cannot be used any more."""
        device = self._adapter.embeddings.weight.device
        hidden = self._adapter.language_model(
            inputs_embeds=self._adapter.embeddings(torch.zeros(1, 1, dtype=torch.long, device=device)),
            position_ids=self._squeezed(
                torch.zeros(self._adapter.position_axes, 1, 1, dtype=torch.long, device=device)
            ),
            use_cache=False,
        ).last_hidden_state
        if not self._logits(hidden[:, -1]).isfinite().all():
            raise FloatingPointError("the model computes numbers that are not finite")

    def read(self, row: int) -> Layers:
        """A copy of what the layers made of a row's prompt, and of its answer but for the last token."""
        return self._batch.row(row)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows of the batch but these."""
        self._batch.keep(rows)

    def reset(self) -> None:
        """Forget the batch, whatever state a failed pass has left it in."""
        self._batch = KVBatch()

    def _squeezed(self, positions: Tensor) -> Tensor:
        """(axes, B, T) as models take it: without the first dimension where there is one axis."""
        return positions if self._adapter.position_axes > 1 else positions[0]

    def _logits(self, hidden: Tensor) -> Tensor:
        return self._adapter.lm_head(hidden).float()


def _keys_values(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.keys, layer.values


def _padded_positions(positions: Tensor, length: int) -> Tensor:
    """Positions (axes, T) continued by ones to (axes, length), so that padding looks like more of the same text."""
    beyond = torch.arange(1, length - positions.shape[1] + 1, device=positions.device)
    return torch.cat([positions, positions[:, -1:] + beyond], dim=1)


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

    def step_mask(self) -> Tensor:
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
