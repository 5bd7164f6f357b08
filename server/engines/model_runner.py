"""The language model's forward passes: prefill of new prompts, and one decoding step of the running batch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache

from covervlm.server.engines.kv_batch import KVBatch
from covervlm.server.models.base import Adapter, AssembledPrompt


class ModelRunner:
    """Tensors only: which rows run and what becomes of their logits is decided elsewhere."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._batch = KVBatch()

    def prefill(self, prompts: Sequence[AssembledPrompt], repeats: Sequence[int]) -> Tensor:
        """Read prompts together and add prompt i to the batch repeats[i] times; logits (len(prompts), V) float32, CPU.

        Prompts are padded on the right, where a causal model never looks.
        """
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        embeddings = torch.stack([pad(p.embeddings, (0, 0, 0, longest - len(p))) for p in prompts])
        positions = torch.stack([_padded_positions(p.positions, longest) for p in prompts], dim=1)
        cache = DynamicCache()
        hidden = self._adapter.language_model(
            inputs_embeds=embeddings,
            position_ids=self._squeezed(positions),
            # All ones: padding is harmless, and an absent mask would make transformers look for packed sequences.
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        rows = torch.arange(len(prompts), device=hidden.device)
        logits = self._logits(hidden[rows, torch.tensor(lengths, device=hidden.device) - 1])
        self._batch.join([_keys_values(layer) for layer in cache.layers], lengths, repeats)
        return logits

    def decode(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Feed every row of the batch its last token at its position; logits (rows, V) float32, CPU."""
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
        return self._adapter.lm_head(hidden).float().cpu()


def _keys_values(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.keys, layer.values


def _padded_positions(positions: Tensor, length: int) -> Tensor:
    """Positions (axes, T) continued by ones to (axes, length), so that padding looks like more of the same text."""
    beyond = torch.arange(1, length - positions.shape[1] + 1, device=positions.device)
    return torch.cat([positions, positions[:, -1:] + beyond], dim=1)
