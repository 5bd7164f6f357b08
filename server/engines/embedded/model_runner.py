"""The language model's forward passes: prefill of new prompts, and one decoding step of the running batch."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache

from covervlm.server.engines.detokenizer import PromptScores
from covervlm.server.engines.embedded.kv_batch import KVBatch
from covervlm.server.engines.embedded.kv_slots import KVSlots
from covervlm.server.engines.embedded.prefix_cache import Layers, Prefix
from covervlm.server.engines.embedded.step_graphs import StepGraphs
from covervlm.server.engines.embedded.stepping import Rows
from covervlm.server.models.base import Adapter
from covervlm.server.models.last_layer import read_at

_LOGITS = 2**24
"""Logits of prompt tokens that are held at a time."""


class ModelRunner:
    """Runs the model on tensors; which rows run, and what becomes of their logits, is decided elsewhere."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._batch = self._empty_batch()

    def prefill(
        self,
        prompts: Sequence[tuple[Tensor, Tensor]],
        repeats: Sequence[int],
        prefix: Prefix | None = None,
        *,
        states: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """Read prompts together and add prompt i to the batch repeats[i] times.

        prompts: embeddings (T, d) and positions (axes, T) of each. They are padded on the right, where a causal model
        never looks. prefix: what was read before, which the only prompt continues. Returns the logits after each,
        (len(prompts), V) float32, and where `states` asks for them the hidden states (T, d) of each, which `scores`
        reads; else only the last of them are right.
        """
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

    def read_on(self, cache: Cache, embeddings: Tensor, positions: Tensor) -> Tensor:
        """Read the next T tokens of a text that stands apart from the batch, and add them to its cache.

        embeddings (T, d), positions (axes, T). Returns their hidden states (T, d), computed when this returns.
        """
        width = cache.get_seq_length() + len(embeddings)
        hidden = self._adapter.language_model(
            inputs_embeds=embeddings[None],
            position_ids=self._squeezed(positions[:, None]),
            attention_mask=torch.ones(1, width, dtype=torch.long, device=embeddings.device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0]
        hidden[-1, 0].item()  # waits for a GPU, whose queue would otherwise hold many pieces before a newcomer's
        return hidden

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
        self._batch = self._empty_batch()

    def _empty_batch(self) -> Rows:
        device = self._adapter.embeddings.weight.device
        if device.type == "cuda" and reads_everything(self._adapter.language_model.config):
            return KVSlots(self._step, StepGraphs(), torch.cuda.get_device_properties(device).total_memory // 8)
        return KVBatch(self._step)

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


def reads_everything(config: Any) -> bool:
    """Whether all layers read every column by torch's own attention: then a mask of the rows' lengths says it all."""
    windows = getattr(config, "sliding_window", None) is not None
    layers = getattr(config, "layer_types", None) or ["sliding_attention" if windows else "full_attention"]
    return config._attn_implementation == "sdpa" and set(layers) == {"full_attention"}
