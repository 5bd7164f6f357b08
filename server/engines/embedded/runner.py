"""What runs the language model: it reads prompts, and takes one decoding step for all rows of the running batch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from covervlm.server.engines.detokenizer import PromptScores
from covervlm.server.engines.embedded.prefix_cache import Layers, Prefix
from covervlm.server.models.base import Adapter

_LOGITS = 2**24
"""Logits of prompt tokens that are held at a time."""


class Runner(ABC):
    """Runs the model on tensors; which rows run, and what becomes of their logits, is decided elsewhere."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    @abstractmethod
    def prefill(
        self,
        prompts: Sequence[tuple[Tensor, Tensor]],
        repeats: Sequence[int],
        prefix: Prefix | None = None,
        *,
        states: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """Read prompts together and add prompt i to the batch repeats[i] times.

        prompts: embeddings (T, d) and positions (axes, T) of each. prefix: what was read before, which the only prompt
        continues. Returns the logits after each, (len(prompts), V) float32, and where `states` asks for them the hidden
        states (T, d) of each, which `scores` reads; else nobody may read them.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Feed every row of the batch its last token at its position; logits (rows, V) float32."""

    @abstractmethod
    def read(self, row: int) -> Layers:
        """A copy of what the layers made of a row's prompt, and of its answer but for the last token."""

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows of the batch but these."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the batch, whatever state a failed pass has left it in."""

    @abstractmethod
    def text(self) -> AbstractContextManager[Any]:
        """What is kept of a text that stands apart from the batch, for as long as the context is open."""

    @abstractmethod
    def read_on(self, text: Any, embeddings: Tensor, positions: Tensor) -> Tensor:
        """Read the next T tokens of a text, and add them to what is kept of it.

        embeddings (T, d), positions (axes, T). Returns their hidden states (T, d), computed when this returns.
        """

    @abstractmethod
    def probe(self) -> None:
        """One token through the model, beside the batch. Raises where the model cannot be used any more."""

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

    def _check(self, hidden: Tensor) -> None:
        if not self._logits(hidden).isfinite().all():
            raise FloatingPointError("the model computes numbers that are not finite")

    def _logits(self, hidden: Tensor) -> Tensor:
        return self._adapter.lm_head(hidden).float()
