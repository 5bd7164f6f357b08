"""The language model's forward passes by transformers' own code, on any device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache

from covervlm.server.engines.embedded.kv_batch import KVBatch
from covervlm.server.engines.embedded.kv_slots import KVSlots
from covervlm.server.engines.embedded.prefix_cache import Layers, Prefix
from covervlm.server.engines.embedded.runner import Runner
from covervlm.server.engines.embedded.step_graphs import StepGraphs
from covervlm.server.engines.embedded.stepping import Rows
from covervlm.server.models.base import Adapter
from covervlm.server.models.last_layer import read_at


class ModelRunner(Runner):
    """Prompts that are read together are padded on the right, where a causal model never looks."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__(adapter)
        self._batch = self._empty_batch()

    def prefill(
        self,
        prompts: Sequence[tuple[Tensor, Tensor]],
        repeats: Sequence[int],
        prefix: Prefix | None = None,
        *,
        states: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        lengths = [len(embeddings) for embeddings, _ in prompts]
        longest = max(lengths)
        rows = torch.arange(len(prompts), device=prompts[0][0].device)
        ends = torch.tensor(lengths, device=rows.device) - 1
        embeddings = torch.stack([pad(one, (0, 0, 0, longest - len(one))) for one, _ in prompts])
        positions = torch.stack([_padded_positions(one, longest) for _, one in prompts], dim=1)
        cache = DynamicCache()
        known = 0 if prefix is None else prefix.length
        for number, (keys, values) in enumerate(prefix.layers if prefix else ()):
            cache.update(keys[..., :known, :], values[..., :known, :], number)
        model = self._adapter.language_model
        with nullcontext() if states else read_at(model, rows, ends):
            hidden = model(
                inputs_embeds=embeddings,
                position_ids=self._squeezed(positions),
                # All ones: padding is harmless, and an absent mask would make transformers look for packed sequences.
                attention_mask=torch.ones(len(prompts), known + longest, dtype=torch.long, device=rows.device),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        logits = self._logits(hidden[rows, ends])
        self._batch.join(
            [_keys_values(layer) for layer in cache.layers], [known + length for length in lengths], repeats
        )
        return logits, [row[:length] for row, length in zip(hidden, lengths, strict=True)]

    @contextmanager
    def text(self) -> Iterator[Cache]:
        yield DynamicCache()

    def read_on(self, text: Cache, embeddings: Tensor, positions: Tensor) -> Tensor:
        width = text.get_seq_length() + len(embeddings)
        hidden: Tensor = self._adapter.language_model(
            inputs_embeds=embeddings[None],
            position_ids=self._squeezed(positions[:, None]),
            attention_mask=torch.ones(1, width, dtype=torch.long, device=embeddings.device),
            past_key_values=text,
            use_cache=True,
        ).last_hidden_state[0]
        hidden[-1, 0].item()  # waits for a GPU, whose queue would otherwise hold many pieces before a newcomer's
        return hidden

    def decode(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        return self._batch.decode(tokens, positions)

    def _step(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        hidden = self._adapter.language_model(
            inputs_embeds=self._adapter.embeddings(tokens[:, None]),
            position_ids=self._squeezed(positions[:, None].expand(self._adapter.position_axes, -1, -1)),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return self._logits(hidden[:, -1])

    def probe(self) -> None:
        device = self._adapter.embeddings.weight.device
        hidden = self._adapter.language_model(
            inputs_embeds=self._adapter.embeddings(torch.zeros(1, 1, dtype=torch.long, device=device)),
            position_ids=self._squeezed(
                torch.zeros(self._adapter.position_axes, 1, 1, dtype=torch.long, device=device)
            ),
            use_cache=False,
        ).last_hidden_state
        self._check(hidden[:, -1])

    def read(self, row: int) -> Layers:
        return self._batch.row(row)

    def keep(self, rows: Sequence[int]) -> None:
        self._batch.keep(rows)

    def reset(self) -> None:
        self._batch = self._empty_batch()

    def _empty_batch(self) -> Rows:
        device = self._adapter.embeddings.weight.device
        if device.type == "cuda" and reads_everything(self._adapter.language_model.config):
            return KVSlots(self._step, StepGraphs(), torch.cuda.get_device_properties(device).total_memory // 8)
        return KVBatch(self._step)

    def _squeezed(self, positions: Tensor) -> Tensor:
        """(axes, B, T) as models take it: without the first dimension where there is one axis."""
        return positions if self._adapter.position_axes > 1 else positions[0]


def _keys_values(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.keys, layer.values


def _padded_positions(positions: Tensor, length: int) -> Tensor:
    """Positions (axes, T) continued by ones to (axes, length), so that padding looks like more of the same text."""
    beyond = torch.arange(1, length - positions.shape[1] + 1, device=positions.device)
    return torch.cat([positions, positions[:, -1:] + beyond], dim=1)


def reads_everything(config: Any) -> bool:
    """Whether all layers read every column by torch's own attention: then a mask of the rows' lengths says it all."""
    windows = getattr(config, "sliding_window", None) is not None
    layers = getattr(config, "layer_types", None) or ["sliding_attention" if windows else "full_attention"]
    return config._attn_implementation == "sdpa" and set(layers) == {"full_attention"}
