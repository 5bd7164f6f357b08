"""What a decoding step is, and what keeps the keys and values of the rows that take it."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor
from transformers.cache_utils import Cache

from covervlm.server.engines.embedded.prefix_cache import Layers

Step = Callable[[Tensor, Tensor, Tensor, Cache], Tensor]
"""Tokens (B,), their positions (B,), an attention mask and the cache, to logits (B, V) float32."""


class Rows(Protocol):
    """The running batch: the keys and values of its rows, in the order in which they joined."""

    def join(self, prefilled: Sequence[tuple[Tensor, Tensor]], lengths: Sequence[int], repeats: Sequence[int]) -> None:
        """Add the rows of a right-padded prefill, row i `repeats[i]` times, each with its first lengths[i] columns.

        prefilled: keys and values (B, H, T, D) of every layer.
        """
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        ...

    def row(self, row: int) -> Layers:
        """A copy of the columns that a row uses."""
        ...

    def decode(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Feed every row its last token at its position; logits (rows, V) float32."""
        ...
